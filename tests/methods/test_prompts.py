import copy
import itertools
import signal
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import CLASSES, CONTEXT, TEMPLATES, make_clip, make_model, make_set, model_hash
from open_clip.model import CustomTextCLIP
from torch import nn

from rp_lib.benchmark import ImageSet
from rp_lib.clip import FrozenCLIP, resize
from rp_lib.config import PAPER
from rp_lib.features import FeatureStore
from rp_lib.methods import (
    METHODS,
    CoOp,
    DeepPrompts,
    ImageReprogrammer,
    Method,
    Reprogrammer,
    TextReprogrammer,
    ZeroShot,
    build_method,
    load_method,
)
from rp_lib.run.search import SPACES, choose, draw_trials, near_ties, search, settings_of, trials_of
from rp_lib.towers import (
    embed,
    encode_embedded,
    encode_prompted,
    encode_tokens,
    end_positions,
    replace_tokens,
    vision_part,
    walk_blocks,
)
from rp_lib.utils.errors import RPLibError, UnknownName

PHOTO = ("a photo of a {}.",)  # 4 words in front of the class, a full stop behind it
QUICK = {"epochs": 2, "batch_size": 8, "lr": 0.02, "precision": "float32"}
CONFIG = PAPER.changed(epochs=2, batch_size=8, warmup_steps=1, image_lr=0.1, text_lr=0.02, padding=0.2)
FAMILY = {
    "coop": QUICK,
    "maple": QUICK,
    "rp-image": {"config": CONFIG, "precision": "float32"},
    "rp-text": {"config": CONFIG, "precision": "float32"},
}


def make(name: str, clip: FrozenCLIP, templates: tuple[str, ...] = PHOTO, **more: object) -> Method:
    return build_method(name, clip, CLASSES, templates, FAMILY[name] | more)


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).detach().abs().max())


@pytest.fixture(scope="module")
def zero(clip: FrozenCLIP) -> ZeroShot:
    return ZeroShot(clip, CLASSES, PHOTO)


# The towers, block by block ------------------------------------------------------------------------------


VISIONS = [
    {},
    {"pool_type": "avg"},
    {"final_ln_after_pool": True},
    {"no_ln_pre": True, "ls_init_value": 0.5},
    {"patch_dropout": 0.5, "block_type": "custom", "qk_norm": True},
]


def sequence_first(model: nn.Module) -> nn.Module:
    """The same weights in open_clip's older layout."""
    for transformer in (model.visual.transformer, model.transformer):
        transformer.batch_first = False
        for block in transformer.resblocks:
            block.attn.batch_first = False
    return model


@pytest.mark.parametrize("vision", VISIONS)
def test_image_tower_without_prompts_is_the_untouched_one(vision: dict, images: torch.Tensor):
    model = make_model(vision=vision).eval()
    pixels = resize(images.float() / 255, 32)
    nothing = torch.zeros(0, 64)
    with torch.no_grad():
        ours, theirs = encode_prompted(vision_part(model), pixels, nothing), model.encode_image(pixels)
        assert gap(ours, theirs) < 1e-5 and theirs.std() > 0.01
        some = encode_prompted(vision_part(model), pixels, torch.ones(2, 64))
        assert gap(some, theirs) > 1e-3


def test_prompts_are_read_but_not_pooled(images: torch.Tensor):
    model = make_model(vision={"pool_type": "avg"}).eval()
    visual, pixels, first = model.visual, resize(images.float() / 255, 32), torch.randn(3, 64)
    with torch.no_grad():
        x = torch.cat([visual._embeds(pixels), visual.ln_pre(first).expand(7, 3, 64)], 1)
        expected = visual.ln_post(visual.transformer(x))[:, 1:5].mean(1) @ visual.proj  # four patches
        assert gap(encode_prompted(visual, pixels, first), expected) < 1e-5


