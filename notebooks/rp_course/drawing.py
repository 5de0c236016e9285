"""The one drawing of CLIP, RP and RRP that the README, the book and the notebooks show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle

from rp_course.show import display, few_colours, picture, png
from rp_lib.utils.errors import UnknownName

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FROZEN, TRAINED, GRADIENT, PAPER = "#1a1a1a", "#cfe0ee", "#f6c78b", "#b84700", "#ffffff"
FONT, LANE = 14, 0.9  # points; height of a row of boxes, in the unit of the axes
# x of what stands in each column: left edge and width.
INPUT, PROGRAM, TOWER, MIX, COSINE = (0.1, 1.5), (2.3, 1.75), (4.75, 1.75), (7.35, 0.72), (8.75, 1.15)

ALTS = {
    "clip": "Zero-shot CLIP: a picture goes through the frozen image tower, a prompt through the frozen text tower, "
    "and their features are compared by the cosine.",
    "rp": "Reprogrammer: psi puts a trained border around the picture and Phi changes the word vectors of the prompt "
    "in front of the same frozen towers; the gradient runs back from the cosine through the towers to psi and Phi.",
    "rrp": "Residual Reprogrammer: picture and prompt go through the frozen towers twice, with and without psi and "
    "Phi, and each pair of features is mixed with the weights 1 - alpha and alpha before the cosine; nothing is "
    "trained.",
}

TRAINS = {
    "clip": "nothing",
    "rp": "the border W, the word vectors Theta and the position bias b",
    "rrp": "nothing beyond RP",
}


def drawing(methods: Sequence[str] = ("clip", "rp", "rrp")) -> Figure:
    """Draw how the methods get from a picture and a prompt to their cosine similarity.

    Args:
        methods: Any of ``"clip"``, ``"rp"`` and ``"rrp"``, in the order from top to bottom.

    Returns:
        A figure with an opaque background, so that it is legible on light and on dark pages.

    Raises:
        UnknownName: No such method.

    Example:
        >>> figure = drawing(["rp"])
    """
    for name in methods:
        if name not in ALTS:
            raise UnknownName("method", name, ALTS)
    heights = [(4 if name == "rrp" else 2) * LANE + 0.75 for name in methods]
    figure = Figure(figsize=(8, 0.8 * sum(heights)), facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 10), ylim=(sum(heights), 0))
    axes.axis("off")
    top = 0.0
    for number, (name, height) in enumerate(zip(methods, heights, strict=True)):
        if number:
            axes.plot([0.1, 9.9], [top, top], color="#999999", linewidth=1)
        {"clip": _clip, "rp": _rp, "rrp": _rrp}[name](axes, top)
        top += height
    return figure


def alt(methods: Sequence[str] = ("clip", "rp", "rrp")) -> str:
    """Describe the drawing for a reader who does not see it."""
    return " ".join(ALTS[name] for name in methods)


def show_drawing(*methods: str) -> None:
    """Show the drawing in a notebook, with its text alternative, and print what is trained.

    Args:
        methods: As of :func:`drawing`; none for all three.
    """
    chosen = methods or tuple(ALTS)
    display(*picture(_png(chosen), alt(chosen)))
    print("\n".join(f"{name.upper():4} trains {TRAINS[name]}" for name in chosen))


def save(path: Path) -> None:
    """Write the drawing of all three methods as PNG, for the README and the book."""
    path.write_bytes(_png(tuple(ALTS)))


def _png(methods: Sequence[str]) -> bytes:
    """PNG of 32 colours: a quarter of the bytes, and no difference to the eye."""
    return few_colours(png(drawing(methods)), 32)


def _clip(axes: Axes, top: float) -> None:
    _title(axes, top, "CLIP", "zero-shot, nothing is trained")
    rows = _rows(top, 2)
    _inputs(axes, rows)
    for y, tower in zip(rows, ("image tower", "text tower"), strict=True):
        _box(axes, TOWER, y, f"{tower}\n(frozen)", FROZEN)
        _arrow(axes, (_end_of_input(y, rows), y), (TOWER[0], y))
        _arrow(axes, (_right(TOWER), y), (COSINE[0], sum(rows) / 2))
    _cosine(axes, sum(rows) / 2)


def _rp(axes: Axes, top: float) -> None:
    _title(axes, top, "RP", "trained: border and word vectors")
    rows = _rows(top, 2)
    _inputs(axes, rows)
    _programs(axes, rows)
    middle = sum(rows) / 2
    for y, tower in zip(rows, ("image tower", "text tower"), strict=True):
        _box(axes, TOWER, y, f"{tower}\n(frozen)", FROZEN)
        _arrow(axes, (_end_of_input(y, rows), y), (PROGRAM[0], y))
        # Forward in black; the gradient comes back through the frozen tower to the program.
        side = -0.16 if y < middle else 0.16
        _arrow(axes, (_right(PROGRAM), y - side), (TOWER[0], y - side))
        _arrow(axes, (TOWER[0], y + side), (_right(PROGRAM), y + side), gradient=True)
        _arrow(axes, (_right(TOWER), y - side), (COSINE[0], middle + side / 2))
        _arrow(axes, (COSINE[0] + 0.1, middle + 2 * side), (_right(TOWER), y + side), gradient=True)
    _cosine(axes, middle)
    axes.text(9.9, rows[0] - 0.05, "gradient", color=GRADIENT, fontsize=FONT, ha="right", va="center")


def _rrp(axes: Axes, top: float) -> None:
    _title(axes, top, "RRP", "RP and CLIP mixed, nothing more is trained")
    rows = _rows(top, 4)
    pairs = (rows[:2], rows[2:])
    centres = [sum(pair) / 2 for pair in pairs]
    middle = sum(centres) / 2
    _inputs(axes, centres)
    _programs(axes, [pairs[0][0], pairs[1][0]])
    for pair, centre, tower in zip(pairs, centres, ("image tower", "text tower"), strict=True):
        programmed, plain = pair
        _box(axes, TOWER, centre, f"{tower}\n(frozen)", FROZEN, height=2 * LANE - 0.25)
        _arrow(axes, (_end_of_input(centre, centres), centre), (PROGRAM[0], programmed))
        _arrow(axes, (_right(PROGRAM), programmed), (TOWER[0], programmed))
        # The residual path: past the program, through the same tower.
        _arrow(axes, (_end_of_input(centre, centres), centre), (TOWER[0], plain))
        axes.text(3.75, plain + 0.3, "as it is", fontsize=FONT - 1, ha="center", va="center", color=INK)
        _arrow(axes, (_right(TOWER), programmed), (MIX[0] + 0.1, centre - 0.2))
        _arrow(axes, (_right(TOWER), plain), (MIX[0] + 0.1, centre + 0.2))
        axes.text(7.05, programmed - 0.12, "1 − α", fontsize=FONT, ha="center", va="center", color=INK)
        axes.text(7.05, plain + 0.16, "α", fontsize=FONT, ha="center", va="center", color=INK)
        axes.add_patch(Circle((MIX[0] + 0.36, centre), 0.33, facecolor=PAPER, edgecolor=INK, linewidth=1.6))
        axes.text(MIX[0] + 0.36, centre, "+", fontsize=FONT + 4, ha="center", va="center", color=INK)
        _arrow(axes, (_right(MIX), centre), (COSINE[0], middle))
    _cosine(axes, middle)


def _title(axes: Axes, top: float, name: str, text: str) -> None:
    axes.text(0.1, top + 0.36, name, fontsize=FONT + 3, fontweight="bold", va="center", color=INK)
    axes.text(1.25, top + 0.36, text, fontsize=FONT, va="center", color=INK)


def _rows(top: float, count: int) -> list[float]:
    return [top + 0.65 + LANE * (k + 0.5) for k in range(count)]


def _right(column: tuple[float, float]) -> float:
    return column[0] + column[1]


def _end_of_input(y: float, rows: Sequence[float]) -> float:
    """Right edge of the picture in the first row, of the prompt's box in the second."""
    return INPUT[0] + 1.2 if y == rows[0] else _right(INPUT)


