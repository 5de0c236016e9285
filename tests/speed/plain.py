"""The pattern of the authors' released code, written anew for comparison, with its wastes kept on purpose.

One prompt per image, texts of full length, weight gradients of the whole model, a PIL round trip per image, all class
prompts encoded again for every batch, the frozen encoder run in every epoch of a linear probe. Same model, same
batch, same precision, same loss as ours: what differs is the waste alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from rp_lib import FrozenCLIP
from rp_lib.utils.device import computing, in_float32

TEMPLATE = "a photo of a {}"


def prepare(images: Tensor, size: int) -> Tensor:
    """uint8 (n, 3, h, w) -> float32 (n, 3, size, size) in [0, 1], one image after the other by way of PIL."""
    made = []
    for image in images:
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).convert("RGB")
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
        made.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255)
    return torch.stack(made)


class Plain:
    """A CLIP whose weights take gradients, and steps of three methods on it.

    Args:
        clip: shares its weights; gradients are switched on here. classes: names. dtype: of autocast, or None.
    """

    def __init__(self, clip: FrozenCLIP, classes: Sequence[str], dtype: torch.dtype | None) -> None:
        self.clip, self.classes, self.dtype = clip, list(classes), dtype
        self.model: Any = clip.model.requires_grad_(True)
        size = clip.image_size
        self.W = nn.Parameter(torch.randn(3, size, size))
        self.M = torch.ones(size, size)
        self.M[16:-16, 16:-16] = 0
        self.Theta = nn.Parameter(self.model.token_embedding.weight.detach().clone())
        self.b = nn.Parameter(self.model.positional_embedding.detach().clone())
        self.head = nn.Linear(clip.embed_dim, len(self.classes))
        self.programs = torch.optim.AdamW([self.W, self.Theta, self.b], 5e-4)
        self.whole = torch.optim.AdamW([*self.model.visual.parameters(), *self.head.parameters()], 3e-5)
        self.probe = torch.optim.Adam(self.head.parameters(), 1e-2)

    def texts(self, prompts: Sequence[str], programmed: bool = True) -> Tensor:
        """Unit (n, d) features of prompts at full length, one row each."""
        tokens, m = self.clip.tokenize(prompts), self.model
        x = (
            F.embedding(tokens, self.Theta) + self.b
            if programmed
            else m.token_embedding(tokens) + m.positional_embedding
        )
        x = m.ln_final(m.transformer(x, attn_mask=m.attn_mask))[torch.arange(len(x)), tokens.argmax(1)]
        return F.normalize((x @ m.text_projection).float(), dim=-1)

    def images(self, pixels: Tensor) -> Tensor:
        """Unit (n, d) features of pixels in [0, 1]."""
        return F.normalize(self.model.visual(self.clip.normalize(pixels)).float(), dim=-1)

    def rp_step(self, images: Tensor, labels: Tensor) -> float:
        """Reprogramming: a prompt per image, contrastive, gradients for every weight of the model."""
        pixels = prepare(images, self.clip.image_size)
        with computing(self.clip.device, self.dtype):
            seen = self.images((pixels + torch.tanh(self.W * self.M)).clamp(0, 1))
            said = self.texts([TEMPLATE.format(self.classes[y]) for y in labels.tolist()])
            with in_float32(self.clip.device):
                logits = self.clip.logit_scale * seen @ said.T
                target = torch.arange(len(labels))
                loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        return self._step(loss, self.programs)

    def fine_tune_step(self, images: Tensor, labels: Tensor) -> float:
        """Full fine-tuning with a linear head."""
        pixels = prepare(images, self.clip.image_size)
        with computing(self.clip.device, self.dtype):
            seen = self.images(pixels)
            with in_float32(self.clip.device):
                loss = F.cross_entropy(self.head(seen), labels)
        return self._step(loss, self.whole)

    def probe_step(self, images: Tensor, labels: Tensor) -> float:
        """Linear probing that encodes its images again in every epoch, in float32 as ours."""
        with torch.no_grad(), computing(self.clip.device):
            seen = self.images(prepare(images, self.clip.image_size))
        return self._step(F.cross_entropy(self.head(seen), labels), self.probe)

    def _step(self, loss: Tensor, optimiser: torch.optim.Optimizer) -> float:
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        self.model.zero_grad(set_to_none=True)
        return float(loss.detach())

    @torch.no_grad()
    def residual(self, images: Tensor, alpha: float, batch: int = 50) -> Tensor:
        """Logits (n, C) of RRP at one alpha: both models, and all class prompts, encoded again for every batch."""
        prompts, made = [TEMPLATE.format(c) for c in self.classes], []
        for part in images.split(batch):
            pixels = prepare(part, self.clip.image_size)
            with computing(self.clip.device):
                seen = self.images((pixels + torch.tanh(self.W * self.M)).clamp(0, 1))
                mixed = F.normalize((1 - alpha) * seen + alpha * self.images(pixels), dim=-1)
                text = (1 - alpha) * self.texts(prompts) + alpha * self.texts(prompts, programmed=False)
            made.append(self.clip.logit_scale * mixed @ F.normalize(text, dim=-1).T)
        return torch.cat(made)
