"""The command line: ``rp-lib`` or ``python -m rp_lib``."""

from __future__ import annotations

import argparse
import io
import os
import sys
import tomllib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rp_lib._version import __version__
from rp_lib.run import CONFIGS, CORE, shipped
from rp_lib.utils.errors import RPLibError

if TYPE_CHECKING:
    from rp_lib.data.download import DataStore
    from rp_lib.data.sources import DataSet, Sources
    from rp_lib.methods import Method
    from rp_lib.run.config import RunConfig

# ``rp-lib run``: a benchmark from a configuration file.

_RUN_EPILOG = """\
examples:
  rp-lib run --list                                   the configurations that ship
  rp-lib run --config cifar10-paper --dry-run         what it would do, need and cost; nothing is loaded
  rp-lib run --config cifar10-paper                   the paper's CIFAR-10 benchmark
  rp-lib run --config cifar10-paper --set settings.rp.epochs=5 --set data.per_class=100
  rp-lib run --config imagenet-as_released --set backbone.name=RN50-quickgelu --methods zero-shot,rp --out results/rn50
  rp-lib run --config folders --set 'data={id="folders", train="pets/train", test="pets/test", ood={food="food"}}'
  rp-lib run --config pacs --set data.root=photos     real photographs, and a backbone that needs no download
  rp-lib run --config my.toml                         a file of your own: copy one that --list names
  accelerate launch --multi_gpu --num_processes 4 -m rp_lib run --config cifar10-paper     four GPUs
  torchrun --nproc_per_node=2 -m rp_lib run --config mini                                  two processes, GPUs or CPUs

What the command line says wins over the file. The results' folder gets config.toml (the configuration as it was
used: `--config FOLDER/config.toml` repeats the run), records.csv with its provenance, three_axes.png, every trained
method with a threshold, its outputs, and in `answers` accuracy by class, confusion matrix and mistakes. The same
command goes on where it was interrupted; with other data or settings it trains what is new, and moves the earlier
records to `earlier`.

exit codes: 0 done, 2 bad input or environment, 6 data sets are missing, 130 interrupted
"""


