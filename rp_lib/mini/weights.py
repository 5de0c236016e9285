"""The shipped mini CLIP: its checkpoints, and how to load one.

A checkpoint is a float16 safetensors file. Most of CLIP's 49,408 token rows never occur in an icon's name and were
never trained. The file keeps the trained ones with their ids, and loading fills the rest with the mean of the trained
rows, a word without a meaning of its own.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch

from rp_lib.clip import FrozenCLIP
from rp_lib.utils.errors import RPLibError, UnknownName
from rp_lib.utils.io import StorageError, file_sha256, load_tensors

FOLDER = Path(__file__).resolve().parent.parent / "assets" / "mini" / "clip"
MEAN = STD = (0.5, 0.5, 0.5)


@functools.cache
def index(folder: Path = FOLDER) -> dict[str, Any]:
    """List what ships: for each checkpoint its file, SHA-256 and the fraction of pre-training that it has seen."""
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


def names() -> tuple[str, ...]:
    """Names of the shipped checkpoints, weakest first."""
    return tuple(sorted(index(), key=lambda n: index()[n]["fraction"]))


def load_clip(checkpoint: str = "final", device: torch.device | str = "cpu") -> FrozenCLIP:
    """Load a checkpoint of the mini CLIP.

    Args:
        checkpoint: A name (see :func:`names`), or a ``.safetensors`` file of a pre-training run's release.
        device: Where the model computes.

    Raises:
        UnknownName: No checkpoint has that name.
        StorageError: The file is missing, truncated or not the one that was shipped.
    """
    path = Path(checkpoint)
    if path.suffix != ".safetensors":
        shipped = index(FOLDER)
        if checkpoint not in shipped:
            raise UnknownName("mini CLIP checkpoint", checkpoint, shipped)
        path = FOLDER / shipped[checkpoint]["file"]
        if not path.is_file():
            raise StorageError(f"{path} is missing; install rp_lib again")
        if file_sha256(path) != shipped[checkpoint]["sha256"]:
            raise StorageError(
                f"{path} is truncated or altered (its SHA-256 is not the shipped one); install rp_lib again"
            )
    return _build(path, device, checkpoint)


def _build(path: Path, device: torch.device | str, checkpoint: str) -> FrozenCLIP:
    from open_clip.model import CLIP
    from open_clip.tokenizer import SimpleTokenizer

    tensors, metadata = load_tensors(path)
    name, config = f"mini:{path.stem}", metadata.get("config")
    if not isinstance(config, dict) or "token_rows" not in tensors:
        raise RPLibError(f"{name} is no mini CLIP checkpoint")
    model = CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    state = {k: v.float() for k, v in tensors.items() if k not in ("token_rows", "token_ids", "other_row")}
    # The token table: the mean row everywhere, then the rows that were trained.
    table = tensors["other_row"].float().repeat(config["text_cfg"]["vocab_size"], 1)
    table[tensors["token_ids"].long()] = tensors["token_rows"].float()
    model.load_state_dict({**state, "token_embedding.weight": table})
    tokenizer = SimpleTokenizer(context_length=config["text_cfg"]["context_length"])
    size = config["vision_cfg"]["image_size"]
    return FrozenCLIP(
        model, tokenizer, name=name, mean=MEAN, std=STD, image_size=size, device=device, source={"mini": checkpoint}
    )