def test_both_layouts_are_walked(clip: FrozenCLIP, images: torch.Tensor):
    one, two = make_model().eval(), sequence_first(make_model().eval())
    pixels, tokens = resize(images.float() / 255, 32), clip.tokenize(["a cat", "a photo of a cup"])
    first, deep = torch.randn(2, 64), [torch.randn(2, 64)]
    with torch.no_grad():
        for model in (one, two):
            assert gap(model.encode_image(pixels), one.encode_image(pixels)) < 1e-5
            text = encode_embedded(
                model, embed(model, tokens), end_positions(tokens),
                lambda x, attn_mask, t=model.transformer: walk_blocks(t, x, attn_mask=attn_mask),
            )  # fmt: skip
            assert gap(text, model.encode_text(tokens)) < 1e-5
        prompted = [encode_prompted(vision_part(m), pixels, first, deep) for m in (one, two)]
        assert gap(*prompted) < 1e-5 and gap(prompted[0], one.encode_image(pixels)) > 1e-2


def test_prompts_stand_where_they_should_in_front_of_every_block():
    """Seen from the blocks: what each of them is handed."""
    seen: list[torch.Tensor] = []

    class Block(nn.Module):
        def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None) -> torch.Tensor:
            seen.append(x)
            return x + 1

    transformer = nn.Module()
    transformer.resblocks, transformer.batch_first = nn.ModuleList(Block() for _ in range(4)), True
    x, deep = torch.zeros(3, 5, 2), [torch.full((2, 2), 10.0), torch.full((2, 2), 20.0)]
    out = walk_blocks(transformer, x, deep, at=1)
    # The second and third blocks get prompts of their own, the fourth what became of the third's.
    assert [s[0, :, 0].tolist() for s in (*seen, out)] == [
        [0, 0, 0, 0, 0], [1, 10, 10, 1, 1], [2, 20, 20, 2, 2], [3, 21, 21, 3, 3], [4, 22, 22, 4, 4],
    ]  # fmt: skip
    assert torch.equal(x, torch.zeros(3, 5, 2))
    assert replace_tokens(x, torch.ones(3, 1, 2), 4)[:, :, 0].tolist() == [[0, 0, 0, 0, 1]] * 3


def test_towers_that_do_not_fit_are_refused():
    resnet = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32}
    with pytest.raises(RPLibError, match=r"ModifiedResNet.*ViT-B-32"):
        DeepPrompts(make_clip(vision=resnet), CLASSES, PHOTO)
    with pytest.raises(RPLibError, match="CoCa"):
        vision_part(make_model(vision={"attentional_pool": True, "attn_pooler_heads": 2}))
    dropping = make_model(vision={"patch_dropout": 0.5})
    assert vision_part(dropping.eval()) is dropping.visual
    with pytest.raises(RPLibError, match="drops patches"):
        vision_part(dropping.train())
    vision = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "head_width": 32}
    text = {"context_length": CONTEXT, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1, "embed_cls": True}
    tokenizer = make_clip().tokenizer
    coca_like = copy.copy(make_clip())
    coca_like.model, coca_like.tokenizer = CustomTextCLIP(32, vision, text), tokenizer
    for method in (DeepPrompts, CoOp):
        with pytest.raises(RPLibError, match="end mark"):
            method(coca_like, CLASSES, PHOTO)


# Context in the prompts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [None, 4, 2, 1])
@pytest.mark.parametrize("class_specific", [False, True])
def test_coop_from_words_starts_as_zero_shot(n, class_specific, clip, zero, images):
    coop = CoOp(clip, CLASSES, PHOTO, n_context=n, start="words", class_specific=class_specific)
    assert coop.n_context == (n or 4)
    assert coop.prompts.context.shape == ((3, n or 4, 32) if class_specific else (n or 4, 32))
    assert gap(coop.class_embeddings(), zero.class_embeddings) < 1e-6
    assert gap(coop.logits(images), zero.logits(images)) < 1e-4
    assert torch.equal(coop.features(images), zero.features(images))


