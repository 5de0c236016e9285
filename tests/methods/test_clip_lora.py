"""CLIP-LoRA against zero-shot CLIP, against weights merged by hand, and against plain attention written here."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import CLASSES, TEMPLATES, make_clip

from rp_lib.benchmark import ImageSet
from rp_lib.clip import FrozenCLIP
from rp_lib.methods import CLIPLoRA, ZeroShot
from rp_lib.methods.baselines.clip_lora import LowRank
from rp_lib.utils.errors import RPLibError


def make(clip: FrozenCLIP, **settings: object) -> CLIPLoRA:
    return CLIPLoRA(clip, CLASSES, TEMPLATES, **{"epochs": 2, "batch_size": 8, "lr": 0.01} | settings)


def test_untrained_it_is_zero_shot_to_the_bit(clip: FrozenCLIP, images: torch.Tensor, train_set: ImageSet):
    zero_shot, method = ZeroShot(clip, CLASSES, TEMPLATES), make(clip)
    assert torch.equal(method.features(images), zero_shot.features(images))
    assert torch.equal(method.logits(images), zero_shot.logits(images))
    # In training too, whatever is dropped: nothing of it is used as long as B is zero.
    method.set_training(True)
    expected = F.cross_entropy(zero_shot.logits(train_set.images), train_set.labels)
    torch.testing.assert_close(method.loss(train_set.images, train_set.labels), expected)


def test_fitted_it_is_clip_with_merged_weights(clip: FrozenCLIP, train_set: ImageSet, images: torch.Tensor):
    method = make(clip, rank=3, lora_alpha=2.0).fit(train_set)
    model = copy.deepcopy(clip.model)
    for key, tower in (("visual", model.visual.transformer), ("text", model.transformer)):
        layers = [block.attn for block in tower.resblocks]
        assert len(layers) == len(method.adapters[key]) == 2
        for layer, added in zip(layers, method.adapters[key], strict=True):
            width = layer.embed_dim
            for part in range(3):  # queries, keys, values
                change = 2 / math.sqrt(3) * added.B[part] @ added.A[part]
                assert torch.linalg.matrix_rank(change) == 3 and change.norm() > 1e-3
                layer.in_proj_weight.data[part * width : (part + 1) * width] += change.detach()
    merged = FrozenCLIP(
        model,
        clip.tokenizer,
        name="merged",
        mean=clip._mean.flatten().tolist(),
        std=clip._std.flatten().tolist(),
        image_size=32,
    )
    torch.testing.assert_close(method.logits(images), ZeroShot(merged, CLASSES, TEMPLATES).logits(images))
    assert (method.logits(images) - ZeroShot(clip, CLASSES, TEMPLATES).logits(images)).abs().max() > 0.1


@pytest.mark.parametrize("batch_first", [True, False])
def test_without_what_it_drops_a_training_step_is_one_of_merged_weights(
    train_set: ImageSet, monkeypatch: pytest.MonkeyPatch, batch_first: bool
):
    own = make_clip()
    for tower in (own.model.visual.transformer, own.model.transformer):
        tower.batch_first = batch_first
        for block in tower.resblocks:
            block.attn.batch_first = batch_first
    method = make(own)
    for p in method.adapters.parameters():
        p.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(p.numel()))
    losses, gradients = [], []
    for on in (False, True):
        method.set_training(on)  # merged weights; then the low-rank part beside the frozen one
        if on:
            monkeypatch.setattr(torch.nn.Dropout, "forward", lambda _, x: x)
        loss = method.loss(train_set.images, train_set.labels)
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, list(method.adapters.parameters())))
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_queries_keys_and_values_drop_inputs_of_the_low_rank_part_alone():
    added = LowRank(4, 2, 0.5, 0.5, torch.Generator().manual_seed(0)).train()
    added.B.data.normal_(generator=torch.Generator().manual_seed(1))
    x = torch.ones(1, 1, 4)
    merged = added(torch.zeros(12, 4))
    seen = set()
    torch.manual_seed(0)
    for _ in range(200):
        change = added.change(x).view(3, 4)
        kept = [  # each third is what some inputs, doubled, give
            tuple(mask) for part in range(3) for mask in torch.cartesian_prod(*[torch.tensor([0, 1])] * 4).tolist()
            if torch.allclose(change[part], merged[4 * part : 4 * part + 4] @ (2.0 * torch.tensor(mask)), atol=1e-5)
        ]  # fmt: skip
        assert len(kept) == 3
        seen.add(tuple(kept))
    assert len(seen) > 150  # the three are independent
    assert torch.allclose(added.eval().change(x)[0, 0], merged.sum(1), atol=1e-6)


def test_published_settings(clip: FrozenCLIP):
    method = CLIPLoRA(clip, CLASSES, TEMPLATES)
    shots = 16
    steps = method.epochs * shots * len(CLASSES) / method.batch_size
    assert steps == pytest.approx(500 * shots, rel=1e-3)
    assert (method.rank, method.lora_alpha, method.dropout, method.lr) == (2, 1.0, 0.25, 2e-4)
    (group,) = method.parameter_groups()
    assert (group.optimizer, group.weight_decay, group.betas) == ("adamw", 0.01, (0.9, 0.999))
    assert sum(p.numel() for p in group.parameters) == 2 * 3 * 2 * 2 * (64 + 32)  # layers, parts, A and B, rank, widths
    bound = max(float(a.A.detach().abs().max()) * a.A.shape[-1] ** 0.5 for t in method.adapters.values() for a in t)
    assert 0.9 < bound <= 1 and {k.rsplit(".")[-1] for k in method.state_dict()} == {"A", "B"}
    again, other = CLIPLoRA(clip, CLASSES, TEMPLATES), CLIPLoRA(clip, CLASSES, TEMPLATES, seed=2)
    assert torch.equal(again.adapters["text"][1].A, method.adapters["text"][1].A)
    assert not torch.equal(other.adapters["text"][1].A, method.adapters["text"][1].A)


def test_settings_and_towers_that_do_not_fit_are_refused(clip: FrozenCLIP):
    for wrong in ({"rank": 0}, {"dropout": 1.0}, {"dropout": -0.1}):
        with pytest.raises(RPLibError, match=r"rank of CLIPLoRA must be|dropout of CLIPLoRA must be"):
            make(clip, **wrong)
    resnet = make_clip(vision={"layers": (1, 1, 1, 1), "width": 8})
    with pytest.raises(RPLibError, match=r"ModifiedResNet.*none of torch's attention layers"):
        make(resnet)


def test_it_learns_the_mini_benchmark(mini_clip, mini_benchmark):
    clip, data = mini_clip, mini_benchmark
    train = data.train.subset(range(64))
    method = CLIPLoRA(clip, data.class_names, data.templates, epochs=3, lr=3e-3, precision="float32")
    losses = method.fit(train).history.losses
    assert len(losses) == 6 and sum(losses[-2:]) < 0.8 * sum(losses[:2])
