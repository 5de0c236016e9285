import copy

import pytest
import torch
from conftest import make_set

from rp_lib.benchmark import ImageSet
from rp_lib.clip import FrozenCLIP
from rp_lib.features import FeatureStore, encode_all
from rp_lib.utils.errors import RPLibError


class Counting:
    """An encoder that remembers the sizes of the batches it saw."""

    def __init__(self, clip: FrozenCLIP, bad: int | None = None) -> None:
        self.clip, self.bad, self.sizes = clip, bad, []

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        features = self.clip.encode(images)
        if self.bad is not None and sum(self.sizes) <= self.bad < sum(self.sizes) + len(images):
            features[self.bad - sum(self.sizes), 3] = torch.nan
        self.sizes.append(len(images))
        return features


def test_batches_make_no_difference(clip: FrozenCLIP, images: torch.Tensor):
    encoder = Counting(clip)
    whole, parts = encode_all(encoder, images), encode_all(encoder, images, batch_size=3)
    assert encoder.sizes == [7, 3, 3, 1]
    assert (whole - parts).abs().max() < 1e-6 and whole.shape == (7, clip.embed_dim)
    assert (whole.norm(dim=1) - 1).abs().max() < 1e-6 and not whole.requires_grad


def test_features_can_take_part_in_training(clip: FrozenCLIP, images: torch.Tensor):
    features = encode_all(clip, images)
    assert not features.is_inference()
    weight = torch.zeros(2, clip.embed_dim, requires_grad=True)
    torch.nn.functional.linear(features, weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("bad", [0, 4, 6])
def test_damage_is_named(clip: FrozenCLIP, images: torch.Tensor, bad: int):
    with pytest.raises(RPLibError, match=f"features of image {bad} are not finite"):
        encode_all(Counting(clip, bad), images, batch_size=3)


def test_no_images(clip: FrozenCLIP, images: torch.Tensor):
    with pytest.raises(RPLibError, match="no images"):
        encode_all(clip, images[:0])


def test_store_computes_once(clip: FrozenCLIP, train_set: ImageSet):
    store, encoder, other = FeatureStore(batch_size=10), Counting(clip), Counting(clip)
    first = store.get(encoder, train_set)
    assert store.get(encoder, train_set) is first and encoder.sizes == [10, 10, 4]
    assert torch.equal(first, encode_all(clip, train_set.images, batch_size=10))
    store.get(other, train_set)
    second = store.get(encoder, make_set(24, seed=7))
    assert sum(other.sizes) == 24 and sum(encoder.sizes) == 48 and not torch.equal(first, second)


def test_store_forgets(clip: FrozenCLIP, train_set: ImageSet):
    store, encoder, other = FeatureStore(), Counting(clip), Counting(clip)
    for e in (encoder, other):
        store.get(e, train_set)
    store.drop(encoder)
    for e in (encoder, other):
        store.get(e, train_set)
    assert (sum(encoder.sizes), sum(other.sizes)) == (48, 24)


def test_store_keeps_what_its_keys_stand_for(clip: FrozenCLIP):
    """Ids are reused after garbage collection, so a store that forgot its objects would mix them up."""
    store = FeatureStore()
    for seed in range(5):
        data = make_set(3, seed=seed)
        assert torch.equal(store.get(clip, data), encode_all(clip, data.images))
        del data


def test_progress_bar(clip: FrozenCLIP, images: torch.Tensor, capsys: pytest.CaptureFixture):
    encode_all(clip, images)
    assert capsys.readouterr().err == ""
    encode_all(copy.copy(clip), images, progress="encoding")
    assert "encoding" in capsys.readouterr().err
