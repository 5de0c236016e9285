"""Relatives of full fine-tuning, each against a closed form or an independent computation."""

import copy
import itertools
import signal
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import CLASSES, TEMPLATES, make_clip, model_hash

from rp_lib.benchmark import ImageSet
from rp_lib.clip import FrozenCLIP
from rp_lib.features import FeatureStore
from rp_lib.losses import reprogramming_loss
from rp_lib.methods import (
    BASES,
    FLYP,
    L2SP,
    LPFT,
    FineTune,
    LinearProbe,
    LipsumFT,
    LogitEnsemble,
    WiSEFT,
    ZeroShot,
    build_method,
    load_method,
)
from rp_lib.utils.errors import RPLibError

SHORT = {"epochs": 1, "batch_size": 8, "lr": 1e-3, "precision": "float32"}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32}


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 2e-5) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() < tolerance)


def moved(method: FineTune, by: float = 0.02) -> FineTune:
    """Every weight and running statistic elsewhere, as if trained, in no time."""
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in method.modules().state_dict().values():
            if value.is_floating_point():
                value.add_(by * torch.rand(value.shape, generator=g))
    return method


@pytest.fixture(scope="module")
def tuned(clip: FrozenCLIP) -> FineTune:
    return moved(FineTune(clip, CLASSES, TEMPLATES, **SHORT))


# L2-SP ---------------------------------------------------------------------------------------------------


def test_gradient_of_the_penalty_is_the_closed_form(clip: FrozenCLIP):
    method = moved(L2SP(clip, CLASSES, TEMPLATES, tower_penalty=0.3, head_penalty=0.07, **SHORT))
    method.penalty().backward()
    start = dict(clip.model.visual.named_parameters())
    for name, weight in method.visual.named_parameters():
        assert torch.allclose(weight.grad, 0.3 * (weight - start[name]), rtol=1e-5, atol=1e-9)
    v, v0 = method.classifier.weight, FineTune(clip, CLASSES, TEMPLATES).classifier.weight
    assert torch.allclose(v.grad, 0.07 * (v - v0), rtol=1e-5, atol=1e-9) and v.grad.abs().min() > 0
    with torch.no_grad():
        distance = sum(float((w - start[n]).square().sum()) for n, w in method.visual.named_parameters())
        expected = 0.15 * distance + 0.035 * float((v - v0).square().sum())
        assert float(method.penalty()) == pytest.approx(expected, rel=1e-5)
    assert all(p.grad is None for p in clip.model.parameters())


def test_loss_is_that_of_fine_tuning_plus_the_penalty(clip: FrozenCLIP, train_set: ImageSet):
    method = moved(L2SP(clip, CLASSES, TEMPLATES, **SHORT))
    plain = FineTune.loss(method, train_set.images, train_set.labels)
    loss = method.loss(train_set.images, train_set.labels)
    assert float(method.penalty().detach()) > 0.01 and torch.equal(loss, plain + method.penalty())


def test_without_penalty_it_is_fine_tuning_and_with_a_strong_one_it_stays(clip: FrozenCLIP, train_set: ImageSet):
    def fit(tower: float, head: float) -> L2SP:
        return L2SP(clip, CLASSES, TEMPLATES, tower_penalty=tower, head_penalty=head, **SHORT).fit(train_set)

    def distance(method: FineTune) -> float:
        pairs = zip(method.visual.parameters(), clip.model.visual.parameters(), strict=True)
        return sum(float((a - b).square().sum()) for a, b in pairs)

    free, held = fit(0, 0), fit(1e4, 1e4)
    plain = FineTune(clip, CLASSES, TEMPLATES, weight_decay=0, **SHORT).fit(train_set)
    assert all(torch.equal(a, b) for a, b in zip(free.state_dict().values(), plain.state_dict().values(), strict=True))
    assert 0 < distance(held) < 0.5 * distance(free)


@pytest.mark.parametrize("penalty", [{"tower_penalty": -0.1}, {"head_penalty": float("nan")}])
def test_bad_penalties_are_refused(penalty: dict[str, float], clip: FrozenCLIP):
    with pytest.raises(RPLibError, match="_penalty of L2SP must be at least 0 and finite"):
        L2SP(clip, CLASSES, TEMPLATES, **penalty)


