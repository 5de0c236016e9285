"""Every public call says what is wrong with an argument: no traceback from the depth, and never another number."""

import inspect
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rp_course.drift import class_spread, cosine_drift, linear_cka

import rp_lib
from rp_lib import (
    FeatureStore,
    FrozenCLIP,
    LinearProbe,
    Reprogrammer,
    ResidualReprogrammer,
    RPConfig,
    Run,
    Threshold,
    ZeroShot,
    accuracy_by_class,
    build_method,
    compute_outputs,
    evaluate,
    evaluate_outputs,
    export,
    fit_threshold,
    from_folders,
    load_method,
    load_outputs,
    paired_bootstrap,
    predict,
    preset,
    save_outputs,
    summarize,
)
from rp_lib.metrics import accuracy, expected_calibration_error, ood_metrics
from rp_lib.utils.arguments import WrongArgument, checked
from rp_lib.utils.errors import RPLibError

NAN = float("nan")


@checked
def everything(
    count: int = 1,
    share: float = 0.5,
    on: bool = True,
    where: Path | str = "x",
    at: Path | None = None,
    words: Sequence[str] = (),
    names: Collection[str] = (),
    runs: Iterable[int] = (),
    table: Mapping[str, int] | None = None,
    lr: float = 1.0,
    batch_size: int = 1,
    pd_table: "pd.DataFrame | None" = None,
    **more: object,
) -> dict:
    return dict(locals())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": True}, r"count of everything must be int, got True \(bool\)"),
        ({"count": "3"}, r"count of everything must be int, got '3' \(str\)"),
        ({"count": 2.5}, "int"), ({"count": None}, "int"), ({"count": -1}, "at least 0"),
        ({"share": "0.5"}, r"float, got '0.5' \(str\)"), ({"share": True}, "float"), ({"share": NAN}, "finite"),
        ({"share": float("inf")}, "finite"), ({"share": [1.0]}, "float"),
        ({"lr": 0}, "lr of everything must be above 0 and finite, got 0"), ({"batch_size": 0}, "at least 1"),
        ({"on": "no"}, "bool"), ({"on": 0}, "bool"),
        ({"where": 3}, "Path . str"), ({"at": 3}, "Path . None"), ({"at": ["x"]}, "Path . None"),
        ({"words": "cat"}, r"must be Sequence\[str\], got 'cat' \(str\)"),
        ({"words": {"a", "b"}}, "Sequence"), ({"words": {"a": 1}}, "Sequence"),
        ({"words": ["a", 3]}, r"Sequence.*, got 3 \(int\)"), ({"words": None}, "Sequence"),
        ({"words": b"ab"}, "Sequence"), ({"names": "ab"}, "Collection"), ({"runs": 3}, "Iterable"),
        ({"table": [1]}, r"Mapping\[str, int\] . None"), ({"table": {"a": "b"}}, "Mapping"),
        ({"pd_table": {"a": 1}}, "DataFrame"),
    ],
)  # fmt: skip
def test_the_message_names_the_argument_and_what_it_must_be(arguments, message):
    with pytest.raises(WrongArgument, match=message):
        everything(**arguments)


def test_what_is_meant_is_taken():
    got = everything(
        np.int64(3), np.float32(0.5), True, Path("a"), "b", (w for w in "ab"), {"a"}, range(2),
        {"a": np.int32(1)}, extra=object(),
    )  # fmt: skip
    assert [type(got[k]) for k in ("count", "share", "on", "where", "at")] == [
        int,
        float,
        bool,
        type(Path()),
        type(Path()),
    ]
    assert got["words"] == ["a", "b"] and got["names"] == ["a"] and got["runs"] == [0, 1] and got["table"] == {"a": 1}
    assert everything(words=np.array(["a", "b"]))["words"] == pd.Index(["a", "b"]).tolist()
    assert (
        everything(share=1)["share"] == 1 and type(everything(share=1)["share"]) is int
    )  # saved settings stay as they are
    assert everything(words=("a",))["words"] == ("a",) and everything(where="a")["where"] == "a"
    assert next(iter(inspect.signature(everything).parameters)) == "count"
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        checked(lambda a: a)(b=1)