def changes_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the command line changes of a configuration, by dotted key.

    Raises:
        RPLibError: An option cannot be read.
    """
    changes: dict[str, Any] = {}
    for text in getattr(args, "set", ()):
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise RPLibError(f"--set takes KEY=VALUE, such as settings.rp.epochs=5, got {text!r}")
        changes[key.strip()] = _value(value.strip())
    name = str(changes.get("backbone.name", ""))
    if name == "mini" or ":" in name:
        changes = {"backbone.pretrained": None, **changes}  # the file's weights are another model's
    if args.out is not None:
        changes["out"] = str(args.out)
    if args.methods is not None:
        changes["methods"] = split_names(args.methods)
    if args.seeds is not None:
        changes["seeds"] = read_seeds(args.seeds)
    return changes


def read_seeds(text: str) -> int | list[int]:
    """Read a number of seeds, or a comma-separated list of them.

    Raises:
        RPLibError: It is neither.
    """
    try:
        numbers = [int(part) for part in split_names(text)]
    except ValueError as error:
        raise RPLibError(f"--seeds takes a number of seeds, or a list such as 1,2,7, got {text!r}") from error
    return numbers[0] if len(numbers) == 1 and "," not in text else numbers


def split_names(text: str) -> list[str]:
    """Split a comma-separated list, without white space and empty names."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _value(text: str) -> Any:
    """A value as TOML reads it; what is no TOML is a text, and nothing takes the key out."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text or None


def _run(args: argparse.Namespace) -> None:
    if args.list:
        for name, path in shipped().items():
            print(f"{name:20} {tomllib.loads(path.read_text(encoding='utf-8'))['about']}")
        print(f"\nin {CONFIGS}: copy one, edit it, and pass its path as --config")
        return
    if not args.config:
        raise RPLibError("say what to run: --config NAME (see --list), or a TOML file of your own")
    changes = changes_of(args)
    from rp_lib.run.config import read_config

    config = read_config(args.config, changes)
    if args.dry_run:
        from rp_lib.run.cost import plan

        print(plan(config))
        return
    _compare(config, args, keep_outputs=True)


def _demo(args: argparse.Namespace) -> None:
    changes = {"backbone.pretrained": args.checkpoint, "device": args.device, "precision": args.precision}
    changes |= changes_of(args)
    from rp_lib.run.config import read_config

    _compare(read_config("mini", changes), args, keep_outputs=False)


def _compare(config: RunConfig, args: argparse.Namespace, keep_outputs: bool) -> None:
    """Fit, evaluate and record what a configuration names, and print the table."""
    from rp_lib.run.report import details, table
    from rp_lib.run.session import of_detector, open_session
    from rp_lib.utils import distributed
    from rp_lib.utils.device import autocast_dtype, pick_device
    from rp_lib.utils.io import check_writable

    autocast_dtype(pick_device(config.device), config.precision)  # refused before anything is loaded
    try:
        import matplotlib  # noqa: F401 - it refuses a bad setting now, not after training
    except ValueError as error:
        raise RPLibError(f"matplotlib: {error}; mend or unset MPLBACKEND") from error
    distributed.on_main(lambda: check_writable(config.out))
    session = open_session(config, progress=not args.quiet)
    data = session.data
    print(
        f"{data.name}: {len(data.class_names)} classes, {len(data.train):,} training and {len(data.test):,} test "
        f"images, {len(data.shifts)} shifted and {len(data.ood)} OOD sets; backbone {session.clip.name}, "
        f"{session.device}" + (f", {n} processes" if (n := distributed.world_size()) > 1 else "")
    )
    result = session.compare(
        config.out, methods=config.methods, seeds=config.seeds, detectors=config.detectors, keep_outputs=keep_outputs,
        fresh=args.fresh, config=config if keep_outputs else None,
    )  # fmt: skip
    shown = of_detector(result.summary, config.detectors[0])
    seeds = f"{len(config.seeds)} seeds" if len(config.seeds) > 1 else "one seed"
    conventions = ", ".join(sorted(result.records["convention"].dropna().unique())) or "none, there are no OOD sets"
    print(
        f"\n{table(shown)}\n\nPercent, mean of {seeds} ± half of the 95 % interval (images and seeds). Shift\n"
        f"accuracy, AUROC and FPR95: mean over sets; detector: {config.detectors[0]}; FPR95: threshold at 95 % TPR\n"
        f"on the test images, convention {conventions}.\n\n{details(shown)}"
    )
    for name in config.detectors[1:]:
        print(f"\nDetector {name}:\n{table(of_detector(result.summary, name))}")
    verb = "Reused" if result.reused else "Wrote"
    print(f"\n{verb} {config.out / 'records.csv'} ({len(result.records)} records) and {result.figure}")
    if keep_outputs:
        print(f"By class, confusion and mistakes with their files: the tables in {config.out / 'answers'}")


# The command line: ``rp-lib`` or ``python -m rp_lib``.

Command = Callable[[argparse.Namespace], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 bad input or environment, 130 interrupted."""
    return run_command(build_parser(), argv)


