"""How pictures of any size become what a backbone takes."""

from __future__ import annotations

from dataclasses import dataclass

from rp_lib.utils.errors import RPLibError, UnknownName

INTERPOLATIONS = ("bicubic", "bilinear")
RESIZE_MODES = ("shortest", "squash")


@dataclass(frozen=True)
class Preparation:
    """The size and the resizing that pictures get before the normalization, in open_clip's words.

    Args:
        size: Side of the square, or height and width; pixels, 1 or more.
        interpolation: ``"bicubic"`` or ``"bilinear"``, antialiased.
        resize_mode: ``"shortest"`` resizes until the picture just covers ``size`` and cuts the centre out; ``"squash"``
            resizes both sides to ``size``, whatever becomes of the proportions.

    Raises:
        UnknownName: Another interpolation or mode.
        RPLibError: A size below 1.

    Example:
        >>> Preparation(336, resize_mode="squash")
        Preparation(size=336, interpolation='bicubic', resize_mode='squash')
    """

    size: int | tuple[int, int] = 224
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"

    def __post_init__(self) -> None:
        sides = tuple(self.size) if isinstance(self.size, list | tuple) else (self.size, self.size)
        if len(sides) != 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sides):
            raise RPLibError(
                f"size is the side of the images in pixels, 1 or more, or their height and width, got {self.size!r}"
            )
        object.__setattr__(self, "size", sides[0] if sides[0] == sides[1] else sides)
        for what, known in (("interpolation", INTERPOLATIONS), ("resize_mode", RESIZE_MODES)):
            if getattr(self, what) not in known:
                raise UnknownName(what, getattr(self, what), known)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @classmethod
    def of(cls, size: int | tuple[int, int] | Preparation) -> Preparation:
        """Return a preparation as it is, and that of CLIP's own code for a plain size."""
        return size if isinstance(size, Preparation) else cls(size)
