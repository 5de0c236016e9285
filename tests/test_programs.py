import math

import pytest
import torch
import torch.nn.functional as F
from conftest import CLASSES, TEMPLATES, make_clip, model_hash

from rp_lib.clip import FrozenCLIP
from rp_lib.programs import ImageProgram, TextProgram, _Clamp
from rp_lib.utils.errors import RPLibError, UnknownName

SIZE, PAD = 32, 5


def bicubic(images: torch.Tensor, size: int) -> torch.Tensor:
    return F.interpolate(images, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.rand(4, 3, 20, 20, generator=torch.Generator().manual_seed(0))


# Image program -------------------------------------------------------------------------------------------


def test_padding_geometry_is_exact(pixels: torch.Tensor):
    program = ImageProgram(SIZE, PAD, seed=3)
    out = program(pixels).detach()
    assert out.shape == (4, 3, SIZE, SIZE) and program.inner_size == SIZE - 2 * PAD
    inner = slice(PAD, SIZE - PAD)
    assert torch.equal(out[..., inner, inner], bicubic(pixels, SIZE - 2 * PAD))
    border = torch.ones(SIZE, SIZE, dtype=torch.bool)
    border[inner, inner] = False
    assert torch.equal(program.M.bool(), border) and set(program.M.unique().tolist()) == {0.0, 1.0}
    expected = torch.tanh(program.W.detach()).clamp(0, 1)
    for image in out:
        assert torch.equal(image[:, border], expected[:, border])


def test_overlay_keeps_the_image_at_full_size(pixels: torch.Tensor):
    program = ImageProgram(SIZE, PAD, placement="overlay", seed=3)
    full = bicubic(pixels, SIZE)
    expected = (full + torch.tanh(program.W.detach()) * program.M).clamp(0, 1)
    assert program.inner_size == SIZE
    assert (program(pixels).detach() - expected).abs().max() < 1e-6
    inner = slice(PAD, SIZE - PAD)
    assert torch.equal(program(pixels)[..., inner, inner], full[..., inner, inner])


@pytest.mark.parametrize("placement", ["pad", "overlay"])
def test_gradient_only_on_the_border(pixels: torch.Tensor, placement: str):
    program = ImageProgram(SIZE, PAD, placement=placement, init="grey")
    program(pixels).pow(2).sum().backward()
    outside = program.M == 0
    assert program.W.grad[:, outside].abs().max() == 0
    assert (program.W.grad[:, ~outside] != 0).float().mean() > (0.99 if placement == "pad" else 0.3)


def test_the_clamp_passes_gradients_at_its_bounds():
    x = torch.tensor([-2.0, -1e-6, 0.0, 0.5, 1.0, 1 + 1e-6, 2.0, math.inf, -math.inf], requires_grad=True)
    out = _Clamp.apply(x)
    assert torch.equal(out, x.detach().clamp(0, 1))
    out.backward(torch.full_like(x, 3.0))
    assert x.grad.tolist() == [0, 0, 3, 3, 3, 0, 0, 0, 0]
    # Away from the kinks it is torch's clamp, values and gradients alike.
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (mine,) = torch.autograd.grad(_Clamp.apply(x).sin().sum(), x)
    (theirs,) = torch.autograd.grad(x.clamp(0, 1).sin().sum(), x)
    assert torch.equal(mine, theirs) and torch.isnan(_Clamp.apply(torch.tensor([math.nan]))).all()


@pytest.mark.parametrize("placement", ["pad", "overlay"])
@pytest.mark.parametrize("init", ["zeros", "grey", "white", "normal"])
def test_a_border_learns_from_every_start(placement: str, init: str):
    # White pictures: in the overlay a border that starts at zero lies on the upper bound.
    program, white = ImageProgram(SIZE, PAD, placement=placement, init=init, seed=1), torch.ones(4, 3, SIZE, SIZE)
    before, goal = program.W.detach().clone(), 0.4
    optimizer = torch.optim.Adam(program.parameters(), lr=0.05)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = ((program(white) - goal) * program.M).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    border = program.M.bool()
    moved = (program.W.detach() - before)[:, border] != 0
    if init == "zeros":
        assert moved.all() and losses[-1] < 0.3 * losses[0]
    assert torch.equal((program.W.detach() - before)[:, ~border], torch.zeros(3, int((~border).sum())))


@pytest.mark.parametrize(
    ("side", "size", "padding"), [(20, 32, 0), (20, 32, 15), (64, 33, 16), (224, 224, 16), (1, 8, 2)]
)
def test_any_resolution(side: int, size: int, padding: int):
    out = ImageProgram(size, padding)(torch.rand(2, 3, side, side))
    assert out.shape == (2, 3, size, size) and out.min() >= 0 and out.max() <= 1


def test_zero_padding_is_plain_clip(clip: FrozenCLIP, images: torch.Tensor):
    assert torch.equal(ImageProgram(SIZE, 0)(images / 255), clip.prepare(images / 255))


@pytest.mark.parametrize("padding", [16, 17, 100, -1])
def test_padding_that_leaves_no_image(padding: int):
    with pytest.raises(RPLibError, match=f"padding of {padding} .*leaves no image; use 0 to 15"):
        ImageProgram(SIZE, padding)
    with pytest.raises(RPLibError, match="use 0 to 16"):
        ImageProgram(33, 17)
    assert ImageProgram(33, 16).inner_size == 1


def test_resolution_switch(pixels: torch.Tensor):
    program = ImageProgram(SIZE, PAD, resolution=6)
    inner = slice(PAD, SIZE - PAD)
    assert torch.equal(program(pixels)[..., inner, inner], bicubic(bicubic(pixels, 6), SIZE - 2 * PAD))
    program.resolution = None
    assert torch.equal(program(pixels)[..., inner, inner], bicubic(pixels, SIZE - 2 * PAD))


def test_starts():
    normal = ImageProgram(64, 8, init="normal", seed=1).W.detach()
    assert abs(float(normal.mean())) < 0.03 and abs(float(normal.std()) - 1) < 0.03
    assert torch.equal(normal, ImageProgram(64, 8, seed=1).W) and not torch.equal(normal, ImageProgram(64, 8, seed=2).W)
    for init, value in (("zeros", 0.0), ("grey", 0.5), ("white", 0.95)):
        border = ImageProgram(SIZE, PAD, init=init)(torch.zeros(1, 3, 8, 8))[0, :, 0, 0]
        assert border.tolist() == pytest.approx([value] * 3, abs=1e-6)
        assert ImageProgram(SIZE, PAD, init=init).W[0, 0, 0].item() == pytest.approx(math.atanh(value), abs=1e-6)


def test_unknown_switches():
    with pytest.raises(UnknownName, match="did you mean overlay"):
        ImageProgram(SIZE, PAD, placement="overlaid")
    with pytest.raises(UnknownName, match="did you mean zeros"):
        ImageProgram(SIZE, PAD, init="zero")


# Text program --------------------------------------------------------------------------------------------

OTHER = "dog wheel hydrant"  # no word of the class prompts
LONG = "dog wheel hydrant lamp tree house river cloud stone"


@torch.no_grad()
def trained(clip: FrozenCLIP, rows: str = "seen", *, theta: bool = True, b: bool = True) -> TextProgram:
    program = TextProgram(clip, CLASSES, TEMPLATES, rows=rows)
    g = torch.Generator().manual_seed(5)
    if theta:
        program.Theta.add_(torch.randn(program.Theta.shape, generator=g))
    if b:
        program.b.add_(0.3 * torch.randn(program.b.shape, generator=g))
    return program


@pytest.mark.parametrize("rows", ["seen", "all"])
@torch.no_grad()
def test_at_the_start_it_is_clip_exactly(clip: FrozenCLIP, rows: str):
    program = TextProgram(clip, CLASSES, TEMPLATES, rows=rows)
    assert torch.equal(program.class_embeddings(), clip.class_embeddings(CLASSES, TEMPLATES))
    for text in (OTHER, LONG, "a cat", ""):
        tokens = clip.tokenize([text])
        assert torch.equal(program.encode(tokens), clip.encode_tokens(tokens))


def test_only_the_words_of_the_class_prompts_are_trained(clip: FrozenCLIP):
    program = TextProgram(clip, CLASSES, TEMPLATES)
    words = {i for c in CLASSES for t in TEMPLATES for i in clip.tokenizer.encode(t.format(c))}
    assert set(program.token_ids.tolist()) == words
    assert program.Theta.shape == (len(words), 32) and program.b.shape == (program.tokens.shape[1], 32)
    assert set(dict(program.named_parameters())) == {"Theta", "b"}  # no backbone weight in it
    everything = TextProgram(clip, CLASSES, TEMPLATES, rows="all")
    assert everything.Theta.shape == (49408, 32)


@torch.no_grad()
def test_other_words_keep_their_meaning(clip: FrozenCLIP):
    program = trained(clip, b=False)
    for text in (OTHER, LONG):
        tokens = clip.tokenize([text])
        assert torch.equal(program.encode(tokens), clip.encode_tokens(tokens))
    cat = clip.tokenize(["cat"])
    assert (program.encode(cat) - clip.encode_tokens(cat)).abs().max() > 1e-2
    # With all rows trained, as released, they do not.
    tokens = clip.tokenize([OTHER])
    assert (trained(clip, "all", b=False).encode(tokens) - clip.encode_tokens(tokens)).abs().max() > 1e-2


@torch.no_grad()
def test_other_prompts_change_by_b_alone(clip: FrozenCLIP):
    tokens = clip.tokenize([OTHER])
    program, only_b = trained(clip), trained(clip, theta=False)
    only_b.b.copy_(program.b)
    assert torch.equal(program.encode(tokens), only_b.encode(tokens))
    assert (program.encode(tokens) - clip.encode_tokens(tokens)).abs().max() > 1e-3
    part, length = clip.model, len(program.b)
    embedded = program(clip.tokenize([LONG]))[0]
    own = part.token_embedding(clip.tokenize([LONG]))[0]
    assert torch.equal(embedded[:length], own[:length] + program.b)
    assert torch.equal(embedded[length:], own[length:] + part.positional_embedding[length:])


@torch.no_grad()
def test_what_the_transformer_reads(clip: FrozenCLIP):
    program = trained(clip)
    tokens = program.tokens[:2]
    embedded = program(tokens)
    for n, row in enumerate(tokens.tolist()):
        for position, token in enumerate(row):
            where = (program.token_ids == token).nonzero()
            own = program.Theta[where[0, 0]] if len(where) else clip.model.token_embedding.weight[token]
            assert torch.equal(embedded[n, position], own + program.b[position])


@torch.no_grad()
def test_a_text_longer_than_the_class_prompts(clip: FrozenCLIP):
    program = trained(clip)
    tokens = clip.tokenize(["a photo of a fire engine . " + LONG])
    assert program.encode(tokens).shape == (1, clip.embed_dim) and len(program.b) < clip.model.context_length


def test_gradients_reach_theta_and_b_only():
    clip = make_clip()
    before = model_hash(clip.model)
    program = TextProgram(clip, CLASSES, TEMPLATES)
    program.class_embeddings()[:, 0].sum().backward()
    assert (program.Theta.grad.abs().sum(1) > 0).all() and (program.b.grad.abs().sum(1) > 0).all()
    assert all(p.grad is None for p in clip.model.parameters()) and model_hash(clip.model) == before


@torch.no_grad()
def test_some_classes_only(clip: FrozenCLIP):
    program = trained(clip)
    some = program.class_embeddings(torch.tensor([2, 0]))
    assert (some - program.class_embeddings()[[2, 0]]).abs().max() < 1e-6
    assert (some.norm(dim=1) - 1).abs().max() < 1e-6


def test_unknown_rows(clip: FrozenCLIP):
    with pytest.raises(UnknownName, match="did you mean seen"):
        TextProgram(clip, CLASSES, TEMPLATES, rows="seem")
