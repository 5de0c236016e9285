"""The icon corpus: every redistributable Iconify set, rasterised once, with names and attribution.

``python -m rp_course mini corpus`` turns the npm package ``@iconify/json`` into one folder::

    corpus/
      SET.npy        uint8 (n, 64, 64): coverage of a monochrome set; (n, 4, 64, 64): RGBA of a coloured one
      SET.json       licence, family and, for each row, name, concept, style, other names
      ATTRIBUTION.md every set used, its author, licence and source

A set is written under a temporary name and renamed when it is whole, so an interrupted build goes on
where it stopped and never leaves a set that looks complete and is not.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

from rp_course.mini_world.families import family_of, is_allowed
from rp_lib.mini.icon_names import parse
from rp_lib.utils.errors import MissingDependency, RPLibError

NPM_PACKAGE = "@iconify/json"
NPM_VERSION = "2.2.535"
SIZE = 64
# A picture with less ink than this (mean coverage) is blank or an animation's empty first frame.
MIN_COVERAGE = 0.01
_SIZE_PREFERENCE = ("24", "20", "28", "32", "16", "48", "12", "10")


def fetch_iconify(folder: Path, version: str = NPM_VERSION) -> Path:
    """Download ``@iconify/json`` with ``npm pack`` and unpack it; returns the folder of the package.

    Raises:
        MissingDependency: npm is not installed.
        RPLibError: npm could not fetch the package.
    """
    package = folder / f"iconify-json-{version}"
    if (package / "collections.json").is_file():
        return package
    npm = shutil.which("npm")
    if npm is None:
        raise MissingDependency(
            "npm", "install Node.js, which brings npm, or pass --iconify FOLDER with an unpacked copy"
        )
    folder.mkdir(parents=True, exist_ok=True)
    run = subprocess.run(
        [npm, "pack", "--silent", f"{NPM_PACKAGE}@{version}"], cwd=folder, capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise RPLibError(f"npm could not fetch {NPM_PACKAGE}@{version}: {run.stderr.strip()[-300:]}")
    archive = folder / run.stdout.strip().splitlines()[-1]
    partial = package.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(archive) as tar:
        wanted = [
            m
            for m in tar
            if m.isfile() and (m.name.startswith("package/json/") or m.name == "package/collections.json")
        ]
        tar.extractall(partial, members=wanted, filter="data")  # "data" refuses members outside the folder
    (partial / "package").rename(package)
    shutil.rmtree(partial)
    archive.unlink()
    return package


def _svg(icon: dict[str, Any], defaults: dict[str, Any]) -> str:
    """A square SVG around the icon's own box, ink in black."""
    left, top = icon.get("left", defaults.get("left", 0)), icon.get("top", defaults.get("top", 0))
    width, height = icon.get("width", defaults.get("width", 16)), icon.get("height", defaults.get("height", 16))
    side = max(width, height)
    box = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}" '
        f'width="{SIZE}" height="{SIZE}" color="#000">{icon["body"]}</svg>'
    )


def _one_size_each(names: Iterator[str]) -> list[str]:
    """Drop the 12, 16, 20, 28 ... px renderings of an icon that is there in a preferred size."""

    def rank(name: str) -> int:
        words = name.split("-")
        return next((i for i, size in enumerate(_SIZE_PREFERENCE) if size in words), len(_SIZE_PREFERENCE))

    best: dict[tuple[Any, ...], str] = {}
    for name in names:
        icon = parse(name)
        key = (icon.concept, icon.style, icon.variant)
        if key not in best or rank(name) < rank(best[key]):
            best[key] = name
    return list(best.values())


