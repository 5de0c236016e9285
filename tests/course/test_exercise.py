"""The machinery of exercises, on an exercise of its own."""

import random
import sys

import numpy as np
import pytest
import torch
from rp_course import exercise
from rp_course.exercise import (
    Attempt,
    Case,
    Exercise,
    Mistake,
    Outcome,
    complaint,
    copied,
    difference,
    is_empty,
    run,
    seeded,
)

from rp_lib.utils.errors import RPLibError, UnknownName


def logits(features, classes, scale):
    """Cosine similarity times scale, float32 (n, C)."""
    return scale * features @ classes.T


def _no_scale(features, classes, scale):
    return features @ classes.T


def _in_place(features, classes, scale):
    features *= scale
    return features @ classes.T


def cases():
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=g)  # noqa: E731
    return (
        Case("random", (draw(4, 8), draw(3, 8), 10.0)),
        Case("one class", (draw(4, 8), draw(1, 8)), {"scale": 2.0}),
        Case("scale one", (draw(2, 8), draw(3, 8), 1.0)),
    )


EXERCISE = Exercise(
    logits, 5, cases, ("which sizes meet?", "a product and a transpose"),
    (Mistake(_no_scale, "multiply by the scale"), Mistake(_in_place, "it changes its input")),
)  # fmt: skip


def check(body, parameters="features, classes, scale"):
    scope = {"torch": torch, "np": np}
    exec(f"def logits({parameters}):\n" + "\n".join("    " + line for line in body.splitlines()), scope)
    return EXERCISE.check(scope["logits"])


@pytest.mark.parametrize(
    "body",
    ["...", "pass", "'''doc'''", "return None", "return ...", "raise NotImplementedError", "raise NotImplementedError('x')",
     "out = ...\nreturn out * scale", "out = ...\nreturn out.T", "return ..., 3"],
)  # fmt: skip
def test_stubs_are_unsolved(body):
    assert check(body) == ("unsolved", "")


def test_forgotten_return_is_unsolved_and_said():
    assert check("out = scale * features @ classes.T") == (
        "unsolved", "the function returns None; is its `return` missing?",
    )  # fmt: skip


@pytest.mark.parametrize("message", ["Really?", "No.", "No"])
def test_a_message_ends_once(message):
    wrong = Exercise(logits, 5, cases, ("a", "b"), (Mistake(_no_scale, message), Mistake(_in_place, "other")))
    assert (
        f"not yet: {message.rstrip('.?')}{'?' if '?' in message else '.'} The notebook"
        in Attempt(wrong, _no_scale).report()
    )


def test_body_that_returns_a_constant_is_no_stub():
    assert not is_empty(lambda: 3) and check("return 3")[0] == "wrong"


@pytest.mark.parametrize(
    "body", ["return scale * features @ classes.T", "return scale * torch.einsum('nd,cd->nc', features, classes)"]
)
def test_any_right_way_is_solved(body):
    assert check(body) == ("solved", "")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return features @ classes.T", "multiply by the scale"),
        ("features *= scale\nreturn features @ classes.T", "it changes its input"),
        ("out = scale * features @ classes.T\nclasses[0] = 0\nreturn out", 'on case "random" your function changes classes in place'),
        ("return (scale * features @ classes.T).T", "returns shape (3, 4), (4, 3) is expected; is it transposed?"),
        ("return (scale * features @ classes.T).double()", "returns dtype float64, float32 is expected"),
        ("return (scale * features @ classes.T).numpy()", "returns an array of shape (4, 3), a tensor of shape (4, 3)"),
        ("return [1]", "returns a list, a tensor of shape (4, 3) is expected"),
        ("return scale * features @ classes", "raises RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
        ("return scale * features @ classes.T + (len(classes) == 1)", 'on case "one class" your function returns the expected shape, but 4 of 4'),
        ("return scale * features @ classes.T if scale > 1 else None", 'on case "scale one" your function returns None'),
    ],
)  # fmt: skip
def test_wrong_answers_are_told_precisely(body, message):
    status, said = check(body)
    assert status == "wrong" and message in said


