#!/usr/bin/env bash
# faiss-cpu 1.15.1: an inverted index with its default settings finds fewer than k neighbours and fills the rest up.
#
# One would guess: an approximate index may return neighbours that are not quite the nearest, but always k of them; the
# distance to the 50th neighbour, the OOD score of "Out-of-distribution detection with deep nearest neighbors", is then
# a little too large.
#
# What happens: `IndexIVFFlat` looks into one cell (`nprobe` = 1). Where the cell holds fewer than k points, the missing
# neighbours have index -1 and the distance 3.4e38 (-3.4e38 for inner products). The score of familiar pictures is then
# that of the strangest, the mean is infinite, and `labels[indices]` takes the last training label for each -1. No warning.
# What helps: raise `nprobe`, and check `(indices >= 0).all()`.
#
# Seen:
#   faiss 1.15.1
#   nprobe by default: 1
#   nprobe 1: 45% of the training pictures lack some of 50 neighbours, largest distance 3.4e+38
#   nprobe 16: 0% of the training pictures lack some of 50 neighbours, largest distance 1.9
#   exact index: largest distance 1.9
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --only-binary :all: faiss-cpu==1.15.1 numpy==2.4.6 2>/dev/null
"$work/venv/bin/python" - <<'PY'
import faiss
import numpy as np

print("faiss", faiss.__version__)
rng = np.random.default_rng(0)
# Forty training pictures of each of 20 classes, alike within a class.
train = (rng.normal(size=(20, 1, 512)) + rng.normal(size=(20, 40, 512))).reshape(800, 512).astype(np.float32)
train /= np.linalg.norm(train, axis=1, keepdims=True)
index = faiss.IndexIVFFlat(faiss.IndexFlatL2(512), 512, 16)
index.train(train)
index.add(train)
exact = faiss.IndexFlatL2(512)
exact.add(train)
print("nprobe by default:", index.nprobe)
true, _ = exact.search(train, 50)
for nprobe in (1, 16):
    index.nprobe = nprobe
    distances, indices = index.search(train, 50)
    missing = (indices == -1).any(axis=1).mean()
    print(f"nprobe {nprobe}: {missing:.0%} of the training pictures lack some of 50 neighbours, largest distance {distances.max():.2g}")
    if nprobe == 1:
        assert missing > 0.1 and distances.max() > 3e38, "the behaviour has changed"
    else:
        assert missing == 0 and np.allclose(distances, true, atol=1e-4), "the behaviour has changed"
print(f"exact index: largest distance {true.max():.2g}")
PY