@pytest.mark.parametrize("start", ["words", "random"])
def test_coop_with_a_rate_of_zero_stays_where_it_starts(start, clip, zero, train_set, val_set, images):
    coop, untrained = (make("coop", clip, lr=1e-30, start=start, n_context=4) for _ in range(2))
    coop.fit(train_set, val_set)
    assert len(coop.history.losses) == 6 and torch.equal(
        coop.state_dict()["context"], untrained.state_dict()["context"]
    )
    if start == "words":
        assert gap(coop.logits(images), zero.logits(images)) < 1e-4
        assert coop.history.accuracies == [pytest.approx(zero.accuracy(val_set))] * 2
    else:
        assert gap(coop.logits(images), zero.logits(images)) > 0.1


def test_prompts_by_hand(clip: FrozenCLIP):
    """[start] v v v [class] [.] [end], read by open_clip's own text tower."""
    coop = CoOp(clip, CLASSES, PHOTO, n_context=3, seed=5)
    model, context = clip.model, coop.prompts.context
    assert context.shape == (3, 32) and 0.01 < context.std() < 0.03
    expected = torch.randn(3, 32, generator=torch.Generator().manual_seed(5)) * 0.02
    assert gap(context, expected) < 1e-6
    for row, name in enumerate(CLASSES):
        tokens = clip.tokenize([f"x x x {name}."])  # three words of one token each make room
        table = copy.deepcopy(model.token_embedding.weight)
        with torch.no_grad():
            x = table[tokens]
            x[0, 1:4] = context
            x = model.transformer(x + model.positional_embedding, attn_mask=model.attn_mask)
            x = model.ln_final(x)[0, tokens.argmax()] @ model.text_projection
        assert gap(coop.class_embeddings()[row], F.normalize(x, dim=0)) < 1e-5


def test_more_vectors_than_words(clip: FrozenCLIP):
    """The words keep their place in front of the class name; the others come first and are random."""
    rows = clip.model.token_embedding.weight
    words = rows[clip.tokenize(["a photo of a"])[0, 1:5]]
    context = CoOp(clip, CLASSES, PHOTO, n_context=6, start="words").prompts.context
    assert torch.equal(context[2:], words) and 0.01 < context[:2].std() < 0.03
    bare = DeepPrompts(clip, CLASSES, ("{}",), n_prompts=2)  # no words to start from
    assert 0.01 < bare.prompts.context.std() < 0.03
    two = DeepPrompts(clip, CLASSES, PHOTO)
    assert torch.equal(two.prompts.context, words[:2])


def test_as_many_vectors_as_fit(clip: FrozenCLIP):
    # 16 positions: two marks, "fire engine." takes three.
    assert CoOp(clip, CLASSES, PHOTO).n_context == CONTEXT - 2 - 3
    assert CoOp(clip, ("cat", "cup"), ("{}",)).n_context == CONTEXT - 2 - 1
    assert CoOp(clip, CLASSES, PHOTO, n_context=11).prompts.tokens.shape == (3, CONTEXT)
    with pytest.raises(RPLibError, match="n_context of CoOp must be at least 1"):
        CoOp(clip, CLASSES, PHOTO, n_context=0)
    for n in (12, 16):
        with pytest.raises(RPLibError, match=rf"{n} context vectors.*16 positions.*'fire engine\.'\) 3.*use 1 to 11"):
            CoOp(clip, CLASSES, PHOTO, n_context=n)
    with pytest.raises(RPLibError, match="not trained 2; use 1 to 1"):  # "of a" stays
        DeepPrompts(clip, ("one " * 10, "cat"), PHOTO, n_prompts=2)
    with pytest.raises(RPLibError, match="use shorter class names"):
        CoOp(clip, ("one " * 14, "cat"), PHOTO)
    with pytest.raises(RPLibError, match=r"no word before {} to start from"):
        CoOp(clip, CLASSES, ("{} on a table",), start="words")
    with pytest.raises(RPLibError, match=r"'a non{}' run into the class name: put a space"):
        CoOp(clip, CLASSES, ("a non{}",), start="words")
    with pytest.raises(UnknownName, match="did you mean words"):
        CoOp(clip, CLASSES, PHOTO, start="word")


