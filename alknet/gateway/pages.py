"""The page ``/docs``, on which people try the operations of a node: files of the package, nothing from elsewhere."""

from functools import cache
from importlib.resources import files
from typing import Final

__all__ = ["PAGE_HEADERS", "asset"]

PAGE: Final = "/docs"
_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
}
PAGE_HEADERS: Final = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:;"
        b" base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    ),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
"""Go with every asset: whatever an operation says of itself, nothing but the page's own files runs in it."""


def asset(path: str) -> tuple[str, bytes] | None:
    """(its content type, the file) for ``/docs`` and what it loads, such as ``/docs/docs.js``; None for other paths."""
    return _assets().get(path)


@cache
def _assets() -> dict[str, tuple[str, bytes]]:
    """All of them by path: a dictionary has no way out of its folder."""
    folder = files("alknet.gateway") / "assets"
    found = {
        f"{PAGE}/{entry.name}": (_TYPES[entry.name.rpartition(".")[2]], entry.read_bytes())
        for entry in folder.iterdir()
        if entry.name.rpartition(".")[2] in _TYPES
    }
    index = found.pop(f"{PAGE}/index.html")
    return {PAGE: index, f"{PAGE}/": index, **found}
