import os

import pandas as pd
import pytest
import torch
from rp_course.experiments.world import tuned_placements

from rp_lib.config import PAPER
from rp_lib.evaluation import ALPHAS, choose_alpha
from rp_lib.features import FeatureStore
from rp_lib.methods import (
    BASES,
    METHODS,
    FineTune,
    LogitEnsemble,
    Reprogrammer,
    ResidualReprogrammer,
    WiSEFT,
    build_method,
)
from rp_lib.run.search import (
    CHEAP,
    FOLDS,
    REPETITIONS,
    SEARCH,
    SPACES,
    WIDENINGS,
    choose,
    draw_trials,
    folds_of,
    near_ties,
    read_runs,
    search,
    settings_of,
    trials_of,
    tuned_settings,
)
from rp_lib.utils.errors import RPLibError, UnknownName
from rp_lib.utils.io import StorageError

RUNS = FOLDS * REPETITIONS
ONE = {"methods": ("linear-probe",), "progress": False}


@pytest.fixture
def small(monkeypatch):
    """Two trials of a second each."""
    grid = {"lr": (1e-2, 1e-1), "epochs": (2, 4), "batch_size": (8,), "weight_decay": (0.0,)}
    monkeypatch.setitem(SPACES, "linear-probe", grid)
    monkeypatch.setattr("rp_lib.run.search.CHEAP", ())
    return grid


def test_trials_are_distinct_seeded_and_give_every_value_the_same_chance():
    for name, space in SPACES.items():
        trials = draw_trials(name, 8, seed=3)
        assert trials == draw_trials(name, 8, seed=3) != draw_trials(name, 8, seed=4)
        assert all(trials.count(t) == 1 for t in trials)
        for key, values in space.items():
            counts = [sum(t[key] == value for t in trials) for value in values]
            assert sum(counts) == 8 and (max(counts) - min(counts) <= 1 or name == "tip-adapter")
    with pytest.raises(UnknownName, match="fine-tune"):
        draw_trials("finetune", 2, 0)
    with pytest.raises(RPLibError, match="number of trials"):
        draw_trials("rp", 0, 0)
    every = draw_trials("tip-adapter", 30, 0)
    assert len({tuple(t.items()) for t in every}) == 30 and set(CHEAP) <= set(SPACES)


def test_no_group_is_in_two_folds_and_each_class_can_be_learned(tiny_benchmark):
    pool = tiny_benchmark.train
    first, second = folds_of(pool, 1), folds_of(pool, 2)
    for masks in (first, second):
        assert torch.stack(masks).sum(0).eq(1).all()
        groups = [set(pool.groups[held].tolist()) for held in masks]
        assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
        assert all(len(pool.labels[~held].unique()) == len(pool.labels.unique()) for held in masks)
    assert not torch.equal(torch.stack(first), torch.stack(second))
    with pytest.raises(RPLibError, match="at least 3 groups"):
        folds_of(pool.subset([0, 1, 2, 3]), 1)
    alone = pool.subset(pool.labels.ne(0) | pool.groups.eq(pool.groups[pool.labels.eq(0)][0]))
    with pytest.raises(RPLibError, match="without a picture to learn from"):
        folds_of(alone, 1)


def test_search_never_judges_on_what_it_trains_on_and_resumes(tiny_clip, tiny_benchmark, tmp_path, monkeypatch, small):
    from rp_lib.methods import LinearProbe, Method

    trained, judged = [], []
    fit, scores = LinearProbe.fit, Method.scores
    monkeypatch.setattr(
        LinearProbe, "fit", lambda self, data, *a, **k: trained.append(data) or fit(self, data, *a, **k)
    )
    monkeypatch.setattr(
        Method, "scores", lambda self, data, store=None: judged.append(data) or scores(self, data, store)
    )
    out = tmp_path / "runs.csv"
    first = search(tiny_clip, tiny_benchmark, out, trials=2, **ONE)
    judged = judged[RUNS:]  # after zero-shot's
    assert len(trained) == len(judged) >= 2 * RUNS
    for train, held in zip(trained, judged, strict=True):
        assert len(train) + len(held) == len(tiny_benchmark.train) + len(tiny_benchmark.val)
        assert not set(train.groups.tolist()) & set(held.groups.tolist())
    made = len(trained)
    again = search(tiny_clip, tiny_benchmark, out, trials=2, **ONE)
    assert len(trained) == made
    pd.testing.assert_frame_equal(again, first, check_dtype=False)
    other = search(tiny_clip, tiny_benchmark, out, trials=2, seed=1, **ONE)
    assert set(other["search_seed"]) == {1}  # another search begins anew


