"""The transport against a loopback server that is slow, cuts off, lies, changes its mind, or is gone."""

import errno
import hashlib
import random
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
from data_server import Fault, Server
from tqdm import tqdm

from rp_lib.data import download as transport
from rp_lib.data.download import Limits, Transfer
from rp_lib.data.sources import DownloadError, NoSpace, VerificationError, verify_file
from rp_lib.utils.errors import MissingDependency

SIZE = 60_000
BODY = random.Random(0).randbytes(SIZE)
SHA = hashlib.sha256(BODY).hexdigest()
# Patient enough for a busy machine; the tests of patience itself bring their own.
QUICK = Limits(timeout=5, attempts=3, worthwhile=1000, backoff=0.01, max_backoff=0.05)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    running = Server()
    yield running
    running.close()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "in" / "file.bin"


def job(target: Path, *urls: str, hashes=None, size=None, **more) -> Transfer:
    hashes = {"sha256": SHA} if hashes is None else hashes
    more = {"joins": bool(hashes)} | more
    return Transfer(urls, target, lambda p: verify_file(p, size, hashes), size, **more)


def fetch(transfer: Transfer, limits: Limits) -> str:
    return replace(transfer, limits=limits).run()


def only_the_file(target: Path, body: bytes = BODY) -> bool:
    return [p.name for p in target.parent.iterdir()] == [target.name] and target.read_bytes() == body


def begin(target: Path, n: int, body=BODY) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    job(target).partial.write_bytes(body[:n])


def test_a_whole_file_in_one_request(server, target):
    url = server.put("f", BODY)
    assert fetch(job(target, url), QUICK) == url
    assert only_the_file(target) and server.ranges("f") == [None]
    assert fetch(job(target, url), QUICK) == "" and len(server.log) == 1  # it is there: nothing is asked


def test_slow_but_steady_is_waited_for(server, target):
    url = server.put("f", BODY, Fault(pace=0.06, chunk=2400))  # 25 chunks: longer than the limit
    fetch(job(target, url), replace(QUICK, timeout=1))
    assert only_the_file(target) and server.ranges("f") == [None]


def test_silence_ends_a_try_and_the_next_goes_on(server, target):
    url = server.put("f", BODY, Fault(stall=20_000))
    begun = time.monotonic()
    fetch(job(target, url), replace(QUICK, timeout=1, min_rate=15_000))
    assert 1 <= time.monotonic() - begun < 4
    assert only_the_file(target) and server.ranges("f") == [None, "bytes=20000-"] and server.sent("f") == len(BODY)


def test_a_trickle_that_never_falls_silent_is_given_up(server, target):
    said = []
    # 200 bytes a second without a pause; after 5 s of that the server leaves of itself, which must not be needed.
    url = server.put("f", BODY, Fault(pace=0.05, chunk=10, cut=1000))
    begun = time.monotonic()
    fetch(job(target, url, say=said.append), replace(QUICK, timeout=1, min_rate=1000))
    assert only_the_file(target) and len(server.ranges("f")) == 2 and time.monotonic() - begun < 4
    assert any("too slow" in text for text in said)


def test_a_server_that_cuts_off_again_and_again(server, target):
    cuts = [Fault(cut=7_000) for _ in range(8)]  # more often than `attempts`: each brings enough to count as progress
    url = server.put("f", BODY, *cuts)
    fetch(job(target, url), QUICK)
    assert only_the_file(target)
    assert server.ranges("f") == [None, *(f"bytes={7_000 * i}-" for i in range(1, 9))]
    assert server.sent("f") == len(BODY)  # not a byte twice


def test_a_server_that_brings_next_to_nothing_each_time_is_left(server, target):
    url = server.put("f", BODY, always=Fault(cut=100))
    with pytest.raises(DownloadError, match=r"cut off after .*in 3 tries"):
        fetch(job(target, url), QUICK)
    assert len(server.log) == 3 and job(target).have == 300  # kept for the next time


def test_range_ignored_means_a_fresh_start(server, target):
    url = server.put("f", BODY, Fault(cut=30_000), ranges=False)
    fetch(job(target, url), QUICK)
    assert only_the_file(target) and server.ranges("f") == [None, "bytes=30000-", None]


def test_no_length_and_no_ranges(server, target):
    url = server.put("f", BODY, length=False, etag=None, ranges=False)
    fetch(job(target, url), QUICK)
    assert only_the_file(target)


def test_without_any_length_a_cut_is_seen_by_the_published_size(server, target):
    url = server.put("f", BODY, Fault(cut=10_000), length=False)
    mirror = server.put("g", BODY)
    assert fetch(job(target, url, mirror, size=len(BODY)), QUICK) == mirror
    assert only_the_file(target)


