"""A file on its way: the bytes so far, and which version of which address they are the beginning of."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Entity:
    """One version of a resource (RFC 9110, section 8.8): what must not change between two parts of a download."""

    url: str
    total: int | None
    etag: str | None
    modified: str | None

    @property
    def validator(self) -> str | None:
        """What may stand in ``If-Range``: a strong ETag, else Last-Modified; a weak ETag may not."""
        if self.etag and not self.etag.startswith("W/"):
            return self.etag
        return self.modified

    def continues(self, earlier: Entity) -> bool:
        """Whether this answer may go on with the bytes of ``earlier``: no fact that both know differs."""
        pairs = [(self.total, earlier.total)]
        if self.url == earlier.url:  # mirrors have validators of their own
            pairs += [(self.etag, earlier.etag), (self.modified, earlier.modified)]
        return all(a == b for a, b in pairs if a is not None and b is not None)


class Partial:
    """``FILE.partial`` and ``FILE.partial.json``, beside the target ``FILE``.

    The description is written before the first byte and removed before bytes of another version are, so
    at whatever moment the process dies, what is there is a true beginning or is seen not to be one.
    """

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(target.name + ".partial")
        self._about = target.with_name(target.name + ".partial.json")

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def entity(self) -> Entity | None:
        """What the bytes are a part of; None if that is not known."""
        try:
            return Entity(**json.loads(self._about.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def begin(self, entity: Entity) -> None:
        """Forget what there was and start an empty file for ``entity``."""
        self.discard()
        write_json(self._about, asdict(entity))
        self.path.touch()

    def discard(self) -> None:
        """Remove both files."""
        self._about.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def finish(self, target: Path) -> None:
        """Give the whole and verified file its name."""
        self.path.replace(target)
        self._about.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON under a temporary name and rename it when the disk has it."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
