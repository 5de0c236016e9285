"""Ask torchvision or pytorch-ood whether they find a data set where we have put it.

Their classes know the file's address, its MD5 and the layout on disk (a test compares ``sources.json`` with
them), but their downloaders neither go on after a break nor time out, and unpack whatever an archive holds. So
the bytes come by way of ``transport`` and ``archives``, and the class then has the last word.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rp_lib.data.errors import VerificationError


def confirm(folder: Path, library: str, options: Mapping[str, Any]) -> bool:
    """Open ``folder`` with a data set class, offline; False if the library (or what it reads with) is not installed.

    Args:
        library: dotted name, such as ``torchvision.datasets.CIFAR10``. Imported here and not before.

    Raises:
        VerificationError: the class does not find its data, or not the data it knows.
    """
    module, _, name = library.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
        cls(str(folder), download=False, **options)
    except ImportError:
        return False
    except Exception as error:  # each class has its own ways to say that files are missing or damaged
        raise VerificationError(f"{library} does not accept what was downloaded: {error}") from error
    return True
