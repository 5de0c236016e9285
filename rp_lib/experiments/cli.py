"""``rp-lib experiment``: list the experiments, run them, say what they found."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from rp_lib.errors import RPLibError


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
    parser.add_argument("--fresh", action="store_true", help="measure anew whatever is there")
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
    world = _world(args)
    from rp_lib.experiments import run
    from rp_lib.experiments.figures import draw, heatmap
    from rp_lib.figures import save_figure
    from rp_lib.storage import check_writable

    if args.quick:  # never over records that took longer
        args.out = args.out / "quick"
    check_writable(args.out)  # now, not after minutes of training
    for e in chosen:
        if args.fresh:
            shutil.rmtree(args.out / "parts" / e.name, ignore_errors=True)
        finding = run(e, world, args.out)
        _say(e.question, finding.verdicts)
        print(f"  {len(finding.records)} records in {args.out / e.name}.csv")
        drawn = {"": draw(e, finding.records)}
        if finding.records["detector"].nunique() > 2:  # "" and msp everywhere
            drawn |= {f"-{metric}": heatmap(finding.records, metric) for metric in ("auroc", "fpr")}
        for suffix, figure in drawn.items():
            if figure is not None:
                save_figure(figure, args.out / f"{e.name}{suffix}.png")
        if args.quick:
            print("  a quick look: one seed and few pictures; no claim rests on it")
        elif finding.agreement is not None:
            print(f"  {finding.agreement}")
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