def test_redirects_are_followed(server, target):
    server.put("f", BODY)
    url = server.put("old", b"", Fault(status=302, headers={"Location": f"{server.base}/f"}))
    fetch(job(target, url), QUICK)
    assert only_the_file(target)


@pytest.mark.parametrize("status", [403, 404, 410, 451])
def test_gone_for_good_goes_to_the_mirror_at_once(server, target, status):
    url = server.put("f", b"", Fault(status=status))
    mirror = server.put("mirror", BODY)
    assert fetch(job(target, url, mirror), QUICK) == mirror
    assert only_the_file(target) and len(server.ranges("f")) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_passing_trouble_is_waited_out(server, target, status):
    url = server.put("f", BODY, Fault(status=status), Fault(status=status))
    fetch(job(target, url), QUICK)
    assert only_the_file(target) and len(server.log) == 3


def test_retry_after_is_heeded_within_reason(server, target, monkeypatch):
    waits = []
    monkeypatch.setattr(transport.time, "sleep", waits.append)
    url = server.put("f", BODY, *(Fault(status=503, headers={"Retry-After": n}) for n in ("2", "9999")))
    fetch(job(target, url), Limits(timeout=1, max_backoff=7))
    assert waits == [2, 7]


def test_back_off_grows(server, target, monkeypatch):
    waits = []
    monkeypatch.setattr(transport.time, "sleep", waits.append)
    url = server.put("f", BODY, *(Fault(status=500) for _ in range(4)))
    fetch(job(target, url), Limits(timeout=1, backoff=1, attempts=5))
    assert len(waits) == 4 and all(0.75 * 2**i <= wait <= 1.25 * 2**i for i, wait in enumerate(waits))


def test_nobody_listens(target):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/f"
    with pytest.raises(DownloadError, match=r"no connection[\s\S]*put the file there yourself"):
        fetch(job(target, url), QUICK)


def test_a_server_that_says_nothing_at_all(target):
    with socket.create_server(("127.0.0.1", 0)) as mute:  # accepts, and never answers
        begun = time.monotonic()
        with pytest.raises(DownloadError, match="no connection"):
            fetch(job(target, f"http://127.0.0.1:{mute.getsockname()[1]}/f"), replace(QUICK, timeout=1, attempts=2))
    assert time.monotonic() - begun < 6


def test_wrong_bytes_are_refused_and_the_mirror_tried(server, target):
    url = server.put("f", BODY[:-1] + b"!")
    mirror = server.put("mirror", BODY)
    said = []
    assert fetch(job(target, url, mirror, say=said.append), QUICK) == mirror
    assert only_the_file(target) and "refused, sha256 is" in said[0]


def test_wrong_bytes_everywhere(server, target):
    url, other = server.put("f", b"<html>gone</html>"), server.put("g", BODY[::-1])
    with pytest.raises(VerificationError, match="refused") as caught:
        fetch(job(target, url, other, f"{server.base}/none"), QUICK)
    assert url in str(caught.value) and other in str(caught.value) and "HTTP 404" in str(caught.value)
    assert list(target.parent.iterdir()) == []
    assert len(server.ranges("f")) == 1  # the same wrong bytes are not fetched again


@pytest.mark.parametrize("length", [True, False])
def test_a_body_without_end_is_stopped_at_the_published_size(server, target, length):
    url = server.put("f", BODY * 20, length=length)
    with pytest.raises(VerificationError, match="more than the published"):
        fetch(job(target, url, size=len(BODY)), QUICK)
    assert list(target.parent.iterdir()) == []


def test_a_file_that_was_there_and_is_wrong_is_fetched_anew(server, target):
    target.parent.mkdir()
    target.write_bytes(b"rotten")
    fetch(job(target, server.put("f", BODY)), QUICK)
    assert only_the_file(target)


NEW = random.Random(1).randbytes(60_000)


def test_what_nothing_would_tell_from_wrongly_joined_parts_starts_anew(server, target):
    url = server.put("f", NEW)
    begin(target, 25_000)
    fetch(job(target, url, hashes={}), QUICK)
    assert only_the_file(target, NEW) and server.ranges("f") == [None]


def test_a_mirror_goes_on_where_the_first_server_stopped(server, target):
    url = server.put("f", BODY, Fault(cut=40_000), always=Fault(status=404))
    mirror = server.put("mirror", BODY, etag='"other"')
    assert fetch(job(target, url, mirror), QUICK) == mirror
    assert only_the_file(target) and server.ranges("mirror") == ["bytes=40000-"] and server.sent("mirror") == 20_000


