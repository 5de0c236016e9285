"""``rp-lib data`` killed twenty times at random moments: nothing is fetched twice, and nothing looks whole that is not."""

import gzip
import hashlib
import io
import json
import os
import random
import signal
import tarfile
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from data_server import Fault, Server, start_child

from rp_lib.data import DataStore, NotThere, load_sources

KILLS = 20
PICTURES = {f"set/c{i % 3}/{i}.jpg": random.Random(i).randbytes(4_000) for i in range(120)}
NUMBERS = random.Random("numbers").randbytes(120_000)

# The command itself, without the torch of the others; files are unpacked slowly, as on a slow disk.
CHILD = """
import tarfile, time
from pathlib import Path
from rp_lib import cli
from rp_lib.data import sources
table, root = sys.argv[1:3]
load = sources.load_sources
sources.load_sources = lambda: load(Path(table))
extract = tarfile.TarFile.extract
tarfile.TarFile.extract = lambda *args, **more: (time.sleep(0.004), extract(*args, **more))[1]
args = cli.build_parser().parse_args(["data", "pictures", "--root", root])
args.run(args)
"""


def pack(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return gzip.compress(out.getvalue(), mtime=0)


BODIES = {"set.tar.gz": pack(PICTURES), "numbers.npy": NUMBERS}


@pytest.fixture
def server():
    running = Server()
    yield running
    running.close()


@pytest.fixture
def table(server: Server, tmp_path: Path) -> Path:
    """A data set of an archive and a plain file, from a server that is slow and can go on in the middle."""
    files = []
    for name, body in BODIES.items():
        url = server.put(name, body, always=Fault(pace=0.01, chunk=8_000))
        more = {"unpack": "."} if name.endswith("gz") else {"size": len(body)}
        files.append({"name": name, "urls": [url], "sha256": hashlib.sha256(body).hexdigest(), **more})
    row = {"title": "Pictures", "role": "OOD", "groups": [], "homepage": "http://127.0.0.1/", "files": files}
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"groups": {}, "data": {"pictures": row}}))
    return path


class Watch:
    """Looks at a folder all the time; ``seen`` counts what it looked like whenever it was there."""

    def __init__(self, home: Path) -> None:
        self.home, self.seen, self._stop = home, Counter(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._stop.wait(0.002):
            if self.home.exists():
                self.seen["whole" if whole(self.home) else "not whole"] += 1

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()


def whole(home: Path) -> bool:
    found = {p.relative_to(home).as_posix(): p.read_bytes() for p in home.rglob("*") if p.is_file()}
    return found.pop(".rp-data.json", b"") != b"" and found == {**PICTURES, "numbers.npy": NUMBERS}


def begun(incoming: Path) -> dict[str, int]:
    """Bytes of every file so far; they are a true beginning of it."""
    have = {}
    for name, body in BODIES.items():
        path = next((p for p in (incoming / name, incoming / f"{name}.partial") if p.is_file()), None)
        found = path.read_bytes() if path else b""
        assert body.startswith(found)
        have[name] = len(found)
    return have


def wait_for_curl(group: int) -> None:
    """The kill hits Python alone; the curl that it leaves must end by itself."""
    for _ in range(2000):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.005)
    raise AssertionError("curl goes on after its parent was killed")


def test_killed_twenty_times_nothing_is_fetched_twice_and_nothing_half_done_is_seen(server, table, tmp_path):
    store, data = DataStore(tmp_path / "data"), load_sources(table)["pictures"]
    home, aside = store.home(data), store.root / ".rp-data" / "unpacking" / "pictures"
    chance, counts, earlier = random.Random(0), Counter(), {}

    def start():
        before, have = len(server.log), begun(store.incoming(data))
        assert all(have[name] >= n for name, n in earlier.items())  # no kill cost a byte that was there
        earlier.update(have)
        return start_child(CHILD, table, store.root), before, have

    def asked_for_the_rest_alone(before: int, have: dict[str, int]) -> None:
        for name, asked, _ in server.log[before:]:
            assert asked == (f"bytes={have[name]}-" if have[name] else None) and have[name] < len(BODIES[name])
        names = [name for name, *_ in server.log[before:]]
        assert len(names) == len(set(names))

    with Watch(home) as watch:
        while counts["kills"] < KILLS:
            child, before, have = start()
            enough = chance.randint(0, 10) * 8_000
            while sum(n for *_, n in server.log[before:]) < enough and not aside.exists() and child.poll() is None:
                time.sleep(0.001)
            counts["unpacking" if aside.exists() else "downloading"] += 1
            time.sleep(chance.uniform(0, 0.1 if aside.exists() else 0.01))
            child.send_signal(signal.SIGKILL)
            said = child.communicate(timeout=30)
            assert child.returncode == -signal.SIGKILL, said
            wait_for_curl(child.pid)
            counts["kills"] += 1
            asked_for_the_rest_alone(before, have)
            assert not home.exists() and store.state(data).kind in ("absent", "begun")
            with pytest.raises(NotThere):
                store.locate(data)
        child, before, have = start()
        said = child.communicate(timeout=60)
        assert child.returncode == 0, said
        asked_for_the_rest_alone(before, have)
        watch.seen["whole"] += whole(home)
    assert counts["downloading"] >= 5 and counts["unpacking"] >= 3, counts
    assert watch.seen["not whole"] == 0 and watch.seen["whole"] > 0
    assert store.check(data).count == len(PICTURES) + 1
    left = [p.name for p in (store.root / ".rp-data").rglob("*") if p.is_file() and p.parent.name != "locks"]
    assert left == [] and not aside.exists()
