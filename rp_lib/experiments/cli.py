"""``rp-lib experiment``: list the experiments, run them, say what they found."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from rp_lib.errors import RPLibError

if TYPE_CHECKING:  # the command line starts fast
    import pandas as pd

    from rp_lib.experiments import Experiment
    from rp_lib.experiments.base import Agreement


def add_experiment_command(commands: argparse._SubParsersAction) -> None:
    """Add ``experiment`` to the commands of ``rp-lib``."""
    text = "Run a named experiment: tidy records, verdicts computed from them, comparison with the shipped ones."
    parser = commands.add_parser(
        "experiment", help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments to run, see --list; `all` runs every one")
    parser.add_argument("--list", action="store_true", help="explain every experiment and exit")
    parser.add_argument("--shipped", action="store_true", help="say what the shipped records found, without running")
    parser.add_argument("--quick", action="store_true", help="a short look: one seed, fewer pictures and levels")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of every trained method")
    parser.add_argument("--out", type=Path, default=Path("results/experiments"), help="folder for records and parts")
    parser.add_argument(
        "--fresh", action="store_true",
        help="measure anew whatever is there; needed after a change of code, as parts are known by settings and data",
    )  # fmt: skip
    parser.add_argument("--rejudge", action="store_true", help="judge and draw the records in --out, without measuring")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps ...")
    parser.add_argument("--precision", default="auto", help="of training: auto, float32, bfloat16, float16")
    parser.set_defaults(run=_experiment)


def _experiment(args: argparse.Namespace) -> None:
    from rp_lib.experiments import EXPERIMENTS, experiment

    if args.list:
        for e in EXPERIMENTS.values():
            print(f"{e.name:12} about {e.minutes:g} min  {e.question}")
        return
    if not args.names:
        raise RPLibError("name an experiment (or `all`); `rp-lib experiment --list` explains them")
    chosen = [experiment(name) for name in (EXPERIMENTS if args.names == ["all"] else args.names)]
    if args.shipped:
        from rp_lib.experiments import shipped_records

        for e in chosen:
            _say(e.question, e.judge(shipped_records(e.name)))
        return
    from rp_lib.experiments import rejudge, run
    from rp_lib.storage import check_writable

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
            _add(world.parts, args.quick, finding.agreement)


def _draw(e: Experiment, records: pd.DataFrame, out: Path) -> None:
    from rp_lib.experiments.figures import alt, figures
    from rp_lib.figures import save_figure

    for suffix, figure in figures(e, records).items():
        save_figure(figure, out / f"{e.name}{suffix}.png")
        print(f"  {e.name}{suffix}.png: {alt(e, records, suffix)}")


def _add(parts: list[dict], quick: bool, agreement: Agreement | None) -> None:
    from rp_lib.experiments.base import reused

    earlier = reused(parts)["reused"]
    if earlier:
        print(f"  {sum(earlier.values())} of {len(parts)} parts were measured earlier, by commit {', '.join(earlier)}")
    if quick:
        print("  a quick look: one seed and few pictures; no claim rests on it")
    elif agreement is not None:
        print(f"  {agreement}")
    else:
        print("  no shipped records of the same weights, data and seeds to compare with")


def _world(args: argparse.Namespace):
    from rp_lib.benchmark import Benchmark
    from rp_lib.demo import tuned_settings
    from rp_lib.device import autocast_dtype, pick_device
    from rp_lib.experiments import World

    if args.seeds < 1:
        raise RPLibError("at least one seed is needed")
    device = pick_device(args.device)
    autocast_dtype(device, args.precision)  # refuse an unknown precision before anything is trained
    seeds = tuple(range(1, args.seeds + 1))
    return World(Benchmark.mini(), tuned_settings(), seeds, args.quick, args.precision, device, progress=not args.quiet)


def _say(question: str, verdicts: list) -> None:
    print(question)
    for verdict in verdicts:
        print(f"  {verdict}")
