import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import special, stats
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from rp_lib.detectors import DETECTORS, NotApplicable, build_detector
from rp_lib.negative_labels import mine_negative_words, vocabulary_words
from rp_lib.outputs import Head, Outputs
from rp_lib.utils.errors import RPLibError, UnknownName

CLASSES, WIDTH, SCALE = 5, 16, 20.0
LOGIT_DETECTORS = ("msp", "max-logit", "energy", "entropy", "gen")


def unit(*shape, seed):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


CENTRES = unit(CLASSES, WIDTH, seed=0)
# Words point where no class does.
WORDS = F.normalize(unit(60, WIDTH, seed=1) - 2 * CENTRES.mean(0), dim=1)


def make(n=60, *, seed=2, spread=0.15, ood=False, role=None, bias=None, weight=None, **changes) -> Outputs:
    """Features around class centres, or (``ood``) anywhere; logits are scaled similarities to the centres."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    around = WORDS[torch.randint(len(WORDS), (n,), generator=g)] if ood else CENTRES[labels]
    features = F.normalize(around + spread * torch.randn(n, WIDTH, generator=g), dim=1)
    weight = SCALE * CENTRES if weight is None else weight
    bias = torch.zeros(CLASSES) if bias is None else bias
    logits = features @ weight.T + bias
    parts = {
        "features": features, "logits": logits, "labels": None if ood else labels, "sources": torch.arange(n),
        "groups": torch.arange(n), "head": Head(weight, bias, SCALE, WORDS),
        "others": {"zero-shot": logits, "linear-probe": 2 * logits},
    }  # fmt: skip
    return Outputs("made", role or ("far-ood" if ood else "test"), **(parts | changes))


def scores_of(name, outputs, train=None):
    return build_detector(name).fit(train or make(100, seed=3)).score(outputs)


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_scores_id_above_ood(name):
    inside, outside = scores_of(name, make()), scores_of(name, make(ood=True))
    assert inside.dtype == np.float64 and inside.shape == (60,) and np.isfinite(inside).all()
    assert roc_auc_score(np.r_[np.ones(60), np.zeros(60)], np.r_[inside, outside]) > 0.9


@pytest.mark.parametrize("name", DETECTORS)
def test_nan_is_refused(name):
    broken = make()
    broken.logits[3, 1] = float("nan")
    with pytest.raises(RPLibError, match="NaN"):
        scores_of(name, broken)
    broken = make()
    broken.features[3, 1] = float("nan")
    with pytest.raises(RPLibError, match="NaN"):
        scores_of(name, broken)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_score_depends_on_its_image_alone(name):
    many, one = make(), make()
    some = slice(7, 9)
    part = Outputs(
        "part", "test", one.features[some], one.logits[some], one.labels[some], one.sources[some], one.groups[some],
        one.head, others={k: v[some] for k, v in one.others.items()},
    )  # fmt: skip
    # Float32 products round differently in blocks of another size.
    np.testing.assert_allclose(scores_of(name, part), scores_of(name, many)[some], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", DETECTORS)
def test_scores_and_fits_do_not_depend_on_blocks(name, monkeypatch):
    expected = scores_of(name, make(150), make(180, seed=3))
    monkeypatch.setattr("rp_lib.outputs.BLOCK", 1)  # 64 images at once
    monkeypatch.setattr("rp_lib.detectors.BLOCK", 25)
    monkeypatch.setattr("rp_lib.detectors.PRODUCTS", 7 * 180)
    data, train = make(150), make(180, seed=3)
    assert [len(block) for block in data.blocks] == [64, 86]
    found = scores_of(name, data, train)
    if name in LOGIT_DETECTORS:
        assert np.array_equal(found, expected)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("name", LOGIT_DETECTORS)
def test_order_of_the_classes_does_not_matter(name):
    data, order = make(), torch.tensor([3, 0, 4, 1, 2])
    permuted = make(logits=data.logits[:, order])
    # Entropies near 0 are sums of numbers near 1: they round absolutely, and by the processor's order of summing.
    np.testing.assert_allclose(scores_of(name, permuted), scores_of(name, data), rtol=1e-9, atol=1e-14)


def test_logit_scores_equal_their_formulas():
    data = make(spread=0.5)
    logits = data.logits.double().numpy()
    p = special.softmax(logits, axis=1)
    np.testing.assert_allclose(scores_of("msp", data), p.max(1))
    np.testing.assert_allclose(scores_of("max-logit", data), logits.max(1))
    np.testing.assert_allclose(scores_of("energy", data), special.logsumexp(logits, axis=1))
    np.testing.assert_allclose(scores_of("entropy", data), -stats.entropy(p, axis=1))
    np.testing.assert_allclose(scores_of("gen", data), -((p * (1 - p)) ** 0.1).sum(1), rtol=1e-6)
    assert (scores_of("energy", data) >= scores_of("max-logit", data)).all()


def test_gen_tells_nearly_saturated_predictions_apart():
    # Of two classes p = 1 / (1 + e^-z): p (1 - p) = e^-z / (1 + e^-z)^2, far below where float64's 1 - p is zero.
    z = torch.tensor([10.0, 30.0, 50.0, 70.0], dtype=torch.float64)
    sure = make(4, logits=torch.stack([z, torch.zeros(4)], 1), others={})
    expected = -2 * (np.exp(-z.numpy()) / (1 + np.exp(-z.numpy())) ** 2) ** 0.1
    np.testing.assert_allclose(scores_of("gen", sure), expected, rtol=1e-9)


def test_formulas_agree_with_pytorch_ood():
    from pytorch_ood.detector import GEN, MCM, EnergyBased, Entropy, MaxLogit, MaxSoftmax

    data = make(spread=0.5)
    logits = data.logits.double()
    for name, theirs in (("msp", MaxSoftmax.score(logits)), ("max-logit", MaxLogit.score(logits)),
                         ("energy", EnergyBased.score(logits)), ("entropy", Entropy.score(logits)),
                         ("mcm", MCM(None, CENTRES, temperature=1.0).predict_features(data.features))):  # fmt: skip
        np.testing.assert_allclose(scores_of(name, data), -theirs.numpy(), rtol=1e-5, atol=1e-5)
    # Theirs clips p at 1e-7, and is the mean instead of the sum.
    unclipped = (logits.softmax(1) - 0.5).abs().amax(1) < 0.5 - 1e-6
    small = (logits.softmax(1) > 1e-7).all(1) & unclipped
    assert small.sum() > 10
    theirs = -CLASSES * GEN.score(logits, gamma=0.1, M=CLASSES)
    np.testing.assert_allclose(scores_of("gen", data)[small], theirs[small].numpy(), rtol=1e-6)


@pytest.mark.parametrize("name", ["mcm", "neg-label"])
def test_similarity_detectors_need_a_classifier_by_similarity(name):
    with pytest.raises(NotApplicable):
        scores_of(name, make(bias=torch.arange(5.0)))
    with pytest.raises(NotApplicable):
        scores_of(name, make(head=Head(None, None, SCALE, WORDS)))


def test_mahalanobis_against_scipy_and_pytorch_ood():
    from pytorch_ood.detector import RMD
    from pytorch_ood.detector import Mahalanobis as Theirs

    train, data = make(80, seed=3), make(9)
    x, y = train.features.double().numpy(), train.labels.numpy()
    means = np.stack([x[y == c].mean(0) for c in range(CLASSES)])
    precision = LedoitWolf(assume_centered=True).fit(x - means[y]).precision_
    overall = LedoitWolf().fit(x)
    z = data.features.double().numpy()
    nearest = np.array([min(mahalanobis(f, m, precision) for m in means) ** 2 for f in z])
    background = np.array([mahalanobis(f, overall.location_, overall.precision_) ** 2 for f in z])
    np.testing.assert_allclose(scores_of("mahalanobis", data, train), -nearest / 2, rtol=1e-8)
    np.testing.assert_allclose(scores_of("relative-mahalanobis", data, train), background - nearest, rtol=1e-7)
    # With many images the shrinkage vanishes and only pytorch-ood's missing 1 / n is left.
    train, data = make(20000, seed=3), make(50, spread=0.5)
    theirs = Theirs(None).fit_features(train.features, train.labels).predict_features(data.features).numpy()
    np.testing.assert_allclose(scores_of("mahalanobis", data, train), -len(train) * theirs, rtol=0.02)
    theirs = RMD(None).fit_features(train.features, train.labels).predict_features(data.features).numpy()
    assert np.corrcoef(scores_of("relative-mahalanobis", data, train), -theirs)[0, 1] > 0.999


def test_gaussians_are_fitted_once_for_each_training_set():
    data, trains = make(), [make(seed=k, spread=0.2 + k) for k in (5, 6)]
    fitted = [(build_detector("mahalanobis").fit(t), build_detector("relative-mahalanobis").fit(t)) for t in trains]
    assert all(plain.gaussian is relative.gaussian for plain, relative in fitted)
    first, second = (plain.score(data) for plain, _ in fitted)
    assert not np.allclose(first, second) and not np.allclose(first, fitted[0][0].score(make(seed=9)))
    for score, (_, relative) in zip((first, second), fitted, strict=True):
        far = ((data.features.double() - relative.background.centres) @ relative.background.root).square().sum(1)
        np.testing.assert_allclose(relative.score(data), far.numpy() + 2 * score)


def test_fewer_images_than_dimensions_are_no_obstacle():
    few = make(10, seed=3)  # two a class, in 16 dimensions
    for name in ("mahalanobis", "relative-mahalanobis", "vim", "knn"):
        inside, outside = scores_of(name, make(), few), scores_of(name, make(ood=True), few)
        assert np.isfinite(np.r_[inside, outside]).all()
        assert roc_auc_score(np.r_[np.ones(60), np.zeros(60)], np.r_[inside, outside]) > 0.7, name
    alone = make(5, seed=3)  # one a class: nothing to estimate a covariance from
    with pytest.raises(RPLibError, match="covariance"):
        scores_of("mahalanobis", make(), alone)


def test_a_class_without_images_has_no_centre():
    train = make(80, seed=3)
    rest = make(80, seed=3, labels=torch.where(train.labels == 0, 1, train.labels))
    assert np.isfinite(scores_of("mahalanobis", make(), rest)).all()


def test_nearest_neighbours_by_brute_force(monkeypatch):
    train, data = make(30, seed=3), make(8)
    distances = np.sort(np.linalg.norm(data.features.numpy()[:, None] - train.features.numpy()[None], axis=2), axis=1)
    np.testing.assert_allclose(scores_of("knn", data, train), -distances[:, 0], rtol=1e-5)
    monkeypatch.setattr("rp_lib.detectors.BLOCK", 3)
    assert build_detector("knn").fit(train).score(data).shape == (8,)


def test_nearest_neighbours_that_float32_cannot_tell_apart(monkeypatch):
    """Distances far below float32's, and more of them than candidates are kept: the k-th is still the right one."""
    g = torch.Generator().manual_seed(0)
    centre = CENTRES[:1].double()
    crowd = F.normalize(centre + 1e-5 * torch.randn(60, WIDTH, generator=g).double(), dim=1).float()
    train = make(220, features=torch.cat([crowd, make(160, seed=3).features]))
    data = make(3, features=torch.cat([centre.float(), crowd[:1], make(1).features]), others={})
    monkeypatch.setattr("rp_lib.detectors.BLOCK", 50)
    x, q = (F.normalize(t.features.double(), dim=1).numpy() for t in (train, data))
    distances = np.sort(np.linalg.norm(q[:, None] - x[None], axis=2), axis=1)
    detector = build_detector("knn").fit(train)
    assert detector.k == 4 and (distances[:2, 3] > 0).all() and distances[0, 18] < 1e-4
    np.testing.assert_allclose(-detector.score(data), distances[:, 3], rtol=1e-9)
    assert detector.fit(make(220, features=crowd[:1].expand(220, -1))).score(data)[1] == 0


