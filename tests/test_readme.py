"""The README's numbers are those of the shipped records, and its commands are those that CI runs."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from rp_course.experiments import experiment, shipped_records

from rp_lib.evaluation import summarize
from rp_lib.figures import STYLE
from rp_lib.mini import weights
from rp_lib.run import CORE
from rp_lib.run.report import COLUMNS, _cells, load_records

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "rp_lib" / "assets" / "mini" / "demo" / "records.csv"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "notebooks" / "pages").glob("*.md"))}
EVERYTHING = "\n".join([README, *PAGES.values()])


def markdown(summary: pd.DataFrame) -> str:
    """The table of a summary as the README and the pages show it."""
    lines = ["| method | " + " | ".join(head for head, _, _ in COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    lines += [f"| {STYLE[m][2] if m in STYLE else m} | " + " | ".join(c) + " |" for m, c in _cells(summary).items()]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def shipped():
    return load_records(SHIPPED)


def test_table_is_that_of_the_shipped_records(shipped):
    assert markdown(summarize(shipped[0])) in README


def test_shipped_records_belong_to_the_shipped_model_and_data(shipped, mini_clip, mini_benchmark):
    records, about = shipped
    assert about["backbone_sha256"] == mini_clip.fingerprint
    assert about["benchmark_sha256"] == mini_benchmark.fingerprint
    assert set(records["method"]) == set(CORE) and about["seeds"] >= 3


def test_commands_files_and_links_are_there():
    commands = [line for line in README.splitlines() if line.startswith("python3 -m venv .venv && ")]
    course, demo, tests = commands
    assert course.endswith(".venv/bin/jupyter lab notebooks") and "[notebooks]" in course
    assert demo.endswith(".venv/bin/rp-lib demo") and tests.endswith(".venv/bin/pytest")
    assert "pytest" in (ROOT / ".ci" / "run").read_text()
    for folder, text in [(ROOT, README), *((ROOT / "notebooks" / "pages", page) for page in PAGES.values())]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (folder / target).exists(), target
    for name in re.findall(r"`(rp_lib/[\w/.]+)`", EVERYTHING):
        assert (ROOT / name).exists(), name


def test_readme_is_read_in_a_few_minutes_and_begins_with_the_set_up():
    assert len(README.split()) <= 1200
    assert README.index("## Start") < README.index("## The notebooks") < README.index("## In seven lines")


def test_every_notebook_is_listed_with_its_minutes():
    listed = re.findall(r"^\| (\d\d) \| \[[^]]*\]\((notebooks/\S+)\) \|.*\| (\d+) \|$", README, re.MULTILINE)
    assert [name for _, name, _ in listed] == [
        f"notebooks/{p.name}" for p in sorted((ROOT / "notebooks").glob("*.ipynb"))
    ]
    for number, name, minutes in listed:
        head = "".join(json.loads((ROOT / name).read_text("utf-8"))["cells"][0]["source"]).replace("\n", " ")
        assert f"about {minutes} minutes" in head and head.startswith(f"# {number} ")


def test_no_placeholder_is_left():
    assert "<!--" not in EVERYTHING


def test_figure_has_alt_text():
    images = re.findall(r"!\[([^]]*)\]\(([^)]+)\)", EVERYTHING)
    assert images and all(len(alt) > 40 or "colab-badge" in source for alt, source in images)


def test_model_card_numbers_are_those_of_the_index():
    folder = ROOT / "rp_lib" / "assets" / "mini" / "clip"
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    index = json.loads((folder / "index.json").read_text())
    for name in weights.names():
        assert f"| {name} | {index[name]['fraction']:.0%} |" in card


def test_zero_shot_numbers_are_those_of_the_model_card():
    card = (ROOT / "rp_lib" / "assets" / "mini" / "clip" / "MODEL_CARD.md").read_text(encoding="utf-8")
    final = next(line for line in card.splitlines() if line.startswith("| final |"))
    weak = PAGES["findings"].split("**What is still weak.**")[1].replace("\n", " ")
    for value, interval in re.findall(r"([0-9.]+) % (\[[0-9., ]+\])", weak)[:2]:
        assert f"{value} {interval}" in final
    assert len(re.findall(r"([0-9.]+) % (\[[0-9., ]+\])", weak)) >= 2


def test_numbers_of_experiments_are_those_of_the_shipped_verdicts():
    told = PAGES["findings"].split("**When does reprogramming win?**")[1].split("## ")[0].replace("\n", " ")
    quoted = re.findall(r"[+-][0-9.]+ \[[+-][0-9.]+, [+-][0-9.]+\]", told)
    evidence = " ".join(
        v.evidence for name in ("strength", "narrowness") for v in experiment(name).judge(shipped_records(name))
    )
    evidence = evidence.replace(" points [", " [")
    assert len(quoted) == 4 and all(q in evidence for q in quoted)
    *_, last = experiment("size").judge(shipped_records("size"))
    (change,) = re.findall(r"[+-][0-9.]+ ± [0-9.]+", told)
    assert last.outcome == "holds" and f"change {change}" in last.evidence


def test_how_hard_the_sets_are_for_zero_shot_is_told_as_it_came_out():
    demo = load_records(ROOT / "rp_lib" / "assets" / "mini" / "demo" / "records.csv")[0]
    told = PAGES["findings"].split("**How hard are the sets?**")[1].split("**When does")[0]
    mine = demo[(demo["method"] == "zero-shot") & demo["detector"].fillna("msp").eq("msp")]
    right = mine[mine["metric"] == "accuracy"].set_index("set")["value"]
    shifts = right[mine[(mine["metric"] == "accuracy") & (mine["role"] == "shift")]["set"]].drop("mean of shifts")
    lost = 100 * (right["test"] - shifts)
    assert len(shifts) == 6 and lost.min() >= 5
    computed = 100 * shifts.drop(["emoji", "other-hands"])
    area = 100 * mine[mine["metric"] == "auroc"].set_index("set")["value"]
    far = area[mine[(mine["metric"] == "auroc") & (mine["role"] == "far-ood")]["set"]]
    drawn = [100 * right["emoji"], 100 * right["other-hands"], computed.min(), computed.max()]
    numbers = [f"{v:.1f}" for v in (*drawn, area["near"], far.min(), far.max())]
    assert re.findall(r"[0-9]+\.[0-9]", told) == numbers


def test_what_the_table_decided_is_told_as_it_came_out():
    both = shipped_records("table")
    told = PAGES["findings"].split("**Who wins, and by which detector?**")[1].split("**One number")[0].replace("\n", " ")
    verdicts = experiment("table").judge(both)
    words = {v.claim: v.outcome for v in verdicts}
    assert len(verdicts) == 20 and "twenty claims" in told and "Two are decided with both" in told
    assert {c for c, o in words.items() if o == "fails"} == {
        "RRP has the best mean of the three axes",
        "RRP has a better mean of the three axes than the best of the others",
    }
    behind = verdicts[-2].parts
    assert all({"tip-adapter", "tip-adapter-f"} <= set(re.findall(r"[\w-]+", p.evidence.split("behind")[1]))
               for p in behind.values())  # fmt: skip
    rivals = ("fine-tuning", "WiSE-FT", "TaskRes")
    assert {v.claim: v.parts["published"].outcome for v in verdicts if v.outcome == "depends on the setting"} == {
        "RP raises ID accuracy": "fails",
        "RRP keeps more accuracy under shift than RP": "holds",
        **{f"RRP beats {name} {on}": "fails" for name in rivals for on in ("under shift", "at detection (AUROC)")},
    }
    assert all(v.parts["tuned"].outcome == "undecided" for v in verdicts if v.outcome == "depends on the setting")
    assert sum(o == "undecided" for o in words.values()) == 10
    (cost,) = (v for v in verdicts if v.claim == "full fine-tuning costs accuracy under shift")
    (quoted,) = re.findall(r"[+-][0-9.]+ points \[[^]]+\]", told)
    assert quoted in cost.parts["published"].evidence
    mean = both[both["versus"].isna() & (both["set"] == "mean of shifts") & (both["metric"] == "accuracy")]
    shift = {choice: half.set_index("method")["value"].sort_values() for choice, half in mean.groupby("choice")}
    assert all(list(half.index[-2:]) == ["tip-adapter", "tip-adapter-f"] for half in shift.values())
    assert list(shift["published"].index[:2]) == ["rp-image", "rp"]
    plain = both[both["versus"].isna() & (both["choice"] == "tuned")]
    fpr = plain[(plain["set"] == "mean of OOD sets") & (plain["metric"] == "fpr")].set_index(["method", "detector"])
    percent = [f"{100 * fpr.loc[key, 'value']:.0f} %" for key in (
        ("linear-probe", "max-logit"), ("zero-shot", "max-logit"), ("linear-probe", "msp"), ("zero-shot", "msp"),
        ("tip-adapter", "max-logit"))]  # fmt: skip
    assert re.findall(r"\d+ %", told) == percent
    for detector in ("mahalanobis", "relative-mahalanobis", "knn", "vim"):
        rank = fpr.xs(detector, level="detector")["value"].rank(ascending=False)
        assert rank["l2-sp"] <= 2


def test_the_aggregate_is_told_as_it_came_out():
    records = shipped_records("table").query("choice == 'tuned'")
    told = PAGES["findings"].split("**One number, read last.**")[1].split("![")[0].replace("\n", " ")
    ranks = records[(records["metric"] == "rank") & (records["set"] == "aggregate")].set_index("method")
    assert list(ranks["value"].nsmallest(2).index) == ["tip-adapter-f", "tip-adapter"]
    for name, last in (("tip-adapter-f", 2), ("tip-adapter", 4)):
        assert (ranks.loc[name, "low"], ranks.loc[name, "high"]) == (1, last)
    assert f"RRP has rank {ranks.loc['rrp', 'low']:g} to {ranks.loc['rrp', 'high']:g} of {len(ranks)}" in told


def test_numbers_on_photographs_are_those_of_the_records():
    photos = ROOT / "notebooks" / "rp_course" / "experiments" / "records" / "photos"
    records, about = load_records(photos / "pacs.csv")
    told = PAGES["real_data"].split("## On real photographs")[1].split("**What could not")[0].replace("\n", " ")
    assert markdown(summarize(records)) in PAGES["real_data"] and len(about["seed_numbers"]) == 2
    single = records[~records["set"].str.startswith("mean of")]
    largest = single.groupby(["role", "set"])["n"].max().groupby("role").sum()
    for role, word in (("test", "test photographs"), ("shift", "shifted pictures")):
        assert f"{largest[role]:,.0f} {word}" in told
    two = pd.read_csv(photos / "ledger-row-2-pacs.csv")
    two = two[(two["metric"] == "auroc") & two["set"].isin(["mean of OOD sets"]) & two["versus"].isna()]
    before, after = (two.set_index("method").loc[m, "value"] for m in ("rp", "rp, row 2: 8-bit wrap in detection"))
    assert f"from {100 * before:.1f} to {100 * after:.1f}" in told
    three = pd.read_csv(photos / "ledger-row-3.csv").set_index(["method", "labels"])
    for key in (("fine-tune", "as_released"), ("fine-tune", "cifar10")):
        value, low, high = 100 * three.loc[key, ["value", "low", "high"]]
        assert f"{value:.1f} [{low:.1f}, {high:.1f}]" in told
    assert f"{100 * three.loc[('perfect', 'as_released'), 'value']:.1f} %" in told


def test_gpu_figures_are_those_of_the_record():
    record = json.loads((ROOT / "tests" / "speed" / "records" / "h200.json").read_text("utf-8"))
    steps = {(r["backbone"], r["compiled"], r["batch"], r["method"]): r for r in record["steps"]}
    said = PAGES["speed"].split("**On a GPU**")[1]
    b, large = "ViT-B-32-quickgelu", "ViT-L-14-quickgelu"
    for key in ((b, False, 1024), (b, True, 1024), (large, False, 128)):
        assert f"{steps[*key, 'rp']['seconds'] / steps[*key, 'fine-tune']['seconds']:.2f}" in said
    for method in ("rp", "fine-tune"):
        assert f"{steps[b, False, 1024, method]['GiB']:.1f}" in said
    assert f"{record['mini']['features']:.1e}" in said and record["mini"]["passing"][0] == record["mini"]["passing"][1]


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_files_that_a_notebook_names_are_there(path):
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "markdown":
            for name in re.findall(r"(?:rp_lib|rp_course|tests)/[\w./]*\w", "".join(cell["source"])):
                assert (ROOT / name).exists() or (ROOT / "notebooks" / name).exists(), name
