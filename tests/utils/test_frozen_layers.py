"""What a frozen layer computes, and through what its gradient flows."""

import copy
from collections import Counter

import open_clip
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rp_lib.utils.device import computing
from rp_lib.utils.frozen_layers import PatchProjection, speed_up_frozen_layers

CPU = torch.device("cpu")
CONFIG = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32}


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(0)
    text = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
    return open_clip.model.CLIP(32, CONFIG, text).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def faster(plain):
    return speed_up_frozen_layers(copy.deepcopy(plain))


class Operators(TorchDispatchMode):
    """Names of the operators that run, with the shape of their first input."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.seen[name, tuple(args[0].shape) if args and isinstance(args[0], torch.Tensor) else None] += 1
        return function(*args, **(kwargs or {}))


def gradient(model, images):
    images = images.clone().requires_grad_(True)
    with computing(CPU):
        features = model.encode_image(images)
    features.sin().sum().backward()
    return features.detach(), images.grad


def test_features_and_gradients_are_the_plain_models(plain, faster):
    images = torch.randn(5, 3, 32, 32)
    for expected, got in zip(gradient(plain, images), gradient(faster, images), strict=True):
        torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-5)
    with torch.no_grad():  # no gradient, no other way: equal to the bit
        assert torch.equal(plain.encode_image(images), faster.encode_image(images))


def test_no_weight_is_copied_per_token(plain, faster):
    """Seen through the operators: a product per token of the projection, and a convolution run backwards."""
    images, tokens, width = torch.randn(5, 3, 32, 32), 17, 64

    def operators(model):
        with Operators() as mode:
            gradient(model, images)
        per_token = sum(n for (name, shape), n in mode.seen.items() if name == "bmm" and shape == (tokens, 5, width))
        return per_token, sum(n for (name, _), n in mode.seen.items() if name == "convolution_backward")

    assert operators(plain) == (2, 1)  # one for each block
    assert operators(faster) == (0, 0)


def test_fine_tuning_a_copy_trains_every_weight_as_before(plain, faster):
    images = torch.randn(3, 3, 32, 32)
    grads = []
    for model in (plain, faster):
        tower = copy.deepcopy(model.visual).requires_grad_(True)
        with computing(CPU):
            tower(images).square().sum().backward()
        grads.append({name: p.grad for name, p in tower.named_parameters()})
    assert grads[0].keys() == grads[1].keys()
    for name, expected in grads[0].items():
        torch.testing.assert_close(grads[1][name], expected, atol=1e-5, rtol=1e-4)
    convolution = copy.deepcopy(faster.visual.conv1).requires_grad_(True)
    with Operators() as mode:  # weights that train are left to torch
        convolution(images.requires_grad_(True)).sum().backward()
    assert any(name == "convolution_backward" for name, _ in mode.seen)


def test_layers_stay_what_they_are(plain, faster):
    assert isinstance(faster.visual.conv1, nn.Conv2d) and isinstance(faster.visual.conv1, PatchProjection)
    assert plain.state_dict().keys() == faster.state_dict().keys()
    again = speed_up_frozen_layers(faster)  # a second time changes nothing
    assert all(len(m._forward_pre_hooks) <= 1 for m in again.modules())
    assert type(faster.visual.conv1) is PatchProjection


@pytest.mark.parametrize("size", [(32, 32), (37, 33)])
@pytest.mark.parametrize("bias", [False, True])
def test_patches_as_a_product(size, bias):
    """Also where the image is no whole number of patches: the rest is dropped, as by the convolution."""
    conv = nn.Conv2d(3, 16, (8, 4), stride=(8, 4), bias=bias).requires_grad_(False)
    x = torch.randn(2, 3, *size, requires_grad=True)
    expected = conv(x)
    (slope,) = torch.autograd.grad(expected.cos().sum(), x)
    speed_up_frozen_layers(nn.Sequential(conv))
    got = conv(x)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(torch.autograd.grad(got.cos().sum(), x)[0], slope, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "options", [{"stride": 4}, {"stride": 8, "padding": 1}, {"stride": 8, "dilation": 2}, {"stride": 8, "groups": 3}]
)
def test_other_convolutions_are_left_alone(options):
    conv = nn.Conv2d(3, 6, 8, **options)
    speed_up_frozen_layers(nn.Sequential(conv))
    assert type(conv) is nn.Conv2d


def test_attention_across_two_sequences_is_left_alone():
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(16, 2, batch_first=True).eval().requires_grad_(False)
    query, key = torch.randn(2, 3, 16, requires_grad=True), torch.randn(2, 3, 16)
    cases = ((query, key, key), (query, query, key), (query, key, query))
    expected = [layer(*case)[0] for case in cases]
    speed_up_frozen_layers(nn.Sequential(layer))
    for case, value in zip(cases, expected, strict=True):
        assert torch.equal(layer(*case)[0], value)
        assert torch.equal(layer(**dict(zip(("query", "key", "value"), case, strict=True)))[0], value)
