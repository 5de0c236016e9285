"""LoCoOp and GL-MCM against closed forms, and patches against a tower that is walked by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CLASSES, make_clip

from rp_lib.benchmark import ImageSet
from rp_lib.clip import FrozenCLIP
from rp_lib.features import FeatureStore, encode_all
from rp_lib.methods import CoOp, ZeroShot
from rp_lib.methods.baselines.locoop import LoCoOp, PatchEncoder, gl_mcm
from rp_lib.methods.linear_probe import LinearProbe
from rp_lib.utils.errors import RPLibError

PHOTO = ("a photo of a {}.",)
QUICK = {"epochs": 2, "batch_size": 8, "lr": 0.05, "n_context": 2, "precision": "float32"}


def make(clip: FrozenCLIP, **more: object) -> LoCoOp:
    return LoCoOp(clip, CLASSES, PHOTO, **(QUICK | more))


def test_patches_are_the_values_of_the_last_block(clip: FrozenCLIP, train_set: ImageSet):
    images, visual = train_set.images[:3], clip.model.visual
    rows = PatchEncoder(clip).encode(images).unflatten(1, (-1, clip.embed_dim))
    assert torch.allclose(rows[:, 0], clip.encode(images), atol=1e-5)
    assert rows.shape[1] == 1 + visual.grid_size[0] * visual.grid_size[1]
    # By hand: the value of a place, through the output projection, without any attention.
    seen: list[torch.Tensor] = []
    last = visual.transformer.resblocks[-1]
    hook = last.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    clip.encode(images)
    hook.remove()
    x = seen[0] if visual.transformer.batch_first else seen[0].transpose(0, 1)
    weight, bias = last.attn.in_proj_weight.chunk(3)[2], last.attn.in_proj_bias.chunk(3)[2]
    with torch.no_grad():
        x = x + last.attn.out_proj(F.linear(last.ln_1(x), weight, bias))
        x = x + last.mlp(last.ln_2(x))
        by_hand = F.normalize(visual.ln_post(x)[:, 1:] @ visual.proj, dim=-1)
    assert torch.allclose(rows[:, 1:], by_hand, atol=1e-5)


def test_the_loss_is_cross_entropy_minus_the_entropy_of_the_background(clip: FrozenCLIP, train_set: ImageSet):
    method = make(clip, strength=0.7, share=0.5)
    inputs, labels = method.training_inputs(train_set, FeatureStore())[:6], train_set.labels[:6]
    prompts = method.prompt_embeddings().detach()
    rows = inputs.unflatten(1, (-1, prompts.shape[1]))
    entropies = []
    for row, label in zip(rows, labels.tolist(), strict=True):
        for patch in row[1:]:
            p = (clip.logit_scale * patch @ prompts.T).softmax(0)
            if label not in p.argsort(descending=True)[: round(0.5 * len(CLASSES))].tolist():
                entropies.append(-float((p * (p + 1e-5).log()).sum()))
    assert len(entropies) > 3
    plain = F.cross_entropy(clip.logit_scale * rows[:, 0] @ prompts.T, labels)
    assert float(method.loss(inputs, labels).detach()) == pytest.approx(
        float(plain) - 0.7 * np.mean(entropies), abs=1e-4
    )


def test_without_strength_it_is_coop(clip: FrozenCLIP, train_set: ImageSet):
    plain = CoOp(clip, CLASSES, PHOTO, **QUICK).fit(train_set)
    assert torch.allclose(
        make(clip, strength=0.0).fit(train_set).class_embeddings(), plain.class_embeddings(), atol=1e-4
    )
    learnt = make(clip, strength=2.0).fit(train_set)
    assert not torch.allclose(learnt.class_embeddings(), plain.class_embeddings(), atol=1e-3)


def test_a_task_without_background_trains(clip: FrozenCLIP, train_set: ImageSet):
    method = make(clip, share=1.0)  # no patch is background
    inputs, labels = method.training_inputs(train_set, FeatureStore())[:6], train_set.labels[:6]
    logits = clip.logit_scale * clip.encode(train_set.images[:6]) @ method.prompt_embeddings().T
    assert float(method.loss(inputs, labels).detach()) == pytest.approx(
        float(F.cross_entropy(logits, labels)), abs=1e-4
    )


def test_gl_mcm_is_the_sum_of_the_image_s_and_its_best_patch_s(clip: FrozenCLIP, val_set: ImageSet):
    method = ZeroShot(clip, CLASSES, PHOTO)
    rows = encode_all(PatchEncoder(clip), val_set.images)
    probable = (rows.unflatten(1, (-1, clip.embed_dim)) @ method.class_embeddings.T / 0.5).softmax(-1)
    wanted = probable[:, 0].amax(1) + probable[:, 1:].flatten(1).amax(1)
    found = gl_mcm(method, rows, temperature=0.5)
    assert found.dtype == np.float64 and np.allclose(found, wanted, atol=1e-6)
    assert gl_mcm(make(clip).fit(val_set), rows).shape == found.shape


def test_bad_input_is_refused(clip: FrozenCLIP, val_set: ImageSet):
    for wrong in ({"strength": -0.1}, {"share": 0.0}, {"share": 1.5}, {"strength": float("nan")}):
        with pytest.raises(RPLibError, match=r"(strength|share) of LoCoOp must be"):
            make(clip, **wrong)
    rows = PatchEncoder(clip).encode(val_set.images)
    with pytest.raises(RPLibError, match="temperature of gl_mcm must be above 0"):
        gl_mcm(ZeroShot(clip, CLASSES, PHOTO), rows, temperature=0.0)
    with pytest.raises(RPLibError, match="linear-probe"):
        gl_mcm(LinearProbe(clip, CLASSES, PHOTO), rows)
    resnet = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32}
    with pytest.raises(RPLibError, match="image tower is a ModifiedResNet; this method needs"):
        make(make_clip(vision=resnet))
