#!/usr/bin/env bash
# open_clip_torch 3.3.0: a shorter context changes the features of texts that fit into it.
#
# One would guess: `create_model(..., force_context_length=32)` cuts the table of positions behind the 32nd. CLIP's text tower is
# causal and reads its feature at the end mark, so that a prompt of six tokens would keep its feature, at half the time.
#
# What happens: the table is interpolated from 77 rows to 32, as positions of an image are for another size. The sixth token gets
# what was the fourteenth position, and all features change, without an error or a warning (a line at level INFO says it).
# What helps: keep the context of the weights, and cut tokens behind the last end mark, or cut the table by hand.
#
# Seen (random weights with positions as far apart as trained ones are):
#   open_clip 3.3.0
#   cosine of a prompt's feature with that at 77 positions: 0.76 at 32 positions, 1.00 with the table cut by hand
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --only-binary :all: open_clip_torch==3.3.0 torch==2.14.1 torchvision==0.29.1 timm==1.0.31 numpy==2.4.6 2>/dev/null
cd "$work"
"$work/venv/bin/python" - <<'PY'
import open_clip
import torch

print("open_clip", open_clip.__version__)
torch.manual_seed(0)
long = open_clip.create_model("RN50", pretrained=None).eval()
with torch.no_grad():
    long.positional_embedding.normal_(0, 0.02)  # of the size of the token rows
torch.save(long.state_dict(), "weights.pt")
short = open_clip.create_model("RN50", pretrained="weights.pt", force_context_length=32).eval()
cut = open_clip.create_model("RN50", pretrained="weights.pt", force_context_length=32).eval()
with torch.no_grad():
    cut.positional_embedding.copy_(long.positional_embedding[:32])
    tokens = open_clip.get_tokenizer("RN50")(["a photo of a cat"])  # 7 tokens with both marks
    assert int(tokens.argmax()) == 6
    features = [long.encode_text(tokens), short.encode_text(tokens[:, :32]), cut.encode_text(tokens[:, :32])]
like = [torch.cosine_similarity(features[0], other).item() for other in features[1:]]
print(f"cosine of a prompt's feature with that at 77 positions: {like[0]:.2f} at 32 positions, {like[1]:.2f} with the table cut by hand")
assert like[0] < 0.9 and like[1] > 0.9999, "the behaviour has changed"
PY
