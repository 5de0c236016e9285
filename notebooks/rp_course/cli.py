"""Commands of the course: ``python -m rp_course experiment | mini | notebooks``."""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rp_lib.cli import Command, read_seeds, run_command
from rp_lib.mini import load_benchmark
from rp_lib.utils.errors import RPLibError, UnknownName

if TYPE_CHECKING:  # the command line starts fast
    import pandas as pd

    from rp_course.experiments import Experiment, ExperimentResult


def add_experiment_command(commands: argparse._SubParsersAction) -> None:
    """Add ``experiment`` to the commands."""
    text = "Run a named experiment: tidy records, verdicts computed from them, comparison with the shipped ones."
    parser = commands.add_parser(
        "experiment", help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments to run, see --list; `all` runs every one")
    parser.add_argument("--list", action="store_true", help="explain every experiment and exit")
    parser.add_argument("--shipped", action="store_true", help="say what the shipped records found, without running")
    parser.add_argument("--quick", action="store_true", help="a short look: one seed, fewer pictures and levels")
    parser.add_argument("--seeds", default="3", help="of training: a number of them, or a list such as 4,5,6")
    parser.add_argument("--search", type=Path, help="tune by this table of `rp-lib search`, not by the one that ships")
    parser.add_argument("--out", type=Path, default=Path("results/experiments"), help="folder for records and parts")
    parser.add_argument(
        "--fresh", action="store_true",
        help="measure again whatever is there; needed after a change of code, as parts are known by settings and data",
    )  # fmt: skip
    parser.add_argument("--rejudge", action="store_true", help="judge and draw the records in --out, without measuring")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps ...")
    parser.add_argument("--precision", default="auto", help="of training: auto, float32, bfloat16, float16")
    parser.set_defaults(run=_experiment)


def _experiment(args: argparse.Namespace) -> None:
    from rp_course.experiments import EXPERIMENTS, experiment

    if args.list:
        for e in EXPERIMENTS.values():
            print(f"{e.name:12} about {e.minutes:g} min  {e.question}")
        return
    if not args.names:
        raise RPLibError("name an experiment (or `all`); `python -m rp_course experiment --list` explains them")
    chosen = [experiment(name) for name in (EXPERIMENTS if args.names == ["all"] else args.names)]
    if args.shipped:
        from rp_course.experiments import shipped_records

        for e in chosen:
            _say(e.question, e.judge(shipped_records(e.name)))
        return
    from rp_course.experiments import rejudge, run
    from rp_lib.utils.io import check_writable

    if args.quick:  # never over records that took longer
        args.out = args.out / "quick"
    check_writable(args.out)  # now, not after minutes of training
    world = None if args.rejudge else _world(args)
    for e in chosen:
        if world is None:
            finding = rejudge(e, args.out)
        else:
            if args.fresh:
                shutil.rmtree(args.out / "parts" / e.name, ignore_errors=True)
            finding = run(e, world, args.out)
        if e.text is not None:
            print(e.text(finding.records), end="\n\n")
        _say(e.question, finding.verdicts)
        print(f"  {len(finding.records)} records in {args.out / e.name}.csv")
        _draw(e, finding.records, args.out)
        if world is not None:
            _add(world.parts, args.quick, finding)


def _draw(e: Experiment, records: pd.DataFrame, out: Path) -> None:
    from rp_course.experiments.figures import alt, figures
    from rp_lib.figures import save_figure

    for suffix, figure in figures(e, records).items():
        save_figure(figure, out / f"{e.name}{suffix}.png")
        print(f"  {e.name}{suffix}.png: {alt(e, records, suffix)}")


def _add(parts: list[dict], quick: bool, finding: ExperimentResult) -> None:
    from rp_course.experiments.base import reused

    earlier = reused(parts)["reused"]
    if earlier:
        print(f"  {sum(earlier.values())} of {len(parts)} parts were measured earlier, by commit {', '.join(earlier)}")
    if quick:
        print("  a quick look: one seed and few pictures; no claim rests on it")
        return
    if finding.kept:
        print(f"  {sum(finding.kept.values())} of {len(finding.kept)} verdicts have the word of the shipped records")
    print(f"  {finding.agreement or 'no shipped records of the same weights, data and seeds to compare with'}")


def _world(args: argparse.Namespace):
    from rp_course.experiments import World
    from rp_lib.run.config import seed_list
    from rp_lib.run.search import SEARCH, tuned_settings
    from rp_lib.utils.device import autocast_dtype, pick_device

    try:
        seeds = tuple(seed_list(read_seeds(args.seeds)))
    except ValueError as error:
        raise RPLibError(f"--seeds {error}") from error
    settings = tuned_settings(args.search or SEARCH)
    device = pick_device(args.device)
    autocast_dtype(device, args.precision)  # refuse an unknown precision before anything is trained
    return World(load_benchmark(), settings, seeds, args.quick, args.precision, device, progress=not args.quiet)


def _say(question: str, verdicts: list) -> None:
    print(question)
    for verdict in verdicts:
        print(f"  {verdict}")


def add_notebooks_command(commands: argparse._SubParsersAction) -> None:
    """Add ``notebooks`` to the commands."""
    text = "Keep the notebooks in order: Colab badge and set-up cell, stable bytes; run them, or check them."
    parser = commands.add_parser(
        "notebooks", help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="notebooks (00_tour or 00); default: all")
    parser.add_argument("--execute", action="store_true", help="run every cell again and save the outputs")
    parser.add_argument("--check", action="store_true", help="change nothing; say what is wrong")
    parser.add_argument("--book", type=Path, metavar="OUT", help="render all of them, as stored, as web pages in OUT")
    parser.add_argument(
        "--copy", type=Path, metavar="FOLDER", help="copy them to FOLDER, to work there"
    )
    parser.add_argument("--folder", type=Path, default=Path("notebooks"), help="where they are")
    parser.add_argument(
        "--repository", metavar="OWNER/NAME", help="on GitHub, for the badges of a fork; default: of pyproject.toml"
    )
    parser.set_defaults(run=_notebooks)


def _notebooks(args: argparse.Namespace) -> None:
    from rp_course.authoring.notebooks import execute, normalise, paths, prepare, read, repository, write

    if args.book:
        from rp_course.authoring.book import build_book

        print(f"Open {build_book(args.folder, args.book)}")
        return
    if args.copy:
        from rp_course.authoring.notebooks import copy_notebooks

        copied = copy_notebooks(paths(args.folder, args.names), args.copy)
        print(f"{copied} notebooks copied; open them with: jupyter lab {args.copy}")
        return
    where = repository(args.folder)
    if args.repository:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", args.repository):
            raise RPLibError(f"--repository takes OWNER/NAME, got {args.repository!r}")
        where = f"https://github.com/{args.repository}"
    chosen = paths(args.folder, args.names)
    if args.check:
        from rp_course.authoring.checks import findings

        found = [f"{path.name}: {text}" for path in chosen for text in findings(path, where)]
        if found:
            raise RPLibError("\n  ".join([f"{len(found)} findings:", *found]))
        print(f"{len(chosen)} notebooks, nothing to complain about")
        return
    for path in chosen:
        notebook = prepare(read(path), path.stem, where)
        if args.execute:
            notebook = normalise(execute(notebook, path.stem, path.parent))
        print(f"{path.name}: {'written' if write(path, notebook) else 'unchanged'}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, as :func:`rp_lib.cli.main`."""
    return run_command(build_parser(), argv)


def build_parser() -> argparse.ArgumentParser:
    """The complete parser."""
    parser = argparse.ArgumentParser(
        prog="python -m rp_course", description="What made the course: experiments, the mini world, the notebooks."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_experiment_command(commands)
    add_notebooks_command(commands)
    _add_mini_command(commands)
    atlas = commands.add_parser("atlas", help="Run every architecture of open_clip, shortened, and write one row each.")
    atlas.add_argument("--models", help="open_clip models, comma-separated; default: all")
    atlas.add_argument("--out", type=Path, default=Path("results/atlas.csv"), help="table; rows that it has are kept")
    atlas.add_argument("--measure", action="store_true", help="measure a step of a dozen, too (CPU seconds)")
    atlas.set_defaults(run=_atlas)
    return parser


def _atlas(args: argparse.Namespace) -> None:
    import open_clip

    from rp_course.atlas import MEASURED, summary, write

    args.out.parent.mkdir(parents=True, exist_ok=True)
    names = args.models.split(",") if args.models else open_clip.list_models()
    print(summary(write(names, args.out, MEASURED if args.measure else ())))


def _add_mini_command(commands: argparse._SubParsersAction) -> None:
    def add(name: str, run: Command, text: str, group: argparse._SubParsersAction) -> argparse.ArgumentParser:
        sub = group.add_parser(
            name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        sub.set_defaults(run=run)
        return sub

    mini = commands.add_parser("mini", help="Make the mini world again: corpus, pre-training, benchmark.")
    steps = mini.add_subparsers(required=True, metavar="STEP")
    corpus = add("corpus", _corpus, "Fetch the icons with npm and rasterise them (minutes; resumes).", steps)
    corpus.add_argument("--out", type=Path, default=Path("results/corpus"), help="folder for the corpus")
    corpus.add_argument("--iconify", type=Path, help="an unpacked @iconify/json; default: fetched with npm pack")
    corpus.add_argument("--workers", type=int, help="processes; default: one per core")
    pretrain = add("pretrain", _pretrain, "Pre-train the mini CLIP (one to two hours on two cores; resumes).", steps)
    pretrain.add_argument("--corpus", type=Path, default=Path("results/corpus"), help="folder of `mini corpus`")
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
    benchmark.add_argument("--corpus", type=Path, default=Path("results/corpus"), help="folder of `mini corpus`")
    benchmark.add_argument("--out", type=Path, default=Path("results/benchmark"), help="folder for the benchmark")
    release = add("release", _release, "Export a pre-training run as float16 checkpoints with a model card.", steps)
    release.add_argument(
        "--run",
        dest="runs",
        type=Path,
        nargs="+",
        default=[Path("results/pretrain"), Path("results/polish")],
        help="folders of the stages of `python -m rp_course mini pretrain`, in order",
    )
    release.add_argument("--out", type=Path, default=Path("results/clip"), help="folder for the checkpoints")
    release.add_argument("--keep", default="0.1,0.4", help="fractions of the run to export next to the final weights")
    release.add_argument("--note", default="", help="a sentence about this run for the model card")
    release.add_argument("--after", type=Path, help="earlier release whose final weights the first run started from")
    release.add_argument("--size", help="export the one run as a backbone of another size, of this name")
    release.add_argument("--keep-after", default="", help="checkpoints of the earlier release that ship again")


def _corpus(args: argparse.Namespace) -> None:
    from rp_course.mini_world.corpus import build_corpus, fetch_iconify

    build_corpus(args.iconify or fetch_iconify(args.out / "npm"), args.out, args.workers)


def _pretrain(args: argparse.Namespace) -> None:
    from dataclasses import replace

    from rp_course.mini_world.pretrain import RECIPES, pretrain

    if args.recipe not in RECIPES:
        raise UnknownName("recipe", args.recipe, RECIPES)
    recipe = RECIPES[args.recipe]
    if not recipe.augment_over and args.start is None:  # full augmentation from the first step teaches nothing
        raise RPLibError(f"the {args.recipe} recipe goes on from a finished run: pass --start RUN/state.pt")
    changes = {k: v for k in ("steps", "seed", "lr") if (v := getattr(args, k)) is not None}
    pretrain(args.corpus, args.out, replace(recipe, **changes), args.start)


def _benchmark(args: argparse.Namespace) -> None:
    from rp_course.mini_world.benchmark_builder import build_benchmark

    build_benchmark(args.corpus, args.out)


def _release(args: argparse.Namespace) -> None:
    from rp_course.mini_world.other_size import release_size
    from rp_course.mini_world.release import release

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
