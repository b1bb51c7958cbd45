"""Every HTTP route as stock curl gets it: exact statuses, headers and bodies, over TLS and in plaintext."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import websockets
from prometheus_client.parser import text_string_to_metric_families

import alknet
from testkit.as_user import Launcher
from testkit.carriers import running
from testkit.http_doors import WebSocketCaller, events_of
from testkit.node import DEADLINE_S, NodeProcess, wait_until
from testkit.service_nodes import service_node

pytestmark = pytest.mark.interop

ALWAYS = {"date", "cache-control", "x-content-type-options", "traceparent", "content-type", "content-length"}
"""The headers of every answer with a body."""
END_S = 0.2
"""Within so long a handler has to be cancelled whose client is gone."""
TOOLS = {"Accept": "application/json, text/event-stream"}
TRACE = re.compile(r"00-([0-9a-f]{32})-[0-9a-f]{16}-0[01]")


@dataclass(frozen=True, slots=True)
class Reply:
    """What curl received."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def value(self) -> Any:
        """The body as JSON, whose type is right."""
        assert self.headers["content-type"] in ("application/json", "application/problem+json"), self
        return json.loads(self.body)

    def problem(self) -> tuple[int, str, str]:
        """(status, code, message) of the problem document that it should be."""
        assert self.headers["content-type"] == "application/problem+json", self
        value = self.value
        assert (value["type"], value["status"], value["detail"]) == ("about:blank", self.status, value["message"])
        return self.status, value["code"], value["message"]


class Curl:
    """curl, as whoever has the token."""

    def __init__(self, node: NodeProcess, token: str | None) -> None:
        self.node = node
        self.token = token
        self.plain = f"http://127.0.0.1:{node.port}"
        self.tls = f"https://localhost:{node.port}"

    def command(self, path: str, *options: str, json: str | None = None, **headers: str) -> list[str]:
        """The command line for a path below the plaintext address, or for a whole URL."""
        found = ["curl", "-q", "-sS", "-i", "-N", "--max-time", "20", "--globoff"]
        found += ["--cacert", str(self.node.home / "keys" / "tls.crt")]
        if self.token is not None:
            found += ["--oauth2-bearer", self.token]
        for name, value in headers.items():
            found += ["-H", f"{name.replace('_', '-')}: {value}"]
        if json is not None:
            found += ["--json", json]
        return [*found, *options, path if "://" in path else self.plain + path]

    def __call__(self, path: str, *options: str, json: str | None = None, **headers: str) -> Reply:
        command = self.command(path, *options, json=json, **headers)
        result = subprocess.run(command, capture_output=True, timeout=DEADLINE_S)
        assert (result.returncode, result.stderr) == (0, b""), (command, result)
        return read_reply(result.stdout)


def read_reply(data: bytes) -> Reply:
    """An answer with its head; none has a header twice."""
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("ascii").split("\r\n")
    pairs = [line.split(": ", 1) for line in lines]
    assert len({name for name, _ in pairs}) == len(pairs), pairs
    version, status, reason = first.split(" ", 2)
    assert version == "HTTP/1.1"
    assert reason or int(status) >= 400  # what is refused before there is a request has none
    return Reply(int(status), dict(pairs), body)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Iterator[NodeProcess]:
    with service_node(tmp_path_factory.mktemp("curl"), launcher) as node:
        node.write_peer("few", 'scopes = ["test:echo"]')
        node.alknet("config", "reload")
        yield node


@pytest.fixture(scope="module")
def curl(served: NodeProcess) -> Curl:
    """As the owner."""
    return Curl(served, served.json("token", "create", "--scope", "*")["token"])


@pytest.fixture(scope="module")
def few(served: NodeProcess) -> Curl:
    """As a peer who may do little."""
    return Curl(served, served.json("token", "create", "--peer", "few", "--scope", "*")["token"])


@pytest.fixture
def nobody(served: NodeProcess) -> Curl:
    return Curl(served, None)


