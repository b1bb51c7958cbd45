"""The routes that reach operations: their requests, their answers, and how these fail."""

import json
from typing import Any

import pytest

from alknet import OperationError, operation
from alknet.gateway import routes
from alknet.gateway.routes import MAX_BATCH, MAX_TIMEOUT_MS
from alknet.gateway.settings import GatewaySettings
from testkit import services
from testkit.gateway import Answer, GatewayDoor, RawHttp
from testkit.polling import eventually

PEERS = {"alice": ("*",), "bob": ("test:echo",)}


class Odd(OperationError):
    """What is odd about it."""

    code = "ODD"
    http_status = 418


class Busy(OperationError):
    """Come back later."""

    code = "BUSY"
    http_status = 503
    retryable = True
    details: dict[str, Any]


@operation("odd/details", kind="query", errors=[Odd])
async def details() -> None:
    """Fail in an odd way."""
    raise Odd("odd", details={"x": float("nan")})


@operation("odd/busy", kind="query", errors=[Busy])
async def busy(after: Any = None) -> None:
    """Fail for now."""
    raise Busy("later", details={"retry_after": after}, retryable=True)


@operation("odd/plain", kind="query")
async def plain(name: str, count: int = 1, flag: bool = False) -> dict[str, Any]:
    """Its inputs."""
    return {"name": name, "count": count, "flag": flag}


@operation("odd/answer", kind="query")
async def answer() -> Any:
    """Answer with what is no JSON."""
    return float("inf")


def _door(**settings: Any) -> GatewayDoor:
    return GatewayDoor(
        services, [details, busy, answer, plain], peers=PEERS, settings=GatewaySettings(mcp=False, **settings)
    )


async def _sent(http: RawHttp, body: bytes, path: str = "/call", kind: str = "application/json") -> Answer:
    data = http.asked("POST", path, None, ("Content-Type", kind), ("Content-Length", str(len(body))))
    await http.send(data + body)
    return await http.answer()


# --- /call ------------------------------------------------------------------------------------------------------------


async def test_a_call_is_answered_with_its_output_and_id() -> None:
    async with _door() as door, door.connect() as http:
        answer = await http.call("test/echo", {"value": {"é": [1, None, "\U0001f600"]}})
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["cache-control"] == "no-store"
        request_id = answer.headers["alknet-request-id"]
        output = {"é": [1, None, "\U0001f600"]}
        assert answer.value == {"request_id": request_id, "result": "ok", "output": output}
        found = {one["request_id"] for one in door.bench.audit.records if one["action"] == "test/echo"}
        assert found == {request_id}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"null", 422),
        (b"[]", 422),
        (b"{}", 422),
        (b'{"operation": 1}', 422),
        (b'{"operation": ""}', 422),
        (b'{"operation": "%b"}' % (b"x" * 500), 422),
        (b'{"operation": "test/echo", "more": 1}', 422),
        (b'{"operation": "test/echo", "timeout_ms": 0}', 422),
        (b'{"operation": "test/echo", "timeout_ms": true}', 422),
        (b'{"operation": "test/echo", "timeout_ms": 1.5}', 422),
        (b'{"operation": "test/echo", "timeout_ms": %d}' % (MAX_TIMEOUT_MS + 1), 422),
        (b'{"operation": "test/echo", "input": [1]}', 422),
        (b"{", 400),
        (b"\xff", 400),
        (b'{"operation": "test/echo"} x', 400),
        (b"NaN", 400),
        (b'{"operation": "test/echo", "input": {"value": Infinity}}', 400),
        (b'{"operation": "test/echo", "input": {"value": "\\ud800"}}', 400),
        (b"[" * 65 + b"]" * 65, 400),
        (b"[" * 100_000, 400),
        (b'{"a":' * 30_000, 400),
        (b"[" + b"0," * 500_000 + b"0]", 400),
        (b"9" * 5000, 400),
        (b'{"operation": "test/echo", "input": {"value": %b}}' % (b"9" * 4000), 200),
        (b'{"operation": "nope/nope", "operation": "test/echo", "input": {"value": 1}}', 200),
        ('{"operation": "test/echo"}'.encode("utf-16"), 400),
        (b"\xef\xbb\xbf{}", 400),
    ],
    ids=range(28),
)
async def test_a_body_is_the_json_that_it_should_be_or_is_refused(body: bytes, status: int) -> None:
    async with _door() as door, door.connect() as http:
        answer = await _sent(http, body)
        assert answer.status == status
        if status != 200:
            assert answer.code == "INVALID_INPUT"
            assert len(answer.body) < 1000
        assert (await http.ask("GET", "/healthz")).status == 200


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200), ("Application/JSON; charset=utf-8", 200), ("text/json", 415), ("text/plain", 415),
        ("application/jsonx", 415), ("application/x-www-form-urlencoded", 415), ("", 415), ("application/json, x", 415),
    ],
)  # fmt: skip
async def test_json_says_that_it_is_json(kind: str, status: int) -> None:
    async with _door() as door, door.connect() as http:
        assert (await _sent(http, b'{"operation": "test/identity"}', kind=kind)).status == status