def run_command(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> int:
    """Parse, run and report: errors become one line on stderr and an exit code."""
    args = parser.parse_args(argv)
    if os.environ.get("WORLD_SIZE", "1") != "1":  # a launcher's; torch is not imported for a --help
        from rp_lib.utils import distributed

        if not distributed.is_main():  # it says what the main process says
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - as long as the process lives
    # open_clip's image library announces its own future renames; a newcomer cannot act on that.
    warnings.filterwarnings("ignore", category=FutureWarning, module="timm")
    if sys.stdout is None:  # closed by who started it
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - as long as the process lives
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows ASCII alone still shows the table
    try:
        args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
        return 0
    except RPLibError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"{parser.prog}: {error}; check that the path exists and can be read and written", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{parser.prog}: interrupted; what was finished is kept, run the same command again", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Make the complete parser."""
    parser = argparse.ArgumentParser(
        prog="rp-lib",
        description="Adapt CLIP without breaking it: reprogramming against fine-tuning on three axes.",
        epilog="Start with `rp-lib demo`.",
    )
    parser.add_argument("--version", action="version", version=f"rp_lib {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Command, text: str, epilog: str = "") -> Callable[..., Any]:
        """Add a command; returns what adds its options."""
        layout = argparse.RawDescriptionHelpFormatter if epilog else _Defaults
        sub = commands.add_parser(name, help=text, description=text, epilog=epilog, formatter_class=layout)
        sub.set_defaults(run=run)
        return sub.add_argument

    add = command("demo", _demo, "Train and compare every core method on the mini benchmark: one table, one figure.")
    add("--out", default="results/demo", help="folder for records, figure, trained methods")
    _add_run_options(add, seeds="3", methods=",".join(CORE))
    _add_backbone_options(add)

    add = command("info", _info, "Say what is installed and which device, data and cache are in use.")
    add("--clear-cache", action="store_true", help="remove all decoded pictures; runs decode them again")
    _add_backbone_options(add)

    text = "Choose hyper-parameters by cross-validation on ID data, with equal chances for every method."
    add = command("search", _search, text)
    add("--out", type=Path, default=Path("results/search.csv"), help="table of all trials; finished ones are kept")
    add("--trials", type=int, default=8, help="per method; those that train on features get more")
    add("--seed", type=int, default=0, help="seed of the draw from the grids")
    add("--methods", default="", help="comma-separated method names; default: every method with a grid")
    _add_backbone_options(add)

    text = "Train and compare methods on a benchmark that a configuration names: the paper's, or your own folders."
    add = command("run", _run, text, _RUN_EPILOG)
    add("--config", help="a shipped configuration's name, or a TOML file")
    add("--list", action="store_true", help="say which configurations ship, and stop")
    add("--dry-run", action="store_true", help="say what would be done, with estimates of memory and time, and stop")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any key, such as data.subset=500; repeatable")
    add("--out", help="folder for the results")
    _add_run_options(add)

    text = "Say what pictures show, with a trained method: class, probability, OOD score and whether it is accepted."
    add = command("predict", _predict, text)
    add("--threshold", type=Path, help="file of `rp-lib threshold`; decides what is accepted")
    add("--format", choices=("csv", "jsonl"), default="csv", help="table or JSON lines")
    add("--out", type=Path, help="file to write; default: standard output")
    _add_method_options(add)
    _add_picture_options(add)

    text = "Fit the threshold of a trained method on pictures that show its classes and that it was not trained on."
    add = command("threshold", _threshold, text)
    add("--tpr", type=float, default=0.95, help="share of them to accept")
    add("--detector", default="msp", help="OOD detector that scores")
    add("--out", type=Path, required=True, help="file to write")
    _add_method_options(add)
    _add_picture_options(add)

    text = "Write a trained method as a program of torch.export, which is served without rp_lib."
    add = command("export", _export, text)
    _add_method_options(add)
    add("out", type=Path, help="file to write, such as method.pt2")

    add = command("data", _data, "Download and verify the real data sets of the full track.", _DATA_EPILOG)
    add("names", nargs="*", metavar="NAME", help="data sets or groups (see --list), or all")
    add("--list", action="store_true", help="say what there is and what is there already, and stop")
    add("--check", action="store_true", help="verify what is there, down to the bytes, and stop")
    add("--dry-run", action="store_true", help="say what would be downloaded from where, and stop")
    add("--root", type=Path, help="folder of the data sets; default: $RP_DATA, else data")
    add("--folder", action="append", default=[], metavar="NAME=PATH", help="use a folder that is there; repeatable")
    mirror = "a server that holds NAME/FILE, tried before the known ones and verified the same; repeatable"
    add("--mirror", action="append", default=[], metavar="URL", help=mirror)
    add("--timeout", type=float, default=30.0, help="seconds without bytes after which a try ends (default: 30)")
    add("--attempts", type=int, default=5, help="tries in a row that may fail for each address (default: 5)")
    add("--quiet", action="store_true", help="say only what is wrong")
    return parser


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Names the defaults of options, but for those that are None or switches."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False, "") else super()._get_help_string(action)


def _add_run_options(add: Callable[..., Any], seeds: str | None = None, methods: str | None = None) -> None:
    add("--methods", default=methods, help="comma-separated method names")
    add("--seeds", default=seeds, help="a number of seeds, or a comma-separated list of them such as 1,2,7")
    add("--fresh", action="store_true", help="train and evaluate again whatever is there")
    add("--quiet", action="store_true", help="no progress bars")


def _add_backbone_options(add: Callable[..., Any]) -> None:
    add("--checkpoint", default="final", help="mini CLIP checkpoint: a name (see `rp-lib info`) or a file")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps ...")
    add("--precision", default="auto", help="of training: auto, float32, bfloat16, float16")


def _add_method_options(add: Callable[..., Any]) -> None:
    add("method", type=Path, help="file of a trained method, of the folder trained")
    add("--backbone", help="if the file does not name it: mini, or an open_clip model")
    add("--pretrained", help="tag or local file of its weights")


def _add_picture_options(add: Callable[..., Any]) -> None:
    add("pictures", nargs="+", type=Path, help="picture files, and folders with pictures")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps ...")


def _load(args: argparse.Namespace) -> tuple:
    from rp_lib.mini import load_benchmark, load_clip
    from rp_lib.utils.device import autocast_dtype, pick_device

    device = pick_device(args.device)
    autocast_dtype(device, args.precision)  # refuses an unknown precision before anything is trained
    return load_clip(args.checkpoint, device), load_benchmark()


def _info(args: argparse.Namespace) -> None:
    from rp_lib.data.download import human
    from rp_lib.data.pixel_cache import cache_usage, clear_cache, default_cache

    if args.clear_cache:
        print(f"{default_cache()}: {human(clear_cache())} of decoded pictures removed")
        return
    from rp_lib.mini import weights
    from rp_lib.run.report import environment
    from rp_lib.utils.device import autocast_dtype

    about = environment()
    clip, benchmark = _load(args)
    print(f"rp_lib      {about['rp_lib']}" + (f" at {about['commit']}" if about["commit"] else ""))
    print(f"python      {about['python']}, {about['platform']}, {about['cpus']} cores, {about['cpu_capability']}")
    print("packages    " + ", ".join(f"{k} {v or 'missing'}" for k, v in about["packages"].items()))
    dtype = str(autocast_dtype(clip.device, args.precision) or "float32").removeprefix("torch.")
    print(f"device      {clip.device}{' (' + about['cuda'] + ')' if about['cuda'] else ''}, training in {dtype}")
    print(
        f"backbone    {clip.name}, {clip.image_size} px, {clip.embed_dim} features, scale {clip.logit_scale:.1f}, "
        f"SHA-256 {clip.fingerprint[:12]}"
    )
    shipped = weights.index()
    print("checkpoints " + ", ".join(f"{n} ({shipped[n]['fraction']:.0%} of pre-training)" for n in weights.names()))
    print(f"benchmark   {benchmark.name}, SHA-256 {benchmark.fingerprint[:12]}")
    print(benchmark.describe().to_string(index=False))
    sets, used = cache_usage()
    print(f"cache       {default_cache()}: {sets} sets of decoded pictures, {human(used)} (rp-lib info --clear-cache)")


def _search(args: argparse.Namespace) -> None:
    from rp_lib.run.search import SPACES, choose, search

    names = tuple(split_names(args.methods)) or tuple(SPACES)
    clip, benchmark = _load(args)
    found = search(
        clip, benchmark, args.out, trials=args.trials, seed=args.seed, methods=names, precision=args.precision
    )
    print(f"{len(found)} runs in {args.out}; of each method the trial to take:")
    for name, settings in choose(found).items():
        print(f"{name}: {settings}")


# --- rp-lib data: list, download, check; needs no torch ---

_DATA_EPILOG = """\
examples:
  rp-lib data --list                              what there is, and what is there already
  rp-lib data cifar                               the complete CIFAR-10 benchmark into ./data
  rp-lib data --folder imagenet-1k=/sets/imagenet use a folder that you have
  rp-lib data --check                             verify everything that is there, down to the bytes

exit codes:
  0  everything asked for is there
  2  bad input, or a folder that cannot be read or written
  3  network: no source gave a complete file
  4  verification: something is not what it should be
  5  no space on the disk
  6  not there: to be fetched by hand, or (with --check) not downloaded yet
  130  interrupted; the same command goes on from there
When several data sets fail, the first of 4, 5, 3, 6, 2 that occurred.
"""
_WORST = (4, 5, 3, 6, 2)


def _loaded(args: argparse.Namespace) -> Method:
    from rp_lib.methods import load_method
    from rp_lib.run.opening import open_backbone
    from rp_lib.utils.device import pick_device

    device, clip = pick_device(getattr(args, "device", "cpu")), None
    if args.backbone is not None:
        clip = open_backbone({"name": args.backbone, "pretrained": args.pretrained}, device)
    return load_method(args.method, clip, device=device)


def _predict(args: argparse.Namespace) -> None:
    from rp_lib.prediction import MethodThreshold, find_pictures, predict
    from rp_lib.utils.io import as_csv, write_atomically

    pictures = find_pictures(args.pictures)  # before a backbone is loaded
    threshold = None if args.threshold is None else MethodThreshold.load(args.threshold)
    table = predict(_loaded(args), pictures, threshold)
    text = as_csv(table) if args.format == "csv" else table.to_json(orient="records", lines=True)
    if args.out is None:
        print(text, end="")
    else:
        write_atomically(args.out, lambda partial: partial.write_text(text, encoding="utf-8"))
    if broken := int((table["error"] != "").sum()):
        raise RPLibError(f"{broken} of {len(table)} files show no image; the column `error` says why")


def _threshold(args: argparse.Namespace) -> None:
    from rp_lib.prediction import find_pictures, fit_threshold

    pictures = find_pictures(args.pictures)
    gate = fit_threshold(_loaded(args), pictures, tpr=args.tpr, detector=args.detector)
    gate.save(args.out)
    print(f"{args.out}: {gate.detector} >= {gate.threshold.value:.6g} accepts {args.tpr:.0%} of {gate.data}")


def _export(args: argparse.Namespace) -> None:
    from rp_lib.prediction import export

    method = _loaded(args)
    difference, (height, width) = export(method, args.out), method.preparation.shape
    print(
        f"{args.out}: uint8 pictures (n, 3, {height}, {width}) -> logits (n, {len(method.class_names)}), which differ "
        f"from the method's by at most {difference:.1g}; load it with torch.export.load"
    )


def _data(args: argparse.Namespace) -> None:
    from rp_lib.data.download import DataStore, Limits
    from rp_lib.data.sources import NotThere, check_url, default_root, load_sources

    if args.timeout <= 0 or args.attempts < 1:
        raise RPLibError("--timeout takes a number of seconds above 0, --attempts a whole number above 0")
    try:
        mirrors = [check_url(url) for url in args.mirror]
    except ValueError as error:
        raise RPLibError(f"--mirror: {error}") from error
    say = (lambda text: None) if args.quiet else print
    limits = Limits(timeout=args.timeout, attempts=args.attempts)
    sources, root = load_sources(), args.root or default_root()
    store = DataStore(root, mirrors=mirrors, limits=limits, say=say, progress=not args.quiet)
    own = dict(_assignment(text) for text in args.folder)
    for name in own:
        sources[name]  # refuses an unknown name before anything is done
    if not (args.names or args.list or args.check or own):
        raise RPLibError(f"name data sets or groups ({', '.join(sources.groups)}, all), or pass --list")
    chosen = sources.select(args.names)
    if args.list or args.dry_run:
        print(_listing(store, sources, chosen) if args.list else _plan(store, chosen))
        return
    if args.check and not args.names:
        chosen = [d for d in sources.data.values() if store.state(d).kind in ("there", "damaged")]
        if not chosen:
            raise NotThere(f"nothing was downloaded to {store.root}, so nothing was checked; --root names another")
    jobs = [(name, lambda n=name: store.adopt(sources[n], own[n])) for name in own]
    jobs += [(d.name, lambda d=d: store.check(d) if args.check else store.download(d)) for d in chosen]
    failed: dict[str, RPLibError] = {}
    for name, job in jobs:  # whatever becomes of the others
        try:
            job()
            say(f"{name}: {store.state(sources[name]).text} ({store.home(sources[name])})")
        except RPLibError as error:
            if len(jobs) == 1:
                raise
            failed[name] = error
            print(f"rp-lib: {error}", file=sys.stderr)
    if failed:
        error = RPLibError(f"{len(failed)} of {len(jobs)} data sets failed: {', '.join(failed)} (reasons above)")
        error.exit_code = next(code for code in _WORST if code in {e.exit_code for e in failed.values()})
        raise error


def _listing(store: DataStore, sources: Sources, chosen: Sequence[DataSet]) -> str:
    """The table of ``--list``; with data sets named, their sources as well."""
    from rp_lib.data.download import human

    rows = [("name", "role", "download", "licence or terms", "here")]
    for data in chosen or sources.data.values():
        size = "by hand" if data.by_hand else f"{'about ' if data.sizes_from and data.size else ''}{human(data.size)}"
        rows.append((data.name, data.role, size, data.licence or "none found", store.state(data).text))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join([*(f"{cell:{w}}" for cell, w in zip(row, widths, strict=False)), row[4]]) for row in rows]
    if not chosen:
        lines += ["", "groups:"]
        for group, text in sources.groups.items():
            lines.append(f"  {group}: {text} ({', '.join(d.name for d in sources.select([group]))})")
        lines += ["", f"in {store.root}; --list NAME says who states a size, or where an unknown one was looked for"]
    for data in chosen:
        lines += ["", f"{data.name}: {data.title}; {data.homepage}"]
        lines += [f"  {data.by_hand}"] if data.by_hand else []
        lines += [f"  sizes: {data.sizes_from}"] if data.sizes_from else []
        for file in data.files:
            how = ", ".join(f"{k} {v}" for k, v in file.hashes.items()) or "no published hash: kept at first download"
            lines.append(f"  {file.name}, {human(file.size or file.about)}, {how}")
            lines += [f"    {url}" for url in store.urls(data, file)]
    return "\n".join(lines)


def _plan(store: DataStore, chosen: Sequence[DataSet]) -> str:
    """What ``--dry-run`` says; nothing is asked of any server."""
    from rp_lib.data.download import free_bytes, human

    lines = []
    for data in chosen:
        kind, text = store.state(data)
        if kind == "there":
            lines.append(f"{data.name}: {text}; nothing to do")
        elif data.by_hand:
            lines.append(f"{data.name}: by hand: {store.remedy(data)}")
        else:
            lines.append(f"{data.name}: to {store.home(data)}" + (f" ({text})" if kind != "absent" else ""))
            lines += [f"  {f.name}, {human(f.size or f.about)}, {store.urls(data, f)[0]}" for f in data.files]
    return "\n".join([*lines, f"{human(free_bytes(store.root))} are free for {store.root}"])


def _assignment(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals or not path:
        raise RPLibError(f"--folder takes NAME=PATH, got {text!r}")
    return name, Path(path)