def test_a_long_context_tower_takes_sixteen():
    from open_clip.tokenizer import SimpleTokenizer

    model = make_model(text={"context_length": 77})
    options = {"name": "long", "mean": (0.5,) * 3, "std": (0.25,) * 3, "image_size": 32}
    assert CoOp(FrozenCLIP(model, SimpleTokenizer(), **options), CLASSES, PHOTO).n_context == 16


def test_coop_never_runs_the_image_tower_twice(own_clip, train_set, val_set, images, monkeypatch):
    store, coop = FeatureStore(), make("coop", own_clip)
    store.get(own_clip, train_set), store.get(own_clip, val_set)
    monkeypatch.setattr(own_clip.model.visual, "forward", lambda *_: pytest.fail("the image tower ran again"))
    coop.fit(train_set, val_set, store=store)
    assert coop.encoders == (own_clip,) and len(coop.history.losses) == 6


def test_coop_follows_sgd_by_hand(clip: FrozenCLIP, train_set: ImageSet):
    """One step on the whole set: momentum has no past, the decay is an L2 term."""
    coop = CoOp(
        clip, CLASSES, PHOTO, n_context=2, lr=0.5, weight_decay=0.3, epochs=1, batch_size=24, precision="float32"
    )
    before = coop.prompts.context.detach().clone()
    features = F.normalize(clip.encode(train_set.images), dim=1)
    loss = F.cross_entropy(clip.logit_scale * features @ coop.prompt_embeddings().T, train_set.labels)
    (gradient,) = torch.autograd.grad(loss, coop.prompts.context)
    coop.fit(train_set)
    assert coop.history.losses == [pytest.approx(loss.item(), abs=1e-4)]
    step = 0.5 * (gradient + 0.3 * before)
    assert step.abs().max() > 1e-3 and gap(coop.prompts.context, before - step) < 1e-3 * float(step.abs().max())


def test_class_specific_contexts_part(clip: FrozenCLIP, train_set: ImageSet):
    shared, own = (
        make("coop", clip, n_context=2, start="words", class_specific=c).fit(train_set) for c in (False, True)
    )
    assert shared.state_dict()["context"].shape == (2, 32)
    context = own.state_dict()["context"]
    assert context.shape == (3, 2, 32) and gap(context[0], context[1]) > 1e-4


# Deep prompts --------------------------------------------------------------------------------------------


def test_deep_prompts_by_hand(clip: FrozenCLIP, images: torch.Tensor):
    """Both towers written out for two layers, as the paper's code computes them."""
    method = make("maple", clip, n_prompts=2, depth=2)
    trained = {k: t.clone() for k, t in method.state_dict().items()}
    shapes = {k: tuple(t.shape) for k, t in trained.items()}
    assert shapes == {
        "text.context": (2, 32), "deep.0": (2, 32), "coupling.0.weight": (64, 32), "coupling.0.bias": (64,),
        "coupling.1.weight": (64, 32), "coupling.1.bias": (64,),
    }  # fmt: skip
    model, visual = clip.model, clip.model.visual
    tokens = clip.tokenize([PHOTO[0].format(c) for c in CLASSES])
    maps = [lambda p, i=i: p @ trained[f"coupling.{i}.weight"].T + trained[f"coupling.{i}.bias"] for i in range(2)]
    with torch.no_grad():
        x = model.token_embedding(tokens)
        x[:, 1:3] = trained["text.context"]
        x = model.transformer.resblocks[0](x + model.positional_embedding, attn_mask=model.attn_mask)
        x[:, 1:3] = trained["deep.0"]
        x = model.ln_final(model.transformer.resblocks[1](x, attn_mask=model.attn_mask))
        text = F.normalize(x[range(3), tokens.argmax(1)] @ model.text_projection, dim=1)
        pixels = clip.normalize(clip.prepare(images))
        x = visual.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(7, 1, 64), x], 1) + visual.positional_embedding
        x = visual.ln_pre(torch.cat([x, maps[0](trained["text.context"]).expand(7, 2, 64)], 1))
        x = visual.transformer.resblocks[0](x)
        x[:, -2:] = maps[1](trained["deep.0"])
        x = visual.ln_post(visual.transformer.resblocks[1](x)[:, 0])
        image = F.normalize(x @ visual.proj, dim=1)
    assert gap(method.class_embeddings(), text) < 1e-5 and gap(method.features(images), image) < 1e-5
    assert gap(method.logits(images), clip.logit_scale * image @ text.T) < 1e-3