# --- about the node -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "body"), [("/healthz", b'{"status":"ok"}'), ("/readyz", b'{"status":"ready"}')])
def test_health_over_tls_and_in_plaintext_over_both_addresses(nobody: Curl, path: str, body: bytes) -> None:
    for base in (nobody.plain, nobody.tls, f"http://[::1]:{nobody.node.port}", f"https://[::1]:{nobody.node.port}"):
        reply = nobody(base + path)
        assert (reply.status, reply.body, set(reply.headers)) == (200, body, ALWAYS)
        assert reply.headers["content-type"] == "application/json"
        assert reply.headers["cache-control"] == "no-store"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", reply.headers["date"])
        assert TRACE.fullmatch(reply.headers["traceparent"])
        head = nobody(base + path, "--head")
        assert (head.status, head.body, set(head.headers)) == (200, b"", ALWAYS)
        assert head.headers["content-length"] == str(len(body))


def test_a_certificate_that_nobody_vouches_for_is_refused_by_curl(nobody: Curl) -> None:
    command = ["curl", "-q", "-sS", f"{nobody.tls}/healthz"]
    assert subprocess.run(command, capture_output=True, timeout=DEADLINE_S).returncode == 60


def test_who_offers_http_2_gets_http_1_1(nobody: Curl) -> None:
    command = ["curl", "-q", "-sS", "--http2", "--cacert", str(nobody.node.home / "keys" / "tls.crt")]
    command += ["-o", "/dev/null", "-w", "%{http_version} %{response_code}", f"{nobody.tls}/healthz"]
    assert subprocess.run(command, capture_output=True, timeout=DEADLINE_S).stdout == b"1.1 200"


def test_metrics_are_what_prometheus_reads(curl: Curl, few: Curl, nobody: Curl) -> None:
    curl("/ops/test/order", json='{"item": "a", "amount": 9}')
    reply = curl("/metrics")
    assert (reply.status, set(reply.headers)) == (200, ALWAYS)
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family for family in text_string_to_metric_families(reply.body.decode())}
    orders = {"operation": "test/order"}
    for name in ("alknet_operation_calls", "alknet_operation_errors", "alknet_operation_seconds"):
        (sample,) = [one for one in families[name].samples if one.labels == orders]
        assert sample.value > 0
        assert families[name].type == "counter"
    assert families["alknet_node_info"].samples[0].labels["name"]
    assert all(family.documentation for family in families.values())
    assert nobody("/metrics").problem() == (401, "FORBIDDEN", "authentication required")
    assert few("/metrics").problem()[:2] == (403, "FORBIDDEN")


