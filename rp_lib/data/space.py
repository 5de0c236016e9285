"""Is there room on the disk? Asked before bytes are written, and reported as what it is if it runs out all the same."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from rp_lib.data.errors import NoSpace

# Left free whatever is downloaded: a system whose disk is full to the last byte cannot even log it.
RESERVE = 64 << 20


def human(n: int | None) -> str:
    """A number of bytes for people, powers of 1000: ``6.1 MB``; None is ``unknown``."""
    if n is None:
        return "unknown"
    value, units = float(n), ["bytes", "kB", "MB", "GB"]
    while value >= 999.95 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "bytes" else f"{value:.1f} {units[0]}"


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk that holds ``folder``, which need not exist yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Raise :class:`NoSpace` unless ``needed`` bytes fit on the disk of ``folder`` and :data:`RESERVE` stays free."""
    free = free_bytes(folder)
    if needed + RESERVE > free:
        raise NoSpace(
            f"{purpose} needs {human(needed)} (and {human(RESERVE)} to spare) in {folder}, where {human(free)} are "
            "free; make room there, or choose another disk with --root"
        )


@contextlib.contextmanager
def reports_full_disk(purpose: str) -> Iterator[None]:
    """Turn a write that found the disk or the quota full into :class:`NoSpace`; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NoSpace(
            f"the disk is full while {purpose}; make room and run the same command again: it goes on from what is there"
        ) from error
