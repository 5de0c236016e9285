"""Two tracks, one code path: ``mini`` runs offline on a laptop, ``full`` is the paper's setting on a GPU.

Notebooks and the command line ask for a track and go on with what they get: a frozen CLIP, a benchmark, and
hyper-parameters by method. ``RP_TRACK=full`` in the environment switches.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rp_lib.benchmark import Benchmark
from rp_lib.clip import FrozenCLIP
from rp_lib.device import pick_device
from rp_lib.errors import UnknownName

TRACKS = ("mini", "full")


@dataclass(frozen=True, eq=False)
class Track:
    """What a notebook or a run works with.

    Attributes:
        name: ``mini`` or ``full``. clip: frozen backbone on ``device``. data: benchmark.
        settings: keyword arguments of every method, by its name, as :func:`rp_lib.build_method` takes them.
    """

    name: str
    clip: FrozenCLIP
    data: Benchmark
    settings: Mapping[str, dict[str, Any]]
    device: torch.device

    @property
    def task(self) -> tuple[FrozenCLIP, tuple[str, ...], tuple[str, ...]]:
        """What every method is built from: backbone, class names, prompt templates."""
        return self.clip, self.data.class_names, self.data.templates


def open_track(name: str | None = None, device: str = "auto") -> Track:
    """The track of this name, else of ``$RP_TRACK``, else ``mini``.

    Raises:
        UnknownName: no such track.
    """
    from rp_lib.demo import tuned_settings

    name = name or os.environ.get("RP_TRACK") or "mini"
    if name not in TRACKS:
        raise UnknownName("track", name, TRACKS)
    where = pick_device(device)
    if name == "mini":
        return Track(name, FrozenCLIP.mini(device=where), Benchmark.mini(), tuned_settings(), where)
    raise UnknownName("track", name, ("mini",))
