"""What `python -m tests.speed` compares is the same work, and what it says of it follows from the timings."""

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from rp_lib import ZeroShot
from rp_lib.mini import load_clip
from tests.speed import growing, measures
from tests.speed.__main__ import STEP_RATIOS, table
from tests.speed.plain import TEMPLATE, Plain

ROOT = Path(__file__).parents[2]
CLASSES = measures.CLASSES


@pytest.fixture
def plain():
    made = Plain(load_clip(), CLASSES, None)
    with torch.no_grad():
        made.W.zero_()  # tanh(0): no border
    return made


@pytest.fixture(scope="module")
def data():
    return measures.Setting(backbone="mini").data(20)


def test_the_plain_pattern_judges_as_ours(plain, data):
    """Without programs its residual is zero-shot, at any alpha; images go through PIL, so to 8 bits."""
    clip = load_clip()
    exact = ZeroShot(clip, CLASSES, (TEMPLATE,)).logits(data.images)
    for alpha in (0.0, 0.4, 1.0):
        torch.testing.assert_close(plain.residual(data.images, alpha, batch=7), exact, atol=0.35, rtol=0)
    assert plain.residual(data.images, 0.0).argmax(1).eq(exact.argmax(1)).float().mean() >= 0.9


def test_the_plain_pattern_trains_what_is_reprogrammed(plain, data):
    """Its first loss is the contrastive loss of zero-shot features, and a step moves the three programs alone."""
    clip = load_clip()
    text = F.normalize(clip.encode_tokens(clip.tokenize([TEMPLATE.format(c) for c in CLASSES])), dim=1)
    logits = clip.logit_scale * clip.encode(data.images) @ text[data.labels].T
    target = torch.arange(len(data))
    expected = float((F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2)
    weights = {k: v.clone() for k, v in plain.model.state_dict().items()}
    before = [p.detach().clone() for p in (plain.W, plain.Theta, plain.b)]
    assert plain.rp_step(data.images, data.labels) == pytest.approx(expected, rel=0.03)
    assert all(not torch.equal(a, b) for a, b in zip(before, (plain.W, plain.Theta, plain.b), strict=True))
    assert all(torch.equal(v, weights[k]) for k, v in plain.model.state_dict().items())


def test_steps_of_other_methods_learn(plain, data):
    losses = [plain.probe_step(data.images, data.labels) for _ in range(4)]
    assert losses[-1] < losses[0]
    moved = plain.model.visual.conv1.weight.detach().clone()
    plain.fine_tune_step(data.images, data.labels)
    assert not torch.equal(moved, plain.model.visual.conv1.weight)


# What grows -----------------------------------------------------------------------------------------------

RECORD = ROOT / "tests" / "speed" / "records" / "growing.json"
linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc")


@linux
def test_what_is_compared_gives_the_same_digits():
    """Each measurement asserts it of its own: logits from a file, distances; here what is left to compare."""
    assert growing.outputs(2000, 300)["plain file"] > 1.5 * growing.outputs(2000, 300)["file"]
    assert growing.paired(300, resamples=40)["numbers"] == growing.paired(300, True, resamples=40)["numbers"]
    assert growing.neighbours(20, 700)["ours"] > 0
    found = growing.scores(400, 20)
    assert max(found[name]["float64 gap"] for name in growing.CHEAP if name != "gen") < 1e-9


@linux
def test_memory_is_that_of_the_work():
    kept = []
    assert 200e6 < growing.above(lambda: kept.append(torch.ones(60_000_000))) < 300e6
    assert growing.above(lambda: None) < 20e6


def test_the_record_of_what_grows_has_its_table():
    record = json.loads(RECORD.read_text())
    rows = growing.table(record)
    assert record["environment"]["commit"] and record["environment"]["cpus"] and len(rows) > 10
    assert all(len(row) == 5 for row in rows)
    found, n = record["found"], record["setting"]["pictures"]
    one, two = found[f"outputs {n}"], found[f"outputs {2 * n}"]
    # A picture more in the file; a thousand classes, and two other classifiers of the same features.
    assert (two["plain file"] - one["plain file"]) / (two["file"] - one["file"]) >= 6
    several = sorted(int(key.split()[-1]) for key in found if key.startswith("comparison"))
    small, large = (found[f"comparison {size}"] for size in several)
    assert found["at once"]["bytes"] >= 2 * small["bytes"] and large["bytes"] < 1.3 * small["bytes"]
    assert found["at once"]["numbers"] == small["numbers"]  # the same digits
    for name in ("mahalanobis", "relative-mahalanobis", "vim"):
        size = record["setting"]["training"]
        assert found[f"{name} {2 * size}"]["bytes"] < 1.2 * found[f"{name} {size}"]["bytes"]


def made_up(**changes):
    steps = {"ours rp": [2.0, 2.0], "ours fine-tune": [4.0, 4.0], "plain rp": [6.0, 8.0], "plain fine-tune": [4.0, 4.0]}
    found = {
        "steps": steps,
        "probing": {"plain linear probe": [50.0], "ours linear probe": [2.0]},
        "sweep": {"ours 21 alphas": [1.0], "ours 1 alpha": [1.0], "plain 1 alpha": [2.0]},
        "preparation": {"plain": [0.2], "ours": [0.1]},
        "matrix_product": 4e11,
        "step_flops": {name: 4e11 for name in steps},
        "memory": {"ours rp": 1e9, "ours fine-tune": 2e9, "plain rp": 3e9, "plain fine-tune": 2e9},
    }
    return found | changes


def test_the_table_says_what_was_reached():
    rows = {name: (value, said) for name, value, said in table(made_up())}
    assert rows["RP step / our fine-tuning step"] == ("0.50 [0.50, 0.50]", "reached: at most 0.75")
    assert rows["plain RP step / our RP step"] == ("3.50 [3.00, 4.00]", "reached: at least 2")
    assert rows["plain linear probe / ours, 25 epochs"][0].startswith("25.00")
    assert rows["ours rp step"] == ("400 GFLOP, 2.00 s, 200 GFLOP/s", "50% of a bare matrix product")
    slow = {"sweep": {"ours 21 alphas": [1.2], "ours 1 alpha": [1.0], "plain 1 alpha": [2.0]}}
    missed = {name: said for name, _, said in table(made_up(**slow))}
    assert missed["RRP at 21 alphas / at one"] == "NOT reached: at most 1.1"
    assert missed["memory: RP step / our fine-tuning step"] == "reached: at most 1"


def test_the_page_quotes_the_records():
    page = (ROOT / "notebooks" / "pages" / "speed.md").read_text(encoding="utf-8")
    record = json.loads((RECORD.parent / "vit-b-32.json").read_text())
    assert record["setting"]["backbone"] in page and "records/vit-b-32.json" in page
    values = {row: value for row, value, _ in table(record)}
    quoted = dict(re.findall(r"\| ([^|]+?) \| ([0-9.]+ \[[0-9., ]+\]|[0-9.]+) \|", page))
    assert len(quoted) >= len(STEP_RATIOS) + 4
    for row, value in quoted.items():
        assert values[row] == value, row
    assert "records/growing.json" in page
    for row in growing.table(json.loads(RECORD.read_text())):
        assert f"| {' | '.join(row)} |" in page, row[0]