def test_k_is_a_tenth_of_the_median_class_size_and_at_most_50(monkeypatch):
    train, data = make(220, seed=3), make(8)  # 44 a class
    distances = np.sort(np.linalg.norm(data.features.numpy()[:, None] - train.features.numpy()[None], axis=2), axis=1)
    np.testing.assert_allclose(scores_of("knn", data, train), -distances[:, 3], rtol=1e-5)
    uneven = make(220, seed=3, labels=torch.repeat_interleave(torch.arange(3), torch.tensor([5, 25, 190])))
    for n, labels, k in ((220, uneven.labels, 2), (5, torch.arange(5), 1), (9000, torch.arange(9000) % 5, 50)):
        assert build_detector("knn").fit(make(n, labels=labels)).k == k


def test_vim_by_its_definition():
    bias = torch.arange(5.0) / 5
    train, data = make(80, seed=3, bias=bias), make(9, bias=bias)
    w, b = (t.double().numpy() for t in (train.head.weight, train.head.bias))
    origin = -np.linalg.pinv(w) @ b
    x, z = train.features.double().numpy() - origin, data.features.double().numpy() - origin
    _, _, axes = np.linalg.svd(x, full_matrices=True)
    rest = axes[8:]  # all but the principal half of the axes
    scale = train.logits.double().numpy().max(1).mean() / np.linalg.norm(x @ rest.T, axis=1).mean()
    expected = special.logsumexp(data.logits.double().numpy(), axis=1) - scale * np.linalg.norm(z @ rest.T, axis=1)
    np.testing.assert_allclose(scores_of("vim", data, train), expected, rtol=1e-9)  # in float64 throughout
    with pytest.raises(NotApplicable, match="outside"):
        scores_of("vim", data, make(40, spread=0, features=torch.zeros(40, WIDTH)))
    with pytest.raises(NotApplicable):
        scores_of("vim", data, make(head=Head(None, None, SCALE)))


