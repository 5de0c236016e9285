"""The experiments' machinery on a tiny world; what the shipped records say is tested where they ship."""

import argparse
import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_clip
from rp_course.cli import _world, main
from rp_course.experiments import EXPERIMENTS, World, experiment, rejudge, run, shipped_records
from rp_course.experiments.base import COLUMNS, Drawing, Experiment, Verdict, pick
from rp_course.experiments.border import CHANGES, with_border
from rp_course.experiments.both_settings import on_both_settings
from rp_course.experiments.feature_drift import with_room
from rp_course.experiments.figures import alt, figures, heatmap
from rp_course.experiments.grid import Condition, Entry, methods, run_grid
from rp_course.experiments.padding import at_resolution
from rp_course.experiments.rate import OTHER_SIZE, PAPER_RUN, RATES, at_rate, published
from rp_course.experiments.released_code import ROWS, SCRIPT_ROWS, switched
from rp_course.experiments.released_script import DetectionScript, ReleasedFineTune, Shown
from rp_course.experiments.single_designer import of_families
from rp_course.experiments.training_data import of_classes, per_class, same_steps
from rp_course.experiments.world import published_settings, tuned_placements

from rp_lib.config import AS_RELEASED, PAPER
from rp_lib.detectors import DETECTORS
from rp_lib.methods import METHODS, build_method
from rp_lib.mini import weights
from rp_lib.negative_labels import mine_negative_words
from rp_lib.run.config import read_config
from rp_lib.run.search import SEARCH
from rp_lib.utils.errors import RPLibError, UnknownName
from rp_lib.utils.io import StorageError, load_table, save_table

QUICK = PAPER.changed(epochs=1, border_init="white", padding=2 / 32)
SETTINGS = {
    "zero-shot": {}, "linear-probe": {"epochs": 2}, "fine-tune": {"epochs": 1}, "l2-sp": {"epochs": 1},
    "wise-ft": {"epochs": 1, "alpha": 0.5}, "logit-ensemble": {"epochs": 1, "alpha": 0.25},
    "rp": {"config": QUICK}, "rrp": {"config": QUICK.changed(alpha=0.5)},
    "rp-image": {"config": QUICK.changed(use_text_program=False)},
    "rp-text": {"config": QUICK.changed(use_image_program=False)}, "coop": {"epochs": 1},
    "lp-ft": {"epochs": 1, "probe_epochs": 1}, "flyp": {"epochs": 1},
    "maple": {"epochs": 1, "batch_size": 16}, "zs-lp": {"epochs": 1}, "task-res": {"epochs": 1},
    "clap": {"epochs": 1}, "tip-adapter-f": {"epochs": 1}, "lipsum-ft": {"epochs": 1}, "clip-lora": {"epochs": 1},
    "locoop": {"epochs": 1},
}  # fmt: skip


@pytest.fixture(autouse=True)
def published_settings_train_briefly(monkeypatch):
    monkeypatch.setattr("rp_course.experiments.world.published_settings", lambda name: SETTINGS[name])


@pytest.fixture
def world(tiny_clip, tiny_benchmark):
    return World(tiny_benchmark, SETTINGS, seeds=(1, 2), precision="float32", progress=False, clip=tiny_clip)


def test_a_whole_rerun_reproduces_itself_and_other_weights_are_not_compared(world, tmp_path):
    e = experiment("programs")
    first = run(e, world, tmp_path / "one", shipped=tmp_path / "nowhere")
    assert first.agreement is None
    rerun = run(e, world, tmp_path / "two", shipped=tmp_path / "one")
    again = rerun.agreement
    assert again.compared > 50 and again.inside == again.compared
    assert rerun.kept == {v.claim: True for v in first.verdicts}
    turned = dataclasses.replace(e, judge=lambda r: [dataclasses.replace(v, outcome="other") for v in e.judge(r)])
    assert set(run(turned, world, tmp_path / "two", shipped=tmp_path / "one").kept.values()) == {False}
    world.clip = make_clip(7)
    assert run(e, world, tmp_path / "three", shipped=tmp_path / "one").agreement is None


# Worlds and data ------------------------------------------------------------------------------------


