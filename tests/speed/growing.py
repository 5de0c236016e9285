"""``python -m tests.speed.growing``: CPU seconds and memory of evaluation at one size and at twice that size.

Features and scores are made up. What ours is compared with runs in turns in the same process, where a comparison is of
seconds, and each measurement of memory has a process of its own. CPU seconds, so that a busy machine does not count.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rp_course.atlas import small_clip

from rp_lib import comparison
from rp_lib.detectors import build_detector
from rp_lib.metrics import ood_metrics
from rp_lib.outputs import Head, MethodOutputs, Outputs, _LinearLogits, load_outputs, save_outputs
from rp_lib.run.report import environment
from rp_lib.utils.io import save_tensors, write_atomically

WIDTH, SCALE = 512, 100.0
TEMPLATES = [f"a photo number {i} of a {{}}, as seen from afar." for i in range(80)]
CHEAP = ("msp", "energy", "entropy", "gen", "max-logit")
FITTED = ("mahalanobis", "relative-mahalanobis", "vim", "knn")
Found = dict[str, Any]


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(prog="python -m tests.speed.growing", description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=4000, help="pictures of an image set, at the smaller size")
    parser.add_argument("--training", type=int, default=12500, help="training features, at the smaller size")
    parser.add_argument("--classes", type=int, default=1000, help="classes of made-up logits")
    parser.add_argument("--prompted", type=int, default=14, help="classes of the zero-shot head, at the smaller size")
    parser.add_argument("--backbone", default="ViT-B-32-quickgelu", help="whose zero-shot head is built")
    parser.add_argument("--out", type=Path, default=Path("results/growing.json"), help="file of all figures")
    args = parser.parse_args()
    n, classes, found = args.pictures, args.classes, {}
    sizes = {"outputs": n, "comparison": 4 * n, "zero_shot": args.prompted, **dict.fromkeys(FITTED, args.training)}
    for name, size in sizes.items():
        print(f"measuring {name.replace('_', ' ')} ...", flush=True)
        for k in (size, 2 * size):
            found[f"{name} {k}"] = apart(_measure, name, k, classes, args.backbone)
    found["at once"] = apart(paired, sizes["comparison"], True)
    found["scores"] = apart(scores, n, classes)
    found["neighbours"] = apart(neighbours, n // 5, 2 * args.training)
    found["zero-shot head"] = apart(zero_shot_beside, args.prompted // 4, args.backbone)
    setting = {key: value for key, value in vars(args).items() if key != "out"}
    record = {"setting": setting, "environment": environment(), "found": found}
    for row in table(record):
        print("| " + " | ".join(row) + " |")
    write_atomically(args.out, lambda path: path.write_text(json.dumps(record, indent=1) + "\n"))
    print(f"Wrote {args.out}")


def apart(function: Callable[..., Found], *arguments: Any) -> Found:
    """Call it in a process of its own. It is forked, which is sound as long as nothing was computed here."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        return pool.submit(function, *arguments).result()


def _measure(name: str, size: int, classes: int, backbone: str) -> Found:
    if name in FITTED:
        return fitting(name, size)
    if name == "zero_shot":
        return zero_shot(size, backbone)
    return outputs(size, classes) if name == "outputs" else paired(size)


def table(record: Found) -> list[tuple[str, ...]]:
    """Rows (what, size, ours, at twice the size, beside it)."""
    found, rows = record["found"], [("what", "size", "ours", "at twice the size", "beside it")]

    def pair(name: str) -> tuple[str, Found, Found]:
        keys = sorted((k for k in found if re.fullmatch(rf"{name} \d+", k)), key=lambda k: int(k.split()[-1]))
        return keys[0].split()[-1], found[keys[0]], found[keys[1]]

    def mib(size: float) -> str:
        return f"{size / 2**20:,.0f} MiB"

    size, one, two = pair("outputs")
    for key, text in (
        ("file", "saved outputs, file"),
        ("save", "saved outputs, writing"),
        ("load", "saved outputs, reading"),
    ):
        beside = f"all logits stored: {mib(one[f'plain {key}'])}" if f"plain {key}" in one else ""
        rows.append((text, f"{size} pictures", mib(one[key]), mib(two[key]), beside))
    size, one, two = pair("comparison")
    for key, show in (("bytes", mib), ("cpu", "{:.1f} s".format)):
        beside = f"all resamples at once: {show(found['at once'][key])}"
        rows.append(("paired comparison", f"{size} pictures", show(one[key]), show(two[key]), beside))
    for name in FITTED:
        size, one, two = pair(name)
        rows.append((f"fitting {name}", f"{size} features", mib(one["bytes"]), mib(two["bytes"]), ""))
    size, one, two = pair("zero_shot")
    rows.append(("zero-shot head", f"{size} classes x {len(TEMPLATES)}", mib(one["bytes"]), mib(two["bytes"]), ""))
    for name in ("zero-shot head", "neighbours"):
        ours, other = found[name]["ours"], found[name]["other"]
        rows.append(
            (name, found[name]["size"], f"{ours:.2f} s", "", f"{found[name]['is']}: {other / ours:.1f} times as long")
        )
    for name in CHEAP:
        one = found["scores"][name]
        beside = ", ".join(
            f"pytorch-ood in {way} {one[way] / one['ours']:.2f} times, its AUROC and FPR95 within {one[f'{way} gap']:.0e}"
            for way in ("float32", "float64")
        )
        rows.append((name, found["scores"]["size"], f"{one['ours']:.3f} s", "", beside))
    return rows


