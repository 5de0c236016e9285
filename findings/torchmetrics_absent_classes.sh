#!/usr/bin/env bash
# torchmetrics 1.9.0: the accuracy of a 1,000-class model on a set of 200 classes is not its share of right answers.
#
# One would guess: `MulticlassAccuracy(num_classes=1000)` and `Accuracy(task="multiclass", num_classes=1000)` are the same
# metric; on ImageNet-R or -A, which hold 200 of the 1,000 classes, both give the share of right answers.
#
# What happens: the class averages over classes by default ("macro"), the function-like `Accuracy` over pictures
# ("micro"). The average over classes counts a class that the set does not hold as accuracy 0 as soon as one picture is
# taken for it, and leaves it out otherwise. 80 % right answers become 44 % where the errors fall on absent classes.
# What helps: `average="micro"`, or restrict the logits to the 200 classes first.
#
# Seen:
#   torchmetrics 1.9.0
#   errors among absent classes: 80.0% right, MulticlassAccuracy 44.4%, Accuracy 80.0%
#   errors among the set's classes: 80.0% right, MulticlassAccuracy 80.0%, Accuracy 80.0%
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --only-binary :all: torchmetrics==1.9.0 torch==2.14.1 numpy==2.4.6 2>/dev/null
"$work/venv/bin/python" - <<'PY'
import torch
import torchmetrics
from torchmetrics import Accuracy
from torchmetrics.classification import MulticlassAccuracy

print("torchmetrics", torchmetrics.__version__)
labels = torch.arange(200).repeat_interleave(30)  # classes 0 to 199 of 1,000
wrong = torch.arange(len(labels)) % 5 == 0  # six of each class's thirty
spread = torch.where(wrong, 200 + torch.arange(len(labels)) % 800, labels)  # errors among the 800 absent classes
inside = torch.where(wrong, (labels + 1) % 200, labels)  # errors among the 200 that are there
for name, answers in (("errors among absent classes", spread), ("errors among the set's classes", inside)):
    share = (answers == labels).float().mean()
    default = MulticlassAccuracy(num_classes=1000)(answers, labels)
    task = Accuracy(task="multiclass", num_classes=1000)(answers, labels)
    print(f"{name}: {share:.1%} right, MulticlassAccuracy {default:.1%}, Accuracy {task:.1%}")
    assert abs(task - share) < 1e-6
    assert (abs(default - share) < 1e-6) == (name == "errors among the set's classes"), "the behaviour has changed"
    if answers is spread:
        assert default < 0.5, "the behaviour has changed"
PY
