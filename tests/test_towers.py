import pytest
import torch
from conftest import CONTEXT, make_model
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import nn

from rp_lib.towers import TextTower, cut_padding, embed, encode_tokens, end_positions, text_part
from rp_lib.utils.errors import RPLibError

TEXTS = ["a cat", "a photo of a fire engine, parked.", "", "cup", "one " * 40]
VISION = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "head_width": 32}
TEXT = {"context_length": CONTEXT, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return SimpleTokenizer(context_length=CONTEXT)(TEXTS)


def custom(**text: object) -> CustomTextCLIP:
    torch.manual_seed(0)
    return CustomTextCLIP(32, VISION, TEXT | text)


@pytest.mark.parametrize(
    "build", [make_model, lambda: make_model(quick_gelu=True), custom, lambda: custom(proj_bias=True)]
)
@pytest.mark.parametrize("rows", [slice(0, 4), slice(2, 3), slice(0, 5)])
def test_equals_open_clip_at_full_length(build, rows, tokens: torch.Tensor):
    model = build().eval()
    with torch.no_grad():
        ours, theirs = encode_tokens(model, tokens[rows]), model.encode_text(tokens[rows])
    assert (ours - theirs).abs().max() < 1e-5
    if rows == slice(0, 4):
        assert (ours[0] - ours[1]).abs().max() > 1e-2


OTHER_TOWERS = {
    "siglip": {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
    "mobileclip": {"no_causal_mask": True},
    "first": {"no_causal_mask": True, "pool_type": "first"},
    "eos-2": {"pool_type": "eos", "eos_id": 2},
    "class-token": {"embed_cls": True},
}


@pytest.mark.parametrize("build", [CLIP, CustomTextCLIP])
@pytest.mark.parametrize("name", OTHER_TOWERS)
def test_other_towers_equal_open_clip(name: str, build: type, tokens: torch.Tensor):
    if name == "class-token" and build is CLIP:
        pytest.skip("open_clip's CLIP has no place for a class token")
    if name == "eos-2":
        tokens = torch.where(tokens == 49407, 2, tokens)
    torch.manual_seed(0)
    model = build(32, VISION, TEXT | OTHER_TOWERS[name]).eval()
    tower = TextTower(model)
    assert tower.cuts is (name == "eos-2")
    rows = tokens[:4]
    assert tower.cut(rows).shape == (4, 11 if tower.cuts else CONTEXT)
    with torch.no_grad():
        ours, theirs = encode_tokens(model, rows), model.encode_text(rows)
        assert (ours - theirs).abs().max() < 1e-5 and (ours[0] - ours[1]).abs().max() > 1e-2
    # The embeddings that are put in are the ones that count, and a gradient reaches all that the tower sees.
    embedded = (tower.embedding(tower.cut(rows)) + tower.positions(tower.cut(rows).shape[1])).detach()
    embedded = (2 * embedded).requires_grad_()
    moved = tower.encode(embedded, tower.cut(rows))
    moved[0].square().sum().backward()
    assert (moved - theirs).abs().max() > 1e-2
    seen = embedded.grad[0].any(dim=1).tolist()  # of start, "a", "cat", end and padding
    # The mask of CoCa's class token is shifted by one place: of the padding it sees the first.
    padding = {"eos-2": 0, "class-token": 1}.get(name, CONTEXT - 4)
    assert seen[:4] == [True] * 4 and sum(seen[4:]) == padding and all(seen[4 : 4 + padding])
    assert not model.get_submodule("text" if build is CustomTextCLIP else "").token_embedding._forward_hooks


@pytest.mark.parametrize("name", ["Roberta", "MT5", "M2M100"])
def test_towers_of_hugging_face(name: str):
    """Run in an environment with the extra ``hugging-face``; the configurations are made here."""
    transformers = pytest.importorskip("transformers")
    from open_clip.hf_model import HFTextEncoder

    sizes = {
        "Roberta": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
        "MT5": {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2},
        "M2M100": {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64},
    }[name]
    model = custom()
    model.text = HFTextEncoder(
        "", 32, getattr(transformers, f"{name}Config")(vocab_size=100, **sizes), "mean_pooler", "mlp"
    )
    if model.text.config.is_encoder_decoder:
        model.text.transformer = model.text.transformer.encoder
    model.eval().requires_grad_(False)
    padding = model.text.config.pad_token_id
    tokens = torch.tensor([[3, 10, 11, 2, *[padding] * 4], [3, 12, 2, *[padding] * 5]])
    ours, theirs, tower = encode_tokens(model, tokens), model.encode_text(tokens), TextTower(model)
    assert (ours - theirs).abs().max() < 1e-6 and (ours[0] - ours[1]).abs().max() > 1e-4 and not tower.cuts
    rows = tower.embedding(tokens)  # scaled, in M2M100
    embedded = (2 * rows).requires_grad_()
    moved = tower.encode(embedded, tokens)
    moved[0].sum().backward()
    assert (moved - theirs).abs().max() > 1e-2
    assert embedded.grad[0].any(dim=1).tolist() == [True] * 4 + [False] * 4  # Hugging Face's towers mask their padding


def test_cut(tokens: torch.Tensor):
    assert end_positions(tokens).tolist() == [3, 10, 1, 2, CONTEXT - 1]
    assert cut_padding(tokens[:4]).shape == (4, 11)
    assert torch.equal(cut_padding(tokens[:4]), tokens[:4, :11])
    assert cut_padding(tokens).shape == (5, CONTEXT)
    assert embed(make_model(), tokens[:4, :10]).shape == (4, 10, 32)


def test_towers_that_do_not_fit():
    for find in (text_part, TextTower):
        with pytest.raises(RPLibError, match=r"has no token_embedding.*ViT-B-32"):
            find(nn.Linear(2, 2))
    with pytest.raises(RPLibError, match="attn_mask"):
        text_part(custom(no_causal_mask=True))
    for options in ({"pool_type": "last"}, {"pool_type": "eos", "eos_id": 2}, {"embed_cls": True}):
        with pytest.raises(RPLibError, match="end mark"):
            text_part(custom(**options))
    text_part(custom(pool_type="eos", eos_id=49407))
