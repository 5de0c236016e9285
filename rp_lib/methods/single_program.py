"""RP with one of its two programs, to see what each contributes alone (question 1 of the course)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rp_lib.clip import FrozenCLIP
from rp_lib.errors import RPLibError
from rp_lib.methods.reprogrammer import Reprogrammer
from rp_lib.presets import PAPER, Reprogramming


class _SingleProgram(Reprogrammer):
    """A reprogrammer whose other program is switched off, whatever its configuration says of that one."""

    kept: ClassVar[str]
    dropped: ClassVar[str]

    def __init__(
        self,
        clip: FrozenCLIP,
        class_names: Sequence[str],
        templates: Sequence[str],
        config: Reprogramming = PAPER,
        *,
        seed: int = 1,
        precision: str = "auto",
    ) -> None:
        if not getattr(config, self.kept):
            raise RPLibError(f"{self.name} is nothing without its program; leave {self.kept} on")
        config = config.changed(**{self.dropped: False})
        super().__init__(clip, class_names, templates, config, seed=seed, precision=precision)


class ImageReprogrammer(_SingleProgram):
    """RP's border around the images alone; the class prompts are those of zero-shot."""

    name = "rp-image"
    kept, dropped = "use_image_program", "use_text_program"


class TextReprogrammer(_SingleProgram):
    """RP's text program alone; images are encoded once, by the untouched tower."""

    name = "rp-text"
    kept, dropped = "use_text_program", "use_image_program"
