import time

import pandas as pd
import pytest
from run_world import compare, names_of, only

from rp_lib.config import PAPER
from rp_lib.evaluation import Run
from rp_lib.figures import AXES, STYLE, three_axes
from rp_lib.methods import BASES, METHODS
from rp_lib.run import CORE
from rp_lib.run.report import load_records, table
from rp_lib.utils.errors import RPLibError

QUICK = {
    "linear-probe": {"epochs": 2},
    "fine-tune": {"epochs": 1, "batch_size": 8},
    "rp": {"config": PAPER.changed(epochs=1, batch_size=8)},
    "rrp": {"config": PAPER.changed(epochs=1, batch_size=8, alpha=0.5)},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


def tell(clip, benchmark, out, **more):
    return compare(clip, benchmark, out, **{"seeds": (1, 2), "methods": CORE, "settings": QUICK} | more)


def test_demo_writes_records_figure_and_trained_methods(tiny_clip, tiny_benchmark, folder):
    story = tell(tiny_clip, tiny_benchmark, folder)
    assert not story.reused
    seeds = story.records.groupby("method")["seed"].nunique().to_dict()
    assert seeds == {"zero-shot": 1, "linear-probe": 2, "fine-tune": 2, "rp": 2, "rrp": 2}
    assert story.figure.read_bytes().startswith(b"\x89PNG") and story.figure.stat().st_size > 10_000
    records, about = load_records(folder / "records.csv")
    assert len(records) == len(story.records) == about["rows"]
    assert about["benchmark_sha256"] == tiny_benchmark.fingerprint and about["backbone_sha256"] == tiny_clip.fingerprint
    assert about["settings"]["rrp"]["alpha"] == 0.5
    trained = [f"{m}-seed{s}.safetensors" for m in ("linear-probe", "fine-tune", "rp", "rrp") for s in (1, 2)]
    assert names_of(folder / "trained") == sorted(["zero-shot-seed1.safetensors", *trained])
    text = table(story.summary)
    assert len(text.splitlines()) == 6 and "rrp" in text and "±" in text


def test_second_run_reuses_what_is_there(tiny_clip, tiny_benchmark, folder, monkeypatch):
    first = tell(tiny_clip, tiny_benchmark, folder)
    for method in ("FineTune", "Reprogrammer", "LinearProbe"):
        monkeypatch.setattr(f"rp_lib.methods.{method}.fit", lambda *a, **k: pytest.fail("trained again"))
    started = time.monotonic()
    story = tell(tiny_clip, tiny_benchmark, folder)
    assert story.reused and time.monotonic() - started < 30
    pd.testing.assert_frame_equal(first.summary, story.summary, check_dtype=False, rtol=1e-4)


def test_other_settings_are_not_taken_for_the_same(tiny_clip, tiny_benchmark, folder):
    tell(tiny_clip, tiny_benchmark, folder)
    other = {**QUICK, "linear-probe": {"epochs": 3}}
    assert not tell(tiny_clip, tiny_benchmark, folder, settings=other).reused


def test_no_seed_is_refused(tiny_clip, tiny_benchmark, tmp_path):
    with pytest.raises(RPLibError, match="seed"):
        tell(tiny_clip, tiny_benchmark, tmp_path, seeds=())


def test_figure_shows_every_method_on_every_axis(tiny_clip, tiny_benchmark, folder):
    summary = tell(tiny_clip, tiny_benchmark, folder).summary
    figure = three_axes(summary, "a title")
    assert [a.get_title() for a in figure.axes] == [label for _, _, label, _ in AXES]
    for axis, (data, metric, _, _) in zip(figure.axes, AXES, strict=True):
        shown = sorted(float(t.get_text()) for t in axis.texts)
        rows = summary[(summary["set"] == data) & (summary["metric"] == metric)]
        assert shown == pytest.approx(sorted(round(100 * v, 1) for v in rows["value"]), abs=0.051)
    labels = {t.get_text() for t in figure.axes[0].get_yticklabels()}
    assert labels == {STYLE[name][2] for name in CORE}


def test_every_method_has_a_style_of_its_own():
    assert set(METHODS) <= set(STYLE)
    for column in (1, 2):  # colours are fewer than methods; markers and labels tell them apart
        assert len({style[column] for style in STYLE.values()}) == len(STYLE)
    # Apart where they are compared: the core methods, and the frontiers of alpha.
    for names in (CORE, tuple(BASES)):
        assert len({STYLE[name][0] for name in names}) == len(names)


def test_mixtures_share_the_method_of_the_same_seed(tiny_clip, tiny_benchmark, tmp_path, monkeypatch):
    from rp_lib.run import session as run

    settings = {"epochs": 1, "batch_size": 8}
    tuned = {
        name: settings | ({"alpha": 0.3} if name in BASES else {})
        for name in ("fine-tune", "wise-ft", "logit-ensemble")
    }
    judged = []
    monkeypatch.setattr(run, "compute_outputs", lambda method, *a, seed, **k: judged.append(Run(method, seed)))
    monkeypatch.setattr(run, "evaluate_outputs", lambda *a, **k: pd.DataFrame())
    for name in ("save_records", "save_figure", "three_axes", "summarize", "of_detector"):
        monkeypatch.setattr(run, name, lambda *a, **k: None)
    tell(tiny_clip, tiny_benchmark, tmp_path, seeds=range(1, 3), methods=tuple(tuned), settings=tuned)
    assert [(r.method.name, r.seed) for r in judged] == [(name, seed) for name in tuned for seed in (1, 2)]
    base = {r.seed: r.method for r in judged if r.method.name == "fine-tune"}
    assert all(r.method.fine_tuned is base[r.seed] and r.method.alpha == 0.3 for r in judged if r.method.name in BASES)
    assert names_of(tmp_path / "trained") == sorted(f"{m}-seed{s}.safetensors" for m in tuned for s in (1, 2))
    # Of other hyper-parameters, the base is no base; what is on disk then is its own.
    other = {**tuned, "wise-ft": {"epochs": 1, "batch_size": 6, "alpha": 0.3}}
    judged.clear()
    tell(tiny_clip, tiny_benchmark, tmp_path, seeds=range(1, 2), methods=tuple(other), settings=other)
    own = {r.method.name: r.method for r in judged}
    assert own["wise-ft"].fine_tuned is not own["fine-tune"] and own["logit-ensemble"].fine_tuned is own["fine-tune"]
    assert names_of(tmp_path / "trained").count("wise-ft-seed1.safetensors") == 2  # of either base


def test_foreign_or_damaged_trained_methods_are_trained_again(tiny_clip, tiny_benchmark, folder, tmp_path):
    import shutil

    from conftest import make_clip

    shutil.copytree(folder, tmp_path / "demo")
    for file in (tmp_path / "demo" / "trained").glob("linear-probe*"):
        file.write_bytes(file.read_bytes()[:-7])
    assert not tell(make_clip(5), tiny_benchmark, tmp_path / "demo").reused


def test_fresh_trains_anew_even_over_a_checkpoint(tiny_clip, tiny_benchmark, tmp_path):
    tell(tiny_clip, tiny_benchmark, tmp_path)
    only(tmp_path / "trained", "rp-seed1-*.safetensors").with_suffix(".checkpoint").write_bytes(b"of another run")
    story = tell(tiny_clip, tiny_benchmark, tmp_path, fresh=True)
    assert not story.reused and not list(tmp_path.rglob("*.checkpoint"))


def test_altered_records_are_not_reused(tiny_clip, tiny_benchmark, tmp_path):
    tell(tiny_clip, tiny_benchmark, tmp_path)
    records = tmp_path / "records.csv"
    records.write_text(records.read_text().replace("zero-shot", "best-shot", 1))
    assert not tell(tiny_clip, tiny_benchmark, tmp_path).reused
