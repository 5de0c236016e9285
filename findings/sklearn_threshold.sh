#!/usr/bin/env bash
# scikit-learn 1.9.1: the threshold that `roc_curve` gives for a true positive rate of 95 % can keep 100 %.
#
# One would guess: `fpr, tpr, thresholds = roc_curve(y, score)` lists every threshold, so that
# `thresholds[np.argmax(tpr >= 0.95)]` is the strictest one that keeps 95 % of the known pictures. (That line
# is how the threshold of an OOD detector is commonly set.)
#
# What happens: by default (`drop_intermediate=True`) points on a straight piece of the curve are left out. Where known
# and unknown pictures are far apart the curve is one straight line up: 0 %, 0.1 %, 100 %. The line above then picks the
# lowest score of all known pictures. The curve's FPR95 is unharmed, but the same threshold, used on harder
# unknown pictures, lets many more of them pass.
# What helps: `roc_curve(..., drop_intermediate=False)`, or a quantile of the known pictures' scores.
#
# Seen:
#   scikit-learn 1.9.1
#   default: 4 points, threshold 2.10 keeps 100.0 % of the known and lets 80.8 % of harder unknown pass
#   drop_intermediate=False: 2001 points, threshold 4.44 keeps 95.0 % of the known and lets 7.5 % of harder unknown pass
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --only-binary :all: scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import numpy as np
import sklearn
from sklearn.metrics import roc_curve

print("scikit-learn", sklearn.__version__)
rng = np.random.default_rng(0)
known = rng.normal(6, 1, 1000)
far = rng.normal(-6, 1, 1000)  # unknown pictures to choose the threshold with: easy
harder = rng.normal(3, 1, 1000)  # unknown pictures that come later
y = np.r_[np.ones(1000), np.zeros(1000)]
score = np.r_[known, far]
kept = {}
for name, settings in (("default", {}), ("drop_intermediate=False", {"drop_intermediate": False})):
    fpr, tpr, thresholds = roc_curve(y, score, **settings)
    threshold = thresholds[np.argmax(tpr >= 0.95)]
    kept[name] = (known >= threshold).mean(), (harder >= threshold).mean()
    print(f"{name}: {len(fpr)} points, threshold {threshold:.2f} keeps {kept[name][0]:.1%} of the known "
          f"and lets {kept[name][1]:.1%} of harder unknown pass".replace("%", " %"))
assert kept["default"][0] == 1 and kept["drop_intermediate=False"][0] == 0.95, "the behaviour has changed"
assert kept["default"][1] > 4 * kept["drop_intermediate=False"][1]
EOF
