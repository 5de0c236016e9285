"""Captions for pre-training, tokenised once per word.

A caption is a template around a concept: ``an icon of a shopping cart``, ``outline icon of shopping cart``,
``shopping cart``. CLIP's BPE splits at spaces, so the tokens of a caption are those of its words in a row;
that is exact and far faster than tokenising half a million strings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

CONTEXT_LENGTH = 16
TEMPLATES = ("an icon of a {}", "an icon of a {}", "an icon of {}", "{}", "{} icon", "a {}", "a picture of a {}")
STYLED_TEMPLATE = "a {style} icon of a {}"
EMOJI_TEMPLATE = "an emoji of a {}"
LOGO_TEMPLATE = "the logo of {}"
FLAG_TEMPLATE = "the flag of {}"


class WordTokens:
    """Token ids of words under CLIP's BPE, cached."""

    def __init__(self) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        self._tokenizer = SimpleTokenizer()
        self.start, self.end = self._tokenizer.all_special_ids[:2]
        self._cache: dict[str, tuple[int, ...]] = {}

    def ids(self, phrase: str) -> list[int]:
        """Token ids of a phrase, without start and end marks."""
        out: list[int] = []
        for word in phrase.split():
            if word not in self._cache:
                self._cache[word] = tuple(self._tokenizer.encode(word))
            out.extend(self._cache[word])
        return out

    def batch(self, phrases: Sequence[str], length: int = CONTEXT_LENGTH) -> torch.Tensor:
        """int64 (n, length): start, words (cut if too long), end, zeros."""
        rows = np.zeros((len(phrases), length), np.int64)
        for row, phrase in zip(rows, phrases, strict=True):
            ids = [self.start, *self.ids(phrase)[: length - 2], self.end]
            row[: len(ids)] = ids
        return torch.from_numpy(rows)


def caption(
    concept: str, others: Sequence[str], style: Sequence[str], category: str | None, rng: np.random.Generator
) -> str:
    """Draw one caption; with other names known, a third of the captions use one of them."""
    name = concept
    if others and rng.random() < 1 / 3:
        name = others[int(rng.integers(len(others)))]
    u = rng.random()
    if category == "Emoji" and u < 0.25:
        return EMOJI_TEMPLATE.format(name)
    if category == "Logos" and u < 0.5:
        return LOGO_TEMPLATE.format(name)
    if category == "Flags / Maps" and u < 0.1:
        return FLAG_TEMPLATE.format(name)
    if style and u > 0.85:
        return STYLED_TEMPLATE.format(name, style=" ".join(style))
    return TEMPLATES[int(rng.integers(len(TEMPLATES)))].format(name)
