"""``rp-lib run``: a benchmark from a configuration file, or from a few words on the command line."""

from __future__ import annotations

import argparse
import tomllib
from typing import Any

from rp_lib.errors import RPLibError, UnknownName

_EPILOG = """\
examples:
  rp-lib run --list                                   the configurations that ship
  rp-lib run --config cifar10-paper --dry-run         what it would do, need and cost; nothing is loaded
  rp-lib run --config cifar10-paper                   the paper's CIFAR-10 benchmark
  rp-lib run --track full --id imagenet --preset as_released --seeds 1
  rp-lib run --config cifar10-paper --backbone RN50-quickgelu --methods zero-shot,rp,rrp --out results/rn50
  rp-lib run --folders train=pets/train,test=pets/test,shift:drawings=pets/drawings,ood:food=food
  rp-lib run --config cifar10-paper --set settings.rp.epochs=5 --set data.per_class=100
  rp-lib run --config my.toml                         a file of your own, see `--list` for examples
  rp-lib run --config pacs --root photos              real photographs, and a backbone that needs no download
  accelerate launch --multi_gpu --num_processes 4 -m rp_lib run --config cifar10-paper     four GPUs
  torchrun --nproc_per_node=2 -m rp_lib run --config mini                                  two processes, GPUs or CPUs

What the command line says wins over the file. The results' folder gets config.toml (the configuration as it was
used: `--config FOLDER/config.toml` repeats the run), records.csv with its provenance, three_axes.png, every trained
method and its outputs. The same command goes on where it was interrupted.

exit codes: 0 done, 2 bad input or environment, 6 data sets are missing, 130 interrupted
"""
# Options that stand for one key of the configuration.
_KEYS = {
    "preset": "preset", "out": "out", "device": "device", "precision": "precision", "backbone": "backbone.name",
    "pretrained": "backbone.pretrained", "root": "data.root", "subset": "data.subset", "per_class": "data.per_class",
}  # fmt: skip
_FULL_DEFAULT, _PRESET_DEFAULT = "cifar10", "paper"


