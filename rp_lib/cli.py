"""The command line: ``rp-lib`` or ``python -m rp_lib``."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from rp_lib._version import __version__
from rp_lib.data.cli import add_data_command
from rp_lib.errors import RPLibError, UnknownName
from rp_lib.experiments.cli import add_experiment_command
from rp_lib.notebooks import add_notebooks_command
from rp_lib.run_cli import add_run_command

Command = Callable[[argparse.Namespace], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 bad input or environment, 130 interrupted."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if os.environ.get("WORLD_SIZE", "1") != "1":  # a launcher's; torch is not imported for a --help
        from rp_lib import distributed

        if not distributed.is_main():  # it says what the main process says
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - as long as the process lives
    # open_clip's image library announces its own future renames; a newcomer cannot act on that.
    warnings.filterwarnings("ignore", category=FutureWarning, module="timm")
    try:
        args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
        return 0
    except RPLibError as error:
        print(f"rp-lib: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"rp-lib: {error}; check that the path exists and can be read and written", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nrp-lib: interrupted; what was finished is kept, the same command goes on from there", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The complete parser."""
    parser = argparse.ArgumentParser(
        prog="rp-lib",
        description="Adapt CLIP without breaking it: reprogramming against fine-tuning on three axes.",
        epilog="Start with `rp-lib demo`.",
    )
    parser.add_argument("--version", action="version", version=f"rp_lib {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, run: Command, text: str, group: argparse._SubParsersAction = commands
    ) -> argparse.ArgumentParser:
        sub = group.add_parser(
            name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        sub.set_defaults(run=run)
        return sub

    demo = add("demo", _demo, "Train and compare every core method on the mini benchmark: one table, one figure.")
    demo.add_argument(
        "--out", type=Path, default=Path("results/demo"), help="folder for records, figure, trained methods"
    )
    demo.add_argument("--seeds", type=int, default=3, help="seeds of every trained method")
    demo.add_argument("--methods", default=",".join(_core()), help="comma-separated method names")
    demo.add_argument("--fresh", action="store_true", help="train and evaluate anew whatever is there")
    demo.add_argument("--details", action="store_true", help="also print accuracy and AUROC of every single set")
    demo.add_argument("--quiet", action="store_true", help="no progress bars")
    _backbone_options(demo)

    info = add("info", _info, "Say what is installed and which device and data are in use.")
    _backbone_options(info)

    look = add(
        "search", _search, "Choose hyper-parameters on ID validation data, the same number of trials for every method."
    )
    look.add_argument(
        "--out", type=Path, default=Path("results/search.csv"), help="table of all trials; finished ones are kept"
    )
    look.add_argument("--trials", type=int, default=12, help="trials per method")
    look.add_argument("--seed", type=int, default=0, help="seed of the draw from the grids")
    look.add_argument("--methods", default="", help="comma-separated method names; default: every method with a grid")
    _backbone_options(look)

    add_run_command(commands)
    add_experiment_command(commands)
    add_data_command(commands)
    add_notebooks_command(commands)
    mini = commands.add_parser("mini", help="Make the mini world anew: corpus, pre-training, benchmark.")
    steps = mini.add_subparsers(required=True, metavar="STEP")
    corpus = add("corpus", _corpus, "Fetch the icons with npm and rasterise them (minutes; resumes).", steps)
    corpus.add_argument("--out", type=Path, default=Path("results/corpus"), help="folder for the corpus")
    corpus.add_argument("--iconify", type=Path, help="an unpacked @iconify/json; default: fetched with npm pack")
    corpus.add_argument("--workers", type=int, help="processes; default: one per core")
    pretrain = add("pretrain", _pretrain, "Pre-train the mini CLIP (one to two hours on two cores; resumes).", steps)
    pretrain.add_argument("--corpus", type=Path, default=Path("results/corpus"), help="folder of `rp-lib mini corpus`")
    pretrain.add_argument(
        "--out", type=Path, default=Path("results/pretrain"), help="folder for state, log and checkpoints"
    )
    pretrain.add_argument(
        "--recipe", default="main", help="main or small (from scratch); polish or broaden (from --start)"
    )
    pretrain.add_argument("--start", type=Path, help="state.pt of a finished run, or released weights, to begin with")
    pretrain.add_argument("--steps", type=int, help="optimiser steps of 512 pictures, instead of the recipe's")
    pretrain.add_argument("--seed", type=int, help="seed of weights, batches, augmentation, instead of the recipe's")
    pretrain.add_argument("--lr", type=float, help="peak learning rate, instead of the recipe's")
    benchmark = add(
        "benchmark", _benchmark, "Build the benchmark, its data card and contact sheet from a corpus.", steps
    )
    benchmark.add_argument("--corpus", type=Path, default=Path("results/corpus"), help="folder of `rp-lib mini corpus`")
    benchmark.add_argument("--out", type=Path, default=Path("results/benchmark"), help="folder for the benchmark")
    release = add("release", _release, "Export a pre-training run as float16 checkpoints with a model card.", steps)
    release.add_argument(
        "--run",
        dest="runs",
        type=Path,
        nargs="+",
        default=[Path("results/pretrain"), Path("results/polish")],
        help="folders of the stages of `rp-lib mini pretrain`, in order",
    )
    release.add_argument("--out", type=Path, default=Path("results/clip"), help="folder for the checkpoints")
    release.add_argument("--keep", default="0.1,0.4", help="fractions of the run to export beside the final weights")
    release.add_argument("--note", default="", help="a sentence about this run for the model card")
    release.add_argument("--after", type=Path, help="earlier release whose final weights the first run started from")
    release.add_argument("--size", help="export the one run as a backbone of another size, of this name")
    release.add_argument("--keep-after", default="", help="checkpoints of the earlier release that ship again")
    return parser


def _core() -> tuple[str, ...]:
    # rp_lib.demo.CORE, without importing torch for a --help.
    return ("zero-shot", "linear-probe", "fine-tune", "rp", "rrp")


def _backbone_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", default="final", help="mini CLIP checkpoint: a name (see `rp-lib info`) or a file"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps ...")
    parser.add_argument("--precision", default="auto", help="of training: auto, float32, bfloat16, float16")