@pytest.fixture(scope="module")
def made(clip, tiny_benchmark, tmp_path_factory):
    """What the calls below are about."""
    task = (clip, tiny_benchmark.class_names, tiny_benchmark.templates)
    probe = LinearProbe(*task, epochs=1).fit(tiny_benchmark.train)
    folder = tmp_path_factory.mktemp("made")
    probe.save(folder / "probe")
    return {
        "task": task, "clip": clip, "data": tiny_benchmark, "probe": probe, "zs": ZeroShot(*task), "saved": folder / "probe",
        "outputs": compute_outputs(probe, tiny_benchmark, seed=1), "folder": folder, "images": tiny_benchmark.test.images,
        "records": evaluate([Run(probe, 1)], tiny_benchmark, n_resamples=2),
    }  # fmt: skip


# Each is a call of a public name that gave a traceback from the depth, or another number than the one that was meant.
CALLS = {
    "a method of a backbone's name": lambda m: ZeroShot("ViT-B-32", *m["task"][1:]),
    "a method of open_clip's model": lambda m: ZeroShot(m["clip"].model, *m["task"][1:]),
    "class names: one text is a class per letter": lambda m: ZeroShot(m["clip"], "cat", m["task"][2]),
    "class names: a set has no order": lambda m: ZeroShot(m["clip"], {"cat", "dog"}, m["task"][2]),
    "class names: a mapping": lambda m: ZeroShot(m["clip"], {"a": "cat", "b": "dog"}, m["task"][2]),
    "class names: numbers": lambda m: ZeroShot(m["clip"], [0, 1], m["task"][2]),
    "class names: how many": lambda m: ZeroShot(m["clip"], 10, m["task"][2]),
    "templates: one text": lambda m: ZeroShot(*m["task"][:2], "a photo of a {}."),
    "templates: functions, as open_clip's": lambda m: ZeroShot(*m["task"][:2], [lambda name: name]),
    "a preset's name as configuration": lambda m: Reprogrammer(*m["task"], "paper"),
    "a dict as configuration": lambda m: Reprogrammer(*m["task"], {"epochs": 3}),
    "seed as text": lambda m: Reprogrammer(*m["task"], seed="1"),
    "seed None": lambda m: LinearProbe(*m["task"], seed=None),
    "alpha as text": lambda m: ResidualReprogrammer(Reprogrammer(*m["task"]), alpha="0.5"),
    "alpha True": lambda m: ResidualReprogrammer(Reprogrammer(*m["task"]), alpha=True),
    "epochs as text": lambda m: RPConfig(epochs="3"),
    "half an epoch": lambda m: preset("paper").changed(epochs=2.5),
    "an image_lr below 0": lambda m: preset("paper").changed(image_lr=-1),
    "NaN as a decay": lambda m: preset("paper").changed(image_decay=NAN),
    "a switch as text, which is true": lambda m: preset("paper").changed(renormalize_residual="false"),
    "pixels as a resolution": lambda m: preset("paper").changed(train_resolution=64),
    "lr as text": lambda m: LinearProbe(*m["task"], lr="0.1"),
    "lr True, which is 1": lambda m: LinearProbe(*m["task"], lr=True),
    "weight decay None": lambda m: LinearProbe(*m["task"], weight_decay=None),
    "settings of build_method as a list": lambda m: build_method("rp", *m["task"], ["epochs"]),
    "a preset None": lambda m: preset(None),
    "fit on a tensor": lambda m: LinearProbe(*m["task"]).fit(m["images"]),
    "fit on images and labels": lambda m: LinearProbe(*m["task"]).fit(m["images"], m["data"].test.labels),
    "fit on a benchmark": lambda m: LinearProbe(*m["task"]).fit(m["data"]),
    "fit on a folder": lambda m: LinearProbe(*m["task"]).fit("photos"),
    "a folder as store": lambda m: LinearProbe(*m["task"]).fit(m["data"].train, store=m["folder"]),
    "accuracy on a tensor": lambda m: m["probe"].accuracy(m["images"]),
    "accuracy on OOD pictures": lambda m: m["probe"].accuracy(m["data"].ood["far"]),
    "words as one text": lambda m: m["zs"].encode_classes("cat"),
    "no words": lambda m: m["zs"].encode_classes([]),
    "an empty word": lambda m: m["zs"].encode_classes([""]),
    "one text to tokenize": lambda m: m["clip"].tokenize("cat"),
    "templates that name no class": lambda m: m["clip"].class_embeddings(["cat", "dog"], ["a photo"]),
    "a backbone's name None": lambda m: FrozenCLIP.open_clip(None, None),
    "weights True": lambda m: FrozenCLIP.open_clip("ViT-B-32", True),
    "a method instead of runs": lambda m: evaluate(m["zs"], m["data"]),
    "methods instead of runs": lambda m: evaluate([m["zs"]], m["data"]),
    "one run": lambda m: evaluate(Run(m["zs"], 1), m["data"]),
    "an image set as benchmark": lambda m: evaluate([Run(m["zs"], 1)], m["data"].test),
    "detectors as one text": lambda m: evaluate([Run(m["zs"], 1)], m["data"], detectors="msp"),
    "resamples as text": lambda m: evaluate([Run(m["zs"], 1)], m["data"], n_resamples="10"),
    "no resamples": lambda m: evaluate([Run(m["zs"], 1)], m["data"], n_resamples=0),
    "a run's seed as text": lambda m: Run(m["zs"], "1"),
    "a run the wrong way round": lambda m: Run(1, m["zs"]),
    "the same run twice": lambda m: summarize(evaluate([Run(m["zs"], 1)] * 2, m["data"], n_resamples=2)),
    "the same records twice": lambda m: summarize(pd.concat([m["records"]] * 2)),
    "a summary of a summary": lambda m: summarize(summarize(m["records"])),
    "records without a column": lambda m: summarize(m["records"].drop(columns="n")),
    "no records": lambda m: summarize(m["records"][:0]),
    "a file of records": lambda m: summarize("records.csv"),
    "outputs alone": lambda m: evaluate_outputs(m["outputs"]),
    "files of outputs": lambda m: evaluate_outputs([m["saved"]]),
    "metrics as one text": lambda m: evaluate_outputs([m["outputs"]], metrics="auroc"),
    "records instead of answers": lambda m: accuracy_by_class(m["records"]),
    "answers the wrong way round": lambda m: rp_lib.answers(m["data"], m["outputs"]),
    "roles as one text": lambda m: compute_outputs(m["probe"], m["data"], seed=1, roles="test"),
    "an unknown role": lambda m: compute_outputs(m["probe"], m["data"], seed=1, roles=["tset"]),
    "other methods as a list": lambda m: compute_outputs(m["probe"], m["data"], seed=1, others=[m["zs"]]),
    "the class of a method": lambda m: compute_outputs(LinearProbe, m["data"], seed=1),
    "save_outputs the wrong way round": lambda m: save_outputs(m["outputs"], m["folder"] / "o"),
    "load_outputs of nothing": lambda m: load_outputs(None),
    "load_outputs of a list": lambda m: load_outputs([m["saved"]]),
    "a benchmark's name": lambda m: load_outputs(m["saved"], "mini"),
    "load_method of float": lambda m: load_method(3),
    "a backbone's name to load for": lambda m: load_method(m["saved"], "ViT-B-32"),
    "save to nothing": lambda m: m["probe"].save(None),
    "a state of numpy arrays": lambda m: m["probe"].load_state_dict({"weight": np.zeros((3, 8))}),
    "a state of NaN": lambda m: m["probe"].copy().load_state_dict({k: v * NAN for k, v in m["probe"].state_dict().items()}),
    "outputs to compare as a mapping": lambda m: paired_bootstrap({"a": m["outputs"]}),
    "records to compare": lambda m: paired_bootstrap(m["records"]),
    "tpr None": lambda m: Threshold.fit([0.1, 0.2], None),
    "a threshold on a tensor": lambda m: fit_threshold(m["probe"], m["images"]),
    "a threshold on OOD pictures": lambda m: fit_threshold(m["probe"], m["data"].ood["far"]),
    "a threshold without a method": lambda m: fit_threshold(None, m["data"].val),
    "predict a tensor": lambda m: predict(m["probe"], m["images"]),
    "predict a mapping": lambda m: predict(m["probe"], {"a": "a.jpg"}),
    "predict bytes": lambda m: predict(m["probe"], [b"123"]),
    "predict with a file's name": lambda m: predict("m.safetensors", ["a.jpg"]),
    "float as threshold": lambda m: predict(m["probe"], [], 0.5),
    "no batch": lambda m: predict(m["probe"], ["a.jpg"], batch_size=-1),
    "export to nothing": lambda m: export(m["probe"], None),
    "a store of no batch": lambda m: FeatureStore(0),
    "a store of tensors": lambda m: FeatureStore().get(m["clip"], m["images"]),
    "a list of training folders": lambda m: from_folders(train=[m["folder"]]),
    "size as text": lambda m: from_folders(train=m["folder"], size="224"),
    "size as height and width": lambda m: from_folders(train=m["folder"], size=(224, 224)),
    "shifts without names": lambda m: from_folders(train=m["folder"], shifts=[m["folder"]]),
    "OOD without names": lambda m: from_folders(train=m["folder"], ood=str(m["folder"])),
    "class names as numbers": lambda m: from_folders(train=m["folder"], class_names=[1, 2]),
    "a share as text": lambda m: from_folders(train=m["folder"], val_fraction=".1"),
    "a seed below 0": lambda m: from_folders(train=m["folder"], seed=-1),
    "accuracy of scores as predictions": lambda m: accuracy([0.9, 0.1], [1, 0]),
    "accuracy with half a label": lambda m: accuracy([0, 1], [0.5, 1.0]),
    "accuracy of rows of two lengths": lambda m: accuracy([[1, 2], [1]], [1, 0]),
    "tpr as text": lambda m: ood_metrics([1.0], [0.0], tpr="a"),
    "bins True": lambda m: expected_calibration_error([[0.5, 0.5]], [0], bins=True),
    "CKA of arrays": lambda m: linear_cka(np.eye(3), np.eye(3)),
    "drift of arrays": lambda m: cosine_drift(np.eye(3), np.eye(3)),
    "spread of arrays": lambda m: class_spread(np.eye(3), np.arange(3)),
}  # fmt: skip


