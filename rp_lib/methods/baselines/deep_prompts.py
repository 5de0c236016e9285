"""Deep prompts in both towers, in the manner of MaPLe: Khattak et al. 2023, arXiv 2210.03117."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rp_lib.features import Encoder
from rp_lib.methods.baselines.prompts import STD, ContextPrompts, PromptLearner
from rp_lib.towers import encode_prompted, text_part, vision_part, walk_blocks
from rp_lib.utils.device import computing
from rp_lib.utils.errors import RPLibError


@dataclass(kw_only=True, eq=False, repr=False)
class DeepPrompts(PromptLearner):
    """Trained tokens in the first J layers of the text tower, each mapped linearly into one of the image tower's.

    In the text tower they stand behind the start mark, in the image tower behind the patches; a layer's prompts
    replace what became of those of the layer before. The first are the template's first words, the deeper
    ones start from N(0, 0.02^2).

    What is as published: the places, the coupling by one linear map per layer, the start, the loss, SGD. What is
    not, so that numbers must not be read as MaPLe's: any open_clip vision transformer instead of ViT-B/16 in half
    precision; images are not cropped or flipped at random in training; the rate warms up and falls by the step, not by
    the epoch (a linear warm-up of at most a fifth of the steps for one epoch at 1e-5); every layer's map starts
    from its own draw instead of one shared by the deeper layers; towers of fewer than 9 layers take fewer prompts;
    a full stop follows the class name only if the template has one.

    Args:
        n_prompts: Tokens per layer.
        depth: J; None takes 9 as published, or all layers that both towers have.
        start: ``words`` of the first template or ``random``, see :class:`ContextPrompts`.
        lr, weight_decay, epochs, batch_size, warmup_steps, seed, precision: see :class:`PromptLearner`.

    Raises:
        RPLibError: A tower of another kind (ResNet, CoCa, timm, ...), or a depth or number that does not fit.

    Example:
        >>> DeepPrompts(clip, class_names, templates, depth=3).fit(train)  # doctest: +SKIP
    """

    name = "maple"

    n_prompts: int = 2
    depth: int | None = None
    start: str = "words"
    lr: float = 3.5e-3
    epochs: int = 5
    batch_size: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        transformers = text_part(self.clip.model).transformer, vision_part(self.clip.model).transformer
        layers = min(len(t.resblocks) for t in transformers)
        self.depth = min(9, layers) if self.depth is None else self.depth
        if self.depth > layers:
            raise RPLibError(f"prompts in {self.depth} layers do not fit these towers; depth must be 1 to {layers}")
        self.prompts = ContextPrompts(
            self.clip, self.class_names, self.templates[0], n=self.n_prompts, start=self.start, seed=self.seed
        )
        widths = transformers[0].width, transformers[1].width
        with torch.random.fork_rng([]):  # the draws of nn.Linear follow no generator of our own
            torch.manual_seed(self.seed)
            self.deep = nn.ParameterList(STD * torch.randn(self.n_prompts, widths[0]) for _ in range(self.depth - 1))
            self.coupling = nn.ModuleList(nn.Linear(*widths) for _ in range(self.depth))
        self.modules().to(self.clip.device)

    def modules(self) -> nn.ModuleDict:
        """Context, deeper prompts and the maps."""
        return nn.ModuleDict({"text": self.prompts, "deep": self.deep, "coupling": self.coupling})

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """The prompted image tower."""
        return (self,)

    def encode(self, images: Tensor) -> Tensor:
        """Unit float32 (n, d) features of the prompted image tower."""
        pixels = self.clip.normalize(self.clip.prepare(images))
        with computing(self.clip.device):
            text = [self.prompts.context, *self.deep]
            first, *deep = (linear(p) for linear, p in zip(self.coupling, text, strict=True))
            features = encode_prompted(vision_part(self.clip.model), pixels, first, deep)
        return F.normalize(features.float(), dim=-1)

    def prompt_embeddings(self) -> Tensor:
        """Unit float32 (C, d) features of the class prompts, with gradients."""
        return self.prompts.encode(self._run())

    @torch.no_grad()
    def encode_classes(self, words: Sequence[str]) -> Tensor:
        """Embeddings of any class names behind the trained prompts; see :meth:`ContextPrompts.before`."""
        return self.prompts.before(words).encode(self._run()).cpu()

    def _run(self) -> Callable[..., Tensor]:
        transformer = text_part(self.clip.model).transformer
        return functools.partial(walk_blocks, transformer, deep=list(self.deep), at=1)