def made_up(accuracies, moved=None, n=100):
    """Runs of trials with an accuracy per fold and repetition."""
    rows = [
        {"method": "linear-probe", "lr": 10.0**-i, "epochs": 25, "batch_size": 64, "weight_decay": 0.0, "n": n,
         "repetition": r // FOLDS, "fold": r % FOLDS, "accuracy": a, "moved": (moved or [0.1] * 9)[i], "seconds": 1.0}
        for i, runs in enumerate(accuracies) for r, a in enumerate(runs)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_the_best_trial_is_taken_and_of_those_less_than_a_picture_behind_the_nearest_to_zero_shot():
    best, close, behind = [0.7, 0.8, 0.9, 0.7, 0.8, 0.9], [0.7, 0.8, 0.9, 0.7, 0.8, 0.89], [0.69] * 6
    ties = near_ties(trials_of("linear-probe", made_up([close, best, behind])))
    assert list(ties.index)[:2] == [0, 1]
    ties = near_ties(trials_of("linear-probe", made_up([close, best, behind], [0.5, 0.2, 0.0])))
    assert ties.index[0] == 1  # nearer, of two that are a picture apart at most
    ties = near_ties(trials_of("linear-probe", made_up([close, best, behind], [0.2, 0.5, 0.0])))
    assert ties.index[0] == 0
    ties = near_ties(trials_of("linear-probe", made_up([close, best, behind], [0.2, 0.5, 0.0], n=10_000)))
    assert ties.index[0] == 1  # a hundred pictures behind, so the best is taken
    # By hand: leads .01, .11, .21 twice; mean .11, standard deviation .08944; factor 1/6 + 1/2.
    row = near_ties(
        trials_of("linear-probe", made_up([best, [a - b for a, b in zip(best, (0.01, 0.11, 0.21) * 2, strict=True)]]))
    )
    assert len(row) == 1  # .11 is more than the error, .073
    lead = [0.0, 0.05, 0.10, 0.0, 0.05, 0.10]
    tied = near_ties(trials_of("linear-probe", made_up([best, [a - b for a, b in zip(best, lead, strict=True)]])))
    assert len(tied) == 1 and tied["behind"].iloc[0] == 0  # .05 is more than the error, .0365
    wide = [-0.1, 0.05, 0.20, -0.1, 0.05, 0.20]
    tied = near_ties(trials_of("linear-probe", made_up([best, [a - b for a, b in zip(best, wide, strict=True)]])))
    assert tied["error"].iloc[1] == pytest.approx(0.134164 * (1 / 6 + 1 / 2) ** 0.5, rel=1e-4) and len(tied) == 2
    with pytest.raises(RPLibError, match="same folds"):
        near_ties(trials_of("linear-probe", made_up([best, close]).iloc[:-1]))


def test_a_best_trial_on_the_edge_widens_the_grid(tiny_clip, tiny_benchmark, tmp_path, monkeypatch, small):
    monkeypatch.setitem(SPACES, "linear-probe", {**small, "lr": (1e-6, 1e-5), "epochs": (2,)})  # too low to learn
    table = search(tiny_clip, tiny_benchmark, tmp_path / "runs.csv", trials=2, **ONE)
    rates = list(dict.fromkeys(table["lr"]))
    assert set(rates[:2]) == {1e-6, 1e-5} and 2 < len(rates) <= 2 + WIDENINGS
    assert all(rate in (1e-7, 1e-8, 1e-9, 1e-4, 1e-3, 1e-2) for rate in rates[2:])


def test_mixtures_are_searched_over_alpha_with_the_trial_of_their_base(
    tiny_clip, tiny_benchmark, tmp_path, monkeypatch
):
    monkeypatch.setattr("rp_lib.run.search.ALPHAS", (0.0, 1.0))
    monkeypatch.setitem(SPACES, "fine-tune", {"lr": (1e-4,), "epochs": (1,), "batch_size": (8,)})
    out = tmp_path / "runs.csv"
    table = search(tiny_clip, tiny_benchmark, out, trials=1, methods=("fine-tune",), progress=False)
    assert table["method"].value_counts().to_dict() == {
        "fine-tune": RUNS,
        **dict.fromkeys(("wise-ft", "logit-ensemble"), 2 * RUNS),
    }
    plain = table[table["method"] == "fine-tune"].sort_values(["repetition", "fold"])
    for name in ("wise-ft", "logit-ensemble"):
        mixed = table[table["method"] == name].sort_values(["repetition", "fold"])
        assert (mixed[mixed["alpha"] == 1]["moved"] < 1e-5).all()  # all zero-shot
        base = mixed[mixed["alpha"] == 0]  # all fine-tuned
        assert base["accuracy"].tolist() == plain["accuracy"].tolist() and (base["moved"] > 0).all()
    chosen = choose(pd.DataFrame(read_runs(out)))
    assert set(chosen) == {"fine-tune", "wise-ft", "logit-ensemble"}
    for name in ("wise-ft", "logit-ensemble"):
        assert {k: v for k, v in chosen[name].items() if k != "alpha"} == chosen["fine-tune"]
        method = build_method(
            name, tiny_clip, tiny_benchmark.class_names, tiny_benchmark.templates, settings_of(name, chosen[name])
        )
        assert method.alpha == chosen[name]["alpha"] and method.fine_tuned.lr == 1e-4


def test_a_border_is_a_placement_and_a_start():
    config = settings_of("rp", {"border": "overlay from zeros", "image_lr": 0.01, "epochs": 6})["config"]
    assert (config.placement, config.border_init, config.image_lr, config.epochs) == ("overlay", "zeros", 0.01, 6)


def test_settings_are_those_of_the_recorded_search(tmp_path):
    (tmp_path / "damaged.csv").write_text("method,trial,val_accuracy\nrp,x,y\n")
    with pytest.raises(StorageError, match="no table of runs"):
        tuned_settings(tmp_path / "damaged.csv")
    with pytest.raises(StorageError, match="is missing"):
        tuned_settings(tmp_path / "none.csv")
    table = pd.DataFrame(read_runs(SEARCH))
    found = tuned_settings()
    assert {name: settings_of(name, trial) for name, trial in choose(table).items()} | {"zero-shot": {}} == found
    assert set(found) == set(METHODS) - {"attr-vr"}  # whose descriptions only the caller has
    assert table.groupby("method").apply(lambda t: len(t) % RUNS, include_groups=False).eq(0).all()
    trained = table[table["method"].isin(SPACES)]
    trials = {name: trials_of(name, trained)["trial"].nunique() for name in trained["method"].unique()}
    assert all((32 if name in CHEAP else 8) <= n <= (32 if name in CHEAP else 8) + WIDENINGS
               for name, n in trials.items() if name != "tip-adapter")  # whose whole grid is smaller
    placements = tuned_placements()
    assert {p: s["config"].placement for p, s in placements.items()} == {"pad": "pad", "overlay": "overlay"}
    assert found["rp"] in placements.values()


def test_the_recorded_search_is_read_once_and_anew_when_the_file_changes(tmp_path, monkeypatch):
    path, read = tmp_path / "search.csv", []
    path.write_bytes(SEARCH.read_bytes())
    monkeypatch.setattr("rp_lib.run.search.choose", lambda table: read.append(len(table)) or {"zs-lp": {"epochs": 3}})
    tuned_settings(path)["zs-lp"].clear()  # callers own what they get
    assert tuned_settings(path) == {"zero-shot": {}, "zs-lp": {"epochs": 3}} and len(read) == 1
    os.utime(path, (1, 1))
    assert tuned_settings(path)["zs-lp"] and len(read) == 2


def test_alpha_is_the_largest_within_one_standard_error(tiny_clip, tiny_benchmark):
    rp = Reprogrammer(tiny_clip, tiny_benchmark.class_names, tiny_benchmark.templates, PAPER)
    alpha, sweep = choose_alpha(rp, tiny_benchmark, FeatureStore())
    best = sweep.val_accuracy.max()
    error = (best * (1 - best) / len(tiny_benchmark.val)) ** 0.5
    assert alpha == sweep[sweep.val_accuracy >= best - error].alpha.max() and len(sweep) == 21
    direct = ResidualReprogrammer(rp, 0.35).accuracy(tiny_benchmark.val)
    assert sweep.set_index("alpha").loc[0.35, "val_accuracy"] == pytest.approx(direct)


@pytest.mark.parametrize("kind", [WiSEFT, LogitEnsemble])
def test_every_mixture_chooses_its_alpha_by_the_same_rule(kind, tiny_clip, tiny_benchmark, monkeypatch):
    """Alpha is the share of zero-shot: the best is at 0.2, and 0.6 is the last within one standard error of it."""
    tuned = FineTune(tiny_clip, tiny_benchmark.class_names, tiny_benchmark.templates)
    n = len(tiny_benchmark.val)
    monkeypatch.setattr(kind, "accuracy", lambda self, data, store: {0.2: 6, 0.6: 5, 0.8: 4}.get(self.alpha, 3) / n)
    alpha, sweep = choose_alpha(tuned, tiny_benchmark, FeatureStore(), kind.name)
    assert alpha == 0.6 and list(sweep.alpha) == list(ALPHAS)


def test_sweep_over_weights_leaves_no_model_behind(tiny_clip, tiny_benchmark, monkeypatch):
    monkeypatch.setattr("rp_lib.evaluation.ALPHAS", (0.0, 0.5, 1.0))
    tuned, store = FineTune(tiny_clip, tiny_benchmark.class_names, tiny_benchmark.templates), FeatureStore()
    _, sweep = choose_alpha(tuned, tiny_benchmark, store, "wise-ft")
    assert {id(encoder) for encoder, _, _ in store._features.values()} == {id(tuned), id(tiny_clip)}
    direct = [WiSEFT(tuned, a).accuracy(tiny_benchmark.val) for a in sweep.alpha]
    assert sweep.val_accuracy.tolist() == pytest.approx(direct)
    with pytest.raises(UnknownName, match="did you mean wise-ft"):
        choose_alpha(tuned, tiny_benchmark, store, "wiseft")


def test_grids_fit_their_methods(tiny_clip, tiny_benchmark):
    """Every drawn setting is one that the method takes and gives back."""
    task = (tiny_clip, tiny_benchmark.class_names, tiny_benchmark.templates)
    for name in set(SPACES) - {"coop", "maple", "rp", "rp-image", "rp-text"}:
        trial = draw_trials(name, 1, 0)[0]
        settings = build_method(name, *task, settings_of(name, trial)).get_params()
        assert {key: settings[key] for key in trial} == trial
    assert {"l2-sp", "lp-ft", "flyp"} <= set(SPACES) and set(BASES.values()) <= set(SPACES)
    assert set(BASES) <= set(METHODS) and not set(BASES) & set(SPACES)


def test_searching_one_method_keeps_the_runs_of_others(tiny_clip, tiny_benchmark, tmp_path, small, monkeypatch):
    monkeypatch.setitem(SPACES, "zs-lp", {**small, "epochs": (1,)})
    out = tmp_path / "runs.csv"
    before = search(tiny_clip, tiny_benchmark, out, trials=1, **ONE)
    after = search(tiny_clip, tiny_benchmark, out, trials=1, methods=("zs-lp",), progress=False)
    kept = after[after["method"] == "linear-probe"].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept[before.columns], before, check_dtype=False)
    assert {"linear-probe", "zs-lp"} == set(after["method"])
    (tmp_path / "damaged.csv").write_text("method,repetition\nrp,x\n")
    with pytest.raises(StorageError, match="no table of runs"):
        search(tiny_clip, tiny_benchmark, tmp_path / "damaged.csv", trials=1, **ONE)
