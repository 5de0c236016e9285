"""Load any model of open_clip without executing what is loaded, and with the activation that its weights need.

OpenAI trained with QuickGELU, x * sigmoid(1.702 x). open_clip's plain names (``ViT-B-32``) build towers with the
exact GELU, and weights do not say which one they were trained with: with the wrong one nothing fails and every number
is lower. So the tag or the file decides on the activation.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from rp_lib.utils.errors import RPLibError, UnknownName

log = logging.getLogger(__name__)
SCHEMAS = ("hf-hub:", "local-dir:")
TWIN = "-quickgelu"
# What OpenAI's own files hold next to the weights.
OPENAI_KEYS = frozenset({"input_resolution", "context_length", "vocab_size"})
REFUSED = {
    "jit": "a scripted model has no towers that programs could act on",
    "weights_only": "weights are never loaded by executing a file",
    "precision": "weights stay float32; `precision` of a method sets that of training",
    "output_dict": "it changes nothing here",
}


@dataclass(frozen=True)
class Backbone:
    """A model as open_clip builds it, and what belongs to it.

    Args:
        model: With ``visual``, a text tower and ``logit_scale``; float32 on the CPU.
        tokenizer: Maps n texts to int64 tokens, shape (n, context length).
        name: Model and weights.
        mean: Of each channel, of images in [0, 1], length 3.
        std: Of each channel, length 3.
        image_size: Side of the square input, pixels.

    Example:
        >>> load_backbone("ViT-B-32", "openai").name  # doctest: +SKIP
        'ViT-B-32-quickgelu/openai'
    """

    model: nn.Module
    tokenizer: Callable[[Sequence[str]], Tensor]
    name: str
    mean: Sequence[float]
    std: Sequence[float]
    image_size: int


def load_backbone(name: str, pretrained: str | Path | None, **options: Any) -> Backbone:
    """Load an open_clip model by name.

    Args:
        name: Of :func:`open_clip.list_models`, or ``hf-hub:ORG/REPO``, or ``local-dir:FOLDER`` with an
            ``open_clip_config.json``; the last two bring their weights along.
        pretrained: Tag or local weight file; None for random weights.
        options: Of ``open_clip.create_model``, such as ``force_image_size=336``.

    Raises:
        UnknownName: open_clip has no such model or tag.
        RPLibError: The weights cannot be fetched or read, would run code, or take images that are not square.
    """
    import open_clip

    for option, reason in REFUSED.items():
        if option in options:
            raise RPLibError(f"the option {option!r} of open_clip is not available: {reason}")
    tag = str(pretrained) if pretrained is not None else None
    if name.startswith(SCHEMAS):
        if tag is not None:
            raise RPLibError(f"{name} brings its own weights; leave out {tag!r}")
        label = Path(name.split(":", 1)[1]).name if name.startswith("local-dir:") else name
        model = _create(name, None, require_pretrained=True, **options)
    else:
        name = name.replace("/", "-")  # OpenAI's spelling, ViT-B/32
        models = open_clip.list_models()
        if name not in models:
            raise UnknownName("open_clip model", name, models)
        if tag is not None and not Path(tag).is_file():
            name, model = _from_tag(name, tag, options)
        elif tag is not None:
            name, model = _from_file(name, Path(tag), options)
        else:
            model = _create(name, None, **options)
        label = f"{name}/{Path(tag).name if tag else 'random'}"
    try:
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # a missing package, hub and network errors have no common base
        raise RPLibError(f"cannot load the tokenizer of {name}: {error}") from error
    visual: Any = model.visual
    mean, std = visual.image_mean or open_clip.OPENAI_DATASET_MEAN, visual.image_std or open_clip.OPENAI_DATASET_STD
    return Backbone(model, tokenizer, label, mean, std, _side(visual.image_size, name))


def _create(name: str, tag: str | None, **options: Any) -> nn.Module:
    import open_clip

    try:
        return open_clip.create_model(name, pretrained=tag, device="cpu", **options)
    except Exception as error:  # hub, network and file errors have no common base
        advice = "pass a local checkpoint file as `pretrained`"
        raise RPLibError(f"cannot load {name} / {tag}: {error}. Without a network {advice}") from error


def _from_tag(name: str, tag: str, options: dict[str, Any]) -> tuple[str, nn.Module]:
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags:
        raise UnknownName(f"pretrained tag or weight file for {name}", tag, tags)
    about = open_clip.get_pretrained_cfg(name, tag) or {}
    if tag == "openai" or about.get("quick_gelu"):
        name, options = _with_quick_gelu(name, f"the tag {tag!r}", options)
    return name, _create(name, tag, require_pretrained=True, **options)


def _from_file(name: str, path: Path, options: dict[str, Any]) -> tuple[str, nn.Module]:
    """A model with the weights of a local file; OpenAI's are known by what they hold next to the weights."""
    import open_clip
    from open_clip.factory import load_state_dict
    from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed

    if _runs_code(path):
        raise RPLibError(
            f"{path} is a TorchScript archive, as OpenAI's own downloads are: opening one runs code that it contains. "
            'Take the weights as safetensors (tag "openai"), or, if you trust the file, convert it once: '
            f"torch.save(torch.jit.load('{path.name}', map_location='cpu').state_dict(), 'weights.pt')"
        )
    if _keys(path) >= OPENAI_KEYS:
        name, options = _with_quick_gelu(name, f"the file {path.name}", options)
        model = _create(name, None, **options)
        state = {k: v.float() for k, v in load_state_dict(str(path)).items() if k not in OPENAI_KEYS}
        try:
            if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
                state = convert_to_custom_text_state_dict(state)
            resize_pos_embed(state, model)
            model.load_state_dict(state)
        except Exception as error:
            raise RPLibError(f"the weights of {path} are not those of {name}: {error}") from error
        return name, model
    model = _create(name, str(path), require_pretrained=True, **options)
    if f"{name}{TWIN}" in open_clip.list_models() and not options.get("force_quick_gelu") and _half_precise(model):
        log.warning(
            "every weight in %s is a number of half precision, as in OpenAI's releases. If it is one of them, load "
            "%s%s instead: it was trained with QuickGELU, and with plain GELU every number is silently lower",
            path.name, name, TWIN,
        )  # fmt: skip
    return name, model


