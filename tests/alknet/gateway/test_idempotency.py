"""``Idempotency-Key``: what was done once is not done again, and told again to nobody but whom it was told."""

import asyncio
import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest

from alknet import OperationError, operation
from alknet.errors import UnavailableError
from alknet.gateway import idempotency
from alknet.gateway.idempotency import MAX_KEY_CHARS
from alknet.gateway.problems import HttpError
from alknet.gateway.settings import GatewaySettings
from alknet.replies import KEPT_S, Replies
from testkit.bench import Bench
from testkit.gateway import Answer, GatewayDoor, RawHttp
from testkit.polling import eventually

PEERS = {"alice": ("*",), "bob": ("*",)}


class SoldOut(OperationError):
    """None is left."""

    code = "SOLD_OUT"
    http_status = 409


class Shop:
    """Counts what is done."""

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.may_go_on = asyncio.Event()

    @operation("shop/buy", kind="mutation", errors=[SoldOut], public=True)
    async def buy(self, item: Any = "a", fail: str = "") -> str:
        """Buy it."""
        self.done.append(item)
        if fail == "declared":
            raise SoldOut("none is left")
        if fail == "crash":
            raise RuntimeError
        if fail == "busy":
            raise UnavailableError("try again")
        return f"{item} {len(self.done)}"

    @operation("shop/sell", kind="mutation")
    async def sell(self, item: str = "a") -> str:
        """Sell it."""
        self.done.append(item)
        return f"sold {len(self.done)}"

    @operation("shop/slow", kind="mutation")
    async def slow(self) -> str:
        """Buy it, slowly."""
        self.done.append("slow")
        await self.may_go_on.wait()
        return "slow"

    @operation("shop/look", kind="query")
    async def look(self) -> int:
        """How often something was done."""
        self.done.append("looked")
        return len(self.done)

    @operation("shop/much", kind="mutation")
    async def much(self, size: int) -> str:
        """So much."""
        self.done.append(size)
        return "x" * size


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def kept() -> Iterator[sqlite3.Connection]:
    """The database, which outlives a node."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    yield db
    db.close()


def _door(shop: Shop, kept: sqlite3.Connection) -> GatewayDoor:
    return GatewayDoor(shop, peers=PEERS, settings=GatewaySettings(mcp=False), replies=Replies(kept))


async def _buy(
    http: RawHttp, key: str = "k1", *, operation: str = "shop/buy", peer: str = "alice", **input: Any
) -> Answer:
    return await http.call(operation, input, ("Idempotency-Key", key), peer=peer)


async def test_the_same_request_is_done_once_and_answered_twice(shop: Shop, kept: sqlite3.Connection) -> None:
    async with _door(shop, kept) as door, door.connect() as http:
        first, second = await _buy(http), await _buy(http)
        assert (first.value["output"], second.value["output"]) == ("a 1", "a 1")
        assert shop.done == ["a"]
        assert "idempotent-replayed" not in first.headers
        assert second.headers["idempotent-replayed"] == "true"
        assert first.value["request_id"] != second.value["request_id"]
        third = await http.ask("POST", "/ops/shop/buy", {}, ("Idempotency-Key", "k1"))
        assert (third.value, third.headers["idempotent-replayed"]) == ("a 1", "true")
        assert door.bench.outcomes("shop/buy") == ["ok", "replayed", "replayed"]
        assert door.bench.unmatched() == {}


async def test_another_input_another_operation_another_peer(shop: Shop, kept: sqlite3.Connection) -> None:
    async with _door(shop, kept) as door, door.connect() as http:
        await _buy(http, item="a")
        refused = await _buy(http, item="b")
        assert (refused.status, refused.code) == (422, "INVALID_INPUT")
        assert "another input" in refused.value["message"]
        assert (await _buy(http, operation="shop/sell")).value["output"] == "sold 2"
        assert (await _buy(http, peer="bob", item="b")).value["output"] == "b 3"
        assert door.bench.unmatched() == {}


async def test_the_same_operation_of_a_peer_is_another_one(shop: Shop, kept: sqlite3.Connection) -> None:
    async with _door(shop, kept) as door, door.connect() as http:
        for worker in ("w1", "w2"):
            door.bench.connect(worker, "shop/buy")
        for _ in range(2):
            found = [(await _buy(http)).value["output"]]
            for worker in ("w1", "w2"):
                asked = {"operation": "shop/buy", "input": {}, "peer": worker}
                answer = await http.ask("POST", "/call", asked, ("Idempotency-Key", "k1"))
                found.append(answer.value["output"])
            assert found == ["a 1", "w1:shop/buy", "w2:shop/buy"]
        assert [call[0] for call in door.bench.peer_calls] == ["w1", "w2"]
        assert answer.headers["idempotent-replayed"] == "true"


async def test_a_key_belongs_to_one_token(shop: Shop, kept: sqlite3.Connection) -> None:
    async with _door(shop, kept) as door, door.connect() as http:
        await _buy(http)
        door.tokens["alice"] = door.more_tokens("alice")
        assert (await _buy(http)).value["output"] == "a 2"


async def test_a_failure_is_an_answer_too(shop: Shop, kept: sqlite3.Connection) -> None:
    async with _door(shop, kept) as door, door.connect() as http:
        for fail, status, code in (("declared", 409, "SOLD_OUT"), ("crash", 500, "INTERNAL")):
            answers = [await _buy(http, fail, fail=fail) for _ in range(2)]
            assert [(answer.status, answer.code) for answer in answers] == [(status, code)] * 2
            assert answers[1].headers["idempotent-replayed"] == "true"
        assert len(shop.done) == 2


async def test_while_it_is_being_done_it_is_not_done_again(shop: Shop, kept: sqlite3.Connection) -> None:
    async with _door(shop, kept) as door, door.connect() as http, door.connect() as other:
        await http.send(http.asked("POST", "/ops/shop/slow", {}, ("Idempotency-Key", "k")))
        await eventually(lambda: shop.done, "it has begun")
        again = await _buy(other, "k", operation="shop/slow")
        assert (again.status, again.value["retryable"]) == (409, True)
        shop.may_go_on.set()
        assert (await http.answer()).value == "slow"
        assert (await _buy(other, "k", operation="shop/slow")).value["output"] == "slow"
        assert shop.done == ["slow"]


async def test_it_is_finished_also_when_the_client_is_gone(shop: Shop, kept: sqlite3.Connection) -> None:
    async with _door(shop, kept) as door, door.connect() as other:
        async with door.connect() as http:
            await http.send(http.asked("POST", "/ops/shop/slow", {}, ("Idempotency-Key", "k")))
            await eventually(lambda: shop.done, "it has begun")
        await eventually(lambda: door.live == 1, "the client is gone")
        shop.may_go_on.set()
        await eventually(lambda: door.bench.outcomes("shop/slow") == ["ok"], "it is done")
        answer = await _buy(other, "k", operation="shop/slow")
        assert (answer.value["output"], answer.headers["idempotent-replayed"]) == ("slow", "true")


async def test_access_is_decided_before_the_answer_is_looked_up(shop: Shop, kept: sqlite3.Connection) -> None:
    async with _door(shop, kept) as door, door.connect() as http:
        await _buy(http, operation="shop/sell")
        door.change({"alice": ("other",), "bob": ("*",)})
        answer = await _buy(http, operation="shop/sell")
        assert (answer.status, answer.code) == (403, "FORBIDDEN")
        assert "sold" not in answer.body.decode()
    async with _door(shop, kept) as door, door.connect() as http:
        await _buy(http, operation="shop/sell")
        door.change(PEERS, without=["alice"])
        assert (await _buy(http, operation="shop/sell")).status == 401


async def test_access_that_is_taken_away_meanwhile_ends_it(shop: Shop, kept: sqlite3.Connection) -> None:
    async with _door(shop, kept) as door, door.connect() as http:
        await http.send(http.asked("POST", "/ops/shop/slow", {}, ("Idempotency-Key", "k")))
        await eventually(lambda: shop.done, "it has begun")
        door.reload({"alice": ("other",), "bob": ("*",)})
        answer = await http.answer()
        assert (answer.status, answer.code) == (403, "FORBIDDEN")
        door.change(PEERS)
        await _nobody_knows(http, "k", operation="shop/slow")


async def _nobody_knows(http: RawHttp, key: str, *, operation: str, **input: Any) -> None:
    answer = await _buy(http, key, operation=operation, **input)
    assert (answer.status, answer.value["retryable"]) == (409, False)
    assert "nobody knows" in answer.value["message"]


async def test_what_its_deadline_has_ended_is_not_done_again(shop: Shop, kept: sqlite3.Connection) -> None:
    """The first answer says that another try may help; under this key none does, for the act may have been done."""
    async with _door(shop, kept) as door, door.connect() as http:
        body = {"operation": "shop/slow", "input": {}, "timeout_ms": 20}
        await http.send(http.asked("POST", "/call", body, ("Idempotency-Key", "k")))
        assert (await http.answer()).code == "TIMEOUT"
        await _nobody_knows(http, "k", operation="shop/slow")
        assert shop.done == ["slow"]


async def test_what_the_end_of_the_node_has_cut_short_is_not_done_again(shop: Shop, kept: sqlite3.Connection) -> None:
    async with _door(shop, kept) as door, door.connect() as http:
        await http.send(http.asked("POST", "/ops/shop/slow", {}, ("Idempotency-Key", "k")))
        await eventually(lambda: shop.done, "it has begun")
        await door.handler._calls.drain(0.0)
        assert (await http.answer()).code == "UNAVAILABLE"
        door.handler._calls.is_draining = False
        await _nobody_knows(http, "k", operation="shop/slow")
        assert shop.done == ["slow"]


async def test_what_says_itself_that_it_was_not_done_may_be_done(shop: Shop, kept: sqlite3.Connection) -> None:
    async with _door(shop, kept) as door, door.connect() as http:
        assert (await _buy(http, fail="busy")).status == 503
        assert (await _buy(http, fail="busy")).status == 503
        assert shop.done == ["a", "a"]


async def test_nobody_has_a_key(shop: Shop, kept: sqlite3.Connection) -> None:
    async with _door(shop, kept) as door, door.connect() as http:
        answer = await http.call("shop/buy", {}, ("Idempotency-Key", "k"), peer=None)
        assert (answer.status, answer.code, shop.done) == (422, "INVALID_INPUT", [])


async def test_a_query_needs_none_and_a_batch_can_have_none(shop: Shop, kept: sqlite3.Connection) -> None:
    async with _door(shop, kept) as door, door.connect() as http:
        for count in (1, 2):
            assert (await _buy(http, operation="shop/look")).value["output"] == count
        batch = [{"operation": "shop/buy"}]
        assert (await http.ask("POST", "/batch", batch, ("Idempotency-Key", "k"))).status == 422
        assert "a" not in shop.done


@pytest.mark.parametrize("key", ["", "x" * (MAX_KEY_CHARS + 1), "é", "a\tb"])
async def test_a_key_is_a_short_printable_text(shop: Shop, kept: sqlite3.Connection, key: str) -> None:
    async with _door(shop, kept) as door, door.connect() as http:
        answer = await _buy(http, key)
        assert (answer.status, shop.done) == (422, [])
        assert door.bench.unmatched() == {}


async def test_a_number_beyond_all_bounds_is_refused(shop: Shop, kept: sqlite3.Connection) -> None:
    """It is read as an infinity, and nothing can be kept of that."""
    async with _door(shop, kept) as door, door.connect() as http:
        body = http.asked("POST", "/ops/shop/buy", {"item": 1}, ("Idempotency-Key", "k"))
        await http.send(body.replace(b'{"item": 1}', b'{"item":9e999}').replace(b"Length: 11", b"Length: 14"))
        answer = await http.answer()
        assert (answer.status, shop.done) == (422, [])
        assert door.bench.unmatched() == {}


async def test_a_large_answer_is_not_kept_and_that_is_told(
    shop: Shop, kept: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "MAX_BODY_BYTES", 100)
    async with _door(shop, kept) as door, door.connect() as http:
        assert (await _buy(http, operation="shop/much", size=100)).status == 200
        again = await _buy(http, operation="shop/much", size=100)
        assert (again.status, again.value["retryable"]) == (409, False)
        assert shop.done == [100]


async def test_what_a_node_was_doing_when_it_died_is_not_done_again(shop: Shop, kept: sqlite3.Connection) -> None:
    async with _door(shop, kept) as door, door.connect() as http:
        await http.send(http.asked("POST", "/ops/shop/slow", {}, ("Idempotency-Key", "k")))
        await eventually(lambda: shop.done, "it has begun")
        # Another node on the same file, as after a crash of the first.
        async with _door(shop, kept) as next_door, next_door.connect() as other:
            next_door.tokens, next_door._made = door.tokens, door._made
            next_door.change(PEERS)
            answer = await _buy(other, "k", operation="shop/slow")
            assert (answer.status, answer.value["retryable"]) == (409, False)
            assert "nobody knows" in answer.value["message"]
    assert shop.done == ["slow"]


async def test_an_answer_that_cannot_be_kept_is_given_all_the_same(
    shop: Shop, kept: sqlite3.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    async with _door(shop, kept) as door, door.connect() as http:
        await http.send(http.asked("POST", "/ops/shop/slow", {}, ("Idempotency-Key", "k")))
        await eventually(lambda: shop.done, "it has begun")
        kept.execute("ALTER TABLE replies RENAME TO gone")
        shop.may_go_on.set()
        assert (await http.answer()).value == "slow"
        assert "an answer cannot be kept" in caplog.text
        assert (await _buy(http)).status == 503
        kept.execute("ALTER TABLE gone RENAME TO replies")


async def test_after_a_day_a_key_is_new(shop: Shop, kept: sqlite3.Connection) -> None:
    async with _door(shop, kept) as door, door.connect() as http:
        await _buy(http)
        kept.execute("UPDATE replies SET at = at - ?", (KEPT_S + 1,))
        assert (await _buy(http)).value["output"] == "a 2"


async def test_it_stands_on_the_dispatcher_alone() -> None:
    async with Bench(Shop()) as bench:
        replies = Replies(sqlite3.connect(":memory:", isolation_level=None))
        keys = idempotency.Idempotency(replies, lambda: 1.0)
        prepared = bench.prepare("shop/buy", {})
        known = keys.begin("k", {"a": 1}, prepared)
        assert isinstance(known, idempotency.Kept)
        with pytest.raises(HttpError, match="being done"):
            keys.begin("k", {"a": 1}, prepared)
        known.lose()
        with pytest.raises(HttpError, match="cut short"):
            keys.begin("k", {"a": 1}, prepared)
        known.forget()
        assert isinstance(keys.begin("k", {"b": 1}, prepared), idempotency.Kept)
        prepared.drop()