def test_the_pages_and_all_that_they_need(nobody: Curl) -> None:
    reply = nobody("/docs")
    assert (reply.status, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    needed = re.findall(rb'(?:href|src)="(/[^"]+)"', reply.body)
    assert needed
    for path in needed:
        asset = nobody(path.decode())
        assert (asset.status, asset.headers["content-type"].partition(";")[0]) in (
            (200, "text/css"),
            (200, "text/javascript"),
        )
    assert nobody("/docs/no.js").problem() == (404, "NOT_FOUND", "there is nothing here")
    assert nobody("/docs/../../pyproject.toml", "--path-as-is").problem()[0] == 404
    assert nobody("/docs", "-X", "POST", json="{}").problem()[:2] == (405, "INVALID_OPERATION_TYPE")


# --- about operations ---------------------------------------------------------------------------------------------


def test_search_gives_the_permitted_operations_in_pages(curl: Curl, few: Curl, nobody: Curl) -> None:
    for who, key in ((curl, "owner"), (few, "few")):
        listed = [one["name"] for one in json.loads(who.node.ssh("op", "services/list", key=key).stdout)["operations"]]
        found: list[str] = []
        cursor = ""
        while True:
            reply = who(f"/search?limit=7&cursor={cursor}")
            assert (reply.status, reply.value["result"]) == (200, "ok")
            page = reply.value["output"]
            assert len(page["operations"]) <= 7
            found += [one["name"] for one in page["operations"]]
            cursor = page.get("next_cursor") or ""
            if not cursor:
                break
        assert found == listed
    assert {one["name"] for one in nobody("/search").value["output"]["operations"]} == {
        "services/list",
        "services/list-peers",
        "services/schema",
        "test/identity",
    }
    reply = curl("/search?namespace=matrix&kind=subscription")
    assert [one["name"] for one in reply.value["output"]["operations"]] == ["matrix/item"]
    assert curl("/search?query=only+3+are+left").value["output"]["operations"][0]["name"] == "test/order"
    assert curl("/search?limit=many").problem()[:2] == (422, "INVALID_INPUT")
    assert curl("/search?colour=red").problem() == (422, "INVALID_INPUT", "input.colour: is not known")
    assert curl("/search?limit=1&limit=2").problem()[:2] == (422, "INVALID_INPUT")


def test_schema_says_how_an_operation_is_called(curl: Curl, few: Curl, nobody: Curl) -> None:
    spec = curl("/schema?name=test/typed").value["output"]
    assert spec == json.loads(curl.node.ssh("op", "services/schema", '{"name": "test/typed"}', key="owner").stdout)
    assert few("/schema?name=test/typed").problem() == nobody("/schema?name=test/typed").problem()
    assert few("/schema?name=test/typed").problem()[:2] == (404, "NOT_FOUND")
    assert curl("/schema").problem()[:2] == (422, "INVALID_INPUT")


def test_openapi_has_a_tag_by_which_it_is_not_sent_twice(curl: Curl, few: Curl, nobody: Curl) -> None:
    replies = [who("/openapi.json") for who in (curl, few, nobody)]
    for reply, who in zip(replies, (curl, few, nobody), strict=True):
        assert (reply.status, set(reply.headers)) == (200, ALWAYS | {"etag", "vary"})
        assert reply.value["openapi"] == "3.1.0"
        again = who("/openapi.json", If_None_Match=reply.headers["etag"])
        assert (again.status, again.body) == (304, b"")
        listed = {one["name"] for one in who("/search?limit=1000").value["output"]["operations"]}
        assert {path.removeprefix("/ops/") for path in reply.value["paths"]} == listed
    assert len({reply.headers["etag"] for reply in replies}) == 3
    assert len({reply.value["x-alknet"]["caller"] for reply in replies}) == 3


# --- calls --------------------------------------------------------------------------------------------------------


def test_call(curl: Curl, few: Curl, nobody: Curl) -> None:
    reply = curl("/call", json='{"operation": "test/echo", "input": {"value": [1, "ü", null]}}')
    assert (reply.status, set(reply.headers)) == (200, ALWAYS | {"alknet-request-id"})
    id = reply.headers["alknet-request-id"]
    assert reply.body == f'{{"request_id":"{id}","result":"ok","output":[1,"ü",null]}}'.encode()
    lines = [line for line in curl.node.audit() if line.get("request_id") == id]
    assert [(line["phase"], line["action"], line["peer"], line["surface"]) for line in lines] == [
        ("intent", "test/echo", "owner", "http"),
        ("outcome", "test/echo", "owner", "http"),
    ]
    order = '{"operation": "test/order", "input": {"item": "a", "amount": 9}}'
    reply = curl("/call", json=order)
    assert reply.status == 409
    assert reply.value == {
        "type": "about:blank",
        "title": "Conflict",
        "status": 409,
        "detail": "only 3 of a are left",
        "code": "SOLD_OUT",
        "message": "only 3 of a are left",
        "retryable": False,
        "details": {"left": 3},
        "request_id": reply.headers["alknet-request-id"],
    }
    assert few("/call", json=order).problem()[:2] == (403, "FORBIDDEN")
    refused = nobody("/call", json=order)
    assert refused.problem() == (401, "FORBIDDEN", "authentication required")
    assert refused.headers["www-authenticate"] == 'Bearer realm="alknet"'
    wrong = curl("/call", json='{"operation": "test/thread", "input": {"value": "x"}}')
    assert wrong.problem()[:2] == (422, "INVALID_INPUT")
    assert wrong.value["details"][0]["path"] == ["value"]
    late = curl("/call", json='{"operation": "test/wait", "input": {"mark": "late"}, "timeout_ms": 20}')
    assert (late.problem()[:2], late.value["retryable"]) == ((504, "TIMEOUT"), True)
    crashed = curl("/call", json='{"operation": "test/crash"}')
    assert crashed.problem()[:2] == (500, "INTERNAL")
    assert b"secret" not in crashed.body
    assert curl("/call", json='{"operation": "test/count", "input": {"to": 1}}').problem()[:2] == (
        400,
        "INVALID_OPERATION_TYPE",
    )


def test_call_over_tls(curl: Curl) -> None:
    reply = curl(f"{curl.tls}/call", json='{"operation": "test/identity"}')
    assert reply.value["output"] == {"peer": "owner", "surface": "https"}


def test_batch_answers_in_order_and_one_that_fails_stops_no_other(curl: Curl, nobody: Curl) -> None:
    calls: list[dict[str, Any]] = [{"operation": "test/thread", "input": {"value": number}} for number in range(20)]
    calls.insert(3, {"operation": "test/order", "input": {"item": "a", "amount": 9}})
    calls.insert(5, {"operation": "no/such"})
    calls.insert(7, {"what": 1})
    reply = curl("/batch", json=json.dumps(calls))
    assert (reply.status, set(reply.headers)) == (200, ALWAYS)
    results = reply.value["results"]
    errors = {number: one["error"]["code"] for number, one in enumerate(results) if one["result"] == "error"}
    assert errors == {3: "SOLD_OUT", 5: "NOT_FOUND", 7: "INVALID_INPUT"}
    assert [one["output"] for one in results if one["result"] == "ok"] == list(range(1, 21))
    mixed = nobody("/batch", json='[{"operation": "test/identity"}, {"operation": "test/echo"}]')
    assert mixed.status == 200
    assert [one["result"] for one in mixed.value["results"]] == ["ok", "error"]
    assert curl("/batch", json="[]").value == {"results": []}
    for body in (json.dumps([{"operation": "test/identity"}] * 101), '{"operation": "test/identity"}'):
        assert curl("/batch", json=body).problem() == (422, "INVALID_INPUT", "a batch is a list of at most 100 calls")


@pytest.mark.parametrize("path", ["/subscribe", "/ops/test/count"])
def test_a_subscription_is_an_event_stream(curl: Curl, few: Curl, path: str) -> None:
    def body(value: dict[str, Any]) -> str:
        return json.dumps(value if path.startswith("/ops") else {"operation": "test/count", "input": value})

    reply = curl(path, json=body({"to": 2}))
    expected = ALWAYS - {"content-length"} | {"alknet-request-id", "transfer-encoding", "x-accel-buffering"}
    assert (reply.status, set(reply.headers)) == (200, expected)
    assert reply.headers["content-type"] == "text/event-stream"
    assert reply.body == (
        b": keep-alive\n\n"
        b'id: 1\ndata: {"number":0,"text":""}\n\n'
        b'id: 2\ndata: {"number":1,"text":""}\n\n'
        b"event: completed\ndata: {}\n\n"
    )
    resumed = curl(path, json=body({"to": 1}), Last_Event_ID="41")
    assert [one.get("id") for one in events_of(resumed.body.decode())] == ["42", None]
    assert few(path, json=body({"to": 2})).problem()[:2] == (403, "FORBIDDEN")
    assert curl(path, json=body({"to": "many"})).problem()[:2] == (422, "INVALID_INPUT")


def test_the_input_and_the_output_alone(curl: Curl, few: Curl, nobody: Curl) -> None:
    reply = curl("/ops/test/thread", json='{"value": 4}')
    assert (reply.status, reply.body, set(reply.headers)) == (200, b"5", ALWAYS | {"alknet-request-id"})
    assert curl("/ops/test/thread?value=4").body == b"5"
    head = curl("/ops/test/thread?value=4", "--head")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "1")
    assert nobody("/ops/test/identity").value == {"peer": None, "surface": "http"}
    assert nobody("/ops/test/identity", "-X", "POST").value == {"peer": None, "surface": "http"}
    assert curl("/ops/test/thread?value=x").problem()[:2] == (422, "INVALID_INPUT")
    for method in ("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"):
        options = ("--head",) if method == "HEAD" else ("-X", method)
        reply = curl("/ops/test/order?item=a&amount=1", *options)
        assert (reply.status, reply.headers["allow"]) == (405, "POST")
        assert method != "GET" or "queries whose inputs fit into a URL" in reply.problem()[2]
    assert curl("/ops/test/thread", "-X", "PUT").headers["allow"] == "GET, HEAD, POST"
    assert few("/ops/test/thread", "-X", "PUT").headers["allow"] == "POST"  # it is not told what that is
    for who, status in ((curl, 404), (few, 404), (nobody, 401)):
        for name in ("no/such", "matrix/inside", "nonsense", "a/b/c", "%2e%2e/x", ""):
            assert who(f"/ops/{name}").status == who(f"/ops/{name}", json="{}").status == status


