"""How pictures of any size become the squares that a backbone takes."""

from __future__ import annotations

from dataclasses import dataclass

from rp_lib.utils.errors import RPLibError, UnknownName

INTERPOLATIONS = ("bicubic", "bilinear")
RESIZE_MODES = ("shortest", "squash")


@dataclass(frozen=True)
class Preparation:
    """The size and the resizing that pictures get before the normalization, in open_clip's words.

    Args:
        size: Side of the square, pixels, 1 or more.
        interpolation: ``"bicubic"`` or ``"bilinear"``, antialiased.
        resize_mode: ``"shortest"`` resizes the shorter side to ``size`` and cuts the centre out; ``"squash"`` resizes
            both sides to ``size``, whatever becomes of the proportions.

    Raises:
        UnknownName: Another interpolation or mode.
        RPLibError: A size below 1.

    Example:
        >>> Preparation(336, resize_mode="squash")
        Preparation(size=336, interpolation='bicubic', resize_mode='squash')
    """

    size: int = 224
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise RPLibError(f"size is the side of the images in pixels, 1 or more, got {self.size!r}")
        for what, known in (("interpolation", INTERPOLATIONS), ("resize_mode", RESIZE_MODES)):
            if getattr(self, what) not in known:
                raise UnknownName(what, getattr(self, what), known)

    @classmethod
    def of(cls, size: int | Preparation) -> Preparation:
        """Return a preparation as it is, and that of CLIP's own code for a plain size."""
        return size if isinstance(size, Preparation) else cls(size)
