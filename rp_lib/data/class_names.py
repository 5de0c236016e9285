"""Classes of the published data sets: names for prompts, orders of labels, and maps between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rp_lib.utils.errors import RPLibError, UnknownName

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# STL-10's own order is alphabetical by other words: airplane, bird, car, cat, deer, dog, horse, monkey, ship, truck.
# What each of its labels (from 0) is in CIFAR-10; the monkey (-1) is none of CIFAR-10's classes.
STL10_TO_CIFAR10 = (0, 2, 1, 3, 4, 5, 7, -1, 8, 9)
STL10_ORDERS = ("cifar10", "as_released")
# Tiny-ImageNet's folders that show a class of CIFAR-10; airplane, deer and horse have none.
TINY_IMAGENET_TO_CIFAR10: Mapping[str, str] = {
    wnid: name
    for name, wnids in {
        "automobile": "n02814533 n03100240 n03670208 n04285008",
        "bird": "n01855672 n02002724 n02056570 n02058221",
        "cat": "n02123045 n02123394 n02124075",
        "dog": "n02085620 n02094433 n02099601 n02099712 n02106662 n02113799",
        "frog": "n01641577 n01644900",
        "ship": "n03662601 n03447447",
        "truck": "n03796401 n03977966",
    }.items()
    for wnid in wnids.split()
}

# OpenAI's names give two pairs of classes one name each. These are the classes' own names in WordNet.
IMAGENET_RENAMED: Mapping[int, tuple[str, str]] = {744: ("missile", "projectile"), 836: ("sunglasses", "sunglass")}
IMAGENET_NAMES = ("distinct", "as_released")

TEMPLATES: Mapping[str, tuple[str, ...]] = {"plain": ("a photo of a {}.",), "as_released": ("a photo of a {}",)}
# What the released code does with the data, as arguments of the benchmarks [3, 4, 13].
DATA_SWITCHES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "cifar10": {"paper": {}, "as_released": {"stl10_order": "as_released", "templates": "as_released"}},
    "imagenet": {
        "paper": {},
        "as_released": {
            "score_among_all_classes": True, "templates": "as_released", "class_names": "as_released",
        },
    },
}  # fmt: skip


def prompt_templates(templates: str | Sequence[str]) -> tuple[str, ...]:
    """Prompts with one ``{}``: as given, or by name.

    ``plain`` is ``a photo of a {}.``, the prompt of Radford et al. (2021); ``as_released`` the same without the full
    stop; ``ensemble`` the seven that OpenAI chose from its eighty for ImageNet.

    Raises:
        UnknownName: No such name.
    """
    if not isinstance(templates, str):
        return tuple(templates)
    if templates == "ensemble":
        from open_clip import SIMPLE_IMAGENET_TEMPLATES

        return tuple(template("{}") for template in SIMPLE_IMAGENET_TEMPLATES)
    if templates not in TEMPLATES:
        raise UnknownName("set of templates", templates, [*TEMPLATES, "ensemble"])
    return TEMPLATES[templates]


def imagenet_wnids() -> tuple[str, ...]:
    """The WordNet ids of ImageNet-1k's classes, sorted: class number i is the i-th."""
    from timm.data import ImageNetInfo

    wnids = tuple(ImageNetInfo().label_names())
    if len(wnids) != 1000 or list(wnids) != sorted(wnids):
        raise RPLibError("the installed timm does not list ImageNet's 1000 classes in order; install another version")
    return wnids


def imagenet_class_names(names: str = "distinct") -> tuple[str, ...]:
    """OpenAI's 1000 class names in the order of :func:`imagenet_wnids`.

    Two names stand for two classes each there (missile: 657 and 744, sunglasses: 836 and 837), so that 1000 classes
    have 998 prompts and one of each pair is never predicted.

    Args:
        names: ``distinct`` gives 744 and 836 their WordNet names, projectile and sunglass. ``as_released`` keeps the
            998 prompts: the second name of a pair ends in a blank, which CLIP's tokeniser drops.

    Raises:
        UnknownName: Another value of ``names``.
    """
    from open_clip import IMAGENET_CLASSNAMES

    if names not in IMAGENET_NAMES:
        raise UnknownName("kind of class names", names, IMAGENET_NAMES)
    given = list(IMAGENET_CLASSNAMES)
    if names == "distinct":
        for number, (old, new) in IMAGENET_RENAMED.items():
            given[number] = new if given[number] == old else given[number]
    else:
        given = [name + " " if name in given[:i] else name for i, name in enumerate(given)]
    if len(given) != 1000 or len(set(given)) != 1000:
        raise RPLibError("the installed open_clip_torch names ImageNet's classes otherwise; install another version")
    return tuple(given)
