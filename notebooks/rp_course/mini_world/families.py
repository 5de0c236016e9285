"""Which Iconify sets may be used, and which of them come from the same hand.

A split "by designer" is only as good as its idea of a designer: sets that share an author, a code base
or a common ancestor belong to one family, and a family never stands on two sides of a split.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Licences that let us redistribute rendered images with attribution (no NC, no copyleft, no share-alike).
ALLOWED_LICENCES = frozenset({"MIT", "Apache-2.0", "ISC", "CC0-1.0", "CC-BY-4.0", "CC-BY-3.0", "OFL-1.1", "Unlicense"})

# Families that the author field does not reveal: forks, ancestors, common owners. One line, one family.
_RELATED = """
material ic mdi mdi-light material-symbols material-symbols-light zmdi line-md memory gcp
microsoft fluent fluent-color fluent-mdl2 codicon
fluent-emoji fluent-emoji fluent-emoji-flat fluent-emoji-high-contrast
fontawesome fa fa-brands fa-regular fa-solid fa6-brands fa6-regular fa6-solid fa7-brands fa7-regular fa7-solid fad
by-streamline streamline-block covid guidance
noto noto noto-v1
feather feather lucide lucide-lab akar-icons mono-icons mi
ionicons ion famicons
heroicons heroicons heroicons-outline heroicons-solid sidekickicons
boxicons boxicons bx bxl bxs
maps maki temaki pinhead osmic roentgen geo map gis
weather wi meteocons
coreui cil cib cif
icons8 icons8 la flat-color-icons wpf
iconscout uil uim uis uit
solar solar reicon
circum circum basil
""".strip()
_RELATED_OF = {s: line.split()[0] for line in _RELATED.splitlines() for s in line.split()[1:]}


def is_allowed(info: Mapping[str, Any]) -> bool:
    """Whether an entry of Iconify's ``collections.json`` has a licence that we may redistribute under."""
    return info["license"].get("spdx") in ALLOWED_LICENCES


def family_of(prefix: str, info: Mapping[str, Any]) -> str:
    """The family of a set: a named relation where there is one, else the author."""
    return _RELATED_OF.get(prefix) or "by-" + "-".join(info["author"]["name"].lower().split())


# The families that pre-training may see. Everything else is held out for the benchmark; fixed before any
# model was trained, by size (pre-training gets the big ones) and variety, never by results.
PRETRAINING = frozenset(
    """material by-iconmind by-streamline fontawesome by-bytedance by-hugeicons microsoft icons8 fluent-emoji
    maps weather by-resolve-to-save-lives by-tdesign by-ibm by-siemens-ag
    by-remix-design by-webhostinghub by-luca-burgio iconscout by-gameicons by-thesvg.org
    by-roberto-huertas by-material-extensions by-catppuccin by-konpa by-john-gardner by-vmware by-zendesk
    by-element-plus coreui by-astrit by-norsk-rikskringkasting by-grommet by-vaadin by-akveo by-yandex-llc
    by-samuel-frémondière by-yessir-organization by-bpmn by-camunda-services-gmbh by-james-walsh by-marketeq
    by-google-cloud by-kenan-gündoğan by-team-redux by-olivier-cléro""".split()
)
# Held-out families whose hand differs from plain interface style: the "hand-drawn and pixel" shift.
OTHER_HANDS = frozenset("by-cycraft by-atelieranchor by-picon-contributors by-hackernoon".split())
EMOJI = frozenset("noto by-twitter by-emoji-one by-mozilla".split())
