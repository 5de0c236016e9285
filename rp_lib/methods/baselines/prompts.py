"""What methods that learn the context of the class prompts share: the prompts, and their training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rp_lib.clip import FrozenCLIP
from rp_lib.features import Encoder
from rp_lib.methods.base import Method
from rp_lib.towers import cut_padding, embed, encode_embedded, end_positions, replace_tokens, text_part
from rp_lib.trainer import Group, Schedule
from rp_lib.utils.device import computing, in_float32
from rp_lib.utils.distributed import gather
from rp_lib.utils.errors import RPLibError, UnknownName

STARTS = ("random", "words")
STD = 0.02  # of random vectors, as in CoOp's code
MOST = 16  # vectors, unless a number is asked for, as published


class ContextPrompts(nn.Module):
    """``[start] v_1 ... v_n [class name] [end]``: class prompts that begin with n trained vectors.

    Words of the template behind the class name, such as the full stop of CoOp's code, stay. With ``start="words"``
    the vectors start as the words in front of it: as the first n if there are more (the others stay what they are);
    if there are fewer, the remaining vectors come first and start at random. So with no more vectors than words,
    the prompts start as those of zero-shot classification.

    Args:
        clip: The frozen backbone.
        class_names: C of them.
        template: A prompt with one ``{}``.
        n: Number of vectors; None takes the template's words, or with a random start :data:`MOST`, or what fits.
        start: ``random``, N(0, 0.02^2), or ``words``.
        per_class: Whether every class has its own vectors.
        seed: Of the random start.

    Attributes:
        context: float32 (n, width), or (C, n, width) if ``per_class``; trained.

    Raises:
        RPLibError: the text tower's positions do not hold that many vectors, or the words cannot be told apart.
    """

    tokens: Tensor

    def __init__(
        self,
        clip: FrozenCLIP,
        class_names: Sequence[str],
        template: str,
        *,
        n: int | None,
        start: str,
        per_class: bool = False,
        seed: int = 1,
    ) -> None:
        super().__init__()
        if start not in STARTS:
            raise UnknownName("start of the context", start, STARTS)
        self._clip = [clip]  # in a list: the frozen model is not a submodule of its prompts
        self._template, self._start = template, start
        part = text_part(clip.model)
        before, after = template.split("{}")
        words = _ids(clip, before) if start == "words" else []
        names = [_ids(clip, name + after) for name in class_names]
        longest = max(range(len(names)), key=lambda c: len(names[c]))
        marks = clip.tokenize([""])[0]
        room = len(marks) - 2 - len(names[longest])
        if n is None:
            n = len(words) if start == "words" else min(MOST, room)
            if start == "words" and not words:
                raise RPLibError(f"{template!r} has no word before {{}} to start from; say how many vectors, or random")
        kept = words[n:]  # words that are not trained
        limit = room - len(kept)
        if not 1 <= n <= limit:
            raise RPLibError(
                f"{n} context vectors do not fit: of the text tower's {len(marks)} positions, the start and end marks "
                f"take 2, the longest class name ({class_names[longest] + after!r}) {len(names[longest])} and words "
                f"of the template that are not trained {len(kept)}; "
                + (f"use 1 to {limit}" if limit > 0 else "use shorter class names or templates")
            )
        trained = [*[0] * (n - len(words)), *words[:n]]
        tokens = marks.repeat(len(names), 1)  # ends in padding
        for row, name in zip(tokens, names, strict=True):
            ids = [int(marks[0]), *trained, *kept, *name, int(marks[1])]
            row[: len(ids)] = torch.tensor(ids)
        if n <= len(words) and not torch.equal(tokens, clip.tokenize([template.format(c) for c in class_names])):
            raise RPLibError(f"the words of {template!r} run into the class name: put a space before {{}}")
        self.register_buffer("tokens", cut_padding(tokens), persistent=False)
        width = part.token_embedding.weight.shape[1]
        shape = (len(names), n, width) if per_class else (n, width)
        context = STD * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        rows = part.token_embedding.weight[words[:n]].detach().float().cpu()
        context[..., n - len(rows) :, :] = rows
        self.context = nn.Parameter(context.to(clip.device))

    @torch.no_grad()
    def before(self, words: Sequence[str]) -> ContextPrompts:
        """The same trained context before other class names.

        Raises:
            RPLibError: each class has a context of its own, so others have none; or a name is too long.
        """
        if self.context.ndim == 3:
            raise RPLibError("with a context of its own for each class, other class names have none")
        made = ContextPrompts(self._clip[0], words, self._template, n=self.context.shape[0], start=self._start)
        made.context.copy_(self.context)
        return made

    def forward(self) -> Tensor:
        """What the text transformer reads: float (C, length, width), tokens plus positions."""
        model = self._clip[0].model
        n = self.context.shape[-2]
        positions = text_part(model).positional_embedding[1 : 1 + n]
        return replace_tokens(embed(model, self.tokens), self.context + positions, at=1)

    def encode(self, run: Callable[..., Tensor] | None = None) -> Tensor:
        """Unit float32 (C, d) features of the prompts; ``run`` as in :func:`rp_lib.towers.encode_embedded`."""
        with computing(self._clip[0].device):
            features = encode_embedded(self._clip[0].model, self(), end_positions(self.tokens), run)
        return F.normalize(features.float(), dim=-1)


def _ids(clip: FrozenCLIP, text: str) -> list[int]:
    """Token ids of a text, without its marks."""
    tokens = clip.tokenize([text])
    return tokens[0, 1 : int(end_positions(tokens)[0])].tolist()


@dataclass(kw_only=True, eq=False, repr=False)
class PromptLearner(Method):
    """Trains vectors in prompts of the frozen CLIP with SGD (momentum .9) and cross-entropy over all classes.

    Args:
        lr, weight_decay: Of SGD; the decay pulls towards zero, not towards the start.
        epochs, batch_size, warmup_steps: Of the cosine schedule, see :class:`rp_lib.trainer.Schedule`.
        seed: Of the random start and the order of the batches.
        precision: Of training, see :func:`rp_lib.utils.device.autocast_dtype`.
    """

    lr: float
    weight_decay: float = 5e-4
    epochs: int
    batch_size: int
    warmup_steps: int = 500
    seed: int = 1
    precision: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.training_schedule()  # a bad value is refused now, not when training begins
        self._class_embeddings: Tensor | None = None

    @abstractmethod
    def prompt_embeddings(self) -> Tensor:
        """Unit float32 (C, d) features of the class prompts, with gradients."""

    def training_schedule(self) -> Schedule:
        """Return epochs, batch size and a cosine after the warm-up."""
        return Schedule(self.epochs, self.batch_size, "cosine", self.warmup_steps, self.seed, self.precision)

    def parameter_groups(self) -> list[Group]:
        """Return the vectors, with SGD."""
        return [Group(list(self.modules().parameters()), self.lr, self.weight_decay, "sgd")]

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Compute the cross-entropy over all classes, a scalar; see :meth:`Method.loss`."""
        (encoder,) = self.encoders
        features = gather(inputs if encoder is self.clip else encoder.encode(inputs), len(labels))
        prompts = self.prompt_embeddings()
        with in_float32(self.device):
            return F.cross_entropy(self.clip.logit_scale * features @ prompts.T, labels)

    def set_training(self, on: bool) -> None:
        """Drop the class prompts as they were encoded before: they have moved since."""
        super().set_training(on)
        self._class_embeddings = None

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """The untouched backbone."""
        return (self.clip,)

    def class_embeddings(self) -> Tensor:
        """Unit float32 (C, d) features of the class prompts, on the CPU; encoded once after training."""
        if self._class_embeddings is None:
            with torch.no_grad():
                self._class_embeddings = self.prompt_embeddings().cpu()
        return self._class_embeddings

    def head(self, features: Tensor) -> Tensor:
        """Cosine similarity times CLIP's logit scale."""
        return self.clip.logit_scale * features @ self.class_embeddings().T