def test_lighter_benchmark_keeps_pairs_together(tiny_benchmark):
    light = tiny_benchmark.subsample(5, 4)
    assert len(light.test) == min(5, len(tiny_benchmark.test))
    for images in light.shifts.values():
        if images.derived_from:
            assert set(images.sources.tolist()) <= set(light.test.sources.tolist()) and len(images)
        else:
            assert len(images) <= 4


def test_shots_are_nested_and_seeded(tiny_benchmark):
    train = tiny_benchmark.train
    one, two, other = per_class(train, 1, 0), per_class(train, 2, 0), per_class(train, 1, 1)
    assert one.labels.bincount().max() == 1 and len(one) == len(train.labels.unique())
    assert {i.numpy().tobytes() for i in one.images} <= {i.numpy().tobytes() for i in two.images}
    assert one.fingerprint != other.fingerprint and one.fingerprint == per_class(train, 1, 0).fingerprint


def test_families_take_turns_up_to_the_counts(tiny_benchmark):
    from dataclasses import replace

    n = len(tiny_benchmark.train)
    train = replace(tiny_benchmark.train, groups=torch.arange(n) // 8)
    counts = train.labels[train.groups == 0].bincount(minlength=len(tiny_benchmark.class_names))
    one, all_ = of_families(train, [0], counts), of_families(train, [0, 1, 2], counts)
    assert set(one.groups.tolist()) == {0} and len(one) == int((train.groups == 0).sum())
    assert len(all_.groups.unique()) > 1 and (all_.labels.bincount(minlength=len(counts)) <= counts).all()


def test_fewer_classes_are_relabelled(tiny_benchmark):
    small = of_classes(tiny_benchmark, [2, 0])
    assert small.class_names == (tiny_benchmark.class_names[2], tiny_benchmark.class_names[0])
    old = tiny_benchmark.test
    assert len(small.test) == int(((old.labels == 2) | (old.labels == 0)).sum())
    first = int((old.labels == 2).nonzero()[0])
    where = small.test.sources.tolist().index(int(old.sources[first]))
    assert small.test.labels[where] == 0 and small.test.fingerprint != old.fingerprint


def test_lower_resolution_is_another_benchmark(tiny_benchmark):
    side = tiny_benchmark.test.images.shape[-1]
    assert at_resolution(tiny_benchmark, side) is tiny_benchmark
    low = at_resolution(tiny_benchmark, side // 2)
    assert low.test.images.shape[-1] == side // 2 and low.fingerprint != tiny_benchmark.fingerprint
    assert all(low.shifts[k].fingerprint != s.fingerprint for k, s in tiny_benchmark.shifts.items())


def test_each_ledger_row_changes_its_switches_alone():
    from dataclasses import asdict

    paper, released = asdict(PAPER), asdict(AS_RELEASED)
    assert set(ROWS) >= SCRIPT_ROWS
    for number, (_, names, _) in ROWS.items():
        changed = asdict(switched(PAPER, number))
        if number in SCRIPT_ROWS:
            assert changed == paper and DetectionScript(**dict.fromkeys(names, True)) != DetectionScript()
            continue
        assert all(changed[n] == released[n] for n in names)
        assert {k for k in paper if changed[k] != paper[k]} <= set(names)
    named = {n for _, names, _ in ROWS.values() for n in names}
    # The convention of row 14 is compared in rp_lib.metrics.
    assert {k for k in paper if paper[k] != released[k]} - {"convention"} <= named


def test_changed_borders_differ_from_the_trained_one_in_the_border_alone(tiny_clip, tiny_benchmark, world):
    rp = world.fit("rp", 1, tiny_benchmark, tiny_clip)
    torch.nn.init.uniform_(rp.image_program.W, 0.1, 2.0)  # an epoch hardly moves it
    image = tiny_benchmark.test.images[:1]
    trained, mask = rp.program_images(image)[0].detach(), rp.image_program.M.bool()
    for change in CHANGES:
        shown = with_border(rp, change).program_images(image)[0].detach()
        torch.testing.assert_close(shown[:, ~mask], trained[:, ~mask])
        assert not torch.allclose(shown[:, mask], trained[:, mask], atol=1e-3), change
    shuffled = with_border(rp, "its pixels shuffled").program_images(image)[0].detach()
    torch.testing.assert_close(shuffled[:, mask].sort(1).values, trained[:, mask].sort(1).values, atol=1e-5, rtol=0)
    assert with_border(rp, "white").program_images(image)[0, :, mask].min() > 0.999


# Running --------------------------------------------------------------------------------------------


def test_grid_is_kept_condition_by_condition(world, tiny_benchmark, tmp_path, monkeypatch):
    conditions = [
        Condition({"level": k}, tiny_benchmark, methods("zero-shot", "linear-probe") | {"lp": Entry("linear-probe", {"epochs": k})})
        for k in (1, 3)
    ]  # fmt: skip
    records = run_grid(world, conditions, tmp_path)
    assert set(records["level"]) == {1, 3} and set(COLUMNS) <= set(records.columns)
    plain = records[records["versus"].isna() & (records["set"] == "test") & (records["metric"] == "accuracy")]
    assert len(plain) == 6 and (plain["low"] <= plain["value"]).all() and (plain["value"] <= plain["high"]).all()
    assert dict(zip(plain["method"], plain["seeds"], strict=False)) == {"zero-shot": 1, "linear-probe": 2, "lp": 2}
    gaps = records[records["versus"].notna()]
    assert len(gaps) == 2 * 3 * 4
    one = gaps[(gaps["level"] == 1) & (gaps["method"] == "zero-shot") & (gaps["versus"] == "linear-probe")]
    by = plain[plain["level"] == 1].set_index("method")["value"]
    paired = one.set_index("metric")["value"]["id accuracy"]
    assert paired == pytest.approx(by["zero-shot"] - by["linear-probe"], abs=1e-4)
    monkeypatch.setattr(World, "fit", lambda *a, **k: pytest.fail("measured again"))
    pd.testing.assert_frame_equal(run_grid(world, conditions, tmp_path), records)


def test_entries_that_share_training_are_evaluated_under_their_own_switches(world, tiny_benchmark, tmp_path):
    entries = {
        "rp": Entry("rp", {"config": QUICK}),
        "same": Entry("rp", {"config": QUICK}, shares="rp"),
        "wrapped": Entry("rp", {"config": QUICK}, shares="rp", outputs=DetectionScript(wrap=True)),
    }
    records = run_grid(world, [Condition({"k": 0}, tiny_benchmark, entries)], tmp_path)
    value = records[records["versus"].isna()].set_index(["method", "set", "metric"])["value"]
    same = records[(records["method"] == "rp") & (records["versus"] == "same")]
    assert (same["value"].abs() < 1e-9).all() and (same["high"].abs() < 1e-9).all()
    assert value["rp", "test", "accuracy"] == value["wrapped", "test", "accuracy"]
    assert value["rp", "mean of OOD sets", "auroc"] != value["wrapped", "mean of OOD sets", "auroc"]


def test_an_entry_may_train_on_other_data_and_be_of_another_class(world, tiny_benchmark, tmp_path):
    small = at_resolution(tiny_benchmark, 8)
    entries = {
        "zero-shot": Entry("zero-shot"),
        "seen small": Entry("zero-shot", outputs=Shown(small)),
        "fine-tune": Entry("fine-tune", {"epochs": 1, "lr": 1e-3}),
        "biased": Entry("fine-tune", {"epochs": 1, "lr": 1e-3}, kind=ReleasedFineTune),
        "learned small": Entry("fine-tune", {"epochs": 1, "lr": 1e-3}, data=small),
    }
    kept = []

    def looked_at(world, method, seed, benchmark):
        kept.append(method)
        return world.outputs(method, seed, benchmark)

    entries["biased"] = dataclasses.replace(entries["biased"], outputs=looked_at)
    records = run_grid(world, [Condition({"k": 0}, tiny_benchmark, entries)], tmp_path)
    value = pick(records, versus=None).pivot_table(index="method", columns=["set", "metric"], values="value")
    assert len(value) == len(value.drop_duplicates()) == len(entries)
    (group,) = kept[0].parameter_groups()
    biases = [p for name, p in kept[0].modules().named_parameters() if name.endswith("bias")]
    assert {id(b) for b in biases} <= {id(p) for p in group.parameters} and group.weight_decay > 0
    assert kept[0].classifier.bias.abs().max() > 0  # starts at zero, and is trained
    for entry in entries.values():  # each is a part of its own
        alone = dataclasses.replace(entry, outputs=World.outputs)
        run_grid(world, [Condition({}, tiny_benchmark, {"m": alone})], tmp_path / "own")
    assert len(list((tmp_path / "own").glob("*.csv"))) == len(entries) - 1  # the two of zero-shot are the same now


def test_prompts_that_end_in_a_full_stop_are_another_task(world, tiny_clip, tiny_benchmark):
    stopped = dataclasses.replace(tiny_benchmark, templates=tuple(f"{t}." for t in tiny_benchmark.templates))
    plain, other = (world.fit("zero-shot", 1, b, tiny_clip) for b in (tiny_benchmark, stopped))
    assert plain.templates != other.templates and world.fit("zero-shot", 1, tiny_benchmark, tiny_clip) is plain


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_every_experiment_runs_and_judges(name, world, tiny_clip, tiny_benchmark, tmp_path, monkeypatch):
    from rp_course.experiments import neighbours, size, table

    # UMAP compiles itself for a quarter of a minute; test_umap_is_repeatable runs it.
    monkeypatch.setattr(neighbours, "umap", lambda features, seed: features[:, :2])
    world.quick, world.seeds = True, (1,)
    if name in ("strength", "size"):  # which want shipped backbones, and not one of the world's own
        with pytest.raises(RPLibError, match="leave `clip` out"):
            run(experiment(name), world, tmp_path)
        monkeypatch.setattr(size, "FILE", tmp_path / "narrow.safetensors")
        size.FILE.write_bytes(b"")
        kept = {n: make_clip(seed) for seed, n in enumerate((*weights.names(), str(size.FILE)))}
        monkeypatch.setattr(World, "backbone", lambda self, checkpoint="final": kept[checkpoint])
        world = dataclasses.replace(world, clip=None)
    words = mine_negative_words(
        tiny_clip, world.benchmark.class_names, world.benchmark.templates, ["sea", "sky", "sand"]
    )
    monkeypatch.setattr(table, "mine_negative_words", lambda *a: words)  # the whole vocabulary takes a minute
    if name == "intrusion":
        ood = {
            k: dataclasses.replace(s, names=["cat", "tree"] * (len(s) // 2) + ["cat"] * (len(s) % 2))
            for k, s in tiny_benchmark.ood.items()
        }
        world.benchmark = dataclasses.replace(tiny_benchmark, ood=ood)
    e = experiment(name)
    finding = run(e, world, tmp_path)
    assert len(finding.records) and finding.verdicts and finding.agreement is None
    assert {v.outcome for v in finding.verdicts} <= {"holds", "fails", "undecided", "depends on the setting"}
    assert all(isinstance(v, Verdict) and v.evidence for v in finding.verdicts)
    kept = pd.read_csv(tmp_path / f"{name}.csv")
    assert list(kept.columns) == [*e.factors, *COLUMNS] and np.isfinite(kept["value"]).all()
    # Verdicts follow from the file alone.
    assert [v.outcome for v in e.judge(kept)] == [v.outcome for v in finding.verdicts]
    drawn = figures(e, kept)
    assert drawn
    for suffix in drawn:
        told = alt(e, kept, suffix)
        assert told.endswith(".") and "nan" not in told and len(told) < 1200, told
    about = json.loads((tmp_path / f"{name}.json").read_text())
    assert ("checkpoints" in about) == (name in ("strength", "size", "remedies"))
    assert set(about["parts"]) == {"measured", "reused"} and not about["parts"]["reused"]


def test_records_can_be_judged_again_without_measuring(world, tmp_path, monkeypatch):
    e = experiment("programs")
    finding = run(e, world, tmp_path)
    before = (tmp_path / "programs.json").read_text()
    # Word for word, though the file's numbers are rounded; and the file stays as it is.
    assert rejudge(e, tmp_path).verdicts == finding.verdicts and (tmp_path / "programs.json").read_text() == before
    new = dataclasses.replace(e, judge=lambda records: [Verdict("c", "holds", "so")])
    rejudge(new, tmp_path)
    about = json.loads((tmp_path / "programs.json").read_text())
    assert about["verdicts"] == [{"claim": "c", "outcome": "holds", "evidence": "so"}] and "judged_by" in about
    assert about["records_sha256"] == json.loads(before)["records_sha256"]
    (tmp_path / "programs.csv").write_text((tmp_path / "programs.csv").read_text().replace("rp-text", "rp-test"))
    with pytest.raises(StorageError, match="altered"):
        rejudge(e, tmp_path)


def test_reused_parts_are_told_with_the_commit_that_measured_them(world, tmp_path, monkeypatch):
    from rp_course.experiments import grid

    monkeypatch.setattr(grid, "commit", lambda: "abc123")
    e = experiment("programs")
    told = lambda: json.loads((tmp_path / "programs.json").read_text())["parts"]  # noqa: E731
    run(e, world, tmp_path)
    assert told() == {"measured": 2, "reused": {}}  # with tuned and with published settings
    monkeypatch.setattr(grid, "commit", lambda: "def456")
    run(e, world, tmp_path)
    assert told() == {"measured": 0, "reused": {"abc123": 2}}
    for path in (tmp_path / "parts" / "programs").rglob("*.json"):  # as parts of before this was noted
        path.unlink()
    run(e, world, tmp_path)
    assert told() == {"measured": 0, "reused": {"unknown": 2}}


def test_the_command_prints_the_whole_table_and_draws_again_without_measuring(world, tmp_path, capsys, monkeypatch):
    from rp_course.experiments import table

    words = mine_negative_words(
        world.clip, world.benchmark.class_names, world.benchmark.templates, ["sea", "sky", "sand"]
    )
    monkeypatch.setattr(table, "mine_negative_words", lambda *a: words)
    world.quick, world.seeds = True, (1,)
    run(experiment("table"), world, tmp_path)
    monkeypatch.setattr(World, "__post_init__", lambda self: pytest.fail("a world was made"))
    assert main(["experiment", "table", "--rejudge", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert all(f"\n{m} " in said for m in table.QUICK) and all(d in said for d in DETECTORS)
    for head in ("ID acc", "shift acc", "mean of three", "its rank", "AUROC by detector", "FPR95 by detector"):
        assert head in said
    assert {p.name for p in tmp_path.glob("*.png")} == {f"table{s}.png" for s in table.DRAWINGS}
    assert "RRP has the best mean of the three axes" in said
    assert said.index("with its tuned settings") < said.index("with its published settings")


def test_table_is_made_from_saved_outputs_of_these_settings_alone(world, tmp_path, monkeypatch):
    from rp_course.experiments import table

    words = mine_negative_words(
        world.clip, world.benchmark.class_names, world.benchmark.templates, ["sea", "sky", "sand"]
    )
    monkeypatch.setattr(table, "mine_negative_words", lambda *a: words)
    names = ("zero-shot", "linear-probe")
    first = table.saved_outputs(world, tmp_path, names)
    assert [len(first[n]) for n in names] == [1, 2]
    counted = []
    fit = World.fit
    monkeypatch.setattr(World, "fit", lambda self, name, *a, **k: (counted.append(name), fit(self, name, *a, **k))[1])
    again = table.saved_outputs(world, tmp_path, names)
    assert not counted and torch.equal(again["zero-shot"][0].test.logits, first["zero-shot"][0].test.logits)
    world.settings = {**world.settings, "linear-probe": {"epochs": 3}}
    table.saved_outputs(world, tmp_path, names)
    assert counted.count("linear-probe") == 2


def test_every_detector_says_of_every_method_a_number_or_that_it_does_not_apply(world, tmp_path, monkeypatch):
    from rp_course.experiments import table
    from rp_course.experiments.grid import judge_outputs

    words = mine_negative_words(
        world.clip, world.benchmark.class_names, world.benchmark.templates, ["sea", "sky", "sand"]
    )
    monkeypatch.setattr(table, "mine_negative_words", lambda *a: words)
    quick = {
        "l2-sp": {"epochs": 1},
        **{name: {"epochs": 1} for name in ("zs-lp", "task-res", "clap", "tip-adapter-f")},
        "tip-adapter": {},
        "lp-ft": {"epochs": 1},
        "flyp": {"epochs": 1},
        "clip-lora": {"epochs": 1},
        "lipsum-ft": {"epochs": 1},
        "locoop": {"epochs": 1, "n_context": 2},
        "attr-vr": {"config": QUICK, "nearest": 1},
        "maple": {"epochs": 1, "n_prompts": 1},
    }
    world.settings, world.seeds = {**SETTINGS, **quick}, (1,)
    outputs = table.saved_outputs(world, tmp_path, tuple(METHODS))
    records = judge_outputs(outputs, [("rrp", "rp")], tuple(DETECTORS))
    rows = records[(records["set"] == "mean of OOD sets") & (records["metric"] == "auroc")]
    missing = {(m, d) for m in METHODS for d in DETECTORS} - set(zip(rows["method"], rows["detector"], strict=True))
    biased = {"linear-probe", "lp-ft"}  # their classes are no directions in feature space
    bent = {"tip-adapter", "tip-adapter-f", "attr-vr"}  # not linear in the features
    assert missing == (
        {(m, d) for m in biased | bent for d in ("mcm", "neg-label")} | {(m, "vim") for m in bent}
        | {("logit-ensemble", "neg-label")}
    )  # fmt: skip


def test_shipped_checkpoints_are_loaded_once(tiny_benchmark):
    world = World(tiny_benchmark, SETTINGS, progress=False)
    assert world.backbone("final") is world.backbone() and world.backbone("final").name == "mini:final"
    with pytest.raises(UnknownName):
        world.backbone("finale")


def test_umap_is_repeatable_and_keeps_neighbours():
    from rp_course.experiments.neighbours import umap
    from sklearn.manifold import trustworthiness

    rng = np.random.default_rng(0)
    features = (np.eye(4)[np.arange(40) % 4] + 0.05 * rng.standard_normal((40, 4))).astype(np.float32)
    one, two = umap(features, 3), umap(features, 3)
    assert torch.get_num_threads() == 1  # compiling changes it
    assert one.shape == (40, 2) and np.array_equal(one, two)
    assert trustworthiness(features, one, n_neighbors=5, metric="cosine") > 0.8
    with pytest.raises(RPLibError, match="at least four pictures, got 3"):
        umap(features[:3], 0)


def test_unknown_experiments_and_bad_options_are_refused(capsys):
    with pytest.raises(UnknownName, match="did you mean ledger"):
        experiment("leger")
    assert main(["experiment"]) == 2 and "--list" in capsys.readouterr().err
    assert main(["experiment", "ledger", "--seeds", "0"]) == 2
    assert main(["experiment", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in EXPERIMENTS)


def test_only_the_rate_differs_from_the_tuned_settings_and_it_is_a_multiple_of_the_published_one(world):
    tuned, entry = world.tuned("fine-tune"), at_rate(world, "fine-tune", 3.0)
    assert entry.settings == {**tuned, "lr": pytest.approx(9e-5)}
    config = at_rate(world, "rrp", 10.0).settings["config"]
    assert (config.image_lr, config.text_lr) == pytest.approx((5e-2, 5e-3))
    assert config == world.tuned("rrp")["config"].changed(image_lr=config.image_lr, text_lr=config.text_lr)


def test_published_rates_are_those_of_the_published_settings():
    entries = published()
    assert set(RATES) - set(entries) == set(OTHER_SIZE)
    for name, entry in entries.items():
        known = entry.settings.get("config", METHODS[name])  # of what is not listed, the defaults
        assert {key: entry.settings.get(key, getattr(known, key)) for key in RATES[name]} == RATES[name]


def test_heatmap_hatches_the_cells_of_detectors_that_do_not_apply():
    records = shipped_records("table")
    records = records[records["choice"] == "tuned"]
    cells = pick(records, set="mean of OOD sets", metric="fpr", versus=None)
    empty = cells["method"].nunique() * cells["detector"].nunique() - len(cells)
    (panel,) = heatmap(records).axes
    hatched = [patch for patch in panel.patches if patch.get_hatch()]
    assert len(hatched) == empty > 0 and "hatched" in panel.get_title()
    no_gaps = records[~records["detector"].isin(["neg-label", "mcm", "vim"])]
    (panel,) = heatmap(no_gaps).axes
    assert not panel.patches and "hatched" not in panel.get_title()


def test_published_settings_are_those_of_the_papers_configuration(tiny_clip, tiny_benchmark):
    task = (tiny_clip, tiny_benchmark.class_names, tiny_benchmark.templates)
    for name, listed in read_config(PAPER_RUN).settings().items():
        mine = build_method(name, *task, published_settings(name)).get_params()
        if "config" in mine:  # the border starts as published; what ships starts where it can train
            assert mine["config"] == listed["config"].changed(border_init="normal") != listed["config"]
        else:
            assert {key: mine[key] for key in set(listed) - {"n_context"}} == {
                key: value for key, value in listed.items() if key != "n_context"
            }


def test_a_world_with_published_settings_shares_all_else(world, monkeypatch):
    monkeypatch.undo()
    other = world.as_published()
    assert other.published and not world.published
    assert other.settings.keys() == world.settings.keys() and other.settings["fine-tune"] == {}
    assert other.benchmark is world.benchmark and other.store(world.clip) is world.store(world.clip)


def test_rp_is_placed_as_its_own_settings_say_else_as_the_search_found_there(world, monkeypatch):
    own = world.tuned("rp")["config"]
    assert world.placed(own.placement) == {"config": own}
    other = "pad" if own.placement == "overlay" else "overlay"
    assert world.placed(other) == tuned_placements()[other] != {"config": own.changed(placement=other)}
    monkeypatch.undo()
    published = world.as_published()
    config = published.tuned("rp")["config"]
    assert published.placed("overlay") == {"config": config.changed(placement="overlay")} != published.placed("pad")


def test_both_settings_are_measured_drawn_and_judged_apart(world, tmp_path):
    seen = []

    def measure(w, parts):
        seen.append((w.published, parts.name))
        return pd.DataFrame({"method": ["rp"], "value": [len(seen)]})

    drawing = Drawing(lambda r: list(r["value"]), lambda r: f"{r['value'].iloc[0]}.")
    judge = lambda r: [Verdict("c", "holds", f"{r['value'].iloc[0]}")]  # noqa: E731
    once = Experiment("x", "Who?", ("k",), measure, judge, 1, figures=lambda: {"": drawing, "-more": drawing})
    both = on_both_settings(once)
    records = both.measure(world, tmp_path)
    assert seen == [(False, tmp_path.name), (True, "published")] and both.factors == ("choice", "k")
    assert figures(both, records) == {"": [1], "-more": [1], "-published": [2], "-more-published": [2]}
    assert alt(both, records, "-published") == "2."
    (verdict,) = both.judge(records)
    assert verdict.outcome == "holds" and [p.evidence for p in verdict.parts.values()] == ["1", "2"]
    (same,) = both.judge(records.assign(value=1))
    assert not same.parts


def test_as_many_steps_are_taken_with_published_settings_that_are_defaults(world, monkeypatch):
    monkeypatch.undo()
    train = world.benchmark.train
    world.benchmark = dataclasses.replace(world.benchmark, train=train.subset(torch.arange(1024) % len(train)))
    entries = same_steps(world.as_published(), 512, ("fine-tune", "zero-shot", "rp"))
    assert METHODS["fine-tune"].batch_size == PAPER.batch_size == 128  # 8 and 4 steps an epoch
    assert entries["fine-tune"].settings == {"epochs": 2 * METHODS["fine-tune"].epochs}
    assert entries["rp"].settings["config"].epochs == 2 * PAPER.epochs and entries["zero-shot"].settings == {}


def test_seeds_and_search_can_be_others_than_those_that_ship(tmp_path):
    table = load_table(SEARCH)
    save_table(tmp_path / "search.csv", table[table["method"] == "tip-adapter"])
    args = argparse.Namespace(
        seeds="4,6", search=tmp_path / "search.csv", device="cpu", precision="auto", quick=False, quiet=True
    )
    other = _world(args)
    assert other.seeds == (4, 6) and list(other.settings) == ["zero-shot", "tip-adapter"]
    with pytest.raises(RPLibError, match="distinct whole numbers"):
        _world(argparse.Namespace(**{**vars(args), "seeds": "4,4"}))


def test_a_context_leaves_room_for_the_words_that_are_asked_for(tiny_clip, tiny_benchmark):
    near = next(iter(tiny_benchmark.ood.values()))
    near = dataclasses.replace(near, names=["a very long name of a thing"] * len(near))
    fits = with_room({"lr": 1.0}, None, tiny_benchmark, tiny_clip)["n_context"]
    settings = with_room({"lr": 1.0}, near, tiny_benchmark, tiny_clip)
    assert settings["lr"] == 1.0 and settings["n_context"] < fits
    assert with_room({"n_context": 3}, near, tiny_benchmark, tiny_clip) == {"n_context": 3}
    build_method("coop", tiny_clip, tiny_benchmark.class_names, tiny_benchmark.templates, settings).encode_classes(near.names)
