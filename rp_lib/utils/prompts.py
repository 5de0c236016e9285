"""Class names in prompt templates."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from rp_lib.utils.errors import RPLibError


def plain(name: str) -> str:
    """A name without regard to case, underscores, repeated spaces and forms of letters."""
    return " ".join(unicodedata.normalize("NFKC", name).replace("_", " ").casefold().split())


def fill_prompts(class_names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Put each of C names into each of T templates: C * T prompts, class by class.

    Raises:
        RPLibError: There is none of either, a name is empty, or a template has not exactly one ``{}``.
    """
    if not class_names or not templates:
        raise RPLibError("at least one class name and one prompt template, such as 'a photo of a {}.', are needed")
    for name in class_names:
        if not isinstance(name, str) or not plain(name):
            raise RPLibError(f"class names stand in prompts: they are texts that are not empty, got {name!r}")
    for template in templates:
        if template.count("{}") != 1 or {"{", "}"} & set(template.replace("{}", "")):
            raise RPLibError(
                f"the prompt template {template!r} needs exactly one {{}} for the class name, and no other brace"
            )
    return [t.format(c) for c in class_names for t in templates]


def check_distinct(class_names: Sequence[str], template: str, folders: Sequence[str] | None = None) -> None:
    """Refuse names that differ in case, blanks, underscores or forms of letters alone, which no picture shows.

    Args:
        class_names: C names. Without folders, one may be another with a blank at its end: a class repeated on purpose.
        template: For the message.
        folders: What the message calls the classes.
    """
    first: dict[str, int] = {}
    for i, name in enumerate(class_names):
        other = first.setdefault(plain(name), i)
        if other != i and (folders or class_names[other].strip() != name.strip()):
            one, two = ((folders or class_names)[c] for c in (other, i))
            kind, how = ("class folders", " with class_names={folder: name}") if folders else ("classes", "")
            raise RPLibError(
                f"the {kind} {one!r} and {two!r} give the same prompt {template.replace('{}', name)!r} (case does not "
                f"count): give them names that differ{how}, or merge them"
            )
