"""Adapters on frozen features, against closed forms and against plain loops written here."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import CLASSES, TEMPLATES, make_set

from rp_lib.benchmark import ImageSet
from rp_lib.clip import FrozenCLIP
from rp_lib.features import FeatureStore
from rp_lib.methods import CLAP, TaskRes, TipAdapter, TipAdapterF, ZeroShot, ZeroShotProbe, build_method
from rp_lib.trainer import Schedule, batches
from rp_lib.utils.errors import RPLibError

ALL = (ZeroShotProbe, TaskRes, CLAP, TipAdapter, TipAdapterF)
TRAINED = tuple(cls for cls in ALL if cls is not TipAdapter)


def make(cls: type, clip: FrozenCLIP, **settings: object):
    return cls(clip, CLASSES, TEMPLATES, **settings)


@pytest.fixture(scope="module")
def known(clip: FrozenCLIP, train_set: ImageSet) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """Training features and labels, class embeddings, logit scale."""
    embeddings = clip.class_embeddings(CLASSES, TEMPLATES)
    return clip.encode(train_set.images), train_set.labels, embeddings, clip.logit_scale


@pytest.mark.parametrize("cls", ALL)
def test_untrained_they_are_zero_shot(cls: type, clip: FrozenCLIP, images: torch.Tensor, train_set: ImageSet):
    zero_shot = ZeroShot(clip, CLASSES, TEMPLATES).logits(images)
    torch.testing.assert_close(make(cls, clip).logits(images), zero_shot)
    switch = {TipAdapter: {"cache_weight": 0.0}, TipAdapterF: {"cache_weight": 0.0}}.get(cls, {"epochs": 0})
    torch.testing.assert_close(make(cls, clip, **switch).fit(train_set).logits(images), zero_shot)


def by_hand(start: torch.Tensor, loss, labels: torch.Tensor, plan: Schedule, step) -> torch.Tensor:
    """Train one tensor by ``step(weight, gradient, rate factor, number)``, gradients by autograd."""
    weight, number = start.clone(), 0
    total = plan.epochs * len(batches(len(labels), plan.batch_size, plan.seed, 0))
    for epoch in range(plan.epochs):
        for index in batches(len(labels), plan.batch_size, plan.seed, epoch):
            leaf = weight.clone().requires_grad_()
            gradient = torch.autograd.grad(loss(leaf, index), leaf)[0]
            weight = step(weight, gradient, plan.factor(number, total), number)
            number += 1
    return weight


class Adam:
    """Kingma and Ba's update, with L2 inside it or decoupled decay."""

    def __init__(self, lr: float, decay: float, *, decoupled: bool = False, eps: float = 1e-8) -> None:
        self.lr, self.decay, self.decoupled, self.eps = lr, decay, decoupled, eps
        self.m = self.v = 0.0

    def __call__(self, weight, gradient, factor, number):
        rate = self.lr * factor
        if self.decoupled:
            weight = weight * (1 - rate * self.decay)
        else:
            gradient = gradient + self.decay * weight
        self.m, self.v = 0.9 * self.m + 0.1 * gradient, 0.999 * self.v + 0.001 * gradient**2
        m, v = self.m / (1 - 0.9 ** (number + 1)), self.v / (1 - 0.999 ** (number + 1))
        return weight - rate * m / (v.sqrt() + self.eps)


class Momentum:
    """Stochastic gradient descent with momentum 0.9."""

    def __init__(self, lr: float) -> None:
        self.lr, self.velocity = lr, 0.0

    def __call__(self, weight, gradient, factor, number):
        self.velocity = 0.9 * self.velocity + gradient
        return weight - self.lr * factor * self.velocity


PLAN = {"epochs": 4, "batch_size": 8, "seed": 3}