@pytest.mark.parametrize("name", [n for n, d in DETECTORS.items() if "train" in d.needs])
def test_fitting_needs_labels(name):
    with pytest.raises(RPLibError, match="labelled"):
        build_detector(name).fit(make(ood=True))


def test_negative_labels_by_their_definition(monkeypatch):
    data = make(spread=0.5)
    classes, words = data.cosines.numpy(), data.negative_cosines.numpy()
    one = np.exp(SCALE * classes).sum(1)
    single = one / (one + np.exp(SCALE * words).sum(1))
    np.testing.assert_allclose(scores_of("neg-label", data), single)  # fewer words than a group has: one group
    # 60 words in groups of 25: two groups, ten words dropped, the same for every image.
    monkeypatch.setattr("rp_lib.detectors.GROUP", 25)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0)).numpy()[:50].reshape(2, 25)
    mean = np.mean([one / (one + np.exp(SCALE * words[:, group]).sum(1)) for group in order], axis=0)
    np.testing.assert_allclose(scores_of("neg-label", data), mean)
    with pytest.raises(RPLibError, match="negatives"):
        scores_of("neg-label", make(head=Head(SCALE * CENTRES, torch.zeros(CLASSES), SCALE)))


def test_cooked_averages_probabilities():
    data = make(spread=0.5)
    members = [data.logits, *data.others.values()]
    mean = np.mean([special.softmax(m.double().numpy(), axis=1) for m in members], axis=0)
    np.testing.assert_allclose(scores_of("cooked", data), -stats.entropy(mean, axis=1))
    same = make(spread=0.5, others={"zero-shot": data.logits, "linear-probe": data.logits})
    np.testing.assert_allclose(scores_of("cooked", same), scores_of("entropy", same))
    with pytest.raises(RPLibError, match="zero-shot and linear-probe"):
        scores_of("cooked", make(others={}))


