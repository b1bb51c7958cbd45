"""The browser example in a real browser: it calls, subscribes, gives up, and is asked by the node."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from testkit.as_user import Launcher
from testkit.browser import DESKTOP, PHONE, Browser, Page, browser
from testkit.node import NodeProcess, wait_until

pytestmark = pytest.mark.interop

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "browser"
ITEMS = "[...document.querySelectorAll('#items li')].map(row => row.innerText)"


class Place:
    """A node with the example, and a browser to look at it."""

    def __init__(self, node: NodeProcess, looker: Browser) -> None:
        self.node = node
        self.browser = looker
        self.token = node.alknet("token", "create", "--scope", "list:*").stdout.strip()
        self.url = f"http://127.0.0.1:{node.port}"

    def page(self, size: tuple[int, int] = DESKTOP) -> Page:
        """The page in a tab of its own."""
        page = self.browser.page(size)
        page.open(f"{self.url}/shopping")
        return page

    def signed_in(self, size: tuple[int, int] = DESKTOP) -> Page:
        page = self.page(size)
        page.type("#token", self.token)
        page.click("#sign-in button")
        page.wait(
            "!document.querySelector('#list').hidden && document.querySelector('#live').innerText === 'live'", "in"
        )
        return page

    def call(self, name: str, **value: Any) -> Any:
        return self.node.json("call", ".", name, json.dumps(value))

    def outcomes(self, action: str) -> list[str]:
        return [line["outcome"] for line in self.node.audit() if line["action"] == action and "outcome" in line]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Iterator[Place]:
    node = NodeProcess(tmp_path_factory.mktemp("node"), launcher=launcher)
    node.edit_config("modules = []", 'modules = ["shopping"]')
    node.launcher = None  # it finds the example by its own environment
    with patch.dict(os.environ, PYTHONPATH=str(EXAMPLE)):
        node.start()
    node.launcher = launcher
    try:
        with browser() as looker:
            yield Place(node, looker)
    finally:
        node.__exit__()


@pytest.fixture
def place(shared: Place) -> Iterator[Place]:
    """Each test finds an empty list; nothing may have complained at its end."""
    yield shared
    page = shared.signed_in()
    if page.evaluate(f"{ITEMS}.length"):
        page.click("#clear")
        page.wait("document.querySelector('#confirm').open", "it is asked")
        page.click("#yes")
        page.wait(f"{ITEMS}.length === 0", "it is empty")
    page.close()


def add(page: Page, *texts: str) -> None:
    for text in texts:
        page.type("#text", text)
        assert page.evaluate("document.querySelector('#text').value") == text
        page.press("Enter")
        page.wait("document.querySelector('#text').value === ''", f"{text} was added")


def test_what_one_page_adds_the_other_shows(place: Place) -> None:
    one, other = place.signed_in(), place.signed_in(PHONE)
    add(one, "Bread", "<b>Äpfel</b> \N{RED APPLE}")
    other.wait(f"{ITEMS}.length === 2", "both are shown")
    assert other.evaluate(ITEMS) == ["Bread", "<b>Äpfel</b> \N{RED APPLE}"]
    other.click("#items li:nth-child(1) input")
    one.wait("document.querySelector('#items input').checked", "it is ticked off there, too")
    assert place.call("list/add", text="from a terminal")["text"] == "from a terminal"
    one.wait(f"{ITEMS}.length === 3", "so is what others add")
    assert "connected to" in one.text("#status")
    assert one.text("#identity") == "You are owner."
    for page in (one, other):
        assert page.complaints == []
        assert {re.sub("^ws", "http", url).startswith(place.url + "/") for url in page.requests} == {True}
        page.close()


def test_whoever_stops_following_is_told_nothing_more(place: Place) -> None:
    page = place.signed_in()
    add(page, "Bread")
    page.wait(f"{ITEMS}.length === 1", "it is shown")
    before = len(place.outcomes("list/watch"))
    page.click("#follow")
    page.wait("document.querySelector('#live').innerText === 'not followed'", "it has stopped")
    wait_until(lambda: "aborted" in place.outcomes("list/watch")[before:], "the node has stopped it")
    place.call("list/add", text="unseen")
    assert page.evaluate(ITEMS) == ["Bread"]
    page.click("#follow")
    page.wait(f"{ITEMS}.length === 2", "it is followed again")
    page.close()


def test_more_items_than_the_first_credit_arrive(place: Place) -> None:
    page = place.signed_in()
    add(page, "Bread")
    seen = page.evaluate(
        """(async () => {
            const { connect, ticketFor } = await import("/shopping/alknet.js");
            const session = await connect({ ticket: await ticketFor(sessionStorage.getItem("alknet-token")) });
            let count = 0;
            for await (const now of session.subscribe("list/watch", {}, { credit: 4 })) {
                count += 1;
                if (count > 40) break;
                await session.call("list/tick", { id: now.items[0].id, done: count % 2 === 1 });
            }
            session.close();
            await session.closed;
            return count;
        })()"""
    )
    assert seen == 41
    assert page.complaints == []
    page.close()


def test_a_call_that_is_given_up_stops_on_the_node(place: Place) -> None:
    page = place.signed_in(PHONE)
    add(page, *(f"line {number}" for number in range(12)))
    page.click("#print")
    page.wait("document.querySelector('#printing').innerText.startsWith('Printing, ')", "it prints")
    page.click("#stop")
    page.wait("/^Printing stopped after \\d+ lines$/.test(document.querySelector('#printing').innerText)", "it stopped")
    assert place.outcomes("list/print") == ["aborted"]
    assert page.complaints == []
    page.close()


@pytest.mark.parametrize("answer", ["yes", "no"])
def test_the_node_asks_the_page_that_wants_something(place: Place, answer: str) -> None:
    page, other = place.signed_in(), place.signed_in()
    add(page, "Bread", "Coffee")
    before, asked = len(place.outcomes("list/clear")), len(place.outcomes("caller/call"))
    page.click("#clear")
    page.wait("document.querySelector('#confirm').open", "it is asked")
    assert page.text("#question") == "Remove all 2 items, for everybody?"
    assert not other.evaluate("document.querySelector('#confirm').open"), "only the caller's own page is asked"
    page.click(f"#{answer}")
    page.wait("!document.querySelector('#confirm').open", "it is answered")
    left = 0 if answer == "yes" else 2
    page.wait(f"{ITEMS}.length === {left}", "as it was answered")
    wait_until(lambda: len(place.outcomes("list/clear")) > before, "it has ended")
    assert place.outcomes("list/clear")[before:] == ["ok" if answer == "yes" else "error NOT_CONFIRMED"]
    assert place.outcomes("caller/call")[asked:] == ["ok"]
    for each in (page, other):
        assert each.complaints == []
        each.close()


def test_one_yes_answers_one_question(place: Place) -> None:
    page = place.signed_in()
    add(page, "Bread", "Coffee")
    asked = len(place.outcomes("caller/call"))
    page.evaluate("(document.querySelector('#clear').click(), document.querySelector('#clear').click())")
    page.wait("document.querySelector('#confirm').open", "it is asked")
    wait_until(lambda: _asking(place) == 2, "it has asked twice")
    page.click("#yes")
    page.wait(f"{ITEMS}.length === 0", "the first is answered")
    page.wait("document.querySelector('#confirm').open", "the second is asked then")
    page.click("#no")
    wait_until(lambda: place.outcomes("caller/call")[asked:] == ["ok", "ok"], "both are answered")
    wait_until(lambda: sorted(place.outcomes("list/clear")[-2:]) == ["error NOT_CONFIRMED", "ok"], "each as it was")
    page.close()


def _asking(place: Place) -> int:
    """How many questions are open."""
    lines = [line for line in place.node.audit() if line["action"] == "caller/call"]
    return sum(1 if line["phase"] == "intent" else -1 for line in lines)


def test_nobody_is_asked_where_there_is_no_way_back(place: Place) -> None:
    refused = place.node.alknet("call", ".", "list/clear", check=False)
    assert refused.returncode == 1
    assert "NOT_CONFIRMED" in refused.stderr
    assert "could not be asked" in refused.stderr


def test_a_connection_that_is_lost_is_told_and_made_again(place: Place) -> None:
    page = place.signed_in()
    add(page, "Bread")
    (mine,) = [
        line["connection"]
        for line in place.node.audit()
        if line["action"] == "list/add" and line["phase"] == "intent" and line["surface"] == "websocket"
    ][-1:]
    place.node.alknet("sessions", "kill", mine)
    page.wait("!document.querySelector('#lost').hidden", "it is told")
    assert page.text("#lost-reason") == "ended by the operator"
    page.click("#again")
    page.wait(f"{ITEMS}.length === 1", "it is there again")
    assert page.complaints == []
    page.close()


def test_a_wrong_token_is_told_and_forgotten(place: Place) -> None:
    page = place.page()
    page.type("#token", "alk_" + "x" * 36)
    page.click("#sign-in button")
    page.wait("!document.querySelector('#notice').hidden", "it is refused")
    assert page.text("#notice") == "The node does not know this token."
    assert page.evaluate("sessionStorage.length") == 0
    page.close()


def test_signing_out_forgets_the_token(place: Place) -> None:
    page = place.signed_in()
    assert page.evaluate("sessionStorage.length") == 1
    page.click("#sign-out")
    page.wait("!document.querySelector('#sign-in').hidden", "it has signed out")
    assert page.evaluate("sessionStorage.length + document.querySelector('#token').value.length") == 0
    page.close()


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read_at_every_size(
    place: Place, tmp_path: Path, size: tuple[int, int], scheme: str
) -> None:
    page = place.signed_in(size)
    page.prefer(scheme)
    add(page, "x" * 200, "Bread")
    page.click("summary")
    page.click("#clear")
    page.wait("document.querySelector('#confirm').open", "it is asked")
    assert page.overflow == 0
    page.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000
    colours = page.evaluate(
        "['color', 'backgroundColor'].map(name => getComputedStyle(document.body)[name].match(/\\d+/g).map(Number))"
    )
    assert contrast(*colours) >= 7
    page.click("#no")
    assert page.complaints == []
    page.close()


def contrast(ink: list[int], paper: list[int]) -> float:
    """Of two colours, as WCAG 2 has it."""

    def luminance(colour: list[int]) -> float:
        parts = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    light, dark = sorted((luminance(ink), luminance(paper)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_page_may_load_nothing_but_its_own(place: Place) -> None:
    page = place.page()
    policy = page.evaluate("fetch('/shopping').then(answer => answer.headers.get('content-security-policy'))")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    blocked = page.evaluate(
        "(async () => { const s = document.createElement('script'); s.textContent = 'window.bad = 1';"
        " document.body.append(s); return window.bad ?? 0 })()"
    )
    assert blocked == 0
    for path in ("/shopping/shopping.py", "/shopping/%2e%2e/echo_service.py", "/shopping/none"):
        assert page.evaluate(f"fetch('{path}').then(answer => answer.status)") == 404
    page.close()
