"""Context optimisation (CoOp): Zhou et al. 2022, arXiv 2109.01134."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rp_lib.clip import FrozenCLIP
from rp_lib.methods.prompt_learner import ContextPrompts, PromptLearner


class CoOp(PromptLearner):
    """Trained context vectors in place of the words in front of the class name; nothing else changes.

    A prompt is the start mark, ``n_context`` vectors, the class name's own tokens and the end mark ("end"
    position in the paper). The image tower runs once, on every image; an epoch after that costs the text tower
    alone. The paper has no ensemble of prompts: the first template counts, see :class:`ContextPrompts`.

    Args:
        n_context: number of vectors. None: the template's words if they are the start, else 16 as published, or
            as many as fit (12 in the mini CLIP's 16 positions with class names of two tokens).
        start: ``random``, or ``words`` of the template, which is zero-shot with that template (to rounding) before the
            first step, unless ``n_context`` asks for more vectors than it has words.
        class_specific: each class learns its own vectors instead of sharing them.
        lr, weight_decay, epochs, batch_size, warmup_steps, seed, precision: see :class:`PromptLearner`.
    """

    name = "coop"

    def __init__(
        self,
        clip: FrozenCLIP,
        class_names: Sequence[str],
        templates: Sequence[str],
        *,
        n_context: int | None = None,
        start: str = "random",
        class_specific: bool = False,
        lr: float = 2e-3,
        weight_decay: float = 5e-4,
        epochs: int = 50,
        batch_size: int = 128,
        warmup_steps: int = 500,
        seed: int = 1,
        precision: str = "auto",
    ) -> None:
        super().__init__(
            clip, class_names, templates, lr=lr, weight_decay=weight_decay, epochs=epochs, batch_size=batch_size,
            warmup_steps=warmup_steps, seed=seed, precision=precision,
        )  # fmt: skip
        self.prompts = ContextPrompts(
            clip, self.class_names, self.templates[0], n=n_context, start=start, per_class=class_specific, seed=seed
        )
        self.n_context, self.start, self.class_specific = self.prompts.context.shape[-2], start, class_specific

    def module(self) -> nn.Module:
        """The context."""
        return self.prompts

    def prompt_embeddings(self) -> Tensor:
        """Unit float32 (C, d) features of the class prompts, with gradients."""
        return self.prompts.encode()

    @torch.no_grad()
    def word_embeddings(self, words: Sequence[str]) -> Tensor:
        """Embeddings of any class names behind the trained context; see :meth:`ContextPrompts.before`."""
        return self.prompts.before(words).encode().cpu()

    def settings(self) -> dict[str, Any]:
        """The context's shape and start, and the hyper-parameters."""
        own = {"n_context": self.n_context, "start": self.start, "class_specific": self.class_specific}
        return own | super().settings()
