"""Files whose publisher gives no hash: trusted the first time, compared with that ever after."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from rp_lib.data.errors import VerificationError
from rp_lib.data.hashes import verify_file
from rp_lib.data.partial import write_json
from rp_lib.data.sources import SourceFile


class FirstUse:
    """The SHA-256 digests of one data set's files as they were first seen, in a small JSON file.

    It outlives the data: who deletes a folder and downloads it again gets the same bytes or is told.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def hashes(self, file: SourceFile) -> Mapping[str, str]:
        """What the file must have: the published digests, else the one that was seen; empty at the first download.

        Raises:
            VerificationError: the record cannot be read.
        """
        if file.hashes:
            return file.hashes
        try:
            sha256 = json.loads(self.path.read_text(encoding="utf-8")).get(file.name)
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError) as error:
            raise VerificationError(f"{self.path} cannot be read ({error}); delete it to trust anew") from error
        return {"sha256": sha256} if sha256 else {}

    def verify(self, path: Path, file: SourceFile) -> str:
        """Compare ``path`` with what is known of ``file``; returns its SHA-256.

        Raises:
            VerificationError: it differs.
        """
        hashes = self.hashes(file)
        try:
            return verify_file(path, file.size, hashes)
        except VerificationError as error:
            if file.hashes or not hashes:
                raise
            raise VerificationError(
                f"not what it was at the first download: {error}; if the source changed for good and you trust it, "
                f"delete {self.path}"
            ) from error

    def record(self, seen: Mapping[str, str]) -> None:
        """Remember SHA-256 digests by file name, beside those there are."""
        if seen:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            before = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}
            write_json(self.path, {**before, **seen})