def test_a_mutation_with_a_key_is_done_once(curl: Curl, few: Curl, nobody: Curl) -> None:
    seen = len(curl.node.audit())
    body = '{"item": "pears", "amount": 2}'
    first = curl("/ops/test/order", json=body, Idempotency_Key="order 1")
    assert (first.status, first.body) == (200, b'"2 of pears"')
    assert "idempotent-replayed" not in first.headers
    for _ in range(2):
        again = curl("/ops/test/order", json=body, Idempotency_Key="order 1")
        assert (again.status, again.body, again.headers["idempotent-replayed"]) == (200, first.body, "true")
    called = curl("/call", json=f'{{"operation": "test/order", "input": {body}}}', Idempotency_Key="order 1")
    assert (called.value["output"], called.headers["idempotent-replayed"]) == ("2 of pears", "true")
    other = curl("/ops/test/order", json='{"item": "pears", "amount": 1}', Idempotency_Key="order 1")
    assert other.problem()[:2] == (422, "INVALID_INPUT")
    for header in ("Idempotency-Key;", f"Idempotency-Key: {'x' * 256}", "Idempotency-Key: ü"):
        assert curl("/ops/test/order", "-H", header, json=body).problem()[:2] == (422, "INVALID_INPUT")
    assert few("/ops/test/order", json=body, Idempotency_Key="order 1").problem()[:2] == (403, "FORBIDDEN")
    assert nobody("/ops/test/order", json=body, Idempotency_Key="order 1").problem()[:2] == (401, "FORBIDDEN")
    sold_out = '{"item": "pears", "amount": 9}'
    for replayed in (None, "true"):
        reply = curl("/ops/test/order", json=sold_out, Idempotency_Key="order 2")
        assert (reply.problem()[:2], reply.headers.get("idempotent-replayed")) == ((409, "SOLD_OUT"), replayed)
    outcomes = [
        line["outcome"]
        for line in curl.node.audit()[seen:]
        if line["action"] == "test/order" and line["phase"] == "outcome" and line.get("peer") == "owner"
    ]
    assert outcomes.count("ok") == 1
    assert outcomes.count("error SOLD_OUT") == 1
    assert outcomes.count("replayed") == 4


