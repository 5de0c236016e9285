"""Load any model of open_clip without executing what is loaded, and with the activation that its weights need.

OpenAI trained with QuickGELU, x * sigmoid(1.702 x). open_clip's plain names (``ViT-B-32``) build towers with the
exact GELU, and weights do not say which one they were trained with: with the wrong one nothing fails and every number
is lower. So the tag or the file decides on the activation.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rp_lib.utils.errors import RPLibError, UnknownName
from rp_lib.utils.preparation import INTERPOLATIONS, RESIZE_MODES, Preparation

log = logging.getLogger(__name__)
SCHEMAS = ("hf-hub:", "local-dir:")
TWIN = "-quickgelu"
# Pixels that weights were trained with where open_clip's configuration says others and no weight tells.
TRAINED_SIZES = {"ViTamin-XL-384": 384}
# What OpenAI's own files hold next to the weights.
OPENAI_KEYS = frozenset({"input_resolution", "context_length", "vocab_size"})
# What training programs put before every name: DistributedDataParallel, torch.compile, Lightning, and own classes.
WRAPPERS = frozenset({"module", "_orig_mod", "model", "clip", "clip_model", "net"})
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
        preparation: Size of the input, and how pictures become it.

    Example:
        >>> load_backbone("ViT-B-32", "openai").name  # doctest: +SKIP
        'ViT-B-32-quickgelu/openai'
    """

    model: nn.Module
    tokenizer: Callable[[Sequence[str]], Tensor]
    name: str
    mean: Sequence[float]
    std: Sequence[float]
    preparation: Preparation


def load_backbone(name: str, pretrained: str | Path | None, **options: Any) -> Backbone:
    """Load an open_clip model by name.

    Args:
        name: Of :func:`open_clip.list_models`, or ``hf-hub:ORG/REPO``, or ``local-dir:FOLDER`` with an
            ``open_clip_config.json``; the last two bring their weights along.
        pretrained: Tag or local weight file; None for random weights.
        options: Of ``open_clip.create_model``, such as ``force_image_size=336``.

    Raises:
        UnknownName: open_clip has no such model or tag.
        RPLibError: The weights cannot be fetched or read, or would run code.
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
        _check_packages(name)
        if name in TRAINED_SIZES:
            options = {"force_image_size": TRAINED_SIZES[name], **options}
        if tag is not None and not Path(tag).is_file():
            name, model = _from_tag(name, tag, options)
        elif tag is not None:
            name, model = _from_file(name, Path(tag), options)
        else:
            model = _create(name, None, **options)
        label = f"{name}/{Path(tag).name if tag else 'random'}"
    try:
        tokenizer = open_clip.get_tokenizer(name, context_length=options.get("force_context_length"))
    except Exception as error:  # a missing package, hub and network errors have no common base
        raise RPLibError(f"cannot load the tokenizer of {name}: {error}") from error
    visual: Any = model.visual
    mean, std = visual.image_mean or open_clip.OPENAI_DATASET_MEAN, visual.image_std or open_clip.OPENAI_DATASET_STD
    return Backbone(model, tokenizer, label, mean, std, _preparation(model, name))


def _check_packages(name: str) -> None:
    """Raise at once, not behind a download of weights, if an architecture's texts need a package that is not there."""
    import open_clip

    text = open_clip.get_model_config(name)["text_cfg"]
    needed = text.get("hf_model_name") or text.get("hf_tokenizer_name")
    if needed and importlib.util.find_spec("transformers") is None:
        raise RPLibError(
            f"{name} reads texts as {needed} does, which needs the package transformers: "
            "pip install 'rp-lib[hugging-face]'"
        )


def _preparation(model: nn.Module, name: str) -> Preparation:
    """Return what the weights were trained with, as far as it is done here; warn of what is not."""
    from open_clip.model import get_model_preprocess_cfg

    visual: Any = model.visual
    known = get_model_preprocess_cfg(model)
    interpolation, mode = known.get("interpolation", "bicubic"), known.get("resize_mode", "shortest")
    if interpolation not in INTERPOLATIONS or mode not in RESIZE_MODES:
        log.warning(
            "%s was trained with the interpolation %r and the resize mode %r; pictures are resized %s instead", name,
            interpolation, mode, Preparation(),
        )  # fmt: skip
        interpolation, mode = "bicubic", "shortest"
    return Preparation(visual.image_size, interpolation, mode)


