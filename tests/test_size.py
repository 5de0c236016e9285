"""The experiment on a second backbone size."""

import pandas as pd
from test_experiments import made_up, outcomes

from rp_lib.clip import FrozenCLIP
from rp_lib.experiments.size import LARGE, SMALL
from rp_lib.mini import weights

CORE = ("zero-shot", "linear-probe", "fine-tune", "rp", "rrp")


def test_both_backbones_ship():
    assert weights.sizes() == (SMALL,) and LARGE in weights.names()
    small, large = (FrozenCLIP.mini(n) for n in (SMALL, LARGE))
    count = [sum(p.numel() for p in clip.model.visual.parameters()) for clip in (small, large)]
    assert 2 * count[0] < count[1] and small.embed_dim == large.embed_dim


def test_size_points_the_right_way():
    worse = dict(zip(CORE, (5, 4, 0, 5.5, 8), strict=True))  # fine-tuning loses
    better = dict(zip(CORE, (0, 1, 9, 4, 5), strict=True))  # fine-tuning wins
    told = outcomes("size", pd.concat([
        made_up(worse, checkpoint=SMALL, million_weights=0.8), made_up(better, checkpoint=LARGE, million_weights=2.9)
    ]))  # fmt: skip
    assert set(told.values()) == {"holds"} and len(told) == 6
    turned = outcomes("size", pd.concat([
        made_up(better, checkpoint=SMALL, million_weights=0.8), made_up(worse, checkpoint=LARGE, million_weights=2.9)
    ]))  # fmt: skip
    assert set(turned.values()) == {"fails"}
