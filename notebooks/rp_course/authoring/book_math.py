"""Formulas of the rendered book as MathML: browsers draw it by themselves, without a script from another server.

An extension of Sphinx, of which ``rp_course.authoring.book`` makes use.
"""

from __future__ import annotations

from typing import Any

NAME = "mathml"


def mathml(tex: str, display: str = "inline") -> str:
    """A formula as HTML.

    Args:
        tex: without dollar signs. display: "inline" or "block".
    """
    from latex2mathml.converter import convert

    return convert(tex, display=display)


def setup(app: Any) -> dict[str, Any]:
    """Register the renderer with Sphinx."""
    app.add_html_math_renderer(NAME, (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _inline(translator: Any, node: Any) -> None:
    _write(translator, mathml(node.astext()))


def _block(translator: Any, node: Any) -> None:
    _write(translator, f'<div class="formula">{mathml(node.astext(), "block")}</div>\n')


def _write(translator: Any, text: str) -> None:
    from docutils.nodes import SkipNode

    translator.body.append(text)
    raise SkipNode