def test_a_trace_goes_on_where_there_is_one(curl: Curl) -> None:
    given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    reply = curl("/ops/test/thread?value=1", traceparent=given)
    match = TRACE.fullmatch(reply.headers["traceparent"])
    assert match is not None
    assert match[1] == "0af7651916cd43dd8448eb211c80319c"
    for nonsense in ("x", "00-" + "0" * 32 + "-b7ad6b7169203331-01"):
        match = TRACE.fullmatch(curl("/healthz", traceparent=nonsense).headers["traceparent"])
        assert match is not None
        assert match[1] != "0" * 32


# --- who goes away ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/call", {"operation": "test/wait", "input": {"mark": "MARK"}}),
        ("/batch", [{"operation": "test/wait", "input": {"mark": "MARK"}}]),
        ("/ops/test/wait", {"mark": "MARK"}),
        ("/subscribe", {"operation": "test/endless", "input": {"mark": "MARK"}}),
        ("/ops/test/endless", {"mark": "MARK"}),
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_who_goes_away_ends_what_it_asked_for(curl: Curl, path: str, body: Any, scheme: str) -> None:
    mark = f"{scheme} {path} {time.monotonic()}"
    base = curl.plain if scheme == "http" else curl.tls
    command = curl.command(base + path, json=json.dumps(body).replace("MARK", mark))
    async with alknet.connect(home=curl.node.home) as peer:
        with running(command) as process:
            while await peer.call("test/seen", mark=mark) is None:
                assert process.poll() is None
            if "endless" in str((path, body)):
                assert process.stdout is not None
                while process.stdout.readline() != b"data: 0\n":  # arrives while the answer goes on
                    pass
            killed = time.monotonic()
            process.kill()
        while (seen := await peer.call("test/seen", mark=mark))["ended"] is None:
            assert time.monotonic() - killed < DEADLINE_S
    assert seen["how"] in ("CancelledError", "GeneratorExit")
    assert seen["ended"] - killed < END_S


