"""Digests of files, as publishers give them: SHA-256, MD5, or the id that git gives a file's content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from rp_lib.data.errors import VerificationError

# Kind -> bytes of the digest. MD5 and SHA-1 tell damage and mix-ups, not a determined forger.
KINDS = {"sha256": 32, "md5": 16, "git_blob": 20}
_CHUNK = 1 << 20


def digests(path: Path, kinds: Iterable[str]) -> dict[str, str]:
    """Hex digests of one file, in one pass; ``git_blob`` is SHA-1 over ``blob <size>``, a zero byte and the content."""
    hashers = {}
    for kind in kinds:
        hashers[kind] = hashlib.new("sha1" if kind == "git_blob" else kind, usedforsecurity=False)
        if kind == "git_blob":
            hashers[kind].update(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            for hasher in hashers.values():
                hasher.update(chunk)
    return {kind: hasher.hexdigest() for kind, hasher in hashers.items()}


def verify_file(path: Path, size: int | None, hashes: Mapping[str, str]) -> str:
    """Compare a file with its known size and digests; returns its SHA-256.

    Raises:
        VerificationError: it differs; the message says in what.
    """
    got = path.stat().st_size
    if size is not None and got != size:
        raise VerificationError(f"{got:,} bytes instead of {size:,}")
    found = digests(path, {"sha256", *hashes})
    for kind, value in hashes.items():
        if found[kind] != value:
            raise VerificationError(f"{kind} is {found[kind]} instead of {value}")
    return found["sha256"]
