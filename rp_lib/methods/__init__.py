"""Methods of adapting CLIP, all behind :class:`~rp_lib.methods.base.Method`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from rp_lib.clip import FrozenCLIP
from rp_lib.config import RPConfig
from rp_lib.methods.base import Method, read_saved
from rp_lib.methods.baselines.adapters import CLAP, TaskRes, TipAdapter, TipAdapterF, ZeroShotProbe
from rp_lib.methods.baselines.attributes import AttrVR
from rp_lib.methods.baselines.clip_lora import CLIPLoRA
from rp_lib.methods.baselines.deep_prompts import DeepPrompts
from rp_lib.methods.baselines.ensembles import LogitEnsemble, WiSEFT
from rp_lib.methods.baselines.fine_tuning import L2SP, LPFT, LipsumFT
from rp_lib.methods.baselines.flyp import FLYP
from rp_lib.methods.baselines.locoop import LoCoOp
from rp_lib.methods.baselines.prompts import CoOp
from rp_lib.methods.fine_tune import FineTune
from rp_lib.methods.linear_probe import LinearProbe
from rp_lib.methods.reprogrammer import ImageReprogrammer, Reprogrammer, ResidualReprogrammer, TextReprogrammer
from rp_lib.methods.zero_shot import ZeroShot
from rp_lib.mini.weights import load_clip
from rp_lib.utils.errors import RPLibError, UnknownName
from rp_lib.utils.preparation import Preparation

METHODS: dict[str, type[Method]] = {
    m.name: m
    for m in (
        ZeroShot, LinearProbe, FineTune, L2SP, LPFT, LipsumFT, WiSEFT, FLYP, CLIPLoRA, LogitEnsemble,
        CoOp, LoCoOp, DeepPrompts, ZeroShotProbe, TaskRes, CLAP, TipAdapter, TipAdapterF,
        ImageReprogrammer, AttrVR, TextReprogrammer, Reprogrammer, ResidualReprogrammer,
    )
}  # fmt: skip

# Methods with a free ``alpha``, the share of zero-shot, and the method whose training each of them shares:
# ``METHODS[name](base, alpha)`` makes one of its fitted base, ``.with_alpha(alpha)`` moves it.
BASES: dict[str, str] = {"wise-ft": "fine-tune", "logit-ensemble": "fine-tune", "rrp": "rp"}


def build_method(
    name: str,
    clip: FrozenCLIP,
    class_names: Sequence[str],
    templates: Sequence[str],
    settings: dict[str, Any] | None = None,
) -> Method:
    """Build a method by name, not yet fitted.

    Args:
        name: Of :data:`METHODS`.
        clip: The frozen backbone.
        class_names: The task's C classes.
        templates: Prompts with one ``{}``.
        settings: As :meth:`Method.get_params` returns them. ``seed`` and ``precision``, which belong to a run and not
            to a method, are left out where the method has no use for them.

    Raises:
        UnknownName: No such method.
    """
    if name not in METHODS:
        raise UnknownName("method", name, METHODS)
    settings = dict(settings or {})
    if name in BASES:
        alpha = settings.pop("alpha", None)
        base = build_method(BASES[name], clip, class_names, templates, settings)
        return METHODS[name](base) if alpha is None else METHODS[name](base, alpha)
    if isinstance(settings.get("config"), dict):
        settings["config"] = RPConfig().changed(**settings["config"])
    for key in {"seed", "precision"}.difference(METHODS[name].parameter_names()):
        settings.pop(key, None)
    return METHODS[name](clip, class_names, templates, **settings)


def made_of(method: Method, fitted: Iterable[Method], trained_on: str) -> Method | None:
    """The same mixture with the training of a method that is fitted already, or None if none of them fits.

    Args:
        method: of a name in :data:`BASES`, not fitted. fitted: candidates. trained_on: fingerprint of the images.
    """
    for base in fitted:
        same = base.name == BASES.get(method.name) and base.trained_on == trained_on
        if same and _apart_from_alpha(base.get_params()) == _apart_from_alpha(method.get_params()):
            return METHODS[method.name](base, method.alpha)
    return None


def _apart_from_alpha(settings: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in settings.items() if key != "alpha"}
    return kept | {"config": kept["config"].changed(alpha=0.0)} if "config" in kept else kept


def load_method(
    path: str | Path,
    clip: FrozenCLIP | None = None,
    class_names: Sequence[str] | None = None,
    *,
    device: torch.device | str = "cpu",
) -> Method:
    """Load what :meth:`Method.save` wrote.

    Args:
        path: The file.
        clip: The backbone that it was trained for; None loads the one that the file names.
        class_names: If given, must equal the saved ones, in order.
        device: Where a backbone that is loaded here computes.

    Raises:
        StorageError: A missing or damaged file.
        RPLibError: Another backbone or other classes, a backbone that the file does not name, or a method that was
            never fitted.
    """
    tensors, meta = read_saved(path, clip, class_names)
    if clip is None:
        clip = _backbone_of(path, meta, device)
    method = build_method(meta["method"], clip, meta["class_names"], meta["templates"], meta["settings"])
    method.load_state_dict({name: t.to(clip.device) for name, t in tensors.items()})
    method.trained_on = meta["trained_on"]
    method.preparation = Preparation(**meta.get("preparation", asdict(clip.preparation)))
    return method


def _backbone_of(path: str | Path, meta: dict[str, Any], device: torch.device | str) -> FrozenCLIP:
    """Load the backbone that a saved method names, and make sure that it is the very one."""
    source = meta.get("backbone_source")
    if source is None:
        raise RPLibError(f"{path} does not say how its backbone {meta['backbone']!r} is loaded: pass it as `clip`")
    clip = load_clip(source["mini"], device) if "mini" in source else FrozenCLIP.open_clip(**source, device=device)
    if clip.fingerprint != meta["backbone_sha256"]:
        raise RPLibError(f"{meta['backbone']!r} is not what it was when {path} was trained; pass that one as `clip`")
    return clip


__all__ = [
    "BASES", "CLAP", "FLYP", "L2SP", "LPFT", "METHODS", "AttrVR", "CLIPLoRA", "CoOp", "DeepPrompts", "FineTune",
    "ImageReprogrammer", "LinearProbe", "LipsumFT", "LoCoOp", "LogitEnsemble", "Method", "Reprogrammer",
    "ResidualReprogrammer", "TaskRes", "TextReprogrammer", "TipAdapter", "TipAdapterF", "WiSEFT", "ZeroShot",
    "ZeroShotProbe", "build_method", "load_method", "made_of",
]  # fmt: skip