def test_largest_difference_is_located():
    assert "1 of 12 values differ, most at [1, 2]: " in check(
        "out = scale * features @ classes.T\nif len(out) == 4 and out.shape[1] == 3: out[1, 2] += 1\nreturn out"
    )[1]  # fmt: skip


def test_line_of_an_error_is_named():
    def fails(features, classes, scale):
        half = features / 2
        return half.nothing

    status, said = EXERCISE.check(fails)
    assert status == "wrong" and "AttributeError" in said and said.endswith(": return half.nothing")


def test_other_parameters_are_refused():
    assert check("return 1", "features, classes") == (
        "wrong", "it takes (features, classes), but must take (features, classes, scale)",
    )  # fmt: skip


def test_interrupts_are_not_swallowed():
    def slow(features, classes, scale):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        EXERCISE.check(slow)


def test_attempt_runs_what_is_right(capsys):
    def own(features, classes, scale):
        own.calls += 1
        return scale * features @ classes.T

    own.calls = 0
    solved = Attempt(EXERCISE, own)
    checked = own.calls
    solved(torch.ones(1, 2), torch.ones(1, 2), 3.0)
    assert solved.status == "solved" and own.calls == checked + 1 and solved.report() == "logits: solved"

    def wrong(features, classes, scale):
        """What to write."""
        wrong.calls += 1
        return features

    wrong.calls = 0
    refused = Attempt(EXERCISE, wrong)
    checked = wrong.calls
    assert torch.equal(refused(torch.ones(1, 2), torch.ones(1, 2), 3.0), torch.tensor([[6.0]]))
    assert refused.status == "wrong" and wrong.calls == checked
    assert refused.report().startswith('logits: not yet: on case "random"') and "reference" in refused.report()
    assert refused.__doc__ == "What to write." and repr(refused) == "<exercise logits: wrong>"


def test_hints_come_one_by_one_and_the_solution_on_request(capsys, monkeypatch):
    monkeypatch.setattr(Attempt, "_shown", {})

    def stub(features, classes, scale): ...

    Attempt(EXERCISE, stub).hint()
    again = Attempt(EXERCISE, stub)  # the cell was run once more
    again.hint()
    again.hint()
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["Hint 1 of 2: which sizes meet?", "Hint 2 of 2: a product and a transpose"]
    assert "logits.solution()" in said[2] and said[3].startswith("Hint 1 of 2")
    again.solution()
    assert "return scale * features @ classes.T" in capsys.readouterr().out


def test_decorator_finds_by_name(capsys, monkeypatch):
    monkeypatch.setattr(sys.modules["rp_course.exercise"], "exercises", lambda: iter([("01", EXERCISE)]))

    def logits(features, classes, scale): ...

    attempt = exercise(logits)
    assert attempt.status == "unsolved"
    assert capsys.readouterr().out == (
        "logits: unsolved - the notebook goes on with the reference; logits.hint() gives the first of 2 hints\n"
    )

    def logit(features, classes, scale): ...

    with pytest.raises(UnknownName, match="did you mean logits"):
        exercise(logit)
    with pytest.raises(RPLibError, match="above a `def`"):
        exercise(EXERCISE)


def test_random_numbers_are_shared_and_left_alone():
    def noisy(x):
        return x + torch.randn(2) + random.random() + np.random.rand()

    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    state = (torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())
    a, b = (run(noisy, (torch.zeros(2),), {}).value for _ in range(2))
    assert torch.equal(a, b) and not torch.equal(a, run(noisy, (torch.zeros(2),), {}, seed=1).value)
    assert torch.equal(state[0], torch.random.get_rng_state()) and state[1] == random.getstate()
    assert np.array_equal(state[2], np.random.get_state()[1])
    with pytest.raises(ZeroDivisionError), seeded(3):
        raise ZeroDivisionError
    assert torch.equal(state[0], torch.random.get_rng_state())