# LP-FT ---------------------------------------------------------------------------------------------------


def test_without_fine_tuning_it_is_the_linear_probe(clip: FrozenCLIP, train_set: ImageSet, val_set: ImageSet):
    probe = LinearProbe(clip, CLASSES, TEMPLATES, lr=0.03, epochs=4, batch_size=8, weight_decay=0.01, seed=3)
    probe.fit(train_set)
    method = LPFT(
        clip, CLASSES, TEMPLATES, probe_lr=0.03, probe_epochs=4, probe_weight_decay=0.01, batch_size=8, seed=3, epochs=0
    )
    assert close(method.logits(val_set.images), ZeroShot(clip, CLASSES, TEMPLATES).logits(val_set.images), 1e-4)
    method.fit(train_set)
    assert close(method.logits(val_set.images), probe.logits(val_set.images), 1e-6)
    assert method.classifier.bias.abs().min() > 0 and torch.equal(method.classifier.bias, probe.classifier.bias)


def test_probes_once(clip: FrozenCLIP, train_set: ImageSet, monkeypatch: pytest.MonkeyPatch):
    method = LPFT(clip, CLASSES, TEMPLATES, probe_epochs=2, **SHORT).fit(train_set)
    loaded = LPFT(clip, CLASSES, TEMPLATES, probe_epochs=2, **SHORT)
    loaded.load_state_dict(method.state_dict())
    monkeypatch.setattr(LinearProbe, "fit", lambda *a, **k: pytest.fail("probed again"))
    with pytest.raises(pytest.fail.Exception, match="probed again"):
        LPFT(clip, CLASSES, TEMPLATES, **SHORT).fit(train_set)
    assert method.fit(train_set).history.losses == loaded.fit(train_set).history.losses
    assert set(method.state_dict()) == set(FineTune(clip, CLASSES, TEMPLATES).state_dict()) | {"head.bias"}


# WiSE-FT -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vision", [None, RESNET])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_ends_of_weight_interpolation(alpha: float, vision: dict | None, images: torch.Tensor):
    clip = make_clip(vision=vision)
    tuned, zero = moved(FineTune(clip, CLASSES, TEMPLATES, **SHORT)), ZeroShot(clip, CLASSES, TEMPLATES)
    end, other = (tuned, zero) if alpha == 0 else (zero, tuned)
    for wise in (WiSEFT(tuned, alpha), WiSEFT(tuned).with_alpha(alpha)):
        assert close(wise.logits(images), end.logits(images), 1e-4)
        with torch.no_grad():  # not by way of the end's own encoder
            assert close(wise.encode(images), end.features(images), 1e-5)
        assert not close(wise.logits(images), other.logits(images), 1e-2)
        assert wise.encoders == end.encoders


@pytest.mark.parametrize("vision", [None, RESNET])
def test_weights_between_by_hand(vision: dict | None, images: torch.Tensor):
    clip = make_clip(vision=vision)
    tuned = moved(FineTune(clip, CLASSES, TEMPLATES, **SHORT))
    before = model_hash(tuned.modules()), model_hash(clip.model)
    wise = WiSEFT(tuned, 0.3)
    tower, zero = copy.deepcopy(tuned.visual), clip.model.visual.state_dict()
    tower.load_state_dict(
        {k: 0.7 * v + 0.3 * zero[k] if v.is_floating_point() else v for k, v in tuned.visual.state_dict().items()}
    )
    head = 0.7 * tuned.classifier.weight + 0.3 * FineTune(clip, CLASSES, TEMPLATES).classifier.weight
    with torch.no_grad():
        features = F.normalize(tower(clip.normalize(clip.prepare(images))), dim=-1)
    assert close(wise.features(images), features, 1e-5)
    assert close(wise.logits(images), features @ head.detach().T, 1e-3)
    assert not close(wise.features(images), WiSEFT(tuned, 0.7).features(images), 1e-3)
    assert (model_hash(tuned.modules()), model_hash(clip.model)) == before


