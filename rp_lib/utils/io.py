"""Write and read tensors and tables so that nothing is half-written, swapped unnoticed, or executed.

Tensors go through safetensors (no pickle), tables through CSV. A file is written under a temporary name next
to its target and renamed when it is complete, so a full disk or Ctrl-C leaves the previous file untouched.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rp_lib.utils.errors import RPLibError

if TYPE_CHECKING:
    import pandas as pd


class StorageError(RPLibError):
    """A file cannot be written or read; the message says which and what to do."""


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call ``write(temporary_path)``, then rename it to ``path``; on any failure remove the temporary file.

    Raises:
        StorageError: The folder cannot be written or the disk is full. ``path`` is as it was before.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:  # the latter names its cause in words alone
        full = errno.ENOSPC, errno.EDQUOT
        if getattr(error, "errno", None) in full or any(f"(os error {number})" in str(error) for number in full):
            raise StorageError(
                f"the disk is full while writing {path}; free some space and run the same command again - "
                "what was saved before is intact"
            ) from error
        raise StorageError(
            f"cannot write {path} ({getattr(error, 'strerror', None) or error}); choose another output folder or mend "
            "its permissions"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # a file where the folder should be; its error is raised above
            partial.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Make ``folder`` if needed and raise :class:`StorageError` unless a file can be written in it."""
    probe = folder / ".writable"
    write_atomically(probe, lambda partial: partial.touch())
    probe.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, object]) -> None:
    """Save named tensors and JSON-able metadata as one safetensors file, atomically.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "x.safetensors"
        >>> save_tensors(path, {"b": torch.zeros(2)}, {"epochs": 3})
        >>> load_tensors(path)
        ({'b': tensor([0., 0.])}, {'epochs': 3})
    """
    ready = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    # Parts of a larger tensor, or of a file that was read, are copied; all else is written from where it is.
    ready = {name: t.clone() if t.nbytes < t.untyped_storage().nbytes() else t for name, t in ready.items()}

    def write(partial: Path) -> None:
        save_file(ready, partial, {key: json.dumps(value) for key, value in metadata.items()})
        with partial.open("rb+") as file:
            os.fsync(file.fileno())

    write_atomically(path, write)


def write_synced(path: Path, payload: bytes | memoryview) -> None:
    """Write a file and wait until the disk has it; a full disk raises OSError with its true errno."""
    with path.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())  # a rename is only as good as the data behind it


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Read what :func:`save_tensors` wrote.

    Raises:
        StorageError: The file is missing, truncated or no safetensors file.
    """
    if not path.is_file():
        raise StorageError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise StorageError(f"{path} is damaged or no rp_lib file ({error}); fetch or train it again") from error


# Columns of names: a class may be called NA, null, true or 1e5, and stays text.
NAMES = ("method", "versus", "set", "role", "metric", "detector", "convention", "class", "picture", "label", "answer")


def as_csv(table: pd.DataFrame, digits: str | None = "%.6g") -> str:
    """Write a table as its file holds it: missing values are empty, numbers have six digits unless told otherwise."""
    return table.to_csv(index=False, float_format=digits)


def save_table(path: Path, table: pd.DataFrame, digits: str | None = "%.6g") -> None:
    """Write a table as CSV, atomically; :func:`load_table` reads it.

    Args:
        path: The file.
        table: Its index is not written.
        digits: Format of floats; None keeps every digit.

    Raises:
        StorageError: See :func:`write_atomically`.
    """
    write_atomically(path, lambda partial: partial.write_text(as_csv(table, digits), encoding="utf-8", newline=""))


def load_table(source: Path | io.StringIO) -> pd.DataFrame:
    """Read what :func:`save_table` wrote; only an empty cell is a missing value.

    Raises:
        StorageError: The file is missing or no table.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"set": ["NA", "1e5", "true"], "value": [1.5, None, 2]})
        >>> load_table(io.StringIO(as_csv(table))).values.tolist()
        [['NA', 1.5], ['1e5', nan], ['true', 2.0]]
    """
    import pandas as pd

    try:
        return pd.read_csv(source, keep_default_na=False, na_values=[""], dtype=dict.fromkeys(NAMES, "str"))
    except (OSError, ValueError) as error:
        raise StorageError(f"{source} is missing or no table ({error}); run the command that wrote it again") from error


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 over names, shapes and float32 values, independent of order, device and strides."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu()
        value = value.float() if value.is_floating_point() else value
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.contiguous().view(-1).view(torch.uint8).numpy())  # without a copy
    return digest.hexdigest()


def seal(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """Hex SHA-256 over all that is saved, so that a changed number, class or header is noticed."""
    return hashlib.sha256(f"{tensors_sha256(tensors)} {json.dumps(metadata, sort_keys=True)}".encode()).hexdigest()


def torch_save(state: dict[str, Any], path: Path) -> None:
    """``torch.save`` (to be read with ``weights_only=True``) that reports a full disk as what it is."""
    # By way of memory: torch's own file writer reports a full disk as a RuntimeError that does not name it.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_synced(path, buffer.getbuffer())
