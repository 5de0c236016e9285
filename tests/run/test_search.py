import pandas as pd
import pytest

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
from rp_lib.run.search import SPACES, draw_trials, read_trials, search, settings_of, tuned_settings, winners
from rp_lib.utils.errors import RPLibError, UnknownName


def test_trials_are_distinct_seeded_and_inside_the_grid():
    for name, space in SPACES.items():
        trials = draw_trials(name, 8, seed=3)
        assert trials == draw_trials(name, 8, seed=3) != draw_trials(name, 8, seed=4)
        assert trials == draw_trials(name, 12, seed=3)[:8]
        assert all(trials.count(t) == 1 for t in trials)
        assert all(t[key] in space[key] for t in trials for key in space)
    with pytest.raises(UnknownName, match="fine-tune"):
        draw_trials("finetune", 2, 0)
    with pytest.raises(RPLibError, match="number of trials"):
        draw_trials("rp", 0, 0)


def test_search_uses_validation_data_only_and_resumes(tiny_clip, tiny_benchmark, tmp_path, monkeypatch):
    seen = []
    get = FeatureStore.get
    monkeypatch.setattr(
        FeatureStore, "get", lambda self, e, data, progress=None: seen.append(data.role) or get(self, e, data)
    )
    out = tmp_path / "search.csv"
    first = search(tiny_clip, tiny_benchmark, out, trials=2, methods=("linear-probe",), progress=False)
    assert set(seen) <= {"train", "val"} and len(first) == 2
    kept = out.read_text()
    again = search(tiny_clip, tiny_benchmark, out, trials=3, methods=("linear-probe",), progress=False)
    assert len(again) == 3 and out.read_text().startswith(kept[:40])
    assert list(again["trial"]) == [0, 1, 2] and again["val_accuracy"][:2].tolist() == first["val_accuracy"].tolist()


def test_winner_is_the_best_and_the_first_of_equals():
    rows = [{"method": "linear-probe", "trial": i, "val_accuracy": a, **t}
            for i, (a, t) in enumerate(zip((0.5, 0.7, 0.7), draw_trials("linear-probe", 3, 0), strict=True))]  # fmt: skip
    rows += [{"method": "rp", "trial": 0, "val_accuracy": 0.1, "alpha": 0.3, **draw_trials("rp", 1, 0)[0]}]
    chosen = winners(pd.read_csv(_csv(rows)))
    assert chosen["linear-probe"] == draw_trials("linear-probe", 3, 0)[1]
    assert chosen["rrp"] == {**chosen["rp"], "alpha": 0.3}
    config = settings_of("rrp", chosen["rrp"])["config"]
    assert config.alpha == 0.3 and config.image_lr == chosen["rp"]["image_lr"] and isinstance(config.epochs, int)


def _csv(rows):
    import io

    return io.StringIO(pd.DataFrame(rows).to_csv(index=False))


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


def test_search_records_the_alphas_of_all_mixtures(tiny_clip, tiny_benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr("rp_lib.evaluation.ALPHAS", (0.0, 1.0))
    monkeypatch.setitem(SPACES, "fine-tune", {"lr": (1e-4,), "epochs": (1,), "batch_size": (8,)})
    out = tmp_path / "search.csv"
    options = {"trials": 1, "methods": ("fine-tune",), "progress": False}
    table = search(tiny_clip, tiny_benchmark, out, **options)
    chosen = winners(pd.DataFrame(read_trials(out)))
    assert set(chosen) == {"fine-tune", "wise-ft", "logit-ensemble"}
    for name in ("wise-ft", "logit-ensemble"):
        assert chosen[name] == {**chosen["fine-tune"], "alpha": float(table[f"alpha_{name}"][0])}
        method = build_method(
            name, tiny_clip, tiny_benchmark.class_names, tiny_benchmark.templates, settings_of(name, chosen[name])
        )
        assert method.alpha == chosen[name]["alpha"] and method.fine_tuned.lr == 1e-4
    # A table from before a mixture was there is read, and its trials are run again.
    pd.read_csv(out).drop(columns="alpha_wise-ft").assign(seconds=-1.0).to_csv(out, index=False)
    assert set(winners(pd.DataFrame(read_trials(out)))) == {"fine-tune", "logit-ensemble"}
    again = search(tiny_clip, tiny_benchmark, out, **options)
    assert again["seconds"][0] >= 0 and again["alpha_wise-ft"][0] == table["alpha_wise-ft"][0]


def test_grids_fit_their_methods(tiny_clip, tiny_benchmark):
    """Every drawn setting is one that the method takes and gives back."""
    task = (tiny_clip, tiny_benchmark.class_names, tiny_benchmark.templates)
    for name in set(SPACES) - {"coop", "maple", "rp", "rp-image", "rp-text"}:
        trial = draw_trials(name, 1, 0)[0]
        settings = build_method(name, *task, settings_of(name, trial)).get_params()
        assert {key: settings[key] for key in trial} == trial
    assert {"l2-sp", "lp-ft", "flyp"} <= set(SPACES) and set(BASES.values()) <= set(SPACES)
    assert set(BASES) <= set(METHODS) and not set(BASES) & set(SPACES)


def test_another_seed_backbone_or_data_is_searched_anew(tiny_clip, tiny_benchmark, tmp_path):
    out = tmp_path / "search.csv"
    options = {"trials": 1, "methods": ("linear-probe",), "progress": False}
    first = search(tiny_clip, tiny_benchmark, out, **options)
    kept = search(tiny_clip, tiny_benchmark, out, **options)
    assert kept["seconds"].tolist() == first["seconds"].tolist() and len(kept) == 1
    other = search(tiny_clip, tiny_benchmark, out, seed=1, **options)
    assert len(other) == 1 and other["search_seed"].tolist() == [1]
    assert other["lr"].tolist() == [draw_trials("linear-probe", 1, 1)[0]["lr"]]


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "method,trial,val_accuracy\nrp,x,y\n"])
def test_damaged_table_of_trials_says_so(tmp_path, content):
    from rp_lib.utils.io import StorageError

    (tmp_path / "search.csv").write_text(content)
    with pytest.raises(StorageError, match="no table of trials"):
        tuned_settings(tmp_path / "search.csv")


def test_searching_one_method_keeps_the_trials_of_others(tiny_clip, tiny_benchmark, tmp_path):
    options = {"seed": 0, "precision": "float32", "progress": False}
    search(tiny_clip, tiny_benchmark, tmp_path / "s.csv", trials=3, methods=("linear-probe",), **options)
    before = pd.read_csv(tmp_path / "s.csv")
    search(tiny_clip, tiny_benchmark, tmp_path / "s.csv", trials=1, methods=("rp-text",), **options)
    search(tiny_clip, tiny_benchmark, tmp_path / "s.csv", trials=2, methods=("linear-probe",), **options)
    after = pd.read_csv(tmp_path / "s.csv")
    assert after.groupby("method").size().to_dict() == {"linear-probe": 3, "rp-text": 1}
    kept = after[after["method"] == "linear-probe"]
    pd.testing.assert_frame_equal(kept[before.columns].reset_index(drop=True), before, check_dtype=False)
