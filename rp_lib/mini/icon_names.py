"""From an icon's file name to the concept it shows, and back to captions.

Icon sets encode style and size in the name (``home-outline``, ``ic_baseline-home``, ``home-24-filled``).
:func:`parse` separates those style words from the concept, so that the same concept drawn by many
designers gets the same label, while ``home-heart`` stays something else than ``home``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Words that describe how a thing is drawn, never what it is. They are dropped at either end of a name.
STYLE_WORDS = frozenset(
    """outline outlined line linear lined filled fill solid bold thin regular duotone duo twotone
    rounded sharp broken bulk baseline glyph stroke mono monochrome colored ios md flat streamline
    remix freehand plump fluent freebies""".split()
)
# Style words that are also ordinary words ("traffic light", "round table"): dropped at the end only, or
# at the start only, and never when nothing else would be left.
TRAILING_STYLE = frozenset("light round alt o color curved medium simple poly".split())
LEADING_STYLE = frozenset("round".split())
_SIZES = frozenset("8 10 12 14 15 16 20 24 28 32 36 40 48 64 100 200 300 400 500 600 700".split())
_PAIRS = {("two", "tone"): "twotone", ("dual", "tone"): "duotone"}


@dataclass(frozen=True)
class IconName:
    """A parsed icon name.

    Args:
        concept: Lower-case words of what is shown, style and numbering removed, such as ``"shopping cart"``.
        style: Style words in the order found, such as ``("outline",)``.
        variant: The designer's own numbering, such as ``"2"`` for a second house; empty if there is none.
        clean: False when only style words, digits or nothing was left.
    """

    concept: str
    style: tuple[str, ...]
    variant: str
    clean: bool


def parse(name: str) -> IconName:
    """Split an Iconify name such as ``"shopping-cart-24-filled"`` into concept and style."""
    words = [w for w in re.split(r"[-_\s]+", name.lower()) if w]
    # "house2" and "house-2" are the designer's second house, not another object.
    words = [part for w in words for part in re.sub(r"(?<=[a-z]{3})(\d+)$", r" \1", w).split()]
    merged: list[str] = []
    for word in words:
        if merged and (merged[-1], word) in _PAIRS:
            merged[-1] = _PAIRS[(merged[-1], word)]
        else:
            merged.append(word)
    words, style, variant = merged, [], ""
    changed = True
    while changed and len(words) > 1:
        changed = False
        if words[-1] in STYLE_WORDS or words[-1] in TRAILING_STYLE or words[-1] in _SIZES or words[-1].isdigit():
            last = words.pop()
            changed = True
            if not last.isdigit():
                style.insert(0, last)
            elif last not in _SIZES:
                variant = last + variant
        elif words[0] in STYLE_WORDS or words[0] in LEADING_STYLE:
            style.append(words.pop(0))
            changed = True
    concept = " ".join(words)
    clean = bool(re.search(r"[a-z]{2}", concept)) and not all(w in STYLE_WORDS for w in words)
    return IconName(concept, tuple(style), variant, clean)
