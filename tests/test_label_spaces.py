"""A method meets labelled data whose classes have another order, another number or other words."""

import dataclasses
import logging

import pytest
import torch

from rp_lib.benchmark import Benchmark, ImageSet
from rp_lib.evaluation import Run, choose_alpha, evaluate
from rp_lib.features import FeatureStore
from rp_lib.methods import FineTune, LinearProbe, LogitEnsemble, ZeroShot, load_method
from rp_lib.outputs import compute_outputs
from rp_lib.utils.errors import RPLibError


@pytest.fixture
def data(tiny_benchmark) -> Benchmark:
    """With a shift that is scored over two of the three classes."""
    shift = tiny_benchmark.shifts["emoji"]
    some = dataclasses.replace(shift.subset(shift.labels != 2), name="some", class_subset=(0, 1))
    return dataclasses.replace(tiny_benchmark, shifts={"emoji": shift, "some": some})


def reordered(data: Benchmark) -> Benchmark:
    """The same pictures by the same names, numbered backwards."""
    last = len(data.class_names) - 1

    def turn(s: ImageSet) -> ImageSet:
        subset = None if s.class_subset is None else tuple(last - c for c in s.class_subset)
        return dataclasses.replace(s, labels=last - s.labels, class_subset=subset, class_names=None)

    return dataclasses.replace(
        data, class_names=data.class_names[::-1], train=turn(data.train), val=turn(data.val), test=turn(data.test),
        shifts={n: turn(s) for n, s in data.shifts.items()},
    )  # fmt: skip


def accuracies(method, data) -> dict:
    rows = evaluate([Run(method, 1)], data, n_resamples=2)
    return rows[rows.metric == "accuracy"].set_index("set")["value"].to_dict()


def test_the_same_classes_in_another_order_are_read_by_name(tiny_clip, data, tmp_path):
    other, names = reordered(data), data.class_names
    probe = LinearProbe(tiny_clip, names, data.templates, epochs=5).fit(data.train)
    expected = accuracies(probe, data)
    assert expected["test"] > 0.5 and accuracies(probe, other) == expected
    for a, b in ((data.val, other.val), (data.shifts["some"], other.shifts["some"])):
        assert probe.accuracy(a) == probe.accuracy(b)
    # Training, and what is saved.
    again = LinearProbe(tiny_clip, names, data.templates, epochs=5).fit(other.train, other.val)
    torch.testing.assert_close(again.state_dict(), probe.state_dict())
    assert (
        again.history.accuracies
        == LinearProbe(tiny_clip, names, data.templates, epochs=5).fit(data.train, data.val).history.accuracies
    )
    again.save(tmp_path / "m")
    assert accuracies(load_method(tmp_path / "m", tiny_clip), other) == expected
    tuned = FineTune(tiny_clip, names, data.templates, epochs=1, batch_size=8).fit(data.train)
    mixed = [choose_alpha(tuned, d, FeatureStore(), "logit-ensemble")[1] for d in (data, other)]
    assert mixed[0].equals(mixed[1])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cat", "fire engine"), "'cup' is a class of the images alone"),
        (("cat", "fire engine", "cup", "dog"), "'dog' one of the method alone"),
        (("cat", "truck", "cup"), "'fire engine' is a class of the images alone, 'truck' one of the method alone"),
    ],
)
def test_other_classes_are_refused_with_the_first_difference(names, message, tiny_clip, data):
    method = ZeroShot(tiny_clip, names, data.templates)
    for use in (lambda: accuracies(method, data), lambda: method.accuracy(data.val),
                lambda: LinearProbe(tiny_clip, names, data.templates, epochs=1).fit(data.train)):  # fmt: skip
        with pytest.raises(RPLibError, match=message):
            use()


def test_a_set_takes_the_names_of_the_benchmark_that_it_stands_in(data):
    fewer = dataclasses.replace(
        data, class_names=("cat", "truck"), shifts={},
        **{part: getattr(data, part).subset(getattr(data, part).labels < 2) for part in ("train", "val", "test")},
    )  # fmt: skip
    assert fewer.test.class_names == ("cat", "truck") and data.test.class_names == data.class_names
    assert all(s.class_names is None for s in data.ood.values())
    assert data.test is dataclasses.replace(data).test  # no copy: features are known by identity
    bare = dataclasses.replace(data.test, class_names=None)
    assert bare.fingerprint == data.test.fingerprint and bare.for_classes(("a", "b")) is bare  # nothing says otherwise
    assert data.test.for_classes(list(data.class_names)) is data.test


def test_members_of_an_ensemble_have_the_same_classes(tiny_clip, data):
    one, two = (ZeroShot(tiny_clip, names, data.templates) for names in (data.class_names, data.class_names[::-1]))
    with pytest.raises(RPLibError, match="build both alike"):
        compute_outputs(one, data, seed=1, roles=("test",), others={"zero-shot": two})


def test_a_method_that_was_never_fitted_says_so(tiny_clip, data, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    task = (tiny_clip, data.class_names, data.templates)
    tuned = FineTune(*task, epochs=1, batch_size=8)
    evaluate([Run(ZeroShot(*task), 1)], data, n_resamples=2)
    assert not caplog.records
    for method in (tuned, LogitEnsemble(tuned, 0.5)):
        caplog.clear()
        evaluate([Run(method, 1)], data, n_resamples=2)
        assert f"{method.name} was never fitted" in caplog.text
        caplog.clear()
        method.save(tmp_path / "m")
        assert f"{method.name} was never fitted" in caplog.text
    caplog.clear()
    twin = FineTune(*task, epochs=1, batch_size=8)
    twin.load_state_dict(tuned.fit(data.train).state_dict())
    for method in (tuned, twin, LogitEnsemble(twin, 0.5)):
        evaluate([Run(method, 1)], data, n_resamples=2)
        method.save(tmp_path / "m")
    assert not caplog.records