def test_parts_that_do_not_belong_together_are_fetched_once_more_in_one_go(server, target):
    url = server.put("f", BODY)
    begin(target, 25_000, NEW)
    said = []
    fetch(job(target, url, say=said.append), QUICK)
    assert only_the_file(target) and server.ranges("f") == ["bytes=25000-", None]
    assert any("in one go" in text for text in said)


def test_all_bytes_are_there_and_only_the_rename_is_missing(server, target):
    url = server.put("f", BODY)
    begin(target, len(BODY))
    fetch(job(target, url, size=len(BODY)), QUICK)
    assert only_the_file(target) and server.log == []


def test_more_bytes_here_than_there(server, target):
    url = server.put("f", BODY)
    begin(target, len(BODY) + 9, BODY + b"more bytes")
    fetch(job(target, url), QUICK)  # 416, then from the start
    assert only_the_file(target) and server.ranges("f") == ["bytes=60009-", None]


def test_ctrl_c_leaves_a_beginning(server, target, monkeypatch):
    url = server.put("f", BODY)

    def interrupt(bar: tqdm, n: int) -> None:
        bar.n += n
        if bar.n > 30_000:
            raise KeyboardInterrupt

    server.files["f"].always = Fault(pace=0.005)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tqdm, "update", interrupt)
        fetch(job(target, url), QUICK)
    have = job(target).have
    assert have > 30_000 and not target.exists()
    fetch(job(target, url), QUICK)
    assert only_the_file(target) and server.ranges("f")[1] == f"bytes={have}-"


def test_the_disk_fills_up_meanwhile(server, target, monkeypatch):
    """The file behind ``open`` takes 20,000 bytes and then what a full disk answers."""
    url = server.put("f", BODY)
    true_open = Path.open
    room = [20_000]

    def small_disk(self, mode="r", *args, **more):
        file = true_open(self, mode, *args, **more)
        if self.name == "file.bin.partial" and mode == "ab":
            true_write = file.write

            class Small:
                def __enter__(self):
                    return self

                def __exit__(self, *error):
                    file.close()

                def write(self, data):
                    true_write(data[: room[0]])
                    room[0] -= len(data[: room[0]])
                    if room[0] == 0:
                        raise OSError(errno.ENOSPC, "No space left on device")

            return Small()
        return file

    monkeypatch.setattr(Path, "open", small_disk)
    with pytest.raises(NoSpace, match=r"disk is full while saving file\.bin; make room"):
        fetch(job(target, url, f"{server.base}/other"), QUICK)
    assert len(server.log) == 1 and job(target).have == 20_000  # no other source is tried: it is our disk
    monkeypatch.setattr(Path, "open", true_open)
    fetch(job(target, url), QUICK)
    assert only_the_file(target) and server.ranges("f")[1] == "bytes=20000-"


def test_a_folder_that_cannot_be_written_is_no_network_failure(server, target):
    target.parent.parent.mkdir(exist_ok=True)
    target.parent.write_text("a file in the way")
    with pytest.raises(OSError):
        fetch(job(target, server.put("f", BODY)), QUICK)


def test_the_proxy_of_the_environment_is_used(server, target, monkeypatch):
    monkeypatch.setenv("http_proxy", server.base)
    monkeypatch.setenv("no_proxy", "")
    server.put("sets/f", BODY)
    fetch(job(target, "http://data.invalid/sets/f"), QUICK)
    assert only_the_file(target)


def a_curl(folder: Path, monkeypatch, body: str) -> None:
    """Another program of that name comes first."""
    folder.mkdir(exist_ok=True)
    (folder / "curl").write_text(f"#!/bin/sh\n{body}\n")
    (folder / "curl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_an_untrusted_certificate_is_not_argued_with(target, tmp_path, monkeypatch):
    a_curl(tmp_path / "bin", monkeypatch, "echo 'curl: (60) SSL certificate problem: self-signed' >&2; exit 60")
    with pytest.raises(DownloadError, match=r"f: SSL certificate problem: self-signed\n"):
        fetch(job(target, "https://127.0.0.1/f"), QUICK)


def test_without_curl_it_says_so(server, target, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependency, match=r"curl is needed.*install it, or put the file there yourself: .*file"):
        fetch(job(target, server.put("f", BODY)), QUICK)
    target.parent.mkdir()
    target.write_bytes(BODY)
    assert fetch(job(target, server.put("f", BODY)), QUICK) == ""  # nothing is to be fetched


def test_settings_of_the_user_do_not_change_what_curl_writes(server, target, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CURL_HOME", str(tmp_path))
    (tmp_path / ".curlrc").write_text("output = elsewhere\nhead\n")
    fetch(job(target, server.put("f", BODY)), QUICK)
    assert only_the_file(target)