# --- browsers -----------------------------------------------------------------------------------------------------


async def test_a_ticket_opens_one_websocket_for_pages_of_one_origin(curl: Curl, nobody: Curl) -> None:
    node, own = curl.node, f"http://127.0.0.1:{curl.node.port}"

    def ticket(**headers: str) -> str:
        reply = curl("/ticket", "-X", "POST", **headers)
        assert (reply.status, set(reply.headers)) == (200, ALWAYS)
        assert reply.value["expires_in"] == 30
        assert re.fullmatch("[0-9a-f]{32}", reply.value["ticket"])
        return f"alknet.ticket.{reply.value['ticket']}"

    made = ticket(Origin=own)
    async with WebSocketCaller.connect(node, subprotocols=("alknet.call.v1", made), origin=own) as socket:
        answer = await socket.ask("test/identity", "{}")
        assert answer == ("ok", "", None, {"peer": "owner", "surface": "websocket"})
    for text, origin in ((made, own), (ticket(Origin=own), None), (ticket(), own), ("alknet.ticket.x", own)):
        with pytest.raises(websockets.InvalidStatus) as caught:
            async with WebSocketCaller.connect(node, subprotocols=("alknet.call.v1", text), origin=origin):
                pass
        assert caught.value.response.status_code == 401
    assert nobody("/ticket", "-X", "POST").problem()[:2] == (401, "FORBIDDEN")
    assert curl("/ticket").problem()[:2] == (405, "INVALID_OPERATION_TYPE")


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "evil example"}, 400),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_foreign_pages_get_nothing(curl: Curl, headers: dict[str, str], code: int) -> None:
    seen = len(curl.node.audit())
    for path in ("/healthz", "/ops/test/identity", "/call", "/mcp", "/alknet/call", "/docs", "/openapi.json"):
        reply = curl(path, **headers)
        assert reply.status == code, (path, reply)
        assert not {name for name in reply.headers if name.startswith("access-control-")}
    # The node may still be noticing what the fixtures have changed.
    assert [line for line in curl.node.audit()[seen:] if line["surface"] != "config"] == []