def add_run_command(commands: argparse._SubParsersAction) -> None:
    """Add ``run`` to the commands of ``rp-lib``."""
    text = "Train and compare methods on a benchmark that a configuration names: the paper's, or your own folders."
    parser = commands.add_parser(
        "run", help=text, description=text, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(run=_run)
    add = parser.add_argument
    add("--config", help="a shipped configuration's name, or a TOML file")
    add("--list", action="store_true", help="say which configurations ship, and stop")
    add("--dry-run", action="store_true", help="say what would be done, with estimates of memory and time, and stop")
    add("--track", help="instead of --config: mini or full")
    add("--id", help=f"instead of --config: cifar10 or imagenet, default {_FULL_DEFAULT}")
    add("--folders", help="instead of [data]: train=PATH,test=PATH,val=PATH,shift:NAME=PATH,ood:NAME=PATH")
    add("--preset", help="paper or as_released")
    add("--backbone", help="an open_clip model, or mini")
    add("--pretrained", help="tag or local file of its weights; random: untrained")
    add("--methods", help="comma-separated method names")
    add("--seeds", help="a number of seeds, or a comma-separated list of them such as 1,2,7")
    add("--detectors", help="comma-separated detectors; outputs are kept, so others can be had later without a GPU")
    add("--out", help="folder for the results")
    add("--root", help="folder of the data sets, default $RP_DATA, else data; or that the folders of [data] are in")
    add("--subset", type=int, help="at most so many images of each judged set")
    add("--per-class", type=int, help="at most so many training images of each class")
    add("--device", help="auto, cpu, cuda, cuda:1, mps ...")
    add("--precision", help="of training: auto, float32, bfloat16, float16")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any other key, such as settings.rp.epochs=5")
    add("--gpu", default="a100", help="GPU that --dry-run estimates times for (default: a100)")
    add("--utilisation", type=float, default=0.3, help="share of its dense rate that --dry-run assumes (default: 0.3)")
    add("--fresh", action="store_true", help="train and evaluate anew whatever is there")
    add("--details", action="store_true", help="also print accuracy and AUROC of every single set")
    add("--quiet", action="store_true", help="no progress bars")


def changes_of(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line changes of a configuration, by dotted key.

    Raises:
        RPLibError: an option that cannot be read.
    """
    changes: dict[str, Any] = {}
    if args.folders:
        changes["data"] = {"id": "folders", **_folders(args.folders)}
    for option, key in _KEYS.items():
        if getattr(args, option) is not None:
            changes[key] = getattr(args, option)
    own_weights = (args.backbone or "") == "mini" or ":" in (args.backbone or "")
    if own_weights and args.pretrained is None:
        changes["backbone.pretrained"] = None  # the file's are another model's
    for option in ("methods", "detectors"):
        if (text := getattr(args, option)) is not None:
            changes[option] = [name.strip() for name in text.split(",") if name.strip()]
    if args.seeds is not None:
        changes["seeds"] = _seeds(args.seeds)
    for text in args.set:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise RPLibError(f"--set takes KEY=VALUE, such as settings.rp.epochs=5, got {text!r}")
        changes[key.strip()] = _value(value.strip())
    return changes


def configuration_of(args: argparse.Namespace) -> str:
    """Name or path of the configuration that the command line asks for.

    Raises:
        RPLibError: it asks for none, or for two. UnknownName: no such track or ID.
    """
    from rp_lib.run_config import FULL_IDS
    from rp_lib.tracks import TRACKS

    if args.config:
        if args.track or args.id:
            raise RPLibError("--config names everything; leave --track and --id out, or leave --config out")
        return args.config
    if args.track is not None and args.track not in TRACKS:
        raise UnknownName("track", args.track, TRACKS)
    if args.id is not None and args.id not in FULL_IDS:
        raise UnknownName("id of the full track", args.id, FULL_IDS)
    if args.folders:
        if args.track or args.id:
            raise RPLibError("--folders are data of your own; leave --track and --id out")
        return "folders"
    if args.track == "mini":
        if args.id:
            raise RPLibError("the mini track has one benchmark; leave --id out, or ask for --track full")
        return "mini"
    if args.track is None and args.id is None:
        raise RPLibError("say what to run: --config NAME (see --list), --track mini or full, or --folders")
    preset = args.preset or _PRESET_DEFAULT
    return f"{args.id or _FULL_DEFAULT}-{preset if preset in ('paper', 'as_released') else _PRESET_DEFAULT}"


def _run(args: argparse.Namespace) -> None:
    from rp_lib import distributed
    from rp_lib.run_config import read_config, shipped

    say = print if distributed.is_main() else _silent
    if args.list:
        for name in shipped():
            say(f"{name:20} {read_config(name).about}")
        say(f"\nin {next(iter(shipped().values())).parent}: copy one, edit it, and pass its path as --config")
        return
    config = read_config(configuration_of(args), changes_of(args))
    if args.dry_run:
        from rp_lib.run_plan import plan

        say(plan(config, args.gpu, args.utilisation))
        return
    from rp_lib.demo import details, table
    from rp_lib.device import autocast_dtype, pick_device
    from rp_lib.run import of_detector, run_benchmark
    from rp_lib.storage import check_writable
    from rp_lib.tracks import track_of

    autocast_dtype(pick_device(config.device), config.precision)  # refused before anything is loaded
    if not args.fresh:
        distributed.on_main(config.check_folder)
    distributed.on_main(lambda: check_writable(config.out))
    track = track_of(config, progress=not args.quiet and distributed.is_main())
    data = track.data
    say(
        f"{data.name}: {len(data.class_names)} classes, {len(data.train):,} training and {len(data.test):,} test "
        f"images, {len(data.shifts)} shifted and {len(data.ood)} OOD sets; backbone {track.clip.name}, {track.device}"
        + (f", {distributed.world()} processes" if distributed.world() > 1 else "")
    )
    distributed.on_main(lambda: config.write(config.out / "config.toml"))
    story = run_benchmark(
        track.clip, data, config.out, seeds=config.seeds, methods=config.methods, settings=config.settings(),
        precision=config.precision, detectors=config.detectors, keep_outputs=True, fresh=args.fresh,
        progress=not args.quiet, about={"config": config.as_dict()},
    )  # fmt: skip
    shown = of_detector(story.summary, config.detectors[0])
    say()
    say(table(shown))
    seeds = f"{len(config.seeds)} seeds" if len(config.seeds) > 1 else "one seed"
    conventions = ", ".join(sorted(story.records["convention"].dropna().unique())) or "none, there are no OOD sets"
    say(
        f"\nPercent, mean of {seeds} ± half of the 95 % interval (images and seeds). Shift\n"
        f"accuracy, AUROC and FPR95: mean over sets; detector: {config.detectors[0]}; FPR95: threshold at 95 % TPR\n"
        f"on the test images, convention {conventions}."
    )
    if args.details:
        say("\n" + details(shown))
    verb = "Reused" if story.reused else "Wrote"
    say(f"\n{verb} {config.out / 'records.csv'} ({len(story.records)} records) and {story.figure}")


def _silent(*_: object) -> None:
    """Of every process but the main one."""


def _seeds(text: str) -> int | list[int]:
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise RPLibError(f"--seeds takes a number of seeds, or a list such as 1,2,7, got {text!r}") from error
    return numbers[0] if len(numbers) == 1 and "," not in text else numbers


def _value(text: str) -> Any:
    """A value as TOML reads it; what is no TOML is a text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _folders(text: str) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for part in text.split(","):
        name, _, path = part.strip().partition("=")
        kind, colon, called = name.partition(":")
        alone = kind in ("train", "test", "val") and not colon
        if not (path and (alone or (kind in ("shift", "ood") and called))):
            raise RPLibError(
                f"--folders takes train=PATH,test=PATH,val=PATH,shift:NAME=PATH,ood:NAME=PATH, got {part.strip()!r}"
            )
        if colon:
            data.setdefault("shifts" if kind == "shift" else "ood", {})[called] = path
        else:
            data[kind] = path
    return data
