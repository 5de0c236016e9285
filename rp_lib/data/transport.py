"""Fetch one file over http(s), from whichever of its addresses works, and go on where an earlier try stopped.

Python's own ``urllib`` carries it: it honours the proxies and certificates of the environment and is
there on every machine. What it lacks is here: going on (RFC 9110, section 14), trying again, and giving
up on a server that answers but does not deliver.
"""

from __future__ import annotations

import http.client
import random
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rp_lib._version import __version__
from rp_lib.data.errors import DownloadError, VerificationError
from rp_lib.data.partial import Entity, Partial
from rp_lib.data.space import human, reports_full_disk

_CHUNK = 256 << 10
# Worth another try: request timeout, too early, too many requests, and a server's own troubles.
_PASSING = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Limits:
    """Patience with a server.

    Attributes:
        timeout: seconds without a connection or a byte after which a try is given up.
        window, min_rate: a try is given up if over ``window`` seconds fewer bytes a second than ``min_rate`` come.
        attempts: tries in a row that may fail per address; one that brought ``worthwhile`` bytes does not count.
        backoff: seconds before the second try; doubled for each further one, at most ``max_backoff``.
    """

    timeout: float = 30.0
    window: float = 60.0
    min_rate: int = 1024
    attempts: int = 5
    worthwhile: int = 1 << 20
    backoff: float = 1.0
    max_backoff: float = 60.0