@dataclass(kw_only=True, eq=False, repr=False)
class CoOp(PromptLearner):
    """Context optimisation: trained vectors in place of the words in front of the class name (arXiv 2109.01134).

    A prompt is the start mark, ``n_context`` vectors, the class name's own tokens and the end mark ("end"
    position in the paper). The image tower runs once, on every image; an epoch after that costs the text tower
    alone. The paper has no ensemble of prompts: the first template counts, see :class:`ContextPrompts`.

    Args:
        n_context: Number of vectors. None: the template's words if they are the start, else 16 as published, or
            as many as fit (12 in the mini CLIP's 16 positions with class names of two tokens).
        start: ``random``, or ``words`` of the template, which is zero-shot with that template (to rounding) before the
            first step, unless ``n_context`` asks for more vectors than it has words.
        class_specific: Whether learns its own vectors instead of sharing them.
        lr, weight_decay, epochs, batch_size, warmup_steps, seed, precision: See :class:`PromptLearner`.

    Example:
        >>> CoOp(clip, class_names, templates, n_context=4, start="words").fit(train)  # doctest: +SKIP
    """

    name = "coop"

    n_context: int | None = None
    start: str = "random"
    class_specific: bool = False
    lr: float = 2e-3
    epochs: int = 50
    batch_size: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        self.prompts = ContextPrompts(
            self.clip, self.class_names, self.templates[0], n=self.n_context, start=self.start,
            per_class=self.class_specific, seed=self.seed,
        )  # fmt: skip
        self.n_context = self.prompts.context.shape[-2]

    def modules(self) -> nn.Module:
        """Return the context."""
        return self.prompts

    def prompt_embeddings(self) -> Tensor:
        """Unit float32 (C, d) features of the class prompts, with gradients."""
        return self.prompts.encode()

    @torch.no_grad()
    def encode_classes(self, words: Sequence[str]) -> Tensor:
        """Embeddings of any class names behind the trained context; see :meth:`ContextPrompts.before`."""
        return self.prompts.before(words).encode().cpu()
