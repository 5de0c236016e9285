"""Made-up photos whose colour says which class they show, in the file layouts of the published data sets."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rp_lib.clip import FrozenCLIP
from rp_lib.data.download import Note
from rp_lib.methods import Method

STEP, LOW = 22, 20


def colour(number: int) -> tuple[int, int, int]:
    """One of 1000 colours, far enough apart for JPEG; -1 is black, which is none of them."""
    return (0, 0, 0) if number < 0 else tuple(LOW + STEP * (number // p % 10) for p in (100, 10, 1))


def block(number: int, side: int) -> np.ndarray:
    """uint8 (side, side, 3) of one colour."""
    return np.broadcast_to(np.array(colour(number), np.uint8), (side, side, 3)).copy()


def jpeg(number: int, side: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(block(number, side)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def note(root: Path, name: str) -> Path:
    """Say that ``root/name`` is whole, as a finished download does."""
    (root / name).mkdir(parents=True, exist_ok=True)
    Note(name, 0, 0).write(root / name)
    return root / name


class Seer(Method):
    """Reads the class off the colour. ``shadow`` is a class that it puts before the right one."""

    name = "seer"

    def __init__(self, class_names, templates=("{}",), shadow=None):
        clip = object.__new__(FrozenCLIP)  # without weights
        vars(clip).update(logit_scale=100.0, name="seer", fingerprint="0", source=None, check_prompts=lambda *prompts: 0)
        super().__init__(clip, class_names, templates)
        self.shadow = shadow

    def fit(self, train_set, val=None, **kwargs):
        return self

    @property
    def encoders(self):
        return (self,)

    def encode(self, images):
        colours = images.float().mean((2, 3))
        digits = ((colours - LOW) / STEP).round().long()
        numbers = (digits * torch.tensor([100, 10, 1])).sum(1)
        features = torch.zeros(len(images), len(self.class_names))
        known = (digits >= 0).all(1) & (numbers < len(self.class_names))
        features[known, numbers[known]] = 1.0
        if self.shadow is not None:
            features[:, self.shadow] = 2.0
        return features

    def head(self, features):
        return 100.0 * features

    def state_dict(self):
        return {}

    def load_state_dict(self, tensors):
        pass


def python2_batch(pixels: np.ndarray, labels: list[int]) -> bytes:
    """A pickle as CIFAR-10's authors wrote theirs with Python 2: protocol 2, byte strings, numpy's old module names.

    Args:
        pixels: uint8 (n, 32, 32, 3). labels: n.
    """

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value

    def number(value: int) -> bytes:
        return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)

    rows = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).reshape(len(pixels), 3072)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b") + b"\x87R"
    )
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + number(0) + number(1) + b"\x87R"
    dtype += b"(" + number(3) + text(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2 + number(0) + b"tb"
    shape = number(len(pixels)) + number(3072) + b"\x86"
    array += b"(" + number(1) + shape + dtype + b"\x89" + text(rows.tobytes()) + b"tb"
    listed = b"](" + b"".join(map(number, labels)) + b"e"
    items = text(b"batch_label") + text(b"training batch 1 of 5") + text(b"labels") + listed + text(b"data") + array
    return b"\x80\x02}(" + items + text(b"filenames") + b"]" + b"u."