def _load(args: argparse.Namespace) -> tuple:
    from rp_lib.benchmark import Benchmark
    from rp_lib.clip import FrozenCLIP
    from rp_lib.device import autocast_dtype, pick_device

    device = pick_device(args.device)
    autocast_dtype(device, args.precision)  # refuses an unknown precision before anything is trained
    return FrozenCLIP.mini(args.checkpoint, device), Benchmark.mini()


def _demo(args: argparse.Namespace) -> None:
    from rp_lib.demo import details, run_demo, table
    from rp_lib.methods import METHODS

    methods = tuple(dict.fromkeys(name.strip() for name in args.methods.split(",") if name.strip()))
    if not methods:
        raise RPLibError(f"--methods names no method; known: {', '.join(METHODS)}")
    for name in methods:
        if name not in METHODS:
            raise UnknownName("method", name, METHODS)
    clip, benchmark = _load(args)
    print(
        f"{benchmark.name}: {len(benchmark.class_names)} classes, {len(benchmark.train)} training and "
        f"{len(benchmark.test)} test images, {len(benchmark.shifts)} shifted and {len(benchmark.ood)} OOD sets; "
        f"backbone {clip.name}, {clip.device}"
    )
    story = run_demo(
        clip, benchmark, args.out, seeds=args.seeds, methods=methods, precision=args.precision, fresh=args.fresh,
        progress=not args.quiet,
    )  # fmt: skip
    print()
    print(table(story.summary))
    print(
        f"\nPercent, mean of {args.seeds} seeds ± half of the 95 % interval (images and seeds). Shift accuracy, AUROC\n"
        "and FPR95: mean over sets; detector: MSP; FPR95: ID positive, threshold at 95 % TPR on the test images\n"
        "(convention id-positive)."
    )
    if args.details:
        print("\n" + details(story.summary))
    verb = "Reused" if story.reused else "Wrote"
    print(f"\n{verb} {args.out / 'records.csv'} ({len(story.records)} records) and {story.figure}")


def _info(args: argparse.Namespace) -> None:
    from rp_lib.device import autocast_dtype
    from rp_lib.mini import weights
    from rp_lib.records import environment

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


def _search(args: argparse.Namespace) -> None:
    from rp_lib.search import SPACES, search, winners

    names = tuple(name for name in args.methods.split(",") if name) or tuple(SPACES)
    clip, benchmark = _load(args)
    found = search(
        clip, benchmark, args.out, trials=args.trials, seed=args.seed, methods=names, precision=args.precision
    )
    print(found.to_string(index=False))
    for name, settings in winners(found).items():
        print(f"{name}: {settings}")


def _corpus(args: argparse.Namespace) -> None:
    from rp_lib.mini.corpus import build_corpus, fetch_iconify

    build_corpus(args.iconify or fetch_iconify(args.out / "npm"), args.out, args.workers)


def _pretrain(args: argparse.Namespace) -> None:
    from dataclasses import replace

    from rp_lib.mini.pretrain import RECIPES, pretrain

    if args.recipe not in RECIPES:
        raise UnknownName("recipe", args.recipe, RECIPES)
    recipe = RECIPES[args.recipe]
    if not recipe.augment_over and args.start is None:  # full augmentation from the first step teaches nothing
        raise RPLibError(f"the {args.recipe} recipe goes on from a finished run: pass --start RUN/state.pt")
    changes = {k: v for k in ("steps", "seed", "lr") if (v := getattr(args, k)) is not None}
    pretrain(args.corpus, args.out, replace(recipe, **changes), args.start)


def _benchmark(args: argparse.Namespace) -> None:
    from rp_lib.mini.benchmark_builder import build_benchmark

    build_benchmark(args.corpus, args.out)


def _release(args: argparse.Namespace) -> None:
    from rp_lib.mini.other_size import release_size
    from rp_lib.mini.release import release

    if args.size is not None:
        if len(args.runs) != 1:
            raise RPLibError("--size takes one run: pass --run FOLDER")
        return release_size(args.runs[0], args.out, args.size)
    try:
        keep = tuple(float(f) for f in args.keep.split(",") if f)
    except ValueError as error:
        raise RPLibError(f"--keep takes fractions such as 0.1,0.4, got {args.keep!r}") from error
    names = tuple(name for name in args.keep_after.split(",") if name)
    release(tuple(args.runs), args.out, keep, args.note, args.after, names)
