#!/usr/bin/env bash
# safetensors 0.8.0: a dictionary comes back in another order.
#
# One would guess: `load_file` gives the tensors in the order in which `save_file` got them, as JSON, pickle and
# `torch.save` do.
#
# What happens: the file, and the dictionary read from it, are ordered by data type (wider ones first) and then by name as
# text: "10" comes before "2". Prototypes of classes saved by name and stacked with `np.stack(list(loaded.values()))`
# are rows of the wrong classes, of the right shape.
# What helps: stack in the order of one's own list of names, `[loaded[name] for name in names]`.
#
# Seen:
#   safetensors 0.8.0
#   saved:  ['tench', 'goldfish', 'hammerhead', 'hen', 'ostrich', 'brambling']
#   loaded: ['brambling', 'goldfish', 'hammerhead', 'hen', 'ostrich', 'tench']
#   right answers with the rows as loaded: 67 %, by name: 100 %
#   ['0', ..., '11'] loaded: ['0', '1', '10', '11', '2', '3', '4', '5', '6', '7', '8', '9']
#   float16 "a" and float64 "b" loaded: ['b', 'a']
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --only-binary :all: safetensors==0.8.0 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import tempfile
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

print("safetensors", safetensors.__version__)
folder = tempfile.TemporaryDirectory()


def round_trip(tensors):
    """Save and load a dictionary of tensors."""
    path = Path(folder.name, "prototypes.safetensors")
    save_file(tensors, path)
    return load_file(path)


names = ["tench", "goldfish", "hammerhead", "hen", "ostrich", "brambling"]
images = np.eye(6, dtype=np.float32)  # one picture a class, its feature the prototype of the class
loaded = round_trip(dict(zip(names, images)))
print("saved: ", names)
print("loaded:", list(loaded))
assert list(loaded) == sorted(names), "the behaviour has changed"
as_loaded = np.stack(list(loaded.values()))
by_name = np.stack([loaded[name] for name in names])
right, wanted = (((images @ rows.T).argmax(1) == np.arange(6)).mean() for rows in (as_loaded, by_name))
print(f"right answers with the rows as loaded: {100 * right:.0f} %, by name: {100 * wanted:.0f} %")
assert right < 1 and wanted == 1, "the behaviour has changed"
order = list(round_trip({str(i): np.ones(1) for i in range(12)}))
print("['0', ..., '11'] loaded:", order)
assert order == sorted(order) and order[2] == "10", "the behaviour has changed"
order = list(round_trip({"a": np.ones(1, np.float16), "b": np.ones(1, np.float64)}))
print('float16 "a" and float64 "b" loaded:', order)
assert order == ["b", "a"], "the behaviour has changed"
EOF