@pytest.mark.parametrize(
    ("operation", "input", "peer", "status", "code"),
    [
        ("test/order", {"item": "a", "amount": 9}, "alice", 409, "SOLD_OUT"),
        ("test/order", {"item": "a"}, "alice", 422, "INVALID_INPUT"),
        ("test/crash", {}, "alice", 500, "INTERNAL"),
        ("odd/answer", {}, "alice", 500, "INTERNAL"),
        ("odd/details", {}, "alice", 418, "ODD"),
        ("no/such", {}, "alice", 404, "NOT_FOUND"),
        ("matrix/inside", {}, "alice", 404, "NOT_FOUND"),
        ("test/count", {"to": 1}, "alice", 400, "INVALID_OPERATION_TYPE"),
        ("test/order", {}, "bob", 403, "FORBIDDEN"),
        ("test/order", {}, None, 401, "FORBIDDEN"),
        ("no/such", {}, None, 401, "FORBIDDEN"),
    ],
)
async def test_an_error_is_a_problem_with_the_status_of_its_code(
    operation: str, input: Any, peer: str | None, status: int, code: str
) -> None:
    async with _door() as door, door.connect() as http:
        answer = await http.call(operation, input, peer=peer)
        assert (answer.status, answer.code) == (status, code)
        problem = answer.value
        assert (problem["type"], bool(problem["title"])) == ("about:blank", True)
        assert ("denial_id" in problem) == (code == "FORBIDDEN")
        assert ("www-authenticate" in answer.headers) == (status == 401)
        assert "secret" not in answer.body.decode()
        assert door.bench.unmatched() == {}


@pytest.mark.parametrize(
    ("after", "told"), [(None, "1"), (7, "7"), (2.4, "2"), (-3, "1"), (10**9, "86400"), ("x", "1")]
)
async def test_who_may_come_back_is_told_when(after: Any, told: str) -> None:
    async with _door() as door, door.connect() as http:
        answer = await http.call("odd/busy", {"after": after})
        assert (answer.status, answer.headers["retry-after"]) == (503, told)


async def test_a_call_may_have_less_time() -> None:
    async with _door() as door, door.connect() as http:
        answer = await http.call("test/wait", {"mark": "short"}, timeout_ms=20)
        assert (answer.status, answer.code) == (504, "TIMEOUT")


async def test_one_caller_runs_so_many_calls_at_once() -> None:
    async with _door(max_in_flight=1) as door, door.connect() as http, door.connect() as other:
        await http.send(http.asked("POST", "/ops/test/wait", {"mark": "first"}))
        await eventually(lambda: door.handler._calls.running, "it runs")
        answer = await other.call("test/identity")
        assert (answer.status, answer.code, answer.headers["retry-after"]) == (429, "RESOURCE_EXHAUSTED", "1")
        assert (await other.call("test/identity", peer="bob")).status == 200


# --- /batch -----------------------------------------------------------------------------------------------------------


async def test_a_batch_is_answered_in_order_each_for_itself() -> None:
    requests: list[Any] = [
        {"operation": "test/echo", "input": {"value": 0}},
        {"operation": "test/order", "input": {"item": "a", "amount": 9}},
        {"operation": "no/such"},
        "nonsense",
        {"operation": "odd/answer"},
        {"operation": "odd/details"},
        {"operation": "test/echo", "input": {"value": 6}},
    ]
    async with _door() as door, door.connect() as http:
        answer = await http.ask("POST", "/batch", requests)
        results = answer.value["results"]
        assert answer.status == 200
        codes = [one["error"]["code"] if one["result"] == "error" else one["output"] for one in results]
        assert codes == [0, "SOLD_OUT", "NOT_FOUND", "INVALID_INPUT", "INTERNAL", "ODD", 6]
        assert results[1]["error"]["details"] == {"left": 3}
        assert door.bench.unmatched() == {}


