"""What a pass through a tower of CLIP costs, with the gradients of a border, of prompts, or of all weights."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import torch

from rp_lib.run.cost import Pass, Weightless, measure, shapes_only
from rp_lib.towers import TextTower, encode_image
from rp_lib.utils.errors import RPLibError, UnknownName

# What gradients a pass computes: none; back to the input through frozen weights; of the weights.
GRADIENTS = ("none", "input", "weights")


class TowerCosts(Weightless):
    """A backbone without weights that says what its two towers cost.

    Example:
        >>> from rp_lib import mini
        >>> costs = TowerCosts(mini.load_clip())
        >>> costs.image("input").flops < costs.image("weights").flops  # a border is cheaper than fine-tuning
        True
    """

    @property
    def context_length(self) -> int:
        """Tokens of a text that is not cut, marks included."""
        return self.tokenize(["a"]).shape[1]

    @property
    def parameters(self) -> dict[str, int]:
        """Numbers of weights: of the image tower, and of the whole model."""
        parts = {"image": self.model.visual, "all": self.model}
        return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}

    def image(self, gradient: str = "none", batch: int = 1, bfloat16: bool = False) -> Pass:
        """Count a batch of images; ``gradient`` is one of :data:`GRADIENTS`."""
        return self._pass("visual", gradient, (batch, 3, self.image_size, self.image_size), bfloat16)

    def text(self, length: int, gradient: str = "none", batch: int = 1, bfloat16: bool = False) -> Pass:
        """Count a batch of prompts of ``length`` tokens, marks included, from their embeddings on.

        Raises:
            RPLibError: The tower has no such number of positions.
        """
        if not 1 <= length <= self.context_length:
            raise RPLibError(f"the text tower of {self.name} has {self.context_length} positions, not {length}")
        tower = TextTower(self.model)
        length = length if tower.cuts else self.context_length  # other towers read their padding
        return self._pass("text", gradient, (batch, length, tower.embedding.weight.shape[1]), bfloat16)

    @functools.cached_property
    def _pass(self) -> Callable[[str, str, tuple[int, ...], bool], Pass]:
        return functools.cache(self._measured)

    def _measured(self, tower: str, gradient: str, shape: tuple[int, ...], bfloat16: bool) -> Pass:
        if gradient not in GRADIENTS:
            raise UnknownName("gradient", gradient, GRADIENTS)
        with shapes_only(), torch.set_grad_enabled(gradient != "none"):
            model = copy.deepcopy(self.model).requires_grad_(gradient == "weights")
            x = torch.zeros(shape).requires_grad_(gradient == "input")
            if tower == "visual":
                return measure(lambda: encode_image(model.visual, x), model.parameters(), bfloat16)
            tokens = torch.zeros(shape[:2], dtype=torch.int64)
            return measure(lambda: TextTower(model).encode(x, tokens), model.parameters(), bfloat16)