def test_arguments_are_copied_deeply_with_their_gradient_flag():
    w = torch.ones(2, requires_grad=True)
    data = {"a": [w * 2, np.zeros(2)], "b": (w,)}
    copy = copied(data)
    assert copy["a"][0].is_leaf and copy["a"][0].requires_grad and copy["b"][0] is not w
    copy["a"][1][0] = 1
    assert data["a"][1][0] == 0


def test_nested_changes_are_seen():
    def grows(words):
        words["x"].append(1)
        return 1

    assert run(grows, ({"x": []},), {}).changed == "words"
    assert run(lambda model: 1, (torch.nn.Linear(2, 2),), {}).changed == ""  # objects are not compared


@pytest.mark.parametrize(
    ("expected", "got", "said"),
    [
        (1.0, 1.0 + 1e-7, ""), (1.0, np.float32(1), ""), (1.0, torch.tensor(1.0), ""), (2, 2.0, ""),
        (1.0, 1.1, "1.1 instead of 1"), (1.0, True, "a bool, a number"), (1.0, "1", "a str, a number"),
        (float("nan"), float("nan"), ""), (float("nan"), 0.0, "instead of nan"), (float("inf"), 1e9, "instead of inf"),
        (True, np.bool_(True), ""), (True, 1, "1 instead of True"), (False, True, "True instead of False"),
        ("a", "a", ""), ("a", "b", "'b' instead of 'a'"), (None, 0, "0 instead of None"),
        ([1, 2], (1, 2), ""), ([1, 2], [1], "1 items, 2 are expected"), ([1, 2], [1, 3], "as item 2: 3 instead of 2"),
        ((1, 2), 1, "an int, a tuple of 2 is expected"),
        ({"a": 1}, {"a": 1}, ""), ({"a": 1}, {}, "without the key 'a'"), ({"a": 1}, {"a": 1, "b": 2}, "a key too many, 'b'"),
        ({"a": 1}, {"a": 2}, "at key 'a': 2 instead of 1"), ({"a": 1}, [1], "a list, a dict is expected"),
        (np.zeros(3), np.zeros(3, dtype=np.float32), ""), (np.zeros(3), np.zeros(3, dtype=int), "dtype int64"),
        (np.zeros(3), torch.zeros(3), "a tensor of shape (3,), an array"), (np.zeros((2, 3)), np.zeros((3, 2)), "transposed"),
        (np.array([1.0, np.nan]), np.array([1.0, np.nan]), ""), (np.array([1.0, np.nan]), np.array([1.0, 0]), "at [1]"),
        (np.array([np.inf]), np.array([np.inf]), ""), (np.array([np.inf]), np.array([-np.inf]), "another value"),
        (torch.zeros(0, 3), torch.zeros(0, 3), ""), (torch.tensor(1.0), 1.0, "a float, a tensor of shape ()"),
        (torch.ones(2, dtype=torch.bool), torch.tensor([True, False]), "1 of 2 values differ, most at [1]"),
        (torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16), ""),
        (torch.ones(2, requires_grad=True), torch.ones(2), "carries no gradient"), (torch.ones(2), torch.ones(2, requires_grad=True), ""),
        (1e6, 1e6 + 1, ""), (torch.tensor([1e6]), torch.tensor([1e6 + 1]), ""), (torch.tensor([1e-3]), torch.tensor([2e-3]), "another value"),
        ({1, 2}, {1, 2}, ""), ({1, 2}, {1}, "a set"),
    ],
)  # fmt: skip
def test_differences(expected, got, said):
    found = difference(expected, got, 1e-5)
    assert (said in found) if said else found == ""


def test_expected_exceptions_are_an_answer():
    expected = Outcome(error=ValueError("empty"))
    assert complaint(expected, Outcome(error=ValueError("another text")), 0) == ""
    assert complaint(expected, Outcome(error=KeyError("x")), 0).startswith("raises KeyError")
    assert "must raise ValueError" in complaint(expected, Outcome(3), 0)
