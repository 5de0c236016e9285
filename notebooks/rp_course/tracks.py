"""Tracks of the notebooks: ``mini`` runs offline on a laptop, ``full`` is the paper's setting on a GPU.

The environment switches:

========================  ==========================================================================================
``RP_TRACK``              ``mini`` (default) or ``full``
``RP_ID``                 of the full track: ``cifar10`` (default) or ``imagenet``
``RP_BACKBONE``           of the full track: an open_clip model instead of ``ViT-B-32-quickgelu``
``RP_PRETRAINED``         of the full track: a tag or a local file of weights instead of ``openai``
``RP_DATA``               folder of the data sets that ``data_download.sh`` fills, default ``data``
========================  ==========================================================================================
"""

from __future__ import annotations

import os

from rp_lib.run import FULL_IDS
from rp_lib.run.config import read_config
from rp_lib.run.session import Session, open_session
from rp_lib.utils.errors import RPLibError, UnknownName

TRACKS = ("mini", "full")
ENVIRONMENT = {"RP_BACKBONE": "backbone.name", "RP_PRETRAINED": "backbone.pretrained"}


def open_track(name: str | None = None, device: str = "auto") -> Session:
    """Open the track of this name, else of ``$RP_TRACK``, else ``mini``.

    Raises:
        UnknownName: No such track, or an ``RP_ID`` that is none of the full track's.
        NotThere: Data sets are missing; the message says how to get them.
        RPLibError: The weights cannot be fetched or read, or a variable is set that the mini track does not read.
    """
    asked = name or os.environ.get("RP_TRACK") or "mini"
    if asked not in TRACKS:
        raise UnknownName("track", asked, TRACKS)
    if asked == "mini":
        unread = [variable for variable in ("RP_ID", *ENVIRONMENT) if os.environ.get(variable)]
        if unread and name is None:
            raise RPLibError(f"{', '.join(unread)} is of the full track alone: set RP_TRACK=full as well, or unset it")
        return open_session(read_config("mini", {"device": device}))
    data = os.environ.get("RP_ID") or "cifar10"
    if data not in FULL_IDS:
        raise UnknownName("RP_ID of the full track", data, FULL_IDS)
    changes = {key: value for variable, key in ENVIRONMENT.items() if (value := os.environ.get(variable))}
    return open_session(read_config(f"{data}-paper", changes | {"device": device}))