# What is measured -------------------------------------------------------------------------------------------


def above(work: Callable[[], object]) -> int:
    """Bytes that work adds at its peak to what the process holds (Linux)."""
    gc.collect()  # or garbage of before is freed meanwhile
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def in_turns(work: dict[str, Callable[[], object]], rounds: int = 3) -> dict[str, float]:
    """Smallest CPU seconds of each piece of work, on one thread, in turns."""
    torch.set_num_threads(1)
    seconds = dict.fromkeys(work, float("inf"))
    for _ in range(rounds):
        for name, run in work.items():
            started = time.process_time()
            run()
            seconds[name] = min(seconds[name], time.process_time() - started)
    return seconds


def unit(n: int, seed: int, centres: torch.Tensor | None = None, spread: float = 1.5) -> torch.Tensor:
    """float32 (n, d) of unit length, around centres if there are some."""
    x = torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed))
    if centres is not None:
        x.mul_(spread / WIDTH**0.5).add_(centres[torch.arange(n) % len(centres)])
    return x.div_(x.norm(dim=1, keepdim=True))


def made_up(name: str, role: str, n: int, classes: int, spread: float = 1.5) -> Outputs:
    """Outputs of a classifier by similarity, for pictures around its classes."""
    centres, ids = unit(classes, 0), torch.arange(n)
    features = unit(n, 1 + sum(map(ord, name)), centres, spread)
    head = Head(SCALE * centres, torch.zeros(classes), SCALE)
    logits = _LinearLogits(features, torch.tensor(SCALE), centres, head.bias)
    others = {
        "zero-shot": logits,
        "linear-probe": _LinearLogits(features, torch.tensor(1.0), centres * 3, head.bias + 1),
    }
    return Outputs(name, role, features, logits, ids % classes, ids, ids, head, others=others)


def outputs(n: int, classes: int) -> Found:
    """Bytes of a file of outputs, and what writing and reading it adds; next to a file that holds all logits."""
    test = made_up("test", "test", n, classes)
    about = {"method": "made-up", "seed": 1, "others": sorted(test.others), "logit_scale": SCALE}
    with tempfile.TemporaryDirectory() as folder:
        ours, plain, kept = Path(folder, "ours"), Path(folder, "plain"), []
        found = {"save": above(lambda: save_outputs(ours, MethodOutputs(about, {"test": test})))}
        anonymous = _status("RssAnon")
        kept.append(load_outputs(ours))
        found["load"] = _status("RssAnon") - anonymous
        whole = {"features": test.features, "logits": test.logits, **{k: v.clone() for k, v in test.others.items()}}
        save_tensors(plain, whole, {})
        assert all(torch.equal(kept[0].test.others[k], whole[k]) for k in test.others)
        return found | {"file": ours.stat().st_size, "plain file": plain.stat().st_size}


def paired(n: int, at_once: bool = False, resamples: int = 1000) -> Found:
    """Bytes and seconds of a comparison of two methods, with resamples in blocks or all at once."""

    def run(seed: int) -> MethodOutputs:
        sets = [
            _drawn("test", "test", n, seed),
            _drawn("shift", "shift", n, seed + 10),
            _drawn("ood", "far-ood", n, seed + 20),
        ]
        return MethodOutputs({"method": "m", "seed": 1, "benchmark_sha256": ""}, {s.name: s for s in sets})

    contestants, numbers = {"a": [run(0)], "b": [run(1)]}, []

    def compare() -> None:
        numbers[:] = [comparison.paired_bootstrap(contestants, detector="max-logit", n_resamples=resamples).numbers]

    block, comparison.BLOCK = comparison.BLOCK, 2**62 if at_once else comparison.BLOCK
    started = time.process_time()
    found = {"bytes": above(compare), "cpu": time.process_time() - started}
    comparison.BLOCK = block
    return found | {"numbers": hashlib.sha256(numbers[0].tobytes()).hexdigest()}