def test_deep_prompts_start(clip: FrozenCLIP, zero: ZeroShot, images: torch.Tensor):
    """One layer of words leaves the prompts as they are; the image tower sees new tokens from the start."""
    shallow = make("maple", clip, depth=1)
    assert gap(shallow.class_embeddings(), zero.class_embeddings) < 1e-6
    assert gap(shallow.features(images), zero.features(images)) > 1e-3
    assert gap(make("maple", clip, depth=2).class_embeddings(), zero.class_embeddings) > 1e-3
    assert shallow.encoders == (shallow,)


def test_depth(clip: FrozenCLIP):
    assert make("maple", clip).depth == 2
    lopsided = make_clip(vision={"layers": 4}, text={"layers": 3})
    assert make("maple", lopsided).depth == 3 and make("maple", lopsided, depth=1).depth == 1
    deep = make_clip(vision={"layers": 11}, text={"layers": 10})
    assert make("maple", deep).depth == 9 and make("maple", deep, depth=10).depth == 10
    for depth, message in ((0, "depth of DeepPrompts must be at least 1"), (4, "depth must be 1 to 3")):
        with pytest.raises(RPLibError, match=message):
            make("maple", lopsided, depth=depth)


def test_every_part_of_the_deep_prompts_learns_and_the_seed_counts(clip: FrozenCLIP, train_set: ImageSet):
    start = {k: t.clone() for k, t in make("maple", clip).state_dict().items()}
    torch.manual_seed(7)
    again, other = make("maple", clip).state_dict(), make("maple", clip, seed=2).state_dict()
    assert all(torch.equal(start[k], again[k]) for k in start)
    assert not torch.equal(start["deep.0"], other["deep.0"])
    assert not torch.equal(start["coupling.0.weight"], other["coupling.0.weight"])
    after = make("maple", clip).fit(train_set).state_dict()
    assert all(gap(start[k], after[k]) > 1e-6 for k in start)


def test_deep_prompts_with_a_rate_of_zero_stay(clip: FrozenCLIP, train_set: ImageSet, images: torch.Tensor):
    start = make("maple", clip)
    assert torch.equal(make("maple", clip, lr=1e-30).fit(train_set).logits(images), start.logits(images))


# All of the family ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FAMILY)
def test_clip_is_unchanged_to_the_bit(name, precision, train_set, val_set, images):
    clip = make_clip()
    hooks = [m for m in clip.model.modules() if m._forward_hooks or m._forward_pre_hooks]  # of frozen_layers
    before, methods = model_hash(clip.model), {n: m.forward.__func__ for n, m in clip.model.named_modules()}
    features, text = clip.encode(images), encode_tokens(clip.model, clip.tokenize(CLASSES))
    method = make(name, clip, precision=precision).fit(train_set, val_set)
    method.logits(images)
    assert all(map(torch.isfinite, map(torch.tensor, method.history.losses)))
    assert model_hash(clip.model) == before
    assert all(p.grad is None and not p.requires_grad for p in clip.model.parameters()) and not clip.model.training
    assert torch.equal(clip.encode(images), features)
    assert torch.equal(encode_tokens(clip.model, clip.tokenize(CLASSES)), text)
    assert {n: m.forward.__func__ for n, m in clip.model.named_modules()} == methods
    assert hooks == [m for m in clip.model.modules() if m._forward_hooks or m._forward_pre_hooks]


