from dataclasses import asdict, fields

import pytest

from rp_lib.config import AS_RELEASED, PAPER, RPConfig, preset
from rp_lib.utils.errors import RPLibError, UnknownName

# The rows of the ledger that change a number of RP or RRP, and what the released code does.
LEDGER = {
    "placement": "overlay", "renormalize_residual": False, "objective": "contrastive-identity", "loss": "focal",
    "text_rows": "all", "coupled_decay": True, "train_resolution": 64 / 224, "eval_resolution": 128 / 224, "convention": "authors",
    "image_decay": 0.1, "text_decay": 0.1, "border_init": "normal",
}  # fmt: skip


def test_presets_differ_in_the_ledger_only():
    paper, released = asdict(PAPER), asdict(AS_RELEASED)
    assert {k: v for k, v in released.items() if paper[k] != v} == LEDGER
    assert preset("paper") is PAPER and preset("as_released") is AS_RELEASED
    assert (PAPER.image_lr, PAPER.text_lr, PAPER.epochs, PAPER.batch_size, PAPER.warmup_steps) == (
        5e-3,
        5e-4,
        25,
        128,
        500,
    )
    assert round(PAPER.padding * 224) == 16 and PAPER.alpha == 0.4 and PAPER.border_init == "grey"


def test_changed():
    one = PAPER.changed(text_rows="all")
    assert one.text_rows == "all" and PAPER.text_rows == "seen"
    assert asdict(one) | {"text_rows": "seen"} == asdict(PAPER)
    with pytest.raises(UnknownName, match="did you mean text_rows"):
        PAPER.changed(text_row="all")


def test_switches_of_the_detection_script_are_ignored_where_off_and_refused_where_on():
    for name in ("half_precision_detection", "wrap_around_detection", "report_rp_as_rrp"):
        assert PAPER.changed(**{name: False}) == PAPER  # as files saved by 0.1.0 have it
        with pytest.raises(RPLibError, match=f"{name} is no switch .*DetectionScript"):
            PAPER.changed(**{name: True})


@pytest.mark.parametrize("name", ["placement", "objective", "loss", "text_rows", "border_init"])
def test_unknown_values(name: str):
    with pytest.raises(UnknownName, match=f"unknown {name.replace('_', ' ')} 'x'"):
        PAPER.changed(**{name: "x"})


def test_unknown_preset():
    with pytest.raises(UnknownName, match="did you mean as_released"):
        preset("as-released")


@pytest.mark.parametrize("padding", [0.5, 0.7, -0.1, float("nan")])
def test_padding_that_leaves_no_image(padding: float):
    with pytest.raises(RPLibError, match=r"padding of RPConfig must be (at least 0|below 0.5)"):
        RPConfig(padding=padding)


def test_nothing_to_train():
    with pytest.raises(RPLibError, match="nothing to train"):
        RPConfig(use_image_program=False, use_text_program=False)


@pytest.mark.parametrize("alpha", [-0.01, 1.01, float("nan"), float("inf")])
def test_alpha_outside(alpha: float):
    with pytest.raises(RPLibError, match=r"alpha of RPConfig must be (at least 0|at most 1) and finite"):
        RPConfig(alpha=alpha)


def test_alpha_inside():
    assert [RPConfig(alpha=a).alpha for a in (0, 0.4, 1)] == [0, 0.4, 1]
    assert {f.name for f in fields(RPConfig)} >= {"alpha", *LEDGER}
