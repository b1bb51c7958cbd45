"""The page ``/docs`` of a node, in a browser: people see what they may call, call it, and nothing leaves the node."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from testkit.as_user import Launcher
from testkit.browser import DESKTOP, PHONE, Browser, Page, browser
from testkit.node import NodeProcess
from testkit.service_nodes import service_node

pytestmark = pytest.mark.interop

SUBMIT = ".panel button[type=submit]"
STOP = ".actions button[type=button]"
ANSWER = ".result .pill"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Iterator[NodeProcess]:
    with service_node(tmp_path_factory.mktemp("node"), launcher) as node:
        node.edit_config('["testkit.services"]', '["testkit.services", "testkit.typed_services"]')
        node.write_peer("little", 'scopes = ["shop:stock", "test:typed"]')
        node.alknet("config", "reload")
        yield node


@pytest.fixture(scope="module")
def token(node: NodeProcess) -> str:
    return node.alknet("token", "create", "--scope", "*").stdout.strip()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as running:
        yield running


@pytest.fixture
def page(chromium: Browser, node: NodeProcess) -> Iterator[Page]:
    """The page in a tab of its own, which has its own storage."""
    page = chromium.page()
    page.open(url(node))
    page.wait("document.querySelectorAll('nav a').length > 0", "the operations are listed")
    yield page
    page.close()


def url(node: NodeProcess, operation: str = "") -> str:
    return f"http://127.0.0.1:{node.port}/docs" + (f"#{operation}" if operation else "")


def sign_in(page: Page, token: str) -> None:
    page.type("#token", token)
    page.press("Enter")
    page.wait("document.querySelector('#who strong') || !document.querySelector('#token-error').hidden", "it was tried")


def show(page: Page, node: NodeProcess, operation: str) -> None:
    page.open(url(node, operation))
    heading = json.dumps(operation.replace(".", "/"))
    page.wait(f"document.querySelector('main h1')?.textContent === {heading}", f"{operation} is shown")


def listed(page: Page) -> list[str]:
    found: list[str] = page.evaluate(
        "[...document.querySelectorAll('nav a')].map(a => a.getAttribute('href').slice(1))"
    )
    return found


def answer(page: Page) -> Any:
    return json.loads(page.text(".result .json"))


# --- who sees what ----------------------------------------------------------------------------------------------------


def test_nobody_in_particular_sees_what_is_public(page: Page) -> None:
    assert "Anonymous" in page.text("#who")
    assert "types.find" in listed(page)
    assert "shop.stock" not in listed(page)
    assert page.complaints == []


def test_a_token_shows_what_its_holder_may_call_and_is_in_no_url(page: Page, node: NodeProcess) -> None:
    token = node.alknet("token", "create", "--peer", "little", "--scope", "*").stdout.strip()
    sign_in(page, token)
    page.wait("document.querySelector('#who strong')?.textContent === 'little'", "it is known who it is")
    operations = [one["name"] for one in node.json("ops", "--token-file", _file(node, token))]
    assert listed(page) == [name.replace("/", ".") for name in operations]
    assert "test.wait" not in listed(page)
    assert page.evaluate("document.querySelector('#token').value") == ""
    assert not any(token in one for one in [*page.requests, page.evaluate("document.documentElement.outerHTML")])
    page.open(url(node))
    page.wait("document.querySelector('#who strong')?.textContent === 'little'", "the tab remembers it")
    page.click("#token-forget")
    page.wait("document.querySelector('#who').textContent.includes('Anonymous')", "it is forgotten")
    assert page.evaluate("sessionStorage.length + localStorage.length") == 0
    assert page.complaints == []


def _file(node: NodeProcess, token: str) -> str:
    path = node.directory / "token"
    path.write_text(token)
    return str(path)


def test_a_token_that_is_none_is_told_and_nothing_is_listed(page: Page) -> None:
    sign_in(page, "alk_nonsense")
    page.wait("!document.querySelector('#token-error').hidden", "it is told")
    assert listed(page) == []
    assert [one for one in page.complaints if "401" not in one] == []


def test_words_are_looked_for_in_names_and_summaries(page: Page, token: str) -> None:
    sign_in(page, token)
    page.wait("document.querySelectorAll('nav a').length > 20", "all are listed")
    page.evaluate("document.activeElement.blur()")
    page.press("/")
    page.send("Input.insertText", text="left ITEM")
    shown = "[...document.querySelectorAll('nav li:not([hidden]) a')].map(a => a.getAttribute('href'))"
    page.wait(f"{shown}.length < 3", "it looks for them")
    assert page.evaluate(shown) == ["#shop.stock"]
    page.press("Enter")
    page.wait("location.hash === '#shop.stock'", "the first one is opened")


# --- calling ----------------------------------------------------------------------------------------------------------


def test_a_call_is_answered_and_nothing_leaves_the_node(page: Page, node: NodeProcess, token: str) -> None:
    sign_in(page, token)
    show(page, node, "shop.stock")
    assert "<b>markup</b>" in page.text(".description")  # as text
    page.type("#input-item", "pears & 'more'")
    assert """{"item":"pears & '\\''more'\\''"}""" in page.text("pre.code")
    page.click(SUBMIT)
    page.wait(f"document.querySelector('{ANSWER}')?.textContent.startsWith('200')", "it is answered")
    assert answer(page) == {"item": "pears & 'more'", "left": 3, "note": None}
    assert re.search(r"\d+ ms\s+request req_\w+", page.text(".facts"))
    assert page.complaints == []
    origin = f"http://127.0.0.1:{node.port}/"
    assert [one for one in page.requests if not one.startswith((origin, "data:"))] == []
    assert f"{origin}ops/shop/stock" in page.requests


def test_numbers_are_shown_as_the_node_wrote_them(page: Page, node: NodeProcess, token: str) -> None:
    sign_in(page, token)
    show(page, node, "test.echo")
    page.type("#input-value", '{"n": 1.50, "deep": [[], {}, [1, "a\\"b: {"]]}')
    page.click(SUBMIT)
    page.wait(f"document.querySelector('{ANSWER}')", "it is answered")
    assert answer(page) == {"n": 1.5, "deep": [[], {}, [1, 'a"b: {']]}


def test_a_refusal_is_told_with_its_code_and_its_denial(page: Page, node: NodeProcess) -> None:
    sign_in(page, node.alknet("token", "create", "--peer", "little", "--scope", "*").stdout.strip())
    show(page, node, "test.typed")
    page.type("#input-name", "a")
    node.write_peer("little", 'scopes = ["shop:stock"]')
    node.alknet("config", "reload")
    page.click(SUBMIT)
    page.wait(f"document.querySelector('{ANSWER}')?.textContent.startsWith('403')", "it is refused")
    assert re.search(r"denial den_\w+", page.text(".facts"))
    assert answer(page)["code"] == "FORBIDDEN"
    assert page.text(".result .mistake") == answer(page)["detail"]


def test_what_may_destroy_asks_for_a_second_click(page: Page, node: NodeProcess, token: str) -> None:
    sign_in(page, token)
    show(page, node, "shop.reserve")
    page.type("#input-item", "pears")
    page.type("#input-count", "5")
    page.click(SUBMIT)
    page.wait(f"document.querySelector('{SUBMIT}').textContent.includes('again')", "it asks")
    assert not any(one.endswith("/ops/shop/reserve") for one in page.requests)
    page.click(SUBMIT)
    page.wait(f"document.querySelector('{ANSWER}')?.textContent.startsWith('409')", "it is answered")
    assert answer(page)["code"] == "OUT_OF_STOCK"


def test_a_mistake_in_the_form_is_told_before_anything_is_sent(page: Page, node: NodeProcess) -> None:
    show(page, node, "types.find")
    page.type("#input-ratio", "much")
    page.click(SUBMIT)
    page.wait("!document.querySelector('.panel .mistake').hidden", "it is told")
    assert "ratio should be a number" in page.text(".panel .mistake")
    assert page.evaluate("document.activeElement.id") == "input-ratio"
    assert not any("/ops/" in one for one in page.requests)


def test_the_form_makes_the_types_that_the_operation_takes(page: Page, node: NodeProcess) -> None:
    show(page, node, "types.find")
    page.type("#input-text", "5")
    page.type("#input-either", "7")
    page.type("#input-words", "one two\nthree")
    page.type("#input-sizes", "[1, 2]")
    page.type("#input-data", "AP8=")
    choose = "(e => {{ e.value = [...e.options].find(o => o.text === {1!r}).value; }})(document.querySelector({0!r}))"
    for field, option in (("#input-colour", "green"), ("#input-exact", "true"), ("#input-level", "2")):
        page.evaluate(choose.format(field, option))
    page.click(SUBMIT)
    page.wait(f"document.querySelector('{ANSWER}')?.textContent.startsWith('200')", "it is answered")
    assert answer(page) == {
        "text": "5", "colour": "green", "level": 2, "sizes": [1, 2], "words": ["one two", "three"], "exact": True,
        "ratio": 0.5, "either": 7, "fixed": 7, "data": "AP8=",
    }  # fmt: skip


def test_a_secret_is_in_no_command_that_is_shown(page: Page, node: NodeProcess, token: str) -> None:
    sign_in(page, token)
    show(page, node, "shop.pay")
    page.type("#input-card", "4111-1111")
    page.wait("document.querySelector('pre.code').textContent.includes('SECRET')", "the command follows the form")
    assert "4111" not in page.text("main")
    assert page.evaluate("document.querySelector('#input-card').type") == "password"


# --- subscribing ------------------------------------------------------------------------------------------------------


def test_a_subscription_streams_until_it_is_stopped(page: Page, node: NodeProcess, token: str) -> None:
    sign_in(page, token)
    show(page, node, "test.paced")
    page.type("#input-mark", "page")
    page.click(SUBMIT)
    page.wait("document.querySelectorAll('.items li').length > 3", "items come")
    assert "live" in page.text(".facts")
    page.click(STOP)
    page.wait("document.querySelector('.facts').textContent.includes('stopped')", "it is stopped")
    seen = node.json("call", ".", "test/seen", "mark=page")
    assert seen["how"] in ("CancelledError", "GeneratorExit")
    assert page.complaints == []


def test_a_subscription_that_ends_says_how(page: Page, node: NodeProcess, token: str) -> None:
    sign_in(page, token)
    show(page, node, "test.count")
    page.type("#input-to", "300")
    page.click(SUBMIT)
    page.wait("document.querySelector('.facts')?.textContent.includes('completed')", "it is complete")
    assert "300 items" in page.text(".facts")
    assert page.evaluate("document.querySelectorAll('.items li').length") == 200
    assert json.loads(page.text(".items li:first-child pre")) == {"number": 299, "text": ""}


# --- how it looks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_nothing_is_wider_than_the_window_and_everything_has_a_name(
    size: tuple[int, int], scheme: str, page: Page, node: NodeProcess, token: str
) -> None:
    page.resize(*size)
    page.prefer(scheme)
    sign_in(page, token)
    for operation in ("types.find", "shop.reserve", "test.typed", "types.shapes", "services.list"):
        show(page, node, operation)
        assert page.overflow == 0, operation
        assert page.evaluate(NAMELESS) == [], operation
        assert page.evaluate(LOW_CONTRAST) == [], operation
    page.open(url(node) + "#")
    page.wait("document.body.dataset.view === 'list'", "the list is shown")
    assert page.overflow == 0
    assert page.evaluate(LOW_CONTRAST) == []
    assert page.complaints == []


NAMELESS = """[...document.querySelectorAll('button, input, textarea, select, a')].filter(e =>
  !(e.textContent.trim() || e.getAttribute('aria-label') || (e.labels && e.labels.length))).map(e => e.outerHTML)"""

# WCAG 2.2, 1.4.3: text of this size needs a ratio of 4.5; what is disabled, hidden or a placeholder is exempt.
LOW_CONTRAST = """(() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const linear = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => [r, g, b].map(c => linear(c / 255))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor); if (c[3] === 255) return c; }
    return [255, 255, 255];
  };
  const found = [];
  for (const e of document.body.querySelectorAll('*')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility() || e.disabled || e.closest('noscript, .visually-hidden')) continue;
    const [a, b] = [light(rgba(getComputedStyle(e).color)), light(behind(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${e.tagName}.${e.className} ${ratio.toFixed(2)} ${e.textContent.slice(0, 30)}`);
  }
  return found;
})()"""


def test_it_can_be_used_without_a_mouse(page: Page, node: NodeProcess, token: str) -> None:
    sign_in(page, token)
    show(page, node, "shop.stock")
    page.evaluate("document.querySelector('#input-item').focus()")
    page.send("Input.insertText", text="pears")
    page.press("Enter")
    page.wait(f"document.querySelector('{ANSWER}')?.textContent.startsWith('200')", "it is answered")
    for _ in range(40):
        page.press("Tab")
        outlined = page.evaluate(
            "document.activeElement === document.body || "
            "getComputedStyle(document.activeElement).outlineStyle !== 'none'"
        )
        assert outlined, page.evaluate("document.activeElement.outerHTML")


def test_it_says_so_where_an_operation_is_not_there(page: Page, node: NodeProcess) -> None:
    page.open(url(node, "no.such"))
    page.wait("document.querySelector('main h1')?.textContent === 'no.such'", "it is told")
    assert "no such operation" in page.text("main")
    page.open(url(node, "%"))
    page.wait("document.querySelector('main h1')?.textContent === '%'", "what is no text is told, too")