@pytest.mark.parametrize("what", CALLS)
def test_public_calls_refuse_what_is_not_meant(what, made):
    with pytest.raises((RPLibError, ValueError)) as error:
        CALLS[what](made)
    raised = error.traceback[-1]
    assert Path(raised.path).parent.parent.name == "rp_lib" or Path(raised.path).parent.name == "rp_lib", raised
    assert "raise" in str(raised.statement), (
        f"not said, but happened: {raised}"
    )  # no error of Python's, numpy's or torch's


def test_methods_of_others_are_checked_too(clip, tiny_benchmark):
    class Own(LinearProbe):
        name = "own"

        def __init__(self, clip, class_names, templates, *, strength: float = 1.0) -> None:
            super().__init__(clip, class_names, templates, epochs=1)
            self.strength = strength

    task = (clip, tiny_benchmark.class_names, tiny_benchmark.templates)
    with pytest.raises(WrongArgument, match=r"strength of .*Own must be float, got '1' \(str\)"):
        Own(*task, strength="1")
    assert Own(*task, strength=np.float32(2)).get_params()["strength"] == 2 and "strength" in Own.parameter_names()


def test_numbers_and_paths_of_numpy_and_text_are_taken(clip, tiny_benchmark, tmp_path):
    task = (clip, np.array(tiny_benchmark.class_names), tiny_benchmark.templates)
    probe = LinearProbe(*task, epochs=np.int64(1), lr=np.float32(0.1), seed=np.int64(2)).fit(tiny_benchmark.train)
    probe.save(str(tmp_path / "probe"))  # a numpy number would end here: JSON does not know it
    assert load_method(str(tmp_path / "probe"), clip).get_params()["lr"] == pytest.approx(0.1)
    assert load_method(tmp_path / "probe", clip).seed == 2 and probe.class_names == tiny_benchmark.class_names
    records = evaluate(
        (Run(probe, np.int64(s)) for s in (1, 2)), tiny_benchmark, n_resamples=2, detectors=["msp", "msp"]
    )
    assert summarize(records)["seeds"].eq(2).all()
    Reprogrammer(*task, preset("paper").changed(epochs=0)).fit(tiny_benchmark.train, checkpoint=str(tmp_path / "state"))


def test_a_threshold_reads_classes_by_name(made):
    other = tiny = made["data"]
    other = rp_lib.ImageSet(
        "val", "val", tiny.val.images, tiny.val.labels, class_names=("x", "y", "z", "w")[: len(tiny.class_names)]
    )
    with pytest.raises(RPLibError, match="'x' is a class of the images alone"):
        fit_threshold(made["probe"], other)


def test_a_device_that_torch_does_not_know(clip):
    with pytest.raises(RPLibError, match="'gpu' is no device of torch"):
        FrozenCLIP(
            clip.model, clip.tokenizer, name="x", mean=(0, 0, 0), std=(1, 1, 1), image_size=8, device="gpu",
        )  # fmt: skip
