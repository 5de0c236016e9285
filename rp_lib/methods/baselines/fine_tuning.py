"""Full fine-tuning that is held near its start: L2-SP, LP-FT and Lipsum-FT."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rp_lib.benchmark import ImageSet
from rp_lib.features import FeatureStore
from rp_lib.methods.fine_tune import FineTune
from rp_lib.methods.linear_probe import LinearProbe
from rp_lib.trainer import Group
from rp_lib.utils.device import in_float32
from rp_lib.utils.distributed import gather
from rp_lib.utils.errors import RPLibError


@dataclass(kw_only=True, eq=False, repr=False)
class L2SP(FineTune):
    """Full fine-tuning with a penalty towards the start (Xuhong et al. 2018, arXiv 1802.01483).

    ::

        tower_penalty / 2 * |w - w_0|^2 + head_penalty / 2 * |v - v_0|^2

    w are all weights of the image tower, v those of the head. The paper pulls every weight that has a pre-trained
    counterpart towards it and only a head without one towards zero. Here the head has one, the zero-shot
    classifier, so it is pulled towards that, with a strength of its own. The strengths are the paper's alpha and beta;
    ``alpha`` means the share of zero-shot everywhere in this library. As in the paper the penalty takes
    the place of weight decay (0 by default) and is part of the loss, so that AdamW rescales its gradient too.

    Args:
        tower_penalty, head_penalty: >= 0; both 0 give :class:`FineTune`.
        settings: As :class:`FineTune` takes them.

    Raises:
        RPLibError: A penalty is negative or not finite.

    Example:
        >>> L2SP(clip, class_names, templates, tower_penalty=1.0).fit(train)  # doctest: +SKIP
    """

    name = "l2-sp"

    tower_penalty: float = 0.1
    head_penalty: float = 0.01
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._head_start = self.classifier.weight.detach().clone()

    def penalty(self) -> Tensor:
        """The two terms, a float32 scalar; its gradient is ``penalty * (weight - start)``."""
        # The frozen backbone itself holds the start: no copy is needed.
        pairs = zip(self.visual.parameters(), self.clip.model.visual.parameters(), strict=True)
        tower = torch.stack([(now - start).square().sum() for now, start in pairs]).sum()
        head = (self.classifier.weight - self._head_start).square().sum()
        return self.tower_penalty / 2 * tower + self.head_penalty / 2 * head

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy plus the penalty."""
        cross_entropy = super().loss(inputs, labels)
        with in_float32(self.clip.device):
            return cross_entropy + self.penalty()


@dataclass(kw_only=True, eq=False, repr=False)
class LPFT(FineTune):
    """Linear probing, then full fine-tuning from its head (Kumar et al. 2022, arXiv 2202.10054).

    The head starts as that of a :class:`LinearProbe`, bias and learnt scale included.
    A head that already fits the features lets the tower move less, and so distorts less of what it knows.
    ``fit`` trains the probe on cached features first; before it the head is the zero-shot classifier.

    Args:
        probe_lr, probe_epochs, probe_weight_decay: Of the probe; it shares batch size and seed.
        settings: Of the fine-tuning, as :class:`FineTune` takes them; ``epochs=0`` leaves the probe.

    Example:
        >>> LPFT(clip, class_names, templates, probe_lr=3e-2).fit(train)  # doctest: +SKIP
    """

    name = "lp-ft"

    probe_lr: float = 1e-2
    probe_epochs: int = 25
    probe_weight_decay: float = 0.0
    _probed = False

    def new_classifier(self, bias: bool = True) -> nn.Module:
        """A linear head with bias, as the probe's."""
        return super().new_classifier(bias)

    def before_training(self, train_set: ImageSet, store: FeatureStore) -> None:
        """Probe the frozen backbone and take over the head; a second ``fit`` goes on with the tuned one instead."""
        if self._probed:
            return
        probe = LinearProbe(
            self.clip, self.class_names, self.templates, lr=self.probe_lr, epochs=self.probe_epochs,
            batch_size=self.batch_size, weight_decay=self.probe_weight_decay, seed=self.seed,
        )  # fmt: skip
        self.classifier.load_state_dict(probe.fit(train_set, store=store).state_dict())
        self._probed = True

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Every weight of the tower, and the head with its bias."""
        super().load_state_dict(tensors)
        self._probed = True


@dataclass(kw_only=True, eq=False, repr=False)
class LipsumFT(FineTune):
    """Full fine-tuning that keeps the energies of random texts (Nam et al. 2024, arXiv 2404.00860).

    ::

        cross-entropy + strength / (2 M) * mean over images of |v - v_0|^2,  v = logit_scale * f @ texts.T

    v are the logits of M random texts for the tuned features f of an image, v_0 for those of zero-shot CLIP. The texts
    are drawn again in every step: ``length`` tokens, uniform over the vocabulary, between the marks.

    Defaults are those of the released code, whose 50,000 steps are 10 epochs of ImageNet, a tenth of them a warm-up
    (at most a fifth of a short run here). Images are not cropped or flipped at random, and the head holds the
    logit scale, as in :class:`FineTune`.

    Args:
        strength: >= 0, the paper's lambda; 0 is :class:`FineTune`.
        n_texts: M.
        length: Of a text, in tokens.
        lr, weight_decay: Of AdamW (.9, .999).
        epochs, batch_size, warmup_steps, schedule, settings: As :class:`FineTune` takes them.

    Raises:
        RPLibError: ``strength`` is negative or not finite, or the text tower does not hold such texts.

    Example:
        >>> LipsumFT(clip, class_names, templates, lr=3e-5).fit(train)  # doctest: +SKIP
    """

    name = "lipsum-ft"

    strength: float = 1.0
    n_texts: int = 80
    length: int = 8
    lr: float = 1e-5
    weight_decay: float = 0.0
    epochs: int = 10
    batch_size: int = 256
    warmup_steps: int = 5000
    schedule: str = "cosine"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._marks = self.clip.tokenize([""])[0]  # start, end and padding
        room = len(self._marks) - 2
        if self.length > room:
            raise RPLibError(f"length must be at most the {room} tokens that the text tower holds, got {self.length}")

    def parameter_groups(self) -> list[Group]:
        """Return all weights, with the released betas."""
        return [replace(group, betas=(0.9, 0.999)) for group in super().parameter_groups()]

    def random_texts(self) -> Tensor:
        """Draw M texts from torch's generator, which the training loop seeds in every step: int64 (M, length + 2)."""
        start, end = self._marks[:2].tolist()
        words = torch.randint(min(start, end), (self.n_texts, self.length)).to(self._marks.device)
        return F.pad(F.pad(words, (1, 0), value=start), (0, 1), value=end)

    def energy_gap(self, features: Tensor, start: Tensor, texts: Tensor) -> Tensor:
        """Compare features (n, d) with those of the start by what they say of texts (M, d); a scalar."""
        gap = self.clip.logit_scale * (features - start) @ texts.T  # v - v_0, (n, M)
        return gap.square().mean() / 2

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Compute cross-entropy plus the energy gap, a scalar."""
        features = gather(self.encode(inputs), len(labels))
        with torch.no_grad():
            start, texts = gather(self.clip.encode(inputs), len(labels)), self.clip.encode_tokens(self.random_texts())
        with in_float32(self.clip.device):
            gap = self.energy_gap(features, start, texts)
            return F.cross_entropy(self.classifier(features), labels) + self.strength * gap