@pytest.mark.parametrize("value", [{}, "x", None, [{"operation": "test/identity"}] * (MAX_BATCH + 1)])
async def test_a_batch_is_a_list_of_so_many(value: Any) -> None:
    async with _door() as door, door.connect() as http:
        assert (await _sent(http, json.dumps(value).encode(), "/batch")).status == 422
        assert door.bench.outcomes("test/identity") == []
        assert (await http.ask("POST", "/batch", [])).value == {"results": []}
        full = await http.ask("POST", "/batch", [{"operation": "test/identity"}] * MAX_BATCH)
        assert len(full.value["results"]) == MAX_BATCH


async def test_the_answers_of_a_batch_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "MAX_BATCH_BYTES", 2500)
    monkeypatch.setattr(routes, "BATCH_AT_ONCE", 1)
    async with _door() as door, door.connect() as http:
        answer = await http.ask("POST", "/batch", [{"operation": "test/text", "input": {"size": 1000}}] * 6)
        results = [one["result"] for one in answer.value["results"]]
        assert results == ["ok"] * 3 + ["error"] * 3
        assert answer.value["results"][-1]["error"]["code"] == "RESOURCE_EXHAUSTED"
        assert door.bench.outcomes("test/text") == ["ok"] * 3


async def test_access_that_is_taken_away_ends_the_calls_of_a_batch_that_it_was_for() -> None:
    async with _door() as door, door.connect() as http:
        requests = [
            {"operation": "test/wait", "input": {"mark": "w"}},
            {"operation": "test/echo", "input": {"value": 1}},
        ]
        await http.send(http.asked("POST", "/batch", requests))
        await eventually(lambda: door.bench.outcomes("test/echo") and door.handler._calls.running, "one still runs")
        door.reload({"alice": ("test:echo",), "bob": ()})
        first, second = (await http.answer()).value["results"]
        assert (first["error"]["code"], first["error"]["denial_id"][:4]) == ("FORBIDDEN", "den_")
        assert second["output"] == 1


# --- /ops -------------------------------------------------------------------------------------------------------------


async def test_an_operation_has_an_address_of_its_own() -> None:
    async with _door() as door, door.connect() as http:
        posted = await http.ask("POST", "/ops/odd/plain", {"name": "a", "count": 3})
        got = await http.ask("GET", "/ops/odd/plain?name=a&count=3&flag=true")
        assert posted.value["count"] == got.value["count"] == 3
        assert got.value["flag"] is True
        head = await http.ask("HEAD", "/ops/odd/plain?name=a")
        assert (head.status, int(head.headers["content-length"]) > 20) == (200, True)
        assert (await http.ask("POST", "/ops/test/identity")).status == 200  # no input at all


@pytest.mark.parametrize(
    ("query", "status"),
    [("", 422), ("name", 400), ("name=a&name=b", 422), ("name=%ff", 400), ("x=1", 422), ("name=a&count=x", 422),
     ("&".join(["name=a"] * 200), 400), ("name=%00", 200), ("name=a&count=99999999999999999999", 200)],
)  # fmt: skip
async def test_a_query_string_is_an_input_like_another(query: str, status: int) -> None:
    async with _door() as door, door.connect() as http:
        assert (await http.ask("GET", f"/ops/odd/plain?{query}")).status == status


async def test_what_changes_something_cannot_be_got() -> None:
    async with _door() as door, door.connect() as http:
        answer = await http.ask("GET", "/ops/test/order?item=a&amount=1")
        assert (answer.status, answer.headers["allow"]) == (405, "POST")
        assert door.bench.outcomes("test/order") == []
        assert (await http.ask("GET", "/ops/test/order?item=a&amount=1", peer="bob")).status == 403
        assert (await http.ask("GET", "/ops/test/order?item=a&amount=1", peer=None)).status == 401


# --- operations of peers ----------------------------------------------------------------------------------------------