def test_unknown_detector_suggests():
    with pytest.raises(UnknownName, match="did you mean"):
        build_detector("mahalanobi")


def test_vocabulary_holds_whole_words_that_were_learnt(own_clip):
    words = vocabulary_words(own_clip)
    assert {"tree", "river"} <= set(words) and len(words) > 5000
    assert all(w.isascii() and w.isalpha() and len(w) > 2 for w in words) and len(set(words)) == len(words)
    encoder, table = own_clip.tokenizer.encoder, own_clip.model.token_embedding.weight
    with torch.no_grad():
        table[encoder["river</w>"]] = table[encoder["lake</w>"]]  # as rows that training never reached are alike
    assert set(words) - set(vocabulary_words(own_clip)) == {"river", "lake"}


def test_mined_words_are_the_farthest_and_no_class_names(clip, monkeypatch):
    monkeypatch.setattr("rp_lib.negative_labels.FRACTION", 0.5)
    monkeypatch.setattr("rp_lib.negative_labels.QUANTILE", 1.0)
    words = ["cat", "cats", "engine", "cup", "river", "tree", "lake", "stone", "cloud", "bird", "river"]
    names, templates = ("cat", "fire engine", "cup"), ("a photo of a {}.",)
    found = mine_negative_words(clip, names, templates, words)
    rest = ["river", "tree", "lake", "stone", "cloud", "bird"]
    assert found.candidates == len(rest) and len(found.words) == 3 and set(found.words) <= set(rest)
    nearness = (clip.class_embeddings(rest, templates) @ clip.class_embeddings(names, templates).T).amax(1)
    assert list(found.words) == [rest[i] for i in nearness.argsort()[:3].tolist()]
    torch.testing.assert_close(found.embeddings, clip.class_embeddings(found.words, templates), atol=1e-5, rtol=1e-4)
    with pytest.raises(RPLibError, match="no candidate"):
        mine_negative_words(clip, names, templates, ["Cats"])


