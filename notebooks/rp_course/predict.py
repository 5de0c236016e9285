"""Predict, then see: the reader commits to an answer before the run gives its own."""

from __future__ import annotations

import html
import string
from collections.abc import Mapping
from typing import Any

from rp_course.show import display, say, widget_view
from rp_lib.utils.errors import UnknownName


class Prediction:
    """A question with the reader's answer.

    Attributes:
        question: text. options: text by key. letters: letter by key, a, b, c as the reader sees them.
        choice: key that stands now. chosen: whether the reader chose it.
    """

    def __init__(self, question: str, options: Mapping[str, str], default: str) -> None:
        self.question, self.options, self.choice, self.chosen = question, dict(options), default, False
        self.letters = dict(zip(self.options, string.ascii_lowercase, strict=False))
        self._check(default)
        self.buttons = self._buttons()

    def choose(self, key: str) -> None:
        """Answer from code, as a click does; ``key`` may be the letter that is shown.

        Raises:
            UnknownName: no such option.
        """
        key = key if key in self.options else {v: k for k, v in self.letters.items()}.get(key, key)
        self._check(key)
        self.choice, self.chosen = key, True

    def reveal(self, correct: str, because: str) -> None:
        """Print how the prediction fared.

        Args:
            correct: the key that the run found, computed from it. because: the reason, ends the sentence.

        Raises:
            UnknownName: no such option.
        """
        self._check(correct)
        said = "You said" if self.chosen else "The default said"
        verdict = "The run agrees" if self.choice == correct else f"The run says {self._line(correct)}"
        reason = because.strip().rstrip(".").removeprefix("because ")
        # The answer stands in the second line: of a folded output JupyterLab shows the first.
        say(f"{said} {self._line(self.choice)}.\n{verdict}, because {reason}.")

    def _check(self, key: str) -> None:
        if key not in self.options:
            raise UnknownName("option", key, self.options)

    def _line(self, key: str) -> str:
        return f"{self.letters[key]}: {self.options[key]}"

    def _buttons(self) -> Any:
        try:
            from ipywidgets import RadioButtons
        except ImportError:
            return None
        choices = [(self._line(key), key) for key in self.options]
        # none is pressed: a press on the one that is pressed already would be no change, and never reach us
        buttons = RadioButtons(options=choices, value=None, layout={"width": "max-content"})
        buttons.observe(lambda change: self.choose(change["new"]), "value")
        return buttons

    def bundle(self) -> dict[str, Any]:
        """Display data: buttons where a kernel runs, a list elsewhere, constant plain text."""
        lines = [self._line(key) for key in self.options]
        items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
        data: dict[str, Any] = {
            "text/plain": "\n".join([f"Your prediction: {self.question}", *(f"  {line}" for line in lines)]),
            "text/html": f"<p><strong>Your prediction:</strong> {html.escape(self.question)}</p><ul>{items}</ul>",
        }
        if self.buttons is not None:
            from ipywidgets import HTML, VBox

            # ipywidgets sets the lines of a text as far apart as its buttons are high.
            asked = f"<strong>Your prediction:</strong> {html.escape(self.question)}"
            title = HTML(f'<div style="line-height: 1.5">{asked}</div>')
            data |= widget_view(VBox([title, self.buttons]))
        return data

    def __repr__(self) -> str:
        return f"<prediction {self.choice!r} of {', '.join(self.options)}>"


def predict(question: str, options: Mapping[str, str], default: str) -> Prediction:
    """Ask the reader before a result is shown.

    Args:
        question: in one sentence. options: text by key, in the order shown.
        default: key that stands while nothing is chosen, so that a run without a reader goes on.

    Returns:
        The prediction; call its ``reveal`` after the result.

    Raises:
        UnknownName: the default is no option.
    """
    prediction = Prediction(question, options, default)
    display(prediction.bundle())
    return prediction
