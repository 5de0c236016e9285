"""``paper`` and ``as_released``: the method as published, and as its released code really computes it.

Each row of the released code that changes a number is a named switch (the numbers are those of the ledger
in notebooks/pages/inside.md), so that its effect can be measured one at a time: ``replace(PAPER, text_rows="all")``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from rp_lib.losses import LOSSES, OBJECTIVES
from rp_lib.metrics import CONVENTIONS
from rp_lib.programs import BORDER_INITS, PLACEMENTS, TEXT_ROWS
from rp_lib.utils.arguments import checked
from rp_lib.utils.errors import RPLibError, UnknownName

# Old names of switches, as files and configurations of version 0.1.0 have them, and today's.
RENAMED = {"renormalise_residual": "renormalize_residual"}
# Switches of version 0.1.0 for the released detection script, which the course emulates now. Off, they change nothing.
SCRIPT_SWITCHES = ("half_precision_detection", "wrap_around_detection", "report_rp_as_rrp")


@checked
@dataclass(frozen=True)
class RPConfig:
    """How the programs are built and trained, and how residual features are formed.

    Sizes are fractions of the encoder's input side, so that one preset fits any backbone.

    Example:
        >>> PAPER.changed(padding=0.1, use_text_program=False).alpha == PAPER.alpha
        True
    """

    use_image_program: bool = True
    use_text_program: bool = True
    padding: float = 16 / 224  # border on each side; a window of 192 in 224 pixels

    # --- Where the released code differs from the paper (its value in brackets) ---
    placement: str = "pad"  # the border surrounds the shrunken image ["overlay": drawn over its margin]
    renormalize_residual: bool = True  # mixed features are scaled to unit length [False]
    objective: str = "contrastive"  # every image of a class is a positive of its prompt ["contrastive-identity"]
    loss: str = "cross-entropy"  # ["focal"]
    text_rows: str = "seen"  # train the token rows of words in the prompts ["all": the whole table, with decay]
    coupled_decay: bool = False  # AdamW's decoupled weight decay [True: L2 inside Adam, on the border]
    # The paper draws W from N(0, 1) ["normal"]: of a border that surrounds the image, half is clamped to 0 then and
    # never moves. Our choice is "grey", all of which can train; also "zeros", "white".
    border_init: str = "grey"
    train_resolution: float | None = None  # pictures fill the window [64 / 224]
    eval_resolution: float | None = None  # [128 / 224]
    convention: str = "id-positive"  # of FPR95, see rp_lib.metrics ["authors"]

    # --- Training and mixing ---
    image_lr: float = 5e-3
    text_lr: float = 5e-4
    image_decay: float = 0.0
    text_decay: float = 0.0
    epochs: int = 25
    batch_size: int = 128
    warmup_steps: int = 500
    alpha: float = 0.4  # share of the zero-shot features in RRP

    def __post_init__(self) -> None:
        for field, known in (
            ("placement", PLACEMENTS), ("objective", OBJECTIVES), ("loss", LOSSES),
            ("text_rows", TEXT_ROWS), ("border_init", BORDER_INITS), ("convention", CONVENTIONS),
        ):  # fmt: skip
            if getattr(self, field) not in known:
                raise UnknownName(field.replace("_", " "), getattr(self, field), known)
        if not (self.use_image_program or self.use_text_program):
            raise RPLibError("nothing to train: switch the image program or the text program on")

    def changed(self, **switches: object) -> RPConfig:
        """A copy with some switches changed; unknown names raise :class:`UnknownName`."""
        known = {f.name for f in fields(self)}
        switches = {RENAMED.get(name, name): value for name, value in switches.items()}
        for name in SCRIPT_SWITCHES:
            if switches.pop(name, False):
                raise RPLibError(
                    f"{name} is no switch of a reprogrammer any more: train without it, and let "
                    "rp_course.experiments.released_script.DetectionScript compute what the released script prints"
                )
        for name in switches:
            if name not in known:
                raise UnknownName("switch", name, known)
        return replace(self, **switches)  # type: ignore[arg-type]


PAPER = RPConfig()
AS_RELEASED = PAPER.changed(
    placement="overlay", renormalize_residual=False, objective="contrastive-identity", loss="focal", text_rows="all",
    coupled_decay=True, border_init="normal", train_resolution=64 / 224, eval_resolution=128 / 224,
    convention="authors", image_decay=0.1,
    text_decay=0.1,
)  # fmt: skip
PRESETS = {"paper": PAPER, "as_released": AS_RELEASED}


def preset(name: str) -> RPConfig:
    """A preset by name."""
    if name not in PRESETS:
        raise UnknownName("preset", name, PRESETS)
    return PRESETS[name]
