import pytest
import torch
from conftest import CONTEXT, make_model
from open_clip.model import CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import nn

from rp_lib.towers import cut_padding, embed, encode_tokens, end_positions, text_part
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


def test_cut(tokens: torch.Tensor):
    assert end_positions(tokens).tolist() == [3, 10, 1, 2, CONTEXT - 1]
    assert cut_padding(tokens[:4]).shape == (4, 11)
    assert torch.equal(cut_padding(tokens[:4]), tokens[:4, :11])
    assert cut_padding(tokens).shape == (5, CONTEXT)
    assert embed(make_model(), tokens[:4, :10]).shape == (4, 10, 32)


def test_towers_that_do_not_fit():
    with pytest.raises(RPLibError, match=r"has no token_embedding.*ViT-B-32"):
        text_part(nn.Linear(2, 2))
    with pytest.raises(RPLibError, match="attn_mask"):
        text_part(custom(no_causal_mask=True))
    for options in ({"pool_type": "last"}, {"pool_type": "eos", "eos_id": 2}, {"embed_cls": True}):
        with pytest.raises(RPLibError, match="end mark"):
            text_part(custom(**options))
    text_part(custom(pool_type="eos", eos_id=49407))