def _published(name: str, path: Path) -> dict[str, dict[str, Any]]:
    """Return what is known of the weights that a local file may hold, by tag.

    A configuration next to the file decides; then a tag that its name holds; else all published weights of the
    architecture come into question.
    """
    import open_clip

    config = path.with_name("open_clip_config.json")
    if config.is_file():
        try:
            about = json.loads(config.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RPLibError(f"{config} is no JSON ({error}): mend it, or move {path.name} elsewhere") from error
        quick = about.get("model_cfg", {}).get("quick_gelu")
        return {config.name: {**about.get("preprocess_cfg", {}), "quick_gelu": quick}}
    tags = open_clip.list_pretrained_tags_by_model(name)
    named = max((tag for tag in tags if tag in path.name), key=len, default=None)
    return {tag: open_clip.get_pretrained_cfg(name, tag) or {} for tag in (tags if named is None else [named])}


def _prepare_as_published(model: nn.Module, name: str, path: Path) -> None:
    """Give a model that was filled from a local file the preparation that its weights were published with."""
    from open_clip.model import get_model_preprocess_cfg, set_model_preprocess_cfg

    found: dict[str, list[str]] = {}
    for tag, about in _published(name, path).items():
        keys = ("mean", "std", "interpolation", "resize_mode")
        found.setdefault(json.dumps({key: about[key] for key in keys if about.get(key)}), []).append(tag)
    if len(found) == 1:
        set_model_preprocess_cfg(model, {**get_model_preprocess_cfg(model), **json.loads(next(iter(found)))})
        return
    known = "; ".join(f"{', '.join(of)}: {what}" for what, of in found.items())
    log.warning(
        "%s, and the name of %s does not say which: OpenAI's mean and deviation are used. For others pass "
        "force_preprocess_cfg={'mean': ..., 'std': ...}",
        f"published weights of {name} take different pictures ({known})" if found
        else f"no weights of {name} are published that would say how its pictures are prepared", path.name,
    )  # fmt: skip


def _activations(name: str, path: Path, options: Mapping[str, Any]) -> dict[bool, list[str]]:
    """Return the tags whose weights a local file may hold, by whether they need QuickGELU; empty if that was said."""
    import open_clip

    config = open_clip.get_model_config(name) or {}
    if "force_quick_gelu" in options or name.endswith(TWIN) or config.get("quick_gelu"):
        return {}
    found: dict[bool, list[str]] = {}
    for tag, about in _published(name, path).items():
        found.setdefault(tag == "openai" or bool(about.get("quick_gelu")), []).append(tag)
    return found


def _create(name: str, tag: str | None, **options: Any) -> nn.Module:
    import open_clip

    try:
        return open_clip.create_model(name, pretrained=tag, device="cpu", **options)
    except ImportError as error:
        raise RPLibError(f"{name} needs a package that is not installed ({error}): install it with pip") from error
    except Exception as error:  # hub, network and file errors have no common base
        if tag is None and not name.startswith("hf-hub:"):  # nothing was to be fetched
            raise RPLibError(f"cannot build {name}: {_in_short(error)}") from error
        advice = "Without a network, pass a local checkpoint file as `pretrained`"
        raise RPLibError(f"cannot load {name} / {tag}: {_in_short(error)}. {advice}") from error


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
    """Build a model with the weights of a local file; OpenAI's are known by what they hold next to the weights."""
    import open_clip
    from open_clip.factory import load_checkpoint

    # Files of big_vision have a layout of their own, which open_clip knows.
    state = None if path.suffix in (".npz", ".npy") else read_weights(path)
    if state is not None and state.keys() >= OPENAI_KEYS:
        name, options = _with_quick_gelu(name, f"the file {path.name}", options)
        quick = {}
    elif set(quick := _activations(name, path, options)) == {True}:
        name, options = _with_quick_gelu(name, f"the file {path.name}, as {' and '.join(quick[True])},", options)
    with quiet_about_random_weights():  # open_clip warns of random weights, which the file's are about to replace
        model = _create(name, None, **options)
    try:
        if state is None:
            load_checkpoint(model, str(path))
        else:
            _fill(model, {key: value.float() for key, value in state.items() if key not in OPENAI_KEYS}, name, path)
    except RPLibError:
        raise
    except Exception as error:
        raise RPLibError(f"the weights of {path} are not those of {name}: {_in_short(error)}") from error
    if state is not None and state.keys() >= OPENAI_KEYS:
        return name, model
    if "force_preprocess_cfg" not in options:
        _prepare_as_published(model, name, path)
    halves = [tower for tower, matrices in _matrices(model).items() if _half_precise(matrices)]
    twin = f"{name}{TWIN}"
    open_question = set(quick) != {False} and not options.get("force_quick_gelu")
    if halves and open_question and twin in open_clip.list_models():
        log.warning(
            "every weight matrix of the %s tower in %s is a number of half precision, as in OpenAI's releases. If the "
            "weights are OpenAI's, or were trained further from them, load %s instead: they were trained with "
            "QuickGELU, and with plain GELU every number is silently lower",
            " and the ".join(halves), path.name, twin,
        )  # fmt: skip
    elif len(quick) == 2:
        log.warning(
            "published weights of %s have two activations, and the name of %s does not say which its weights want: "
            "plain GELU is taken. If they are %s, or were trained further from them, pass force_quick_gelu=True: with "
            "the wrong one every number is silently lower", name, path.name, " or ".join(quick[True]),
        )  # fmt: skip
    return name, model


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a file of weights without executing it, in the forms that training programs save.

    Safetensors and ``torch.save``; a state dict alone or below ``state_dict``, ``model`` and the like; names behind
    ``module.`` (DistributedDataParallel), ``_orig_mod.`` (torch.compile), ``model.`` (Lightning) and the like.

    Returns:
        Tensors by name, as open_clip names them.

    Raises:
        RPLibError: The file holds no weights, or something that only executing it would open.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise RPLibError(f"{path} is empty: download it again")
    if head.startswith(b"version https://git-lfs"):
        raise RPLibError(f"{path} is a pointer of Git LFS, not the file that it stands for: run `git lfs pull`")
    if _runs_code(path):
        raise RPLibError(
            f"{path} is a TorchScript archive, as OpenAI's own downloads are: opening one runs code that it contains. "
            'Take the weights as safetensors (tag "openai"), or, if you trust the file, convert it once: '
            f"torch.save(torch.jit.load('{path.name}', map_location='cpu').state_dict(), 'weights.pt')"
        )
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            with torch.serialization.safe_globals(_number_types()):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # not torch's message: it advises to load without its safeguard
        raise RPLibError(
            f"{path} holds Python objects besides tensors, such as a complete module, which only executing it would "
            "open: in the program that made it, save `model.state_dict()` instead"
        ) from error
    except Exception as error:
        kind = type(error).__name__
        raise RPLibError(f"{path} is damaged or holds no weights ({kind} on reading it): download it again") from error
    state = _unwrapped(content)
    if not state:
        raise RPLibError(f"{path} holds no weights: a state dict of tensors by name is needed")
    while len(prefixes := {key.split(".", 1)[0] for key in state}) == 1 and (first := prefixes.pop()) in WRAPPERS:
        state = {key.removeprefix(f"{first}."): value for key, value in state.items()}
    return state


def _unwrapped(content: Any) -> dict[str, Tensor]:
    """Return the tensors by name of a checkpoint; empty if there are none."""
    if not isinstance(content, Mapping):
        return {}
    for key in ("state_dict", "model_state_dict", "model", "module", "net"):
        if isinstance(content.get(key), Mapping):
            return _unwrapped(content[key])
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    own = {key: value for key, value in tensors.items() if key.split(".", 1)[0] in WRAPPERS}
    # Lightning keeps losses and metrics next to the model.
    return own if own and not any(key.endswith("logit_scale") for key in tensors.keys() - own.keys()) else tensors


def _number_types() -> list[Any]:
    """Return what numpy's plain numbers are pickled by, such as the best accuracy beside the weights."""
    kinds = (np.float64, np.float32, np.int64, np.int32, np.bool_)
    return [np.dtype, np._core.multiarray.scalar, *{type(np.dtype(kind)) for kind in kinds}]


def _fill(model: nn.Module, state: dict[str, Tensor], name: str, path: Path) -> None:
    """Load a state dict into an open_clip model, with what open_clip itself adapts."""
    from open_clip.factory import convert_state_dict, resize_pos_embed, resize_text_pos_embed
    from open_clip.model import convert_to_custom_text_state_dict

    state = convert_state_dict(model, state)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    bias = getattr(model, "logit_bias", None)
    if bias is None:
        state.pop("logit_bias", None)  # it moves all logits alike: no probability and no rank depends on it
    else:
        state.setdefault("logit_bias", torch.zeros_like(bias))
    for key in ("logit_scale", "logit_bias"):
        if key in state:
            state[key] = state[key].reshape(getattr(model, key).shape)
    resize_pos_embed(state, model)
    resize_text_pos_embed(state, model)
    missing, unexpected = model.load_state_dict(state, strict=False)
    unexpected = [key for key in unexpected if not key.endswith("position_ids")]
    if missing or unexpected:
        found = [f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
                 for kind, names in (("missing", missing), ("unknown", unexpected)) if names]  # fmt: skip
        raise RPLibError(f"the weights of {path} are not those of {name}: {' and '.join(found)}")


@contextlib.contextmanager
def quiet_about_random_weights() -> Iterator[None]:
    """Hold back open_clip's warning that a model has random weights."""

    def other(record: logging.LogRecord) -> bool:
        return "initialized randomly" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(other)
    try:
        yield
    finally:
        root.removeFilter(other)


def _in_short(error: Exception) -> str:
    text = str(error).strip().split("\n\t")
    return text[0][:200] if len(text) == 1 else f"{text[0]} {text[1]}"[:200]


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


def _matrices(model: nn.Module) -> dict[str, list[Tensor]]:
    """Return the weight matrices of both towers."""
    towers: dict[str, list[Tensor]] = {"image": [], "text": []}
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            towers["image" if name.startswith("visual.") else "text"].append(parameter.detach())
    return towers


def _half_precise(matrices: Sequence[Tensor]) -> bool:
    """Whether every matrix holds numbers of half precision."""
    return bool(matrices) and all(bool((m == m.half().float()).all()) for m in matrices)
