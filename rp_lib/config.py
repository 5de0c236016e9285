"""``paper`` and ``as_released``: the method as published, and as its released code really computes it.

Each row of the released code that changes a number is a named switch (the numbers are those of the ledger
in the README), so that its effect can be measured one at a time: ``replace(PAPER, text_rows="all")``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from rp_lib.losses import LOSSES, OBJECTIVES
from rp_lib.metrics import CONVENTIONS
from rp_lib.programs import BORDER_INITS, PLACEMENTS, TEXT_ROWS
from rp_lib.utils.errors import RPLibError, UnknownName

# Old names of switches, as files and configurations of version 0.1.0 have them, and today's.
RENAMED = {"renormalise_residual": "renormalize_residual"}


@dataclass(frozen=True)
class RPConfig:
    """How the programs are built and trained, and how residual features are formed.

    Sizes are fractions of the encoder's input side, so that one preset fits any backbone.
    """

    use_image_program: bool = True
    use_text_program: bool = True
    padding: float = 16 / 224  # border on each side; a 192 window in 224 pixels
    placement: str = "pad"  # row 1: "overlay" paints over the image
    half_precision_detection: bool = False  # row 7: logits and probabilities in float16 for detection
    wrap_around_detection: bool = False  # row 2: normalised images cast to 8 bits, values wrap
    renormalize_residual: bool = True  # row 5: mixed features are not renormalised
    report_rp_as_rrp: bool = False  # row 6: the 'RRP accuracy' column is RP's
    objective: str = "contrastive"  # row 8: "contrastive-identity"
    loss: str = "cross-entropy"  # row 8: "focal"
    text_rows: str = "seen"  # row 9: "all"
    coupled_decay: bool = False  # row 10: L2 inside Adam instead of decoupled decay
    border_init: str = "normal"  # row 11
    train_resolution: float | None = None  # row 12: 64 / 224
    eval_resolution: float | None = None  # row 12: 128 / 224
    convention: str = "id-positive"  # row 14: "authors"
    image_lr: float = 5e-3
    text_lr: float = 5e-4
    image_decay: float = 0.0
    text_decay: float = 0.0
    epochs: int = 25
    batch_size: int = 128
    warmup_steps: int = 500
    alpha: float = 0.4

    def __post_init__(self) -> None:
        for field, known in (
            ("placement", PLACEMENTS), ("objective", OBJECTIVES), ("loss", LOSSES),
            ("text_rows", TEXT_ROWS), ("border_init", BORDER_INITS), ("convention", CONVENTIONS),
        ):  # fmt: skip
            if getattr(self, field) not in known:
                raise UnknownName(field.replace("_", " "), getattr(self, field), known)
        if not (self.use_image_program or self.use_text_program):
            raise RPLibError("nothing to train: switch the image program or the text program on")
        if not 0 <= self.padding < 0.5:
            raise RPLibError(
                f"padding is a fraction of the input side on each side, 0 <= padding < 0.5, got {self.padding}"
            )
        check_alpha(self.alpha)

    def changed(self, **switches: object) -> RPConfig:
        """A copy with some switches changed; unknown names raise :class:`UnknownName`."""
        known = {f.name for f in fields(self)}
        switches = {RENAMED.get(name, name): value for name, value in switches.items()}
        for name in switches:
            if name not in known:
                raise UnknownName("switch", name, known)
        return replace(self, **switches)  # type: ignore[arg-type]


def check_alpha(alpha: float) -> float:
    """Return ``alpha`` if it is in [0, 1], else raise ``RPLibError``."""
    if not 0 <= alpha <= 1:  # also refuses NaN
        raise RPLibError(f"alpha weighs the zero-shot features and must be in [0, 1], got {alpha}")
    return alpha


PAPER = RPConfig()
AS_RELEASED = PAPER.changed(
    placement="overlay", half_precision_detection=True, wrap_around_detection=True, renormalize_residual=False,
    report_rp_as_rrp=True, objective="contrastive-identity", loss="focal", text_rows="all", coupled_decay=True,
    train_resolution=64 / 224, eval_resolution=128 / 224, convention="authors", image_decay=0.1, text_decay=0.1,
)  # fmt: skip
PRESETS = {"paper": PAPER, "as_released": AS_RELEASED}


def preset(name: str) -> RPConfig:
    """A preset by name."""
    if name not in PRESETS:
        raise UnknownName("preset", name, PRESETS)
    return PRESETS[name]
