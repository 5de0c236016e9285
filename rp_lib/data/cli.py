"""``rp-lib data``: list, download, check."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from rp_lib.data import default_root
from rp_lib.data.sources import DataSet, Sources, check_url, load_sources
from rp_lib.data.space import free_bytes, human
from rp_lib.data.store import DataStore
from rp_lib.data.transport import Limits
from rp_lib.errors import RPLibError

_EPILOG = """\
examples:
  rp-lib data --list                              what there is, and what is there already
  rp-lib data cifar                               the whole CIFAR-10 benchmark into ./data
  rp-lib data --folder imagenet-1k=/sets/imagenet use a folder that you have
  rp-lib data --check                             verify everything that is there, down to the bytes

exit codes:
  0  everything asked for is there
  2  bad input, or a folder that cannot be read or written
  3  network: no source gave a whole file
  4  verification: something is not what it should be
  5  no space on the disk
  6  not there: to be fetched by hand, or (with --check) not downloaded yet
  130  interrupted; the same command goes on from there
When several data sets fail, the first of 4, 5, 3, 6, 2 that occurred.
"""
_WORST = (4, 5, 3, 6, 2)


class SomeFailed(RPLibError):
    """Several data sets were asked for and some are not there."""

    def __init__(self, failed: dict[str, RPLibError], asked: int) -> None:
        super().__init__(f"{len(failed)} of {asked} data sets failed: {', '.join(failed)} (reasons above)")
        codes = {error.exit_code for error in failed.values()}
        self.exit_code = next(code for code in _WORST if code in codes)


def add_data_command(commands: argparse._SubParsersAction) -> None:
    """Add ``data`` to the commands of ``rp-lib``."""
    text = "Download and verify the real data sets of the full track."
    parser = commands.add_parser(
        "data",
        help=text,
        description=text,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets or groups (see --list), or all")
    parser.add_argument("--list", action="store_true", help="say what there is and what is there already, and stop")
    parser.add_argument("--check", action="store_true", help="verify what is there, down to the bytes, and stop")
    parser.add_argument("--dry-run", action="store_true", help="say what would be downloaded from where, and stop")
    parser.add_argument("--root", type=Path, help="folder of the data sets; default: $RP_DATA, else data")
    parser.add_argument(
        "--folder", action="append", default=[], metavar="NAME=PATH", help="use a folder that is there; repeatable"
    )
    parser.add_argument(
        "--mirror",
        action="append",
        default=[],
        metavar="URL",
        help="a server that holds NAME/FILE, tried before the known ones and verified the same; repeatable",
    )
    parser.add_argument(
        "--timeout", type=float, default=30.0, help="seconds without a byte before a try is given up (default: 30)"
    )
    parser.add_argument(
        "--attempts", type=int, default=5, help="tries in a row that may fail for each address (default: 5)"
    )
    parser.add_argument("--quiet", action="store_true", help="say only what is wrong")


def run(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        RPLibError: something asked for is not there; ``exit_code`` says why.
    """
    if args.timeout <= 0 or args.attempts < 1:
        raise RPLibError("--timeout takes a number of seconds above 0, --attempts a whole number above 0")
    try:
        mirrors = [check_url(url) for url in args.mirror]
    except ValueError as error:
        raise RPLibError(f"--mirror: {error}") from error
    say = (lambda text: None) if args.quiet else print
    sources = load_sources()
    bars = _Bars(enabled=not args.quiet and sys.stderr.isatty())
    store = DataStore(
        args.root or default_root(),
        mirrors=mirrors,
        limits=Limits(timeout=args.timeout, window=2 * args.timeout, attempts=args.attempts),
        say=say,
        on_bytes=bars.update,
    )
    own = [_assignment(text) for text in args.folder]
    for name, _ in own:
        sources[name]  # refuses an unknown name before anything is done
    if not (args.names or args.list or args.check or own):
        raise RPLibError(f"name data sets or groups ({', '.join(sources.groups)}, all), or pass --list")
    chosen = sources.select(args.names)
    if args.list:
        print(listing(store, sources, chosen))
        return
    if args.dry_run:
        print("\n".join(plan(store, chosen)))
        return
    jobs: list[tuple[str, Callable[[], object]]] = []
    for name, folder in own:
        jobs.append((name, lambda name=name, folder=folder: store.adopt(sources[name], folder)))
    if args.check:
        if not args.names:
            chosen = [d for d in sources.data.values() if store.state(d).kind in ("there", "damaged")]
            if not chosen:
                say(f"nothing was downloaded to {store.root}")
        jobs += [(d.name, lambda d=d: store.check(d)) for d in chosen]
    else:
        jobs += [(d.name, lambda d=d: store.download(d)) for d in chosen]
    try:
        _run_all(jobs, lambda name: say(f"{name}: {store.state(sources[name]).text} ({store.home(sources[name])})"))
    finally:
        bars.close()


