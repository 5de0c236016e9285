"""Where the course lives."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, metadata

from rp_lib._version import __version__

REPOSITORY = "https://github.com/rp-lib/rp-lib"  # until the installed package says otherwise


def repository() -> str:
    """Address of the repository, as the installed package names it."""
    try:
        urls = metadata("rp-lib").get_all("Project-URL") or []
    except PackageNotFoundError:
        urls = []
    named = dict(url.split(", ", 1) for url in urls if ", " in url)
    return named.get("Repository", REPOSITORY).rstrip("/")


def home(notebook: str, address: str = "", release: str = f"v{__version__}") -> str:
    """Address that opens a notebook of the released course on Colab.

    Args:
        notebook: name without folder, with or without ``.ipynb``. address: of the repository; default: the package's.
        release: tag or branch.
    """
    slug = (address or repository()).removeprefix("https://github.com/")
    name = notebook.removesuffix(".ipynb")
    return f"https://colab.research.google.com/github/{slug}/blob/{release}/notebooks/{name}.ipynb"