def _rasterise_set(package: str, prefix: str, out: str) -> tuple[str, int, int]:
    """Rasterise one set; returns (prefix, icons written, icons dropped)."""
    import resvg_py
    from PIL import Image

    data = json.loads((Path(package) / "json" / f"{prefix}.json").read_text(encoding="utf-8"))
    info = data["info"]
    coloured = bool(info.get("palette"))
    names = _one_size_each(n for n, icon in data["icons"].items() if not icon.get("hidden"))
    also: dict[str, list[str]] = {}
    for alias, spec in data.get("aliases", {}).items():
        if not {"rotate", "hFlip", "vFlip"} & spec.keys():
            also.setdefault(spec["parent"], []).append(alias)
    pictures, rows, dropped = [], [], 0
    for name in names:
        try:
            png = resvg_py.svg_to_bytes(svg_string=_svg(data["icons"][name], data), skip_system_fonts=True)
            rgba = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))
        except (ValueError, OSError):
            dropped += 1
            continue
        if rgba.shape != (SIZE, SIZE, 4) or rgba[..., 3].mean() < 255 * MIN_COVERAGE:
            dropped += 1
            continue
        pictures.append(rgba.transpose(2, 0, 1) if coloured else rgba[..., 3])
        icon = parse(name)
        others = sorted({parse(a).concept for a in also.get(name, ())} - {icon.concept})
        rows.append([name, icon.concept, list(icon.style), others])
    target = Path(out)
    array = np.stack(pictures) if pictures else np.zeros((0, SIZE, SIZE), np.uint8)
    meta = {
        "set": prefix,
        "family": family_of(prefix, info),
        "coloured": coloured,
        "category": info.get("category"),
        "title": info["name"],
        "author": info["author"],
        "license": info["license"],
        "icons": rows,
    }
    for path, write in (
        (target / f"{prefix}.npy", lambda f: np.save(f, array, allow_pickle=False)),
        (target / f"{prefix}.json", lambda f: f.write(json.dumps(meta).encode())),
    ):
        partial = path.with_suffix(path.suffix + ".partial")
        with partial.open("wb") as file:
            write(file)
        partial.replace(path)
    return prefix, len(rows), dropped


def build_corpus(package: Path, out: Path, workers: int | None = None) -> None:
    """Rasterise every allowed set of an unpacked ``@iconify/json`` into ``out`` (see the module docstring)."""
    from tqdm import tqdm

    if importlib.util.find_spec("resvg_py") is None:
        raise MissingDependency("resvg_py", 'pip install -e ".[corpus]"')
    if not (package / "collections.json").is_file():
        raise RPLibError(f"{package} holds no unpacked @iconify/json (collections.json is missing)")
    if workers is not None and workers < 1:
        raise RPLibError("at least one worker is needed")
    collections = json.loads((package / "collections.json").read_text(encoding="utf-8"))
    allowed = {p: info for p, info in collections.items() if is_allowed(info)}
    out.mkdir(parents=True, exist_ok=True)
    todo = [p for p in allowed if not (out / f"{p}.json").is_file()]
    todo.sort(key=lambda p: -allowed[p]["total"])  # long ones first, so that no worker ends alone
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool, tqdm(total=len(todo), unit="set") as bar:
        jobs = [pool.submit(_rasterise_set, str(package), p, str(out)) for p in todo]
        for job in as_completed(jobs):
            prefix, kept, dropped = job.result()
            bar.set_postfix_str(f"{prefix}: {kept} icons, {dropped} dropped")
            bar.update()
    write_attribution(allowed, out / "ATTRIBUTION.md")


def write_attribution(sets: dict[str, dict[str, Any]], path: Path) -> None:
    """Name every set, its author, licence and source, as the licences ask."""
    lines = [
        "# Attribution",
        "",
        f"The pictures come from the icon sets below, by way of the npm package {NPM_PACKAGE} {NPM_VERSION}; they were "
        f"rasterised at {SIZE} pixels. Each set belongs to its authors, under the licence named. Logos and "
        "flags remain trademarks or emblems of their owners and appear here as research data only.",
        "",
        "| set | title | author | licence | family |",
        "|---|---|---|---|---|",
    ]
    for prefix, info in sorted(sets.items()):
        author, licence = info["author"], info["license"]
        who = f"[{author['name']}]({author['url']})" if author.get("url") else author["name"]
        terms = licence.get("spdx") or licence["title"]
        terms = f"[{terms}]({licence['url']})" if licence.get("url") else terms
        lines.append(f"| {prefix} | {info['name']} | {who} | {terms} | {family_of(prefix, info)} |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def load_sets(corpus: Path) -> dict[str, dict[str, Any]]:
    """Metadata of every set in a built corpus, by prefix.

    Raises:
        RPLibError: there is no corpus in the folder, or its build was interrupted.
    """
    if not (corpus / "ATTRIBUTION.md").is_file():  # written last
        raise RPLibError(f"no finished corpus in {corpus}: run `python -m rp_course mini corpus --out {corpus}`")
    found = {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in sorted(corpus.glob("*.json"))}
    return found
