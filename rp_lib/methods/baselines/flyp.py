"""FLYP, "finetune like you pretrain" (Goyal et al. 2023, arXiv 2212.00638)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rp_lib.losses import reprogramming_loss
from rp_lib.methods.fine_tune import FineTune
from rp_lib.towers import cut_padding, encode_tokens, text_part
from rp_lib.utils.device import computing, in_float32
from rp_lib.utils.distributed import gather, shared
from rp_lib.utils.errors import RPLibError


class TextHead(nn.Module):
    """A trainable copy of CLIP's text tower, as far as a task's prompts use it, and the logit scale.

    Rows of words that no prompt holds and positions behind the longest prompt would get no gradient: they are left
    out, which is exact but for the decay that they would suffer, and spares the optimizer most of a large table.

    Args:
        model: An open_clip CLIP with a causal text transformer; stays as it is.
        tokens: int (C * T, length), the prompts class by class.
        n_classes: C.

    Attributes:
        token_ids: int64 (k,), ascending, which rows of the vocabulary ``token_embedding`` holds.
        log_scale: float32 (), log of the factor on cosine similarities.
    """

    token_ids: Tensor
    tokens: Tensor
    attn_mask: Tensor

    def __init__(self, model: nn.Module, tokens: Tensor, n_classes: int) -> None:
        super().__init__()
        part, tokens = text_part(model), cut_padding(tokens)
        ids = tokens.unique()
        # The tower has the layout that encode_tokens expects. Ids keep their order, so the end mark stays the largest.
        self.token_embedding = nn.Embedding.from_pretrained(part.token_embedding.weight[ids].detach().clone())
        self.positional_embedding = nn.Parameter(part.positional_embedding[: tokens.shape[1]].detach().clone())
        self.transformer, self.ln_final = copy.deepcopy(part.transformer), copy.deepcopy(part.ln_final)
        self.text_projection = copy.deepcopy(part.text_projection)
        self.log_scale = nn.Parameter(model.logit_scale.detach().float().clone())
        self.requires_grad_(True)
        self.register_buffer("attn_mask", part.attn_mask, persistent=False)
        self.register_buffer("token_ids", ids)
        rows = torch.searchsorted(ids, tokens.contiguous()).view(n_classes, -1, tokens.shape[1])
        self.register_buffer("tokens", rows, persistent=False)

    def forward(self, classes: Tensor | None = None) -> Tensor:
        """Unit float32 (C, d) class embeddings: prompts encoded, normalised, averaged and normalised again.

        ``classes`` (int (k,)) limits them to some classes, (k, d).
        """
        tokens = self.tokens if classes is None else self.tokens[classes]
        with computing(tokens.device):
            features = encode_tokens(self, tokens.flatten(0, 1))
        features = F.normalize(features.float(), dim=-1).view(*tokens.shape[:2], -1)
        return F.normalize(features.mean(1), dim=-1)


class FLYP(FineTune):
    """All weights of both towers and the logit scale, trained with the contrastive loss of pre-training.

    A batch's images meet their class prompts, both directions averaged, image i's only positive being its own copy
    of the prompt. With cross-entropy such identity targets are harmless: for logits z (n, C) and n_c images of class
    c in the batch, the image-to-text direction equals ``cross_entropy(z + log n_c, y) + mean_i log n_{y_i}``.

    Each class has one embedding, the mean over its templates, where the authors draw one template per image;
    with one template that is the same. Inference compares with the tuned class prompts. The arguments are those of
    :class:`FineTune`; the head is a :class:`TextHead`.

    Example:
        >>> FLYP(clip, class_names, templates, lr=1e-5).fit(train)  # doctest: +SKIP
    """

    name = "flyp"

    _class_weights = None

    def new_classifier(self, bias: bool = False) -> nn.Module:
        """A copy of the text tower, holding the class prompts; there is no bias."""
        prompts = [t.format(c) for c in self.class_names for t in self.templates]
        return TextHead(self.clip.model, self.clip.tokenize(prompts), len(self.class_names))

    def set_training(self, on: bool) -> None:
        """Switch both towers; the class prompts are encoded again after training."""
        super().set_training(on)
        self._class_weights = None

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The contrastive loss; prompts of classes that the batch lacks count nothing and are not encoded."""
        present, labels = labels.unique(return_inverse=True)
        features, prompts = gather(self.encode(inputs), len(labels)), shared(self.classifier, present)
        with in_float32(self.clip.device):
            logits = self.classifier.log_scale.exp() * features @ prompts.T
            return reprogramming_loss(logits, labels, "contrastive-identity")

    @torch.no_grad()
    def class_weights(self) -> Tensor:
        """Tuned class embeddings times the tuned logit scale, float32 (C, d) on the CPU; encoded once."""
        if self._class_weights is None:
            self._class_weights = (self.classifier.log_scale.exp() * self.classifier()).cpu()
        return self._class_weights

    def head(self, features: Tensor) -> Tensor:
        """Cosine similarity to the tuned class prompts times the tuned logit scale."""
        return features @ self.class_weights().T

    @torch.no_grad()
    def encode_classes(self, words: Sequence[str]) -> Tensor:
        """The tuned text tower's embeddings of any class names; rows of words that no prompt held are CLIP's own."""
        prompts = [t.format(w) for w in words for t in self.templates]
        head = TextHead(self.clip.model, self.clip.tokenize(prompts), len(words)).to(self.clip.device)
        for part in ("transformer", "ln_final", "text_projection"):
            mine, tuned = getattr(head, part), getattr(self.classifier, part)
            if isinstance(mine, nn.Parameter):
                mine.copy_(tuned)
            elif mine is not None:
                mine.load_state_dict(tuned.state_dict())
        length = min(len(head.positional_embedding), len(self.classifier.positional_embedding))
        head.positional_embedding[:length] = self.classifier.positional_embedding[:length]
        both = torch.isin(head.token_ids, self.classifier.token_ids)
        rows = torch.searchsorted(self.classifier.token_ids, head.token_ids[both])
        head.token_embedding.weight[both] = self.classifier.token_embedding.weight[rows]
        return head().cpu()

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Both towers and the logit scale.

        Raises:
            RPLibError: they were trained on prompts of other words.
        """
        ids = tensors.get("head.token_ids")
        if ids is None or not torch.equal(ids, self.classifier.token_ids):
            raise RPLibError("the saved text tower was trained on other words; use the same class names and templates")
        super().load_state_dict(tensors)
