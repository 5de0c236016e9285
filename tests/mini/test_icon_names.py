"""Names of icons: style and numbering leave, the concept stays."""

from __future__ import annotations

import pytest

from rp_lib.mini.icon_names import parse


@pytest.mark.parametrize(
    ("name", "concept", "style", "variant"),
    [
        ("home-outline", "home", ("outline",), ""),
        ("shopping-cart-24-filled", "shopping cart", ("filled",), ""),
        ("house-2", "house", (), "2"),
        ("house2", "house", (), "2"),
        ("outline-home", "home", ("outline",), ""),
        ("car-two-tone", "car", ("twotone",), ""),
        ("home-heart", "home heart", (), ""),
        ("traffic-light", "traffic", ("light",), ""),
        ("light-bulb", "light bulb", (), ""),
        ("Camera_Alt", "camera", ("alt",), ""),
        ("outline", "outline", (), ""),
    ],
)
def test_parse(name, concept, style, variant):
    icon = parse(name)
    assert (icon.concept, icon.style, icon.variant) == (concept, style, variant)


@pytest.mark.parametrize(
    ("name", "clean"), [("home", True), ("24", False), ("outline", False), ("a", False), ("bold-7", False)]
)
def test_clean(name, clean):
    assert parse(name).clean is clean