def test_zero_shot_probe_against_a_loop(clip: FrozenCLIP, train_set: ImageSet, known):
    x, y, t, scale = known
    made = make(ZeroShotProbe, clip, lr=0.05, weight_decay=1e-3, **PLAN).fit(train_set)

    def loss(weight, index):
        return F.cross_entropy(x[index] @ weight.T, y[index])

    weight = by_hand(scale * t, loss, y, Schedule(4, 8, "steps", seed=3), Adam(0.05, 1e-3))
    torch.testing.assert_close(made.head(x), x @ weight.T, atol=1e-3, rtol=1e-3)
    assert (made.head(x) - scale * x @ t.T).abs().max() > 0.1


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_task_residual_against_a_loop(alpha: float, clip: FrozenCLIP, train_set: ImageSet, known):
    x, y, t, scale = known
    made = make(TaskRes, clip, residual_scale=alpha, lr=0.02, weight_decay=0.01, **PLAN).fit(train_set)

    def logits(residual, index=slice(None)):
        prototypes = t + alpha * residual
        return scale * x[index] @ (prototypes / prototypes.norm(dim=1, keepdim=True)).T

    def loss(residual, index):
        return F.cross_entropy(logits(residual, index), y[index])

    residual = by_hand(torch.zeros_like(t), loss, y, Schedule(4, 8, "cosine", seed=3), Adam(0.02, 0.01))
    torch.testing.assert_close(made.state_dict()["residual"], residual, atol=1e-3, rtol=1e-2)
    torch.testing.assert_close(made.head(x), logits(residual), atol=5e-3, rtol=1e-2)
    assert not made.modules().start.requires_grad and torch.equal(made.modules().start, t)


def test_clap_against_a_loop(clip: FrozenCLIP, train_set: ImageSet, known):
    x, y, t, scale = known
    made = make(CLAP, clip, lr=1e-3, penalty=20.0, **PLAN).fit(train_set)
    answers = (scale * x @ t.T).softmax(1)
    multipliers = torch.stack([answers[y == c, c].mean() for c in range(len(CLASSES))])
    torch.testing.assert_close(made.multipliers, multipliers)
    assert multipliers.max() - multipliers.min() > 0.01

    def loss(weight, index):
        logits = scale * x[index] @ (weight / weight.norm(dim=1, keepdim=True)).T
        return F.cross_entropy(logits, y[index]) + 20.0 * (multipliers * ((weight - t) ** 2).sum(1)).sum()

    weight = by_hand(t, loss, y, Schedule(4, 8, "cosine", seed=3), Momentum(1e-3))
    torch.testing.assert_close(t + made.state_dict()["residual"], weight, atol=1e-4, rtol=1e-4)


def test_clap_between_free_and_frozen(clip: FrozenCLIP, train_set: ImageSet):
    """The penalty alone decides how far prototypes go; a class that zero-shot knows goes less far."""
    free, held = (
        make(CLAP, clip, lr=1e-3, epochs=100, penalty=p).fit(train_set).state_dict()["residual"].norm(dim=1)
        for p in (0.0, 30.0)
    )
    assert (held < 0.9 * free).all()


def test_clap_of_a_class_without_pictures(clip: FrozenCLIP, train_set: ImageSet):
    rows = (train_set.labels < 2).nonzero()[:, 0]
    some = ImageSet("some", "train", train_set.images[rows], train_set.labels[rows])
    made = make(CLAP, clip, epochs=1)
    made.before_training(some, FeatureStore())
    assert made.multipliers[2] == 1 and (made.multipliers[:2] < 1).all()


def cache(x, keys, values, t, scale, alpha, beta):
    """Tip-Adapter's matrices as the paper writes them, values one-hot."""
    return scale * x @ t.T + alpha * torch.exp(-beta * (1 - x @ keys.T)) @ values