class _Retry(Exception):
    """This try failed, another may succeed; ``wait`` is the server's wish in seconds."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _GiveUp(Exception):
    """This address will not do."""


@dataclass(frozen=True)
class Job:
    """One file to fetch.

    Attributes:
        target: where it goes once it is whole and verified.
        size: its published size in bytes, if any.
        hashed: whether ``verify`` compares with a hash known beforehand, so that parts of two mirrors may be joined.
        verify: raises :class:`VerificationError` for wrong bytes.
        reserve: called with the bytes still to come before they do; raises ``NoSpace``.
        on_bytes: called with the bytes so far and in all (None: not known).
    """

    urls: Sequence[str]
    target: Path
    size: int | None
    hashed: bool
    verify: Callable[[Path], object]
    reserve: Callable[[int], None]
    say: Callable[[str], None] = lambda text: None
    on_bytes: Callable[[int, int | None], None] = lambda done, total: None


def fetch(job: Job, limits: Limits | None = None) -> str:
    """Fetch ``job.target`` unless it is there; returns the address it came from ("" if it was there).

    A stop at any moment (Ctrl-C, kill, a full disk) leaves a beginning that the next call goes on with.

    Raises:
        DownloadError: no address gave the whole file.
        VerificationError: an address gave other bytes than published, and no other helped.
        NoSpace: the disk is full or would be.
    """
    limits = limits or Limits()
    if job.target.is_file():
        try:
            job.verify(job.target)
            return ""
        except VerificationError as error:
            job.say(f"{job.target} is refused and fetched anew: {error}")
            job.target.unlink()
    job.target.parent.mkdir(parents=True, exist_ok=True)
    failure: type[DownloadError | VerificationError] = DownloadError
    reasons = []
    for url in job.urls:
        try:
            _fetch_from(url, job, limits)
            return url
        except _GiveUp as error:
            reasons.append(f"{url}: {error}")
        except VerificationError as error:
            failure = VerificationError
            reasons.append(f"{url}: refused, {error}")
        job.say(reasons[-1])
    raise failure(
        f"{job.target.name} could not be fetched:\n  " + "\n  ".join(reasons) + "\nTry again later, name another "
        f"server with --mirror, or put the file there yourself: {job.target}"
    )


def _fetch_from(url: str, job: Job, limits: Limits) -> None:
    """All of the file from one address, in as many tries as it takes and ``limits`` grant."""
    partial = Partial(job.target)
    anew = False
    while True:
        joined = _receive_whole(url, job, partial, limits)
        try:
            job.verify(partial.path)
        except VerificationError:
            partial.discard()
            if not joined or anew:
                raise
            # The parts may not belong together (a mirror of another version, an earlier crash): once more in one go.
            job.say(f"{job.target.name}: the joined parts are not the published file; fetching it in one go")
            anew = True
            continue
        partial.finish(job.target)
        return


def _receive_whole(url: str, job: Job, partial: Partial, limits: Limits) -> bool:
    """Receive until all bytes are there; returns whether they came in more than one part."""
    failed, joined = 0, partial.size > 0
    while True:
        before = partial.size
        try:
            _receive(url, job, partial, limits)
            return joined
        except _Retry as error:
            gained = partial.size - before
            failed = 0 if gained >= limits.worthwhile else failed + 1
            joined = partial.size > 0
            if failed >= limits.attempts:
                raise _GiveUp(f"{error} (in {limits.attempts} tries)") from error
            pause = min(limits.backoff * 2 ** max(failed - 1, 0), limits.max_backoff)
            # Spread out, so that many clients that one failure threw off do not come back all at once.
            pause *= random.uniform(0.75, 1.25)
            if error.wait is not None:
                pause = min(error.wait, limits.max_backoff)
            job.say(f"{job.target.name}: {error}; going on in {pause:.0f} s")
            time.sleep(pause)


def _receive(url: str, job: Job, partial: Partial, limits: Limits) -> None:
    """One request, and its answer appended to ``partial``."""
    known = partial.entity()
    have = partial.size if known and _may_go_on(known, url, job.hashed) else 0
    if known and have and have == known.total:
        return
    headers = {"User-Agent": f"rp_lib/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if known and known.url == url and known.validator:
            headers["If-Range"] = known.validator  # another version is sent whole instead of its second half
    with _open(urllib.request.Request(url, headers=headers), partial, limits) as response:
        start, entity = _answer(url, response)
        if start and not (known and start == have and entity.continues(known)):
            partial.discard()
            raise _Retry("the file changed on the server; starting afresh", wait=0)
        if job.size is not None and entity.total not in (None, job.size):
            raise VerificationError(f"the server offers {entity.total:,} bytes instead of {job.size:,}")
        have = start
        total = entity.total if entity.total is not None else job.size
        job.reserve(max((total or 0) - have, 0))
        with reports_full_disk(f"saving {job.target.name}"):
            if not start:
                partial.begin(entity)
            with partial.path.open("ab") as file:
                have = _append(response, file, have, total, job, limits)
        if job.size is not None and have > job.size:
            partial.discard()
            raise VerificationError(f"the server sends more than the published {job.size:,} bytes")
    if total is not None and have != total:
        raise _Retry(f"the server cut off after {human(have)} of {human(total)}")


def _may_go_on(known: Entity, url: str, hashed: bool) -> bool:
    # Without a validator or a hash, nothing would tell that the second half is of another version.
    return hashed or (known.url == url and known.validator is not None)


def _open(request: urllib.request.Request, partial: Partial, limits: Limits) -> http.client.HTTPResponse:
    try:
        return urllib.request.urlopen(request, timeout=limits.timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            partial.discard()
            raise _Retry("the server has no more bytes than we; starting afresh", wait=0) from error
        if error.code not in _PASSING:
            raise _GiveUp(f"HTTP {error.code} {error.reason}") from error
        wait = error.headers.get("Retry-After", "")
        raise _Retry(f"HTTP {error.code} {error.reason}", float(wait) if wait.isdecimal() else None) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise _GiveUp(f"its certificate is not valid here ({reason.verify_message})") from error
        raise _Retry(f"no connection ({str(reason) or type(reason).__name__})") from error


def _answer(url: str, response: http.client.HTTPResponse) -> tuple[int, Entity]:
    """Offset of the first byte that is sent, and what it is a part of."""
    etag, modified = response.headers.get("ETag"), response.headers.get("Last-Modified")
    if response.status == 200:
        length = response.headers.get("Content-Length", "")
        return 0, Entity(url, int(length) if length.isdecimal() else None, etag, modified)
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if response.status != 206 or not match:
        raise _Retry(f"an answer that makes no sense (HTTP {response.status})")
    total = None if match[2] == "*" else int(match[2])
    return int(match[1]), Entity(url, total, etag, modified)


def _append(
    response: http.client.HTTPResponse, file: BinaryIO, have: int, total: int | None, job: Job, limits: Limits
) -> int:
    """Copy the body to ``file``; returns the bytes there are then, whether or not the body came to its end."""
    since, lately = time.monotonic(), 0
    unasked = 0
    while True:
        try:
            # read1 returns what has come; read would wait for a full chunk, however slow the server is.
            chunk = response.read1(_CHUNK)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _Retry(f"the connection broke after {human(have)} ({str(error) or type(error).__name__})") from error
        if not chunk:
            return have
        file.write(chunk)
        have += len(chunk)
        if job.size is not None and have > job.size:
            return have
        if total is None and (unasked := unasked + len(chunk)) >= 64 << 20:
            job.reserve(0)  # nobody said how much is to come
            unasked = 0
        job.on_bytes(have, total)
        lately += len(chunk)
        if (elapsed := time.monotonic() - since) >= limits.window:
            if lately < limits.min_rate * elapsed:
                raise _Retry(f"the server sends only {human(int(lately / elapsed))} a second")
            since, lately = time.monotonic(), 0