@pytest.mark.parametrize("name", ["mahalanobis", "relative-mahalanobis"])
def test_one_training_picture_a_class_is_too_few_for_a_covariance(name):
    train = make(2, seed=3, labels=torch.tensor([0, 1]))
    with pytest.raises(RPLibError, match=r"covariance .* is singular|no covariance can be fitted"):
        build_detector(name).fit(train)


def test_what_detectors_say_of_logits_of_sigmoids():
    test, bias = make(spread=0.6, seed=4), -10.0
    z = test.logits.double()
    score = {name: build_detector(name).score(test) for name in LOGIT_DETECTORS}
    moved = make(spread=0.6, seed=4, logits=test.logits + bias)
    for name in ("msp", "entropy", "gen"):  # the bias is nothing to a softmax
        assert np.allclose(build_detector(name).score(moved), score[name], rtol=1e-4), name
    largest = torch.sigmoid(z + bias).amax(1)
    assert stats.spearmanr(score["max-logit"], largest)[0] == pytest.approx(1)
    joint = F.softplus(z / 4 + bias).sum(1)  # JointEnergy, where probabilities are small
    small = make(spread=0.6, seed=4, logits=test.logits / 4)
    assert stats.spearmanr(build_detector("energy").score(small), joint)[0] > 0.999
    # No class fits the first image, two fit the second: the softmax does not see it.
    two = make(2, logits=torch.tensor([[-5.0, -5.0, -30, -30, -30], [5.0, 5.0, -20, -20, -20]]))
    assert np.ptp(build_detector("msp").score(two)) < 1e-6 and np.ptp(build_detector("max-logit").score(two)) == 10