def _drawn(name: str, role: str, n: int, seed: int) -> Outputs:
    logits, ids = torch.randn(n, 10, generator=torch.Generator().manual_seed(seed)), torch.arange(n)
    if role != "far-ood":
        logits[ids, ids % 10] += 2
    return Outputs(name, role, torch.ones(n, 1), logits, ids % 10, ids, ids, Head(None, None, 1.0))


def fitting(name: str, n: int) -> Found:
    """Bytes that fitting a detector adds to the training features."""
    train = made_up("train", "train", n, 1000)
    return {"bytes": above(lambda: build_detector(name).fit(train))}


def neighbours(n: int, training: int) -> Found:
    """Seconds of the distances to the 5th nearest of training features, next to all distances in float64."""
    test = made_up("test", "test", n, 1000)
    detector = build_detector("knn").fit(made_up("train", "train", training, 1000))
    known, given = F.normalize(detector.train.double(), dim=1), F.normalize(test.features.double(), dim=1)
    found: dict[str, np.ndarray] = {}

    def plain() -> None:
        parts = [torch.cdist(block, known).kthvalue(detector.k, dim=1).values for block in given.split(256)]
        found["other"] = -torch.cat(parts).numpy()

    def ours() -> None:
        found["ours"] = detector.score(test)

    seconds = in_turns({"ours": ours, "other": plain}, 2)
    np.testing.assert_allclose(found["ours"], found["other"], rtol=1e-9)
    return seconds | {"size": f"{n} against {training}", "is": "all distances in float64"}


def scores(n: int, classes: int) -> Found:
    """Seconds of scores that need nothing but logits, and of pytorch-ood's in float32; and whether metrics agree."""
    from pytorch_ood.detector import GEN, EnergyBased, Entropy, MaxLogit, MaxSoftmax

    test, ood = made_up("test", "test", n, classes), made_up("ood", "far-ood", n, classes, 4.0)
    for data in (test, ood):
        data.__dict__["logits"] = data.logits  # in memory, for both
    theirs = {"msp": MaxSoftmax.score, "energy": EnergyBased.score, "entropy": Entropy.score,
              "gen": lambda z: GEN.score(z, gamma=0.1, M=None), "max-logit": MaxLogit.score}  # fmt: skip
    found: Found = {"size": f"{n} x {classes} logits"}
    for name, other in theirs.items():
        ways = {
            "ours": lambda data, of=name: build_detector(of).score(data),
            "float32": lambda data, of=other: -of(data.logits),
            "float64": lambda data, of=other: -of(data.logits.double()),
        }
        found[name] = in_turns({way: lambda f=f: f(test) for way, f in ways.items()})
        metrics = {way: ood_metrics(f(test), f(ood)) for way, f in ways.items()}
        for way in ("float32", "float64"):
            gap = max(abs(metrics[way][k] - metrics["ours"][k]) for k in ("auroc", "fpr"))
            found[name][f"{way} gap"] = gap
    return found


def zero_shot(classes: int, backbone: str) -> Found:
    """Bytes that class embeddings from 80 templates add to the model; one block of its tower needs as much as all."""
    clip = small_clip(backbone, blocks=1)
    return {"bytes": above(lambda: clip.class_embeddings([f"thing {i}" for i in range(classes)], TEMPLATES))}


def zero_shot_beside(classes: int, backbone: str) -> Found:
    """Seconds of class embeddings of a tower of one block, next to open_clip's own."""
    import open_clip

    clip, names = small_clip(backbone, blocks=1), [f"thing {i}" for i in range(classes)]
    formats, tokenizer = [t.format for t in TEMPLATES], open_clip.get_tokenizer(backbone)
    build = open_clip.build_zero_shot_classifier
    seconds = in_turns({"ours": lambda: clip.class_embeddings(names, TEMPLATES),
                        "other": lambda: build(clip.model, tokenizer, names, formats)}, 1)  # fmt: skip
    return seconds | {"size": f"{classes} classes x {len(TEMPLATES)}", "is": "open_clip"}


if __name__ == "__main__":
    main()