@pytest.mark.parametrize("name", ["coop", "maple"])
def test_bfloat16_trains_much_as_float32(name: str, clip: FrozenCLIP, train_set: ImageSet):
    one, two = (make(name, clip, precision=p).fit(train_set).history.losses for p in ("float32", "bfloat16"))
    assert one != two and max(abs(a - b) for a, b in zip(one, two, strict=True)) < 0.15


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("step", [2, 3, 5])
def test_resumes_exactly(name, step, clip, train_set, val_set, tmp_path: Path, monkeypatch):
    from rp_lib import trainer

    whole = make(name, clip).fit(train_set, val_set)
    calls, real = itertools.count(1), trainer.computing

    def pressing(*args: object):
        if next(calls) == step:
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(trainer, "computing", pressing)
    with pytest.raises(KeyboardInterrupt):
        make(name, clip).fit(train_set, val_set, checkpoint=tmp_path / "x")
    monkeypatch.undo()
    again = make(name, clip).fit(train_set, val_set, checkpoint=tmp_path / "x")
    assert again.history == whole.history and len(again.history.losses) == 6
    a, b = whole.state_dict(), again.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert torch.equal(whole.logits(val_set.images), again.logits(val_set.images))
    assert not list(tmp_path.iterdir())


SHAPES = [
    ("coop", {"n_context": 3, "start": "words"}, {"context"}),
    ("coop", {"class_specific": True}, {"context"}),
    ("maple", {"n_prompts": 1, "depth": 1, "start": "random"},
     {"text.context", "coupling.0.weight", "coupling.0.bias"}),
    ("rp-image", {}, {"image.W"}),
    ("rp-text", {}, {"text.Theta", "text.token_ids", "text.b"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "keys"), SHAPES)
def test_round_trip(name, options, keys, clip, train_set, images, tmp_path: Path):
    method = make(name, clip, TEMPLATES, **options).fit(train_set)
    assert set(method.state_dict()) == keys
    method.save(tmp_path / "m")
    assert (tmp_path / "m").stat().st_size < 40_000
    loaded = load_method(tmp_path / "m", make_clip(), CLASSES)
    assert type(loaded) is METHODS[name] and loaded.get_params() == method.get_params()
    assert torch.equal(loaded.logits(images), method.logits(images)) and loaded.trained_on == train_set.fingerprint
    assert gap(loaded.logits(images), make(name, clip, TEMPLATES, **options).logits(images)) > 1e-3


@pytest.mark.parametrize("name", ["coop", "maple"])
def test_prompts_of_another_shape_are_refused(name: str, clip: FrozenCLIP):
    size = {"coop": "n_context", "maple": "n_prompts"}[name]
    one, two = make(name, clip, **{size: 2}), make(name, clip, **{size: 3})
    before = {k: t.clone() for k, t in one.state_dict().items()}
    for tensors in (two.state_dict(), {}, before | {"more": torch.zeros(1)}):
        with pytest.raises(RPLibError, match="do not fit the settings of this"):
            one.load_state_dict(tensors)
    assert all(torch.equal(before[k], t) for k, t in one.state_dict().items())


def test_prompts_move_between_looks(clip: FrozenCLIP, train_set: ImageSet, val_set: ImageSet, images: torch.Tensor):
    """Neither class embeddings nor a store remember what was before fit or load."""
    for name in ("coop", "maple"):
        store, method, other = FeatureStore(), make(name, clip), make(name, clip, seed=3)
        stale = method.logits(images), store.get(method.encoders[0], val_set)
        method.fit(train_set, val_set, store=store)
        assert gap(method.logits(images), stale[0]) > 1e-3
        assert method.history.accuracies[-1] == pytest.approx(method.accuracy(val_set))
        fresh = method.features(val_set.images)
        assert torch.equal(store.get(method.encoders[0], val_set), fresh)
        assert (gap(stale[1], fresh) > 1e-4) == (name == "maple")
        other.logits(images)
        other.load_state_dict(method.state_dict())
        assert torch.equal(other.logits(images), method.logits(images))


# One program alone ---------------------------------------------------------------------------------------


def test_named_programs_are_rp_with_a_switch_off(clip: FrozenCLIP, train_set: ImageSet, images: torch.Tensor):
    for made, switch in ((ImageReprogrammer, "use_text_program"), (TextReprogrammer, "use_image_program")):
        off = CONFIG.changed(**{switch: False})
        named = [made(clip, CLASSES, PHOTO, c, precision="float32").fit(train_set) for c in (CONFIG, off)]
        plain = Reprogrammer(clip, CLASSES, PHOTO, off, precision="float32").fit(train_set)
        for method in named:
            assert method.config == off and torch.equal(method.logits(images), plain.logits(images))
    zero = ZeroShot(clip, CLASSES, PHOTO)
    image, text = make("rp-image", clip).fit(train_set), make("rp-text", clip).fit(train_set)
    assert torch.equal(image.class_embeddings(), zero.class_embeddings)
    assert torch.equal(text.features(images), zero.features(images)) and text.encoders == (clip,)
    assert gap(image.features(images), zero.features(images)) > 1e-3
    assert gap(text.class_embeddings(), zero.class_embeddings) > 1e-3
    assert make("rp-image", clip, config={}).config == PAPER.changed(use_text_program=False)


@pytest.mark.parametrize(("name", "switch"), [("rp-image", "use_image_program"), ("rp-text", "use_text_program")])
def test_contradictory_configurations_are_refused(name: str, switch: str, clip: FrozenCLIP):
    with pytest.raises(RPLibError, match=f"{name} is nothing without its program; leave {switch} on"):
        make(name, clip, config=PAPER.changed(**{switch: False}))


# Searched ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILY)
def test_search_goes_from_grid_to_winner(name: str, tiny_clip, tiny_benchmark, tmp_path: Path, monkeypatch):
    epochs = {"epochs": (1, 2)} | ({"n_context": (2, 3, 4, 5, 6, 7)} if name == "coop" else {})
    monkeypatch.setitem(SPACES, name, SPACES[name] | epochs)
    table = search(tiny_clip, tiny_benchmark, tmp_path / "s.csv", trials=2, methods=(name,), progress=False)
    chosen = choose(table)
    first = near_ties(trials_of(name, table)).iloc[0]
    best = {key: first[key] for key in SPACES[name]}
    assert chosen == {name: best}
    method = build_method(name, tiny_clip, CLASSES, TEMPLATES, settings_of(name, chosen[name]))
    said = method.metadata()["settings"]
    said = said.get("config", said)
    border = best.pop("border", None)
    assert {key: said[key] for key in best} == best
    assert border in (None, f"{said.get('placement')} from {said.get('border_init')}")
    if name.startswith("rp-"):
        assert said["use_image_program"] == (name == "rp-image") != said["use_text_program"]
        assert ("image_lr" in best) == (name == "rp-image") != ("text_lr" in best)


def test_every_trial_of_the_prompt_grids_can_be_built(clip: FrozenCLIP):
    for name in ("coop", "maple"):
        for trial in draw_trials(name, 30, 1):
            build_method(name, clip, CLASSES, PHOTO, settings_of(name, trial))


def test_labels_must_fit(clip: FrozenCLIP):
    for name in FAMILY:
        with pytest.raises(RPLibError, match="labels 0 to 3 but the task has 3 classes"):
            make(name, clip).fit(make_set(8, classes=4))