async def test_a_call_may_name_the_peer_whose_operation_is_meant() -> None:
    async with _door() as door, door.connect() as http:
        door.bench.connect("w1", "test/echo", "w1/only")
        asked = {"operation": "/w1/only", "peer": "w1", "input": {"x": 1}, "timeout_ms": 5000}
        answer = await http.ask("POST", "/call", asked)
        assert (answer.status, answer.value["output"]) == (200, "w1:w1/only")
        ((peer, name, value, timeout_s, forwarded_for),) = door.bench.peer_calls
        assert (peer, name, value, forwarded_for) == ("w1", "w1/only", {"x": 1}, "alice")
        assert timeout_s is not None
        assert 0 < timeout_s <= 5
        calls = [{"operation": "test/echo", "input": {"value": 2}}, {"operation": "test/echo", "peer": "w1"}]
        batch = (await http.ask("POST", "/batch", calls)).value["results"]
        assert [one["output"] for one in batch] == [2, "w1:test/echo"]
        for body, code in (
            ({"operation": "w1/only"}, "NOT_FOUND"),
            ({"operation": "test/wait", "peer": "w1"}, "NOT_FOUND"),  # this node's own is not meant
            ({"operation": "test/echo", "peer": "w2"}, "NOT_FOUND"),
        ):
            assert (await http.ask("POST", "/call", body)).code == code
        wrong = await http.ask("POST", "/subscribe", {"operation": "test/echo", "peer": "w1"})
        assert wrong.code == "INVALID_OPERATION_TYPE"
        assert door.bench.unmatched() == {}


async def test_who_may_not_call_a_peer_does_not_learn_who_is_there() -> None:
    async with _door() as door, door.connect() as http:
        door.bench.connect("w1", "test/echo")
        said = []
        for peer, who in (("w1", "bob"), ("nobody", "bob"), ("w1", None), ("nobody", None)):
            answer = await http.ask("POST", "/call", {"operation": "test/echo", "peer": peer}, peer=who)
            assert (answer.status, answer.code) == (401 if who is None else 403, "FORBIDDEN")
            said.append(answer.value["message"].replace(peer, "…"))
        assert said[0] == said[1]
        assert said[2] == said[3] == "authentication required"
        assert door.bench.peer_calls == []


@pytest.mark.parametrize("peer", ["", 7, ["w1"], "x" * 257, {}])
async def test_a_peer_is_a_name(peer: Any) -> None:
    async with _door() as door, door.connect() as http:
        body = {"operation": "test/echo", "peer": peer}
        answer = await http.ask("POST", "/call", body)
        assert (answer.status, answer.code) == (422, "INVALID_INPUT")
        assert answer.value["message"] == "peer should be the name of a peer that is connected to this node"
        assert (await http.ask("POST", "/subscribe", body)).status == 422
        assert (await http.ask("POST", "/batch", [body])).value["results"][0]["error"]["code"] == "INVALID_INPUT"


async def test_search_and_schema_show_what_a_peer_brings() -> None:
    async with _door() as door, door.connect() as http:
        door.bench.connect("w1", "w1/only")
        found = await http.ask("GET", "/search?peer=w1")
        assert [one["name"] for one in found.value["output"]["operations"]] == ["w1/only"]
        assert (await http.ask("GET", "/schema?peer=w1&name=w1/only")).value["output"]["kind"] == "mutation"
        assert (await http.ask("GET", "/search?peer=w1", peer="bob")).code == "NOT_FOUND"


# --- about operations -------------------------------------------------------------------------------------------------


async def test_search_and_schema_show_what_a_caller_may_use() -> None:
    async with _door() as door, door.connect() as http:
        found = await http.ask("GET", "/search?query=echo")
        assert [one["name"] for one in found.value["output"]["operations"]] == ["test/echo"]
        assert (await http.ask("GET", "/schema?name=test/echo")).value["output"]["name"] == "test/echo"
        few = await http.ask("GET", "/search?namespace=test", peer="bob")
        assert {one["name"] for one in few.value["output"]["operations"]} == {"test/echo", "test/identity"}
        assert (await http.ask("GET", "/search?query=a&query=b")).status == 422


# --- tickets ----------------------------------------------------------------------------------------------------------


async def test_a_ticket_is_for_somebody() -> None:
    async with _door() as door, door.connect() as http:
        answer = await http.ask("POST", "/ticket")
        assert (answer.status, answer.value["expires_in"], len(answer.value["ticket"])) == (200, 30, 32)
        assert (await http.ask("POST", "/ticket", peer=None)).status == 401


# --- the node ---------------------------------------------------------------------------------------------------------


async def test_health_and_readiness() -> None:
    async with _door() as door, door.connect() as http:
        assert (await http.ask("GET", "/healthz", peer=None)).value == {"status": "ok"}
        assert (await http.ask("GET", "/readyz", peer=None)).value == {"status": "ready"}
        assert (await http.ask("HEAD", "/readyz", peer=None)).status == 200
        assert door.bench.audit.records == []
