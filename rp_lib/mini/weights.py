"""The shipped mini CLIP: its checkpoints, and how they are stored.

A checkpoint is a float16 safetensors file. Most of CLIP's 49,408 token rows never occur in an icon's name
and were never trained; the file keeps the trained ones with their ids, and loading fills the rest with
the mean of the trained rows, a word without a meaning of its own.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rp_lib.clip import FrozenCLIP
from rp_lib.utils.errors import RPLibError, UnknownName
from rp_lib.utils.io import StorageError, file_sha256, load_tensors, save_tensors

FOLDER = Path(__file__).resolve().parent.parent / "assets" / "mini" / "clip"
MEAN = STD = (0.5, 0.5, 0.5)


@functools.cache
def index(folder: Path = FOLDER) -> dict[str, Any]:
    """What ships: for every checkpoint its file, SHA-256 and the fraction of pre-training it has seen."""
    path = folder / "index.json"
    if not path.is_file():
        raise StorageError(f"the mini CLIP is not there ({path} is missing); install rp_lib again")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        for entry in entries.values():
            _ = entry["file"], entry["sha256"], entry["fraction"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"{path} is truncated or altered; install rp_lib again") from error
    return entries


def names(folder: Path = FOLDER) -> tuple[str, ...]:
    """Names of the shipped checkpoints, weakest first."""
    return tuple(sorted(index(folder), key=lambda n: index(folder)[n]["fraction"]))


def export(state: dict[str, Any], config: dict[str, Any], path: Path, keep_tokens: Tensor | None = None) -> None:
    """Write a pre-training state as float16; ``keep_tokens`` (int64 ids) limits the token rows kept."""
    tensors = dict(state["model"])
    rows, ids = tensors.pop("token_embedding.weight"), state["vocabulary"]
    if keep_tokens is not None:
        kept = torch.isin(ids, keep_tokens)
        rows, ids = rows[kept], ids[kept]
    tensors = {name: t.half() for name, t in tensors.items()}
    tensors |= {
        "token_rows": rows.half(),
        "token_ids": ids.int(),
        "other_row": state["model"]["token_embedding.weight"].mean(0).half(),
    }
    save_tensors(path, tensors, {"config": config, "step": state["step"]})


def load_clip(checkpoint: str = "final", device: torch.device | str = "cpu", folder: Path = FOLDER) -> FrozenCLIP:
    """Load a checkpoint by name, or from a file that :func:`export` wrote.

    Raises:
        UnknownName: no checkpoint of that name.
        StorageError: the file is missing, truncated or not the one that was shipped.
    """
    path = Path(checkpoint)
    if path.suffix != ".safetensors":
        if checkpoint not in index(folder):
            raise UnknownName("mini CLIP checkpoint", checkpoint, index(folder))
        entry = index(folder)[checkpoint]
        path = folder / entry["file"]
        if not path.is_file():
            raise StorageError(f"{path} is missing; install rp_lib again")
        if file_sha256(path) != entry["sha256"]:
            raise StorageError(
                f"{path} is truncated or altered (its SHA-256 is not the shipped one); install rp_lib again"
            )
    tensors, metadata = load_tensors(path)
    return from_tensors(tensors, metadata, f"mini:{path.stem}", device)


def from_tensors(
    tensors: dict[str, Tensor], metadata: dict[str, Any], name: str, device: torch.device | str
) -> FrozenCLIP:
    """Build the model from the tensors of a checkpoint file."""
    from open_clip.model import CLIP
    from open_clip.tokenizer import SimpleTokenizer

    config = metadata.get("config")
    if not isinstance(config, dict) or "token_rows" not in tensors:
        raise RPLibError(f"{name} is no mini CLIP checkpoint")
    model = CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    state = {k: v.float() for k, v in tensors.items() if k not in ("token_rows", "token_ids", "other_row")}
    table = tensors["other_row"].float().repeat(config["text_cfg"]["vocab_size"], 1)
    table[tensors["token_ids"].long()] = tensors["token_rows"].float()
    model.load_state_dict({**state, "token_embedding.weight": table})
    tokenizer = SimpleTokenizer(context_length=config["text_cfg"]["context_length"])
    size = config["vision_cfg"]["image_size"]
    return FrozenCLIP(model, tokenizer, name=name, mean=MEAN, std=STD, image_size=size, device=device)
