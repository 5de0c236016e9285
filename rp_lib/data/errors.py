"""What can go wrong between a server and a verified folder; each kind has an exit code of its own."""

from __future__ import annotations

from rp_lib.errors import RPLibError


class DownloadError(RPLibError):
    """No source of a file could be reached or gave all of it."""

    exit_code = 3


class VerificationError(RPLibError):
    """Bytes, files or folders are not what they should be."""

    exit_code = 4


class UnsafeArchive(VerificationError):
    """An archive holds a member that would leave its folder, that is no plain file, or far too much."""


class NoSpace(RPLibError):
    """The disk is full, or would be."""

    exit_code = 5


class NotThere(RPLibError):
    """A data set that was not downloaded yet, or that has to be fetched by hand."""

    exit_code = 6