def test_one_encoding_per_alpha(tuned: FineTune, val_set: ImageSet):
    wise, store, seen = WiSEFT(tuned), FeatureStore(), []
    hook = tuned.visual.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    try:
        candidates = [wise.with_alpha(a) for a in (0.0, 0.25, 0.5, 1.0)]
        for candidate in (*candidates, *candidates):
            candidate.accuracy(val_set, store)
    finally:
        hook.remove()
    assert seen == [len(val_set)] * 3  # the end at 1 asks the frozen backbone


# Logit ensemble ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_logits_are_mixed(alpha: float, tuned: FineTune, clip: FrozenCLIP, images: torch.Tensor):
    zero = ZeroShot(clip, CLASSES, TEMPLATES)
    for mixed in (LogitEnsemble(tuned, alpha), LogitEnsemble(tuned).with_alpha(alpha)):
        expected = (1 - alpha) * tuned.logits(images) + alpha * zero.logits(images)
        assert close(mixed.logits(images), expected, 1e-4)
        f, a, b = mixed.features(images), tuned.features(images), zero.features(images)
        assert close(f @ f.T, (1 - alpha) * a @ a.T + alpha * b @ b.T, 1e-5)


def test_another_alpha_of_outputs_costs_no_encoding(tuned: FineTune, clip: FrozenCLIP, val_set: ImageSet, monkeypatch):
    mixed, store = LogitEnsemble(tuned), FeatureStore()
    mixed.accuracy(val_set, store)
    for tower in (tuned.visual, clip.model.visual, clip.model.transformer):
        monkeypatch.setattr(tower, "forward", lambda *a, **k: pytest.fail("encoded again"))
    assert all(0 <= mixed.with_alpha(a).accuracy(val_set, store) <= 1 for a in (0.0, 0.5, 1.0))


# Both ensembles ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [WiSEFT, LogitEnsemble])
def test_ensembles_share_the_fine_tuned_model(kind: type, tuned: FineTune, clip: FrozenCLIP):
    made = kind(tuned, 0.2)
    assert made.fine_tuned is tuned and made.history is tuned.history and BASES[made.name] == tuned.name
    assert made.with_alpha(0.6).fine_tuned is tuned and made.with_alpha(0.6).alpha == 0.6 and made.alpha == 0.2
    assert made.get_params() == tuned.get_params() | {"alpha": 0.2}
    for other in (L2SP, LPFT, FLYP):
        with pytest.raises(RPLibError, match=f"made of a fine-tune method, not of '{other.name}'"):
            kind(other(clip, CLASSES, TEMPLATES))
    built = lambda a: build_method(kind.name, clip, CLASSES, TEMPLATES, {"alpha": a})  # noqa: E731
    for use in (made.with_alpha, lambda a: kind(tuned, a), built):
        with pytest.raises(RPLibError, match=r"alpha of .* must be at (least 0|most 1)"):
            use(1.1)


@pytest.mark.parametrize("kind", [WiSEFT, LogitEnsemble])
def test_fitting_an_ensemble_is_fine_tuning(kind: type, clip: FrozenCLIP, train_set, val_set, images, tmp_path: Path):
    plain = FineTune(clip, CLASSES, TEMPLATES, **SHORT).fit(train_set)
    store, made = FeatureStore(), kind(FineTune(clip, CLASSES, TEMPLATES, **SHORT), alpha=0.4)
    before = made.mix_features(*(store.get(e, val_set) for e in made.encoders))
    made.fit(train_set, store=store)
    after = made.mix_features(*(store.get(e, val_set) for e in made.encoders))
    assert not close(before, after, 1e-4) and torch.equal(after, made.features(val_set.images))
    assert torch.equal(made.logits(images), kind(plain, 0.4).logits(images))
    made.save(tmp_path / "m")
    assert torch.equal(load_method(tmp_path / "m", clip).with_alpha(0).logits(images), made.with_alpha(0).logits(images))


# FLYP ----------------------------------------------------------------------------------------------------