def _with_quick_gelu(name: str, what: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and options that build ``name`` with QuickGELU."""
    import open_clip

    if name.endswith(TWIN) or (open_clip.get_model_config(name) or {}).get("quick_gelu"):
        return name, options
    twin = f"{name}{TWIN}"
    if twin in open_clip.list_models():
        log.warning("%s was trained with QuickGELU, which %s has not: loading %s", what, name, twin)
        return twin, options
    log.warning("%s was trained with QuickGELU, which %s has not: switching it on", what, name)
    return name, {**options, "force_quick_gelu": True}


def _runs_code(path: Path) -> bool:
    """Whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name or name.endswith("/constants.pkl") for name in archive.namelist())


def _keys(path: Path) -> frozenset[str]:
    """Names of the tensors in a weight file; empty if it cannot be read, which loading it will explain."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return frozenset(file.keys())
        # Mapped, not read: the names alone are wanted.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        return frozenset(state.get("state_dict", state)) if isinstance(state, dict) else frozenset()
    except Exception:
        return frozenset()


@torch.no_grad()
def _half_precise(model: nn.Module) -> bool:
    """Whether every weight matrix of the image tower holds numbers of half precision."""
    matrices = [p for p in model.visual.parameters() if p.ndim > 1]
    return all(bool((p == p.half().float()).all()) for p in matrices)


def _side(size: int | Sequence[int], name: str) -> int:
    if not isinstance(size, Sequence):
        return int(size)
    height, width = size
    if height != width:
        raise RPLibError(f"{name} takes images of {height} x {width} pixels; only square inputs are supported")
    return int(height)
