"""Real data sets: where they come from, how they are downloaded and verified, where they are.

Layers, from the bottom: errors, space, hashes, partial; sources, trust, folders, archives, transport, library;
assembly, store; cli. Nothing here needs torch; torchvision and pytorch-ood are asked only about finished folders.
"""

from __future__ import annotations

import os
from pathlib import Path

from rp_lib.data.errors import DownloadError, NoSpace, NotThere, UnsafeArchive, VerificationError
from rp_lib.data.sources import DataSet, Sources, load_sources
from rp_lib.data.store import DataStore

__all__ = [
    "DataSet", "DataStore", "DownloadError", "NoSpace", "NotThere", "Sources", "UnsafeArchive", "VerificationError",
    "default_root", "load_sources", "locate",
]  # fmt: skip


def default_root() -> Path:
    """The folder of data sets: ``$RP_DATA``, else ``data`` in the working directory."""
    return Path(os.environ.get("RP_DATA") or "data")


def locate(name: str, root: Path | None = None) -> Path:
    """The folder of a data set that was downloaded or pointed to.

    Raises:
        UnknownName: no such data set.
        NotThere: it is not there yet; the message says how to get it.
    """
    return DataStore(root or default_root()).locate(load_sources()[name])