def test_flyp_starts_as_zero_shot(clip: FrozenCLIP, images: torch.Tensor):
    method, zero = FLYP(clip, CLASSES, TEMPLATES, **SHORT), ZeroShot(clip, CLASSES, TEMPLATES)
    assert close(method.logits(images), zero.logits(images), 1e-4)


def test_flyp_trains_copies_of_both_towers_alone(train_set: ImageSet, val_set: ImageSet):
    clip = make_clip()
    before = model_hash(clip.model), clip.logit_scale
    for precision in ("float32", "bfloat16"):
        method = FLYP(clip, CLASSES, TEMPLATES, **{**SHORT, "epochs": 2, "precision": precision})
        start = {k: v.clone() for k, v in method.modules().named_parameters()}
        method.fit(train_set, val_set)
        assert (model_hash(clip.model), clip.logit_scale) == before
        assert all(p.grad is None and not p.requires_grad for p in clip.model.parameters())
        still = {k for k, v in method.modules().named_parameters() if torch.equal(v, start[k])}
        assert still == set() and {k.split(".")[0] for k in start} == {"visual", "head"}
        assert method.history.accuracies[-1] == method.accuracy(val_set) and not method.classifier.training
        # What was encoded for the accuracy after the first epoch is not what the second one learnt.
        with torch.no_grad():
            assert torch.equal(method.class_weights(), method.classifier.log_scale.exp() * method.classifier())


def test_flyp_loss_is_class_cross_entropy_plus_a_constant(clip: FrozenCLIP, train_set: ImageSet):
    """With n_c images of class c: image to text is CE(z + log n_c, y) + mean_i log n_{y_i}, exactly."""
    method = moved(FLYP(clip, CLASSES, TEMPLATES, **SHORT), 0.005)
    images, labels = train_set.images[:9], torch.tensor([0, 0, 0, 0, 0, 2, 2, 0, 2])
    with torch.no_grad():
        ours = method.loss(images, labels)
        z = method.head(method.encode(images))
        square = z[:, labels]  # one prompt per image, as the authors compute it; image i's target is prompt i
        own = torch.arange(len(labels))
        to_text, to_image = F.cross_entropy(square, own), F.cross_entropy(square.T, own)
        count = torch.bincount(labels, minlength=3).float()
        constant = count.log()[labels].mean()
        corrected = F.cross_entropy(z + count.log(), labels)
    assert float(to_text) == pytest.approx(float(corrected + constant), rel=1e-5)
    assert float(constant) == pytest.approx((6 * torch.tensor(6.0).log() + 3 * torch.tensor(3.0).log()).item() / 9)
    assert float(ours) == pytest.approx(float(corrected + constant + to_image) / 2, rel=1e-5)
    assert float(ours) == pytest.approx(float(reprogramming_loss(z, labels, "contrastive-identity")), rel=1e-5)


def test_flyp_encodes_present_classes_cut_behind_the_longest_prompt(clip: FrozenCLIP, train_set: ImageSet):
    method, seen = FLYP(clip, CLASSES, TEMPLATES, **SHORT), []
    hook = method.classifier.transformer.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[:2]))
    method.loss(train_set.images[:4], torch.tensor([0, 2, 2, 0]))
    method.logits(train_set.images[:2])
    method.logits(train_set.images[:2])
    hook.remove()
    # Start mark, "a photo of a cat.", end mark: 8 tokens of a context of 16; "fire engine" needs one more.
    assert seen == [(2 * len(TEMPLATES), 8), (3 * len(TEMPLATES), 9)]