def listing(store: DataStore, sources: Sources, chosen: Sequence[DataSet]) -> str:
    """The table of ``--list``; with data sets named, their sources as well."""
    rows = [("name", "role", "download", "licence or terms", "here")]
    for data in chosen or sources.data.values():
        size = "by hand" if data.by_hand else human(data.size)
        rows.append((data.name, data.role, size, data.licence or "unknown", store.state(data).text))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join([*(f"{cell:{w}}" for cell, w in zip(row, widths, strict=False)), row[4]]) for row in rows]
    if not chosen:
        lines += ["", "groups:"]
        for group, text in sources.groups.items():
            members = ", ".join(d.name for d in sources.select([group]))
            lines.append(f"  {group}: {text} ({members})")
        lines += ["", f"in {store.root}; unknown terms: see the page that --list NAME gives"]
    for data in chosen:
        lines += ["", f"{data.name}: {data.title}; {data.homepage}"]
        lines += [f"  {data.by_hand}"] if data.by_hand else []
        for file in data.files:
            how = ", ".join(f"{k} {v}" for k, v in file.hashes.items()) or "no published hash: kept at first download"
            lines += [f"  {file.name}, {human(file.size)}, {how}", *(f"    {u}" for u in store.urls(data, file))]
    return "\n".join(lines)


def plan(store: DataStore, chosen: Sequence[DataSet]) -> list[str]:
    """The lines of ``--dry-run``; nothing is asked of any server."""
    lines = []
    for data in chosen:
        state = store.state(data)
        if state.kind == "there":
            lines.append(f"{data.name}: {state.text}; nothing to do")
        elif data.by_hand:
            lines.append(f"{data.name}: by hand: {store.remedy(data)}")
        else:
            lines.append(f"{data.name}: to {store.home(data)}" + (f" ({state.text})" if state.kind != "absent" else ""))
            lines += [f"  {f.name}, {human(f.size)}, {store.urls(data, f)[0]}" for f in data.files]
    return [*lines, f"{human(free_bytes(store.root))} are free for {store.root}"]


def _assignment(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals or not path:
        raise RPLibError(f"--folder takes NAME=PATH, got {text!r}")
    return name, Path(path)


def _run_all(jobs: Sequence[tuple[str, Callable[[], object]]], done: Callable[[str], None]) -> None:
    """Run every job whatever becomes of the others; a single failure is raised as it is."""
    failed: dict[str, RPLibError] = {}
    for name, job in jobs:
        try:
            job()
        except RPLibError as error:
            if len(jobs) == 1:
                raise
            failed[name] = error
            print(f"rp-lib: {error}", file=sys.stderr)
        else:
            done(name)
    if failed:
        raise SomeFailed(failed, len(jobs))


class _Bars:
    """One tqdm bar for the file that is on its way."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._name = ""
        self._bar: tqdm | None = None

    def update(self, name: str, done: int, total: int | None) -> None:
        if not self._enabled:
            return
        if self._bar is None or name != self._name:
            self.close()
            self._name, self._bar = name, tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=name)
        self._bar.n = done
        self._bar.total = total
        self._bar.update(0)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