def test_tip_adapter_is_its_closed_form(clip: FrozenCLIP, train_set: ImageSet, images: torch.Tensor, known):
    keys, y, t, scale = known
    made = make(TipAdapter, clip, cache_weight=2.0, sharpness=7.0).fit(train_set)
    x = clip.encode(images)
    expected = cache(x, keys, F.one_hot(y, len(CLASSES)).float(), t, scale, 2.0, 7.0)
    torch.testing.assert_close(made.logits(images), expected, atol=1e-4, rtol=1e-4)
    # One picture at its own place: sharp enough, it alone votes, with weight 1.
    sharp = make(TipAdapter, clip, sharpness=1e6).fit(train_set)
    vote = sharp.head(keys[:1]) - scale * keys[:1] @ t.T
    torch.testing.assert_close(vote, F.one_hot(y[:1], len(CLASSES)).float(), atol=0.5, rtol=0)
    assert made.parameter_names() == ["cache_weight", "sharpness"] and not list(made.history.losses)


def test_tip_adapter_f_against_a_loop(clip: FrozenCLIP, train_set: ImageSet, known):
    x, y, t, scale = known
    settings = {"cache_weight": 2.0, "sharpness": 7.0, "lr": 0.01, "weight_decay": 0.1}
    made = make(TipAdapterF, clip, **settings, **PLAN).fit(train_set)
    values = F.one_hot(y, len(CLASSES)).float()

    def loss(keys, index):
        return F.cross_entropy(cache(x[index], keys, values, t, scale, 2.0, 7.0), y[index])

    keys = by_hand(x, loss, y, Schedule(4, 8, "cosine", seed=3), Adam(0.01, 0.1, decoupled=True, eps=1e-4))
    torch.testing.assert_close(made.state_dict()["keys"], keys, atol=1e-4, rtol=1e-3)
    assert (keys - x).abs().max() > 1e-3 and torch.equal(made.state_dict()["labels"], y)


def test_a_second_fit_goes_on_or_fills_anew(clip: FrozenCLIP, train_set: ImageSet):
    other = make_set(10, seed=5)
    trained = make(TipAdapterF, clip, lr=0.01, **PLAN).fit(train_set)
    before = copy.deepcopy(trained.state_dict()["keys"])
    trained.fit(other)
    assert len(trained.state_dict()["keys"]) == len(before) and not torch.equal(trained.state_dict()["keys"], before)
    plain = make(TipAdapter, clip).fit(train_set).fit(other)
    torch.testing.assert_close(plain.state_dict()["keys"], clip.encode(other.images))


def test_a_cache_that_does_not_fit_is_refused(clip: FrozenCLIP, train_set: ImageSet):
    tensors = make(TipAdapter, clip).fit(train_set).state_dict()
    for wrong in ({**tensors, "keys": tensors["keys"][:, :5]}, {"labels": tensors["labels"]}):
        with pytest.raises(RPLibError, match=r"do not fit the settings of this 'tip-adapter': .*keys"):
            make(TipAdapter, clip).load_state_dict(wrong)


@pytest.mark.parametrize("cls", TRAINED)
def test_the_order_of_batches_and_nothing_else_is_the_seeds(cls: type, clip: FrozenCLIP, train_set: ImageSet):
    """With one batch there is no order, so that two seeds give one result."""
    one, two = (make(cls, clip, lr=1e-3, epochs=2, batch_size=100, seed=s).fit(train_set) for s in (1, 2))
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("cls", "name"), [(TaskRes, "residual_scale"), (CLAP, "penalty"), (TipAdapter, "cache_weight"), (TipAdapterF, "sharpness")]
)
@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
def test_strengths_are_checked(cls: type, name: str, value: float, clip: FrozenCLIP):
    with pytest.raises(RPLibError, match=f"{name} of .* must be at least 0 and finite"):
        make(cls, clip, **{name: value})


def test_what_belongs_to_a_run_is_left_out_where_it_has_no_use(clip: FrozenCLIP):
    run = {"seed": 5, "precision": "bfloat16"}
    for name, kept in (("zero-shot", set()), ("tip-adapter", set()), ("clap", {"seed"}), ("fine-tune", {"seed", "precision"})):
        params = build_method(name, clip, CLASSES, TEMPLATES, dict(run)).get_params()
        assert {key for key in run if params.get(key) == run[key]} == kept
    with pytest.raises(TypeError):
        build_method("clap", clip, CLASSES, TEMPLATES, {"sede": 5})