def _inputs(axes: Axes, rows: Sequence[float]) -> None:
    _picture(axes, INPUT[0] + 0.75, rows[0], 0.34)
    _box(axes, INPUT, rows[1], "an icon of\na house", PAPER)


def _programs(axes: Axes, rows: Sequence[float]) -> None:
    _box(axes, PROGRAM, rows[0], "", TRAINED)
    axes.text(PROGRAM[0] + 0.42, rows[0], "ψ", fontsize=FONT + 5, ha="center", va="center", color=INK)
    x = PROGRAM[0] + 1.2
    axes.add_patch(Rectangle((x - 0.36, rows[0] - 0.31), 0.72, 0.62, facecolor=GRADIENT, edgecolor="none", zorder=3))
    _picture(axes, x, rows[0], 0.22)
    _box(axes, PROGRAM, rows[1], "", TRAINED)
    axes.text(PROGRAM[0] + 0.42, rows[1], "Φ", fontsize=FONT + 5, ha="center", va="center", color=INK)
    axes.text(PROGRAM[0] + 1.2, rows[1], "Θ + b", fontsize=FONT, ha="center", va="center", color=INK)


def _picture(axes: Axes, x: float, y: float, half: float) -> None:
    """Draw a small house on white."""
    wide = half * 1.15
    axes.add_patch(
        Rectangle((x - wide, y - half), 2 * wide, 2 * half, facecolor=PAPER, edgecolor=INK, linewidth=1.2, zorder=4)
    )
    walls = [(-0.5, 0.7), (-0.5, 0), (-0.75, 0), (0, -0.75), (0.75, 0), (0.5, 0), (0.5, 0.7)]
    axes.add_patch(Polygon([(x + a * wide, y + b * half) for a, b in walls], facecolor=INK, edgecolor="none", zorder=5))


def _box(axes: Axes, column: tuple[float, float], y: float, text: str, colour: str, height: float = LANE - 0.2) -> None:
    shape = FancyBboxPatch(
        (column[0], y - height / 2), column[1], height, boxstyle="round,pad=0,rounding_size=0.12",
        facecolor=colour, edgecolor=INK, linewidth=1.4,
    )  # fmt: skip
    axes.add_patch(shape)
    axes.text(column[0] + column[1] / 2, y, text, fontsize=FONT, ha="center", va="center", color=INK, linespacing=1.05)


def _cosine(axes: Axes, y: float) -> None:
    _box(axes, COSINE, y, "cosine", PAPER, height=0.6)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], gradient: bool = False) -> None:
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=16, shrinkA=2, shrinkB=2,
            color=GRADIENT if gradient else INK, linewidth=2 if gradient else 1.6,
            linestyle=(0, (3, 1.5)) if gradient else "-", zorder=2,
        )
    )  # fmt: skip
