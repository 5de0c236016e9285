import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from rp_course.mini_world import pretrain as module
from rp_course.mini_world.captions import WordTokens, caption
from rp_course.mini_world.icon_pairs import IconPairs, augment
from rp_course.mini_world.pretrain import CONFIG, Recipe, contrastive_loss, learning_rate, pretrain
from rp_course.mini_world.stored import export_clip

from rp_lib.mini import weights
from rp_lib.utils.errors import RPLibError
from rp_lib.utils.io import StorageError

RECIPE = Recipe(steps=6, batch=8, warmup=2, keep_at=(0.5,), seed=3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for prefix, family, coloured in (
        ("mdi", "material", False),
        ("fluent-emoji", "fluent-emoji", True),
        ("held", "noto", False),
    ):
        names = [f"thing-{w}" for w in ("house", "cat", "tree", "star", "sun", "moon")]
        shape = (len(names), 4, 64, 64) if coloured else (len(names), 64, 64)
        np.save(folder / f"{prefix}.npy", rng.integers(0, 255, shape, dtype=np.uint8))
        icons = [[n, n.split("-")[1], ["outline"], ["home"] if "house" in n else []] for n in names]
        meta = {"set": prefix, "family": family, "coloured": coloured, "category": None, "icons": icons}
        (folder / f"{prefix}.json").write_text(json.dumps(meta))
    (folder / "ATTRIBUTION.md").write_text("written last")
    return folder


def test_only_pre_training_families_are_used(corpus, tmp_path):
    pairs = IconPairs(corpus)
    assert pairs.sets == ["fluent-emoji", "mdi"] and len(pairs) == 12
    with pytest.raises(RPLibError, match="python -m rp_course mini corpus"):
        IconPairs(tmp_path)


def test_clean_start_draws_black_on_white(corpus):
    pairs = IconPairs(corpus)
    index = np.array([i for i in range(len(pairs)) if pairs.arrays[pairs.owner[i]].ndim == 3])
    images = pairs.pictures(index, 0.0, np.random.default_rng(0))
    expected = 1 - torch.from_numpy(np.stack([pairs.arrays[pairs.owner[i]][pairs.row[i]] for i in index])).float() / 255
    torch.testing.assert_close(images, expected[:, None].expand(-1, 3, -1, -1), atol=1e-5, rtol=0)
    strong = pairs.pictures(index, 1.0, np.random.default_rng(0))
    assert strong.min() >= 0 and strong.max() <= 1 and (strong - images).abs().mean() > 0.05


def test_augmentation_is_seeded(corpus):
    rgba, mono = torch.randint(0, 255, (8, 4, 64, 64), dtype=torch.uint8), torch.ones(8, dtype=torch.bool)
    one, two, other = (augment(rgba, mono, 1.0, np.random.default_rng(s)) for s in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_loss_is_clip_loss_without_repeats_and_multi_positive_with():
    g = torch.Generator().manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(6, 8, generator=g), dim=1) for _ in range(2))
    logits, target = 10 * image @ text.T, torch.arange(6)
    clip = (torch.nn.functional.cross_entropy(logits, target) + torch.nn.functional.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(contrastive_loss(image, text, torch.tensor(10.0), target), clip)
    same = torch.tensor([0, 0, 1, 2, 3, 4])
    probability = logits.log_softmax(1)
    rows = torch.stack([probability[i, same == same[i]].mean() for i in range(6)])
    columns = torch.stack([logits.T.log_softmax(1)[i, same == same[i]].mean() for i in range(6)])
    torch.testing.assert_close(
        contrastive_loss(image, text, torch.tensor(10.0), same), -(rows.mean() + columns.mean()) / 2
    )


def test_rate_warms_up_holds_and_decays_to_zero():
    recipe = Recipe(steps=100, warmup=10, constant_until=0.5, lr=1.0)
    rates = [learning_rate(s, recipe) for s in range(100)]
    assert rates[0] == 0.1 and rates[9] == rates[10] == rates[50] == 1.0
    assert rates[75] == pytest.approx(0.5) and rates[99] == pytest.approx(0.02)


def test_captions_tokenise_like_clip():
    from open_clip.tokenizer import SimpleTokenizer

    words, tokenizer = WordTokens(), SimpleTokenizer(context_length=16)
    phrases = ["an icon of a shopping cart", "wifi-off", "the logo of github", "x", "house " * 30]
    assert torch.equal(words.batch(phrases), tokenizer(phrases))
    drawn = {caption("house", ["home"], ["outline"], None, np.random.default_rng(s)) for s in range(60)}
    assert "an icon of a house" in drawn and "a outline icon of a house" in drawn and any("home" in d for d in drawn)


def test_interrupted_run_ends_where_an_uninterrupted_one_does(corpus, tmp_path, monkeypatch):
    pretrain(corpus, tmp_path / "whole", RECIPE)
    whole = torch.load(tmp_path / "whole" / "state.pt", weights_only=True)
    loss, calls = module.contrastive_loss, []

    def interrupt_at_fourth(*args):
        calls.append(1)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return loss(*args)

    monkeypatch.setattr(module, "contrastive_loss", interrupt_at_fourth)
    with pytest.raises(KeyboardInterrupt):
        pretrain(corpus, tmp_path / "cut", RECIPE)
    cut = torch.load(tmp_path / "cut" / "state.pt", weights_only=True)
    assert cut["step"] == 4
    pretrain(corpus, tmp_path / "cut", RECIPE)
    resumed = torch.load(tmp_path / "cut" / "state.pt", weights_only=True)
    assert resumed["step"] == whole["step"] == 6
    assert all(torch.equal(resumed["model"][k], v) for k, v in whole["model"].items())
    assert (tmp_path / "cut" / "checkpoint-0.5.pt").is_file()


def test_exported_checkpoint_gives_the_trained_model(corpus, tmp_path):
    pretrain(corpus, tmp_path / "run", RECIPE)
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    export_clip(state, CONFIG, tmp_path / "m.safetensors")
    clip = weights.load_clip(str(tmp_path / "m.safetensors"))
    for name, value in state["model"].items():
        if name != "token_embedding.weight":
            torch.testing.assert_close(clip.model.state_dict()[name], value.half().float(), msg=name)
    ids = state["vocabulary"]
    table = clip.model.token_embedding.weight
    torch.testing.assert_close(table[ids], state["model"]["token_embedding.weight"].half().float())
    few = ids[:5]
    export_clip(state, CONFIG, tmp_path / "few.safetensors", keep_tokens=few)
    table = weights.load_clip(str(tmp_path / "few.safetensors")).model.token_embedding.weight
    torch.testing.assert_close(table[few], state["model"]["token_embedding.weight"][:5].half().float())
    assert torch.equal(table[ids[6]], table[ids[7]])


def test_state_of_another_recipe_is_refused(corpus, tmp_path):
    pretrain(corpus, tmp_path, RECIPE)
    with pytest.raises(StorageError, match="another recipe"):
        pretrain(corpus, tmp_path, replace(RECIPE, seed=4))
    (tmp_path / "state.pt").write_bytes(b"not a state")
    with pytest.raises(StorageError, match="damaged"):
        pretrain(corpus, tmp_path, RECIPE)


def test_second_stage_starts_from_the_first(corpus, tmp_path):
    pretrain(corpus, tmp_path / "one", RECIPE)
    first = torch.load(tmp_path / "one" / "state.pt", weights_only=True)["model"]
    frozen = replace(RECIPE, steps=1, lr=0.0, seed=9)
    pretrain(corpus, tmp_path / "two", frozen, start=tmp_path / "one" / "state.pt")
    second = torch.load(tmp_path / "two" / "state.pt", weights_only=True)["model"]
    assert all(torch.equal(first[k], v) for k, v in second.items() if k != "logit_scale")


def test_coloured_pictures_are_drawn_as_often_as_asked(corpus):
    share = {}
    for factor in (1.0, 3.0):
        pairs = IconPairs(corpus, coloured=factor)
        drawn = pairs.draw(4000, np.random.default_rng(0))
        share[factor] = np.mean([pairs.arrays[pairs.owner[i]].ndim == 4 for i in drawn])
    assert share[1.0] == pytest.approx(0.5, abs=0.03) and share[3.0] == pytest.approx(0.75, abs=0.03)


def test_unfinished_corpus_is_refused(corpus, tmp_path):
    import shutil

    shutil.copytree(corpus, tmp_path / "cut")
    (tmp_path / "cut" / "ATTRIBUTION.md").unlink()
    with pytest.raises(RPLibError, match="no finished corpus"):
        IconPairs(tmp_path / "cut")


def test_names_of_one_family_are_drawn_less_often_as_asked(corpus, tmp_path):
    import shutil

    shutil.copytree(corpus, tmp_path / "own")
    text = (tmp_path / "own" / "mdi.json").read_text()
    (tmp_path / "own" / "mdi.json").write_text(text.replace("moon", "comet"))
    drawn = {}
    for shared in (0.0, 1.0):
        pairs = IconPairs(tmp_path / "own", shared=shared)
        names = [pairs.rows[i][0] for i in pairs.draw(6000, np.random.default_rng(0))]
        drawn[shared] = names.count("comet") / names.count("sun")  # one family's name against one of two families
    assert drawn[0.0] == pytest.approx(0.5, abs=0.06) and drawn[1.0] == pytest.approx(0.25, abs=0.05)


def test_pictures_are_restyled_as_asked(corpus):
    pairs, index = IconPairs(corpus), np.arange(12)
    plain, again, other = (pairs.pictures(index, 0.0, np.random.default_rng(0), m) for m in (0.0, 0.0, 1.0))
    assert torch.equal(plain, again) and not torch.equal(plain, other) and other.shape == plain.shape