def test_own_names_and_pages_are_fine(curl: Curl) -> None:
    for headers in (
        {"Host": f"localhost:{curl.node.port}"},
        {"Host": "LOCALHOST."},
        {"Host": f"[::1]:{curl.node.port}"},
        {"Origin": curl.plain},
        {"Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
    ):
        assert curl("/ops/test/identity", **headers).status == 200, headers


# --- tools --------------------------------------------------------------------------------------------------------


def test_mcp_in_both_revisions(curl: Curl) -> None:
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "curl", "version": "1"}}
    message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
    reply = curl("/mcp", json=json.dumps(message), **TOOLS)
    assert reply.status == 200, reply
    session = {"Mcp-Session-Id": reply.headers["mcp-session-id"], "MCP-Protocol-Version": "2025-11-25", **TOOLS}
    message = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    assert curl("/mcp", json=json.dumps(message), **session).status == 202
    call = {"jsonrpc": "2.0", "id": 2, "method": "tools/call"}
    call["params"] = {"name": "test.thread", "arguments": {"value": 4}}
    old = curl("/mcp", json=json.dumps(call), **session)
    assert (old.status, old.value["result"]["structuredContent"]) == (200, {"result": 5})
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "curl", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    call["params"]["_meta"] = meta  # type: ignore[index]
    headers = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": "test.thread", **TOOLS}
    new = curl("/mcp", json=json.dumps(call), **headers)
    assert new.status == 200, new
    assert new.value["result"]["structuredContent"] == 5
    assert curl("/mcp", "-X", "DELETE", **session).status == 200
    assert curl("/mcp", json=json.dumps(call), **session).status == 404


# --- what is no request -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "options", "status", "code"),
    [
        ("/nowhere", (), 404, "NOT_FOUND"),
        ("/", (), 404, "NOT_FOUND"),
        ("/call", (), 405, "INVALID_OPERATION_TYPE"),
        ("/call", ("-d", "x=1"), 415, "INVALID_INPUT"),
        ("/call", ("-H", "Content-Type: text/plain", "-d", "{}"), 415, "INVALID_INPUT"),
        ("/call", ("-F", "operation=test/echo"), 415, "INVALID_INPUT"),
        ("/call", ("--json", '{"'), 400, "INVALID_INPUT"),
        ("/call", ("--json", '{"operation": 1}'), 422, "INVALID_INPUT"),
        ("/call", ("--json", '{"operation": "test/echo", "inputs": {}}'), 422, "INVALID_INPUT"),
        ("/call", ("--json", '{"operation": "test/echo", "timeout_ms": 0}'), 422, "INVALID_INPUT"),
        ("/call", ("--json", "[" * 100_000), 400, "INVALID_INPUT"),
        ("/ops/test/echo", ("--json", "[1]"), 422, "INVALID_INPUT"),
        ("/ops/test/thread?value", (), 400, "INVALID_INPUT"),
        ("/ops/test/thread?" + "&".join(["value=1"] * 101), (), 400, "INVALID_INPUT"),
        ("/alknet/call", (), 426, "INVALID_INPUT"),
        ("/call?" + "x" * 9000, (), 414, "INVALID_INPUT"),
        ("/call", ("-H", "x: " + "x" * 40_000), 431, "INVALID_INPUT"),
        ("/call", tuple(f"-HX-{number}: 1" for number in range(101)), 431, "INVALID_INPUT"),
    ],
)
def test_what_is_wrong_as_http_is_a_problem_too(
    curl: Curl, path: str, options: tuple[str, ...], status: int, code: str
) -> None:
    assert curl(path, *options).problem()[:2] == (status, code)
    assert curl("/healthz").status == 200


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(curl: Curl, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(b'{"operation": "test/echo", "input": {"value": "' + b"x" * 1024 * 1024 + b'"}}')
    for how in (("Content-Length: ",), ("Transfer-Encoding: chunked",)):
        options = ["-H", how[0]] if "chunked" in how[0] else []
        command = curl.command("/call", *options, json=f"@{large}", Expect="")
        result = subprocess.run(command, capture_output=True, timeout=DEADLINE_S)
        reply = read_reply(result.stdout)
        assert (reply.problem()[0], reply.headers["connection"]) == (413, "close")
    wait_until(lambda: curl("/healthz").status == 200, "others are served")
