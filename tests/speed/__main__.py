"""``python -m tests.speed``: every ratio in one run, on the same machine and the same work; a table and a JSON file."""

from __future__ import annotations

import argparse
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from rp_lib.run.report import environment
from rp_lib.utils.io import write_atomically
from tests.speed import measures
from tests.speed.measures import PROBE_EPOCHS, Setting, ratio

# name, first, second, what it should reach, and whether that is an upper or a lower bound
STEP_RATIOS = (
    ("RP step / our fine-tuning step", "ours rp", "ours fine-tune", 0.75, "most"),
    ("plain RP step / our RP step", "plain rp", "ours rp", 2.0, "least"),
    ("plain fine-tuning step / our fine-tuning step", "plain fine-tune", "ours fine-tune", None, ""),
)


def main() -> None:
    """Measure and print; the machine should do nothing else meanwhile."""
    parser = argparse.ArgumentParser(prog="python -m tests.speed", description=__doc__)
    for field in fields(Setting):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks.json"), help="file of all timings")
    args = vars(parser.parse_args())
    out = args.pop("out")
    setting = Setting(**args)
    print(f"{setting.backbone}, batch {setting.batch}, {torch.get_num_threads()} threads, random weights and images")
    found = measure(setting)
    rows = table(found)
    width = max(len(row[0]) for row in rows)
    for name, value, wanted in rows:
        print(f"{name:{width}}  {value:34}  {wanted}")
    record = {"setting": asdict(setting), "environment": environment(), **found}
    write_atomically(out, lambda path: path.write_text(json.dumps(record, indent=1)))
    print(f"Wrote {out}")


def measure(setting: Setting) -> dict[str, Any]:
    """All timings (seconds), FLOPs and bytes, each kind in a process of its own."""
    found: dict[str, Any] = {}
    for name in ("steps", "probing", "sweep", "preparation", "encoding", "matrix_product", "step_flops"):
        print(f"measuring {name.replace('_', ' ')} ...", flush=True)
        found[name] = apart(getattr(measures, name), setting)
    print("measuring memory ...", flush=True)
    found["memory"] = {name: apart(measures.peak_memory, setting, name) for name in found["step_flops"]}
    return found


def apart(function: Any, *arguments: Any) -> Any:
    """Call it in a fresh process, so that neither memory nor caches of one measurement touch the next."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def table(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Rows (what, measured, what it should reach)."""
    rows = []
    for name, first, second, wanted, bound in STEP_RATIOS:
        rows.append(_ratio(name, found["steps"][first], found["steps"][second], wanted, bound))
    probing, sweep, ready = found["probing"], found["sweep"], found["preparation"]
    name = f"plain linear probe / ours, {PROBE_EPOCHS} epochs"
    rows.append(_ratio(name, probing["plain linear probe"], probing["ours linear probe"], 20.0, "least"))
    rows.append(_ratio("RRP at 21 alphas / at one", sweep["ours 21 alphas"], sweep["ours 1 alpha"], 1.1, "most"))
    rows.append(_ratio("plain RRP at one alpha / ours", sweep["plain 1 alpha"], sweep["ours 1 alpha"], None, ""))
    rows.append(_ratio("plain data preparation / ours", ready["plain"], ready["ours"], None, ""))
    rate = 128 / min(ready["ours"])
    rows.append(("images prepared a second", f"{rate:,.0f}", ""))
    best = found["matrix_product"]
    rows.append(("bare matrix product", f"{best / 1e9:,.0f} GFLOP/s", ""))
    for name, flops in found["step_flops"].items():
        reached = flops / min(found["steps"][name])
        text = f"{flops / 1e9:,.0f} GFLOP, {min(found['steps'][name]):.2f} s, {reached / 1e9:,.0f} GFLOP/s"
        rows.append((f"{name} step", text, f"{reached / best:.0%} of a bare matrix product"))
    memory = found["memory"]
    share = memory["ours rp"] / memory["ours fine-tune"]
    rows.append(("memory: RP step / our fine-tuning step", f"{share:.2f}", _verdict(share, 1.0, "most")))
    rows += [
        (f"memory of {name} steps", f"{size / 2**20:,.0f} MiB above the model", "") for name, size in memory.items()
    ]
    return rows


def _ratio(
    name: str, first: list[float], second: list[float], wanted: float | None, bound: str
) -> tuple[str, str, str]:
    middle, low, high = ratio(first, second)
    return name, f"{middle:.2f} [{low:.2f}, {high:.2f}]", _verdict(middle, wanted, bound)


def _verdict(value: float, wanted: float | None, bound: str) -> str:
    if wanted is None:
        return ""
    met = value <= wanted if bound == "most" else value >= wanted
    return f"{'reached' if met else 'NOT reached'}: at {bound} {wanted:g}"


if __name__ == "__main__":
    main()
