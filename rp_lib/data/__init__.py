"""Real data: published data sets, downloaded and verified, and folders of photographs, decoded once.

Names are imported when they are first used, so that ``rp-lib data`` needs no torch.
"""

from __future__ import annotations

import importlib

_HOME = {
    "sources": (
        "DataSet", "DownloadError", "NoSpace", "NotThere", "Sources", "UnsafeArchive", "VerificationError",
        "default_root", "load_sources",
    ),
    "download": ("DataStore",),
    "image_folders": ("ClassFolder", "FolderError", "image_files", "image_folder"),
    "pixel_cache": ("BrokenImages", "CachedImages", "default_cache", "load_images"),
    "splits": ("SharedImages",),
    "own_folders": ("from_folders",),
    "cifar": ("cifar10_benchmark", "cifar10_from_folders"),
    "imagenet": ("imagenet_benchmark",),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_MODULE)


def __getattr__(name: str) -> object:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE[name]}"), name)