def test_flyp_gradient_is_that_of_the_whole_model(clip: FrozenCLIP, train_set: ImageSet):
    """Leaving out unused rows and positions is exact: the plain open_clip model gives the same gradients."""
    method = FLYP(clip, CLASSES, TEMPLATES[:1], **SHORT)
    images, labels = train_set.images[:6], torch.tensor([0, 0, 1, 1, 1, 2])
    method.loss(images, labels).backward()
    model = copy.deepcopy(clip.model).requires_grad_(True)
    text = model.encode_text(clip.tokenize([TEMPLATES[0].format(CLASSES[y]) for y in labels]), normalize=True)
    image = model.encode_image(clip.normalize(clip.prepare(images)), normalize=True)
    square, own = model.logit_scale.exp() * image @ text.T, torch.arange(6)
    ((F.cross_entropy(square, own) + F.cross_entropy(square.T, own)) / 2).backward()
    head, ids = method.classifier, method.classifier.token_ids
    full = model.token_embedding.weight.grad
    unused = torch.ones(len(full), dtype=torch.bool)
    unused[ids] = False
    length = len(head.positional_embedding)
    assert full[unused].abs().max() == 0 and model.positional_embedding.grad[length:].abs().max() == 0
    theirs = {f"head.{k}": p.grad for k, p in model.named_parameters() if not k.startswith("visual.")}
    theirs |= {k: p.grad for k, p in model.named_parameters() if k.startswith("visual.")}
    theirs["head.token_embedding.weight"] = full[ids]
    theirs["head.positional_embedding"] = model.positional_embedding.grad[:length]
    theirs["head.log_scale"] = theirs.pop("head.logit_scale")
    ours = {k: p.grad for k, p in method.modules().named_parameters()}
    assert ours.keys() == theirs.keys()
    for name, grad in ours.items():
        assert close(grad, theirs[name], 1e-4 * max(1.0, float(theirs[name].abs().max()))), name


def test_flyp_saves_the_rows_it_trained_and_refuses_other_words(clip: FrozenCLIP, images: torch.Tensor, tmp_path: Path):
    method = moved(FLYP(clip, CLASSES, TEMPLATES, **SHORT), 0.005)
    tensors, words = method.state_dict(), clip.tokenize([t.format(c) for c in CLASSES for t in TEMPLATES]).unique()
    assert torch.equal(tensors["head.token_ids"], words)
    assert tensors["head.token_embedding.weight"].shape == (len(words), 32)
    assert not any("attn_mask" in name or name.endswith(".tokens") for name in tensors)
    other = FLYP(clip, ("dog", "fire engine", "cup"), TEMPLATES, **SHORT)
    before = model_hash(other.modules())
    with pytest.raises(RPLibError, match="trained on other words"):
        other.load_state_dict(tensors)
    assert model_hash(other.modules()) == before
    same = FLYP(clip, CLASSES, TEMPLATES, **SHORT)
    stale = same.logits(images)  # the classifier that it remembers must not outlive the weights
    same.load_state_dict(tensors)
    assert torch.equal(same.logits(images), method.logits(images)) and not close(same.logits(images), stale, 1e-2)


# Lipsum-FT -----------------------------------------------------------------------------------------------


def lipsum(clip: FrozenCLIP, **settings: object) -> LipsumFT:
    return LipsumFT(clip, CLASSES, TEMPLATES, **SHORT | {"n_texts": 5, "warmup_steps": 0} | settings)


def test_energy_gap_by_hand(clip: FrozenCLIP, train_set: ImageSet):
    """Text by text and image by image, with open_clip's own encoders."""
    method = moved(lipsum(clip, strength=70.0))
    torch.manual_seed(3)
    tokens = method.random_texts()
    pixels = clip.normalize(clip.prepare(train_set.images))
    with torch.no_grad():
        tuned, start = F.normalize(method.visual(pixels), dim=1), F.normalize(clip.model.encode_image(pixels), dim=1)
        padded = F.pad(tokens, (0, clip.model.context_length - tokens.shape[1]))
        texts = F.normalize(clip.model.encode_text(padded), dim=1)
        expected = F.cross_entropy(method.classifier(tuned), train_set.labels)
        for a, b in zip(tuned, start, strict=True):
            for text in texts:
                gap = clip.logit_scale * (a @ text - b @ text)
                expected += 70 * gap**2 / (2 * len(texts)) / len(tuned)
        torch.manual_seed(3)
        torch.testing.assert_close(method.loss(train_set.images, train_set.labels), expected)
    assert expected > F.cross_entropy(method.classifier(tuned), train_set.labels) + 0.1


