"""The page's files: all of them are there, nothing else can be had, and they want nothing from elsewhere."""

import re
from pathlib import Path

import pytest

from alknet.gateway.pages import PAGE_HEADERS, asset

ASSETS = Path(__file__).resolve().parents[3] / "alknet" / "gateway" / "assets"
FILES = sorted(path.name for path in ASSETS.iterdir())
MAX_LINES = 400


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_served_with_its_type(name: str) -> None:
    path = "/docs" if name == "index.html" else f"/docs/{name}"
    found = asset(path)
    assert found is not None
    kind, body = found
    assert body == (ASSETS / name).read_bytes()
    expected = {"html": "text/html", "css": "text/css", "js": "text/javascript"}[name.rpartition(".")[2]]
    assert kind == f"{expected}; charset=utf-8"


@pytest.mark.parametrize("path", ["/docs/../pages.py", "/docs/pages.py", "/docs//docs.js", "/docs.js", "", "/docs/x"])
def test_there_is_no_way_to_another_file(path: str) -> None:
    assert asset(path) is None


def test_a_page_with_a_slash_at_its_end_is_the_same() -> None:
    assert asset("/docs/") == asset("/docs")


@pytest.mark.parametrize("name", FILES)
def test_no_file_wants_anything_from_elsewhere_or_makes_markup_of_text(name: str) -> None:
    text = (ASSETS / name).read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^\s'\"`$)]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    assert not re.search(r"<style|style=|<script(?! type=\"module\" src=)|\son\w+=\"", text)
    assert len(text.splitlines()) <= MAX_LINES


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".js")])
def test_every_import_is_of_a_file_that_is_there(name: str) -> None:
    text = (ASSETS / name).read_text(encoding="utf-8")
    assert {module.removeprefix("./") for module in re.findall(r'from "([^"]+)"', text)} <= set(FILES)


def test_the_policy_lets_in_the_pages_own_files_only() -> None:
    policy = dict(PAGE_HEADERS)[b"content-security-policy"].decode()
    sources = dict(part.split(" ", 1) for part in policy.split("; ") if " " in part)
    assert sources["default-src"] == "'none'"
    assert {value for name, value in sources.items() if name in ("script-src", "style-src", "connect-src")} == {
        "'self'"
    }
    assert "unsafe" not in policy
