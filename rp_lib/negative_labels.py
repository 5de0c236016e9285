"""Negative words: what an image may show that is none of the task's classes (candidates for NegLabel).

NegLabel (Jiang et al. 2024, arXiv 2403.20078) takes WordNet as its list. No such list ships here, so the default is
every complete word of CLIP's own BPE vocabulary. It was made without regard to any benchmark, and nothing is added or
removed with an OOD set in mind; it does hold names of things that an OOD set may show, as WordNet does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rp_lib.clip import FrozenCLIP
from rp_lib.towers import TextTower
from rp_lib.utils.errors import RPLibError

FRACTION, QUANTILE = 0.15, 0.95  # of the candidates that are kept; of a word's similarities
_BATCH, _MIN_LETTERS = 1024, 3


@dataclass(frozen=True, eq=False)
class NegativeWords:
    """Words that are far from all class names, and their embeddings.

    Args:
        words: M words.
        embeddings: Of unit length, float32, shape (M, d).
        candidates: How many words they were chosen from.

    Example:
        >>> from rp_lib import mini
        >>> clip, names = mini.load_clip(), ["cat", "dog"]
        >>> found = mine_negative_words(clip, names, ["an icon of a {}"], ["kitten", "river", "lamp"])
        >>> len(found.words), found.embeddings.shape, found.candidates
        (1, torch.Size([1, 256]), 3)
    """

    words: tuple[str, ...]
    embeddings: Tensor
    candidates: int

    def about(self) -> dict[str, Any]:
        """Return the words and how they were chosen, for the header of saved outputs."""
        return {
            "words": list(self.words), "candidates": self.candidates, "fraction": FRACTION, "quantile": QUANTILE,
        }  # fmt: skip


@torch.no_grad()
def vocabulary_words(clip: FrozenCLIP) -> list[str]:
    """List the complete words of the tokenizer's vocabulary that the backbone knows, in the vocabulary's order.

    A word is one token of at least three letters a to z at a word's end. The list knows no parts of speech:
    names, verbs and endings that BPE splits off (``ing``) are in it. Tokens that share their row of the token table
    with others were never trained (the mini CLIP gives all of those one row) and are left out.

    Raises:
        RPLibError: The tokenizer shows no vocabulary.
    """
    encoder = getattr(clip.tokenizer, "encoder", None)
    if not isinstance(encoder, dict):
        raise RPLibError("this backbone's tokenizer shows no vocabulary: give your own list of words")
    table = TextTower(clip.model).embedding.weight.double()
    # Equal rows have equal projections; unequal rows practically never do.
    direction = torch.randn(table.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, inverse, counts = (table @ direction.to(table.device)).unique(return_inverse=True, return_counts=True)
    own = (counts[inverse] == 1).tolist()
    found = []
    for token, row in encoder.items():
        word = token.removesuffix("</w>")
        if word != token and len(word) >= _MIN_LETTERS and word.isascii() and word.isalpha() and own[row]:
            found.append(word)
    return found


def mine_negative_words(
    clip: FrozenCLIP,
    class_names: Sequence[str],
    templates: Sequence[str],
    words: Sequence[str] | None = None,
) -> NegativeWords:
    """Choose the words that are farthest from the class names: NegMining (arXiv 2403.20078).

    How near a word is to the classes is the quantile :data:`QUANTILE` of its cosine similarities to them, which a
    single odd class cannot move; the share :data:`FRACTION` of the words with the lowest value is kept. Both are those
    of the released code, which uses the prompt ``The nice {}.``; here the task's own templates are used for classes
    and words alike.

    Args:
        clip: The untouched backbone.
        class_names: Of the task.
        templates: Of the task.
        words: Candidates, by default :func:`vocabulary_words`. Words of the class names, with or without a plural s,
            are left out.

    Raises:
        RPLibError: No candidate is left.
    """
    class_words = {part.removesuffix("s") for name in class_names for part in (name.lower(), *name.lower().split())}
    candidates = vocabulary_words(clip) if words is None else list(dict.fromkeys(words))
    candidates = [word for word in candidates if word.lower().removesuffix("s") not in class_words]
    if not candidates:
        raise RPLibError("no candidate word is left next to the class names: give more words")
    batches = [candidates[i : i + _BATCH] for i in range(0, len(candidates), _BATCH)]
    embeddings = torch.cat([clip.class_embeddings(batch, templates).cpu() for batch in batches])
    classes = clip.class_embeddings(class_names, templates).cpu()
    nearness = torch.quantile(embeddings @ classes.T, QUANTILE, dim=1)  # (candidates,)
    kept = nearness.argsort(stable=True)[: max(1, int(len(candidates) * FRACTION))]
    words_kept = tuple(candidates[i] for i in kept.tolist())
    return NegativeWords(words_kept, embeddings[kept].contiguous(), len(candidates))