def test_gradient_of_the_energy_gap_is_the_finite_difference(clip: FrozenCLIP):
    method, g = lipsum(clip), torch.Generator().manual_seed(0)
    f, start, texts = (torch.randn(n, 8, generator=g, dtype=torch.float64) for n in (4, 4, 5))
    assert torch.autograd.gradcheck(lambda x: method.energy_gap(x, start, texts), f.requires_grad_())


def test_random_texts_are_tokens_between_the_marks(clip: FrozenCLIP):
    method = lipsum(clip, n_texts=3000, length=4)
    start, end = clip.tokenize([""])[0, :2].tolist()
    torch.manual_seed(0)
    texts = method.random_texts()
    assert texts.shape == (3000, 6) and bool((texts[:, 0] == start).all()) and bool((texts[:, 5] == end).all())
    words = texts[:, 1:5].float()
    assert 0 <= words.min() < 50 and start - 50 < words.max() < start  # neither mark
    assert words.mean() == pytest.approx(start / 2, rel=0.02)
    assert not torch.equal(texts, method.random_texts())
    torch.manual_seed(0)
    assert torch.equal(texts, method.random_texts())


def test_without_strength_it_is_fine_tuning_and_with_a_lot_it_keeps_the_features(clip: FrozenCLIP, train_set: ImageSet):
    free = lipsum(clip, strength=0.0)
    free.parameter_groups = lambda: FineTune.parameter_groups(free)  # with the same betas
    plan = {"warmup_steps": 0, "schedule": "cosine", "weight_decay": 0.0}
    usual = FineTune(clip, CLASSES, TEMPLATES, **SHORT | plan)
    start = clip.encode(train_set.images)
    plain, free = usual.fit(train_set).features(train_set.images), free.fit(train_set).features(train_set.images)
    assert torch.equal(plain, free)
    held = lipsum(clip, strength=100.0, epochs=8).fit(train_set).features(train_set.images)
    plain = lipsum(clip, strength=0.0, epochs=8).fit(train_set).features(train_set.images)
    assert (held - start).norm() < 0.7 * (plain - start).norm()


def test_published_settings_of_lipsum_ft(clip: FrozenCLIP):
    method = LipsumFT(clip, CLASSES, TEMPLATES)
    assert (method.strength, method.n_texts, method.length, method.lr) == (1.0, 80, 8, 1e-5)
    assert {(g.optimizer, g.weight_decay, g.betas) for g in method.parameter_groups()} == {("adamw", 0.0, (0.9, 0.999))}
    assert (method.batch_size, method.epochs, method.schedule) == (256, 10, "cosine")
    for wrong in ({"strength": -1.0}, {"strength": float("inf")}, {"n_texts": 0}, {"length": 0}, {"length": 15}):
        with pytest.raises(RPLibError, match=r"(strength|n_texts|length) of LipsumFT must be|at most the 14"):
            lipsum(clip, **wrong)


# Resuming ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "step"), [("l2-sp", 2), ("lipsum-ft", 2), ("lp-ft", 4), ("flyp", 3), ("wise-ft", 2)])
def test_resumes_exactly(name: str, step: int, clip, train_set, val_set, tmp_path: Path, monkeypatch):
    def make() -> object:
        return build_method(name, clip, CLASSES, TEMPLATES, {**SHORT, "batch_size": 12, "epochs": 2} | options)

    options = {"probe_epochs": 2} if name == "lp-ft" else {}
    whole = make().fit(train_set, val_set)
    from rp_lib import trainer

    calls, real = itertools.count(1), trainer.computing

    def pressing(*args: object):
        if next(calls) == step + (4 if name == "lp-ft" else 0):  # behind the probe's steps
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(trainer, "computing", pressing)
    with pytest.raises(KeyboardInterrupt):
        make().fit(train_set, val_set, checkpoint=tmp_path / "x")
    monkeypatch.undo()
    assert (tmp_path / "x").is_file()
    again = make().fit(train_set, val_set, checkpoint=tmp_path / "x")
    assert again.history == whole.history and len(again.history.losses) == 4
    assert all(torch.equal(a, again.state_dict()[k]) for k, a in whole.state_dict().items())
    assert torch.equal(whole.logits(val_set.images), again.logits(val_set.images)) and not list(tmp_path.iterdir())
