"""What every request has to pass, in which order: Host, Origin, the path, the credential, a place."""

import logging
import time
from typing import Any

import pytest

from alknet.call import anonymous
from alknet.call.anonymous import BURST, LIFETIME_S
from alknet.call.doorkeeper import DoorLimits
from alknet.gateway.app import bearer_of
from alknet.gateway.problems import HttpError
from alknet.gateway.settings import GatewaySettings
from testkit import services
from testkit.gateway import GatewayDoor, request
from testkit.polling import eventually

PEERS = {"alice": ("*",), "bob": ("other",)}
APP = "https://app.example"
IDENTITY = {"operation": "test/identity", "input": {}}
OUTSIDE = "192.0.2.9"


def _door(**settings: Any) -> GatewayDoor:
    return GatewayDoor(services, peers=PEERS, settings=GatewaySettings(mcp=False, **settings))


# --- Host and Origin --------------------------------------------------------------------------------------------------


async def test_a_foreign_host_is_refused_before_the_credential_is_looked_at() -> None:
    async with _door() as door, door.connect() as http:
        for host in ("evil.example", "localhost.evil.example:8022"):
            await http.send(request("POST", "/call", b"{}", ("Authorization", "Bearer alk_wrong"), host=host))
            answer = await http.answer()
            assert (answer.status, answer.code) == (403, "FORBIDDEN")
        assert door.failed == []
        assert door.bench.audit.records == []


@pytest.mark.parametrize(
    "data", [request("GET", "/healthz", host=None), request("GET", "/healthz", b"", ("Host", "a"))]
)
async def test_one_host_has_to_be_named(data: bytes) -> None:
    async with _door() as door, door.connect() as http:
        await http.send(data)
        assert (await http.answer()).status == 400


async def test_a_host_may_be_listed_while_the_node_runs() -> None:
    async with _door() as door, door.connect() as http:
        data = request("GET", "/healthz", host="node.example:8022")
        for names, status in ((frozenset(), 403), (frozenset({"node.example"}), 200)):
            door.set(names=names)
            await http.send(data)
            assert (await http.answer()).status == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("Origin", "http://localhost:8022")], 200),
        ([("Origin", "null")], 403),
        ([("Origin", "http://evil.example")], 403),
        ([("Sec-Fetch-Site", "cross-site")], 403),
        ([("Sec-Fetch-Site", "same-origin")], 200),
        ([("Origin", "http://localhost:8022"), ("Origin", "http://evil.example")], 400),
        ([("Sec-Fetch-Site", "none"), ("Sec-Fetch-Site", "cross-site")], 400),
    ],
)
@pytest.mark.parametrize("path", ["/healthz", "/docs", "/no/such/path"])
async def test_pages_of_other_sites_are_refused_wherever_they_knock(
    headers: list[tuple[str, str]], status: int, path: str
) -> None:
    async with _door() as door, door.connect() as http:
        await http.send(request("GET", path, b"", *headers))
        found = (await http.answer()).status
        assert found == (404 if status == 200 and path == "/no/such/path" else status)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
@pytest.mark.parametrize("origin", [None, "http://evil.example", "null"])
async def test_a_form_of_another_site_does_nothing(kind: str, origin: str | None) -> None:
    """Browsers send these three without asking first; the content may even be JSON."""
    async with _door() as door, door.connect() as http:
        headers = [("Content-Type", kind)] + ([] if origin is None else [("Origin", origin)])
        answer = await http.ask("POST", "/call", {"operation": "test/order", "input": {}}, *headers)
        assert answer.status == (415 if origin is None else 403)
        if origin is None:
            assert answer.headers["accept"] == "application/json"
        assert door.bench.outcomes("test/order") == []


async def test_cors_is_off_unless_an_origin_is_listed() -> None:
    async with _door() as door, door.connect() as http:
        preflight = request("OPTIONS", "/call", b"", ("Origin", APP), ("Access-Control-Request-Method", "POST"))
        await http.send(preflight)
        answer = await http.answer()
        assert answer.status == 403
        assert not [name for name in answer.headers if name.startswith("access-control")]
        door.set(origins=(APP,))
        await http.send(preflight)
        answer = await http.answer()
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (204, APP)
        assert "content-length" not in answer.headers
        allowed = answer.headers["access-control-allow-headers"].split(", ")
        assert {"authorization", "mcp-session-id", "mcp-method", "mcp-name"} <= set(allowed)
        assert "access-control-allow-credentials" not in answer.headers
        answer = await http.ask("POST", "/call", IDENTITY, ("Origin", APP))
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, APP)
        assert answer.headers["vary"] == "Origin"
        answer = await http.ask("POST", "/call", {}, ("Origin", APP))
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (422, APP)


# --- paths and methods ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/call", "POST"),
        ("POST", "/healthz", "GET"),
        ("DELETE", "/batch", "POST"),
        ("OPTIONS", "/call", "POST"),
        ("PUT", "/ops/test/echo", "POST"),
        ("POST", "/openapi.json", "GET"),
    ],
)
async def test_another_method_is_told_which_one_is_meant(method: str, path: str, allow: str) -> None:
    async with _door() as door, door.connect() as http:
        answer = await http.ask(method, path)
        assert (answer.status, answer.code, answer.headers["allow"]) == (405, "INVALID_OPERATION_TYPE", allow)


@pytest.mark.parametrize(
    "path",
    [
        "/", "//", "/nothing", "/call/", "//call", "/./call", "/docs/../call", "/docs/%2e%2e/call", "/CALL",
        "/healthz/..", "/healthz%00", "/docs/%00", "/docs/..%2f..%2fapp.py", "/%63all%2f", "/" + "x" * 8000,
        "/%F0%9F%92%A9", "/%ff%fe", "/;call", "/call;x=1",
    ],
)  # fmt: skip
async def test_a_path_of_nobodys_is_not_found(path: str) -> None:
    async with _door() as door, door.connect() as http:
        await http.send(request("GET", path))
        assert (await http.answer()).status == 404


@pytest.mark.parametrize(
    "name",
    ["..", "../call", "..%2fcall", "%2e%2e/echo", "test//echo", "/test/echo", "test/echo/", "test/echo%00", "TEST/echo",
     "test%2f%2fecho", "x" * 8000, "%ff", "%E2%80%AEtest/echo", "test/echo;v=1"],
)  # fmt: skip
@pytest.mark.parametrize("peer", ["alice", None])
async def test_only_the_name_of_an_operation_is_one(name: str, peer: str | None) -> None:
    async with _door() as door, door.connect() as http:
        answer = await http.ask("POST", "/ops/" + name, {}, peer=peer)
        assert (answer.status, answer.code) == ((404, "NOT_FOUND") if peer else (401, "FORBIDDEN"))
        assert all(len(record["action"]) <= 129 for record in door.bench.audit.records)


async def test_an_escaped_slash_is_a_slash() -> None:
    async with _door() as door, door.connect() as http:
        assert (await http.ask("POST", "/ops/test%2Fecho", {"value": 1})).value == 1


async def test_a_websocket_is_served_in_one_place_only() -> None:
    upgrade = (("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13"))
    for path in ("/healthz", "/ops/test/endless", "/ops/test/identity", "/mcp", "/nothing", "/docs"):
        async with _door() as door, door.connect() as http:
            key = ("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA==")
            await http.send(http.asked("GET", path, None, *upgrade, key))
            assert (await http.answer()).status == 404


# --- who asks ------------------------------------------------------------------------------------------------------


async def test_a_token_says_who_asks_and_none_is_nobody() -> None:
    async with _door() as door, door.connect() as http:
        for peer in ("alice", None, "bob", "alice"):
            answer = await http.ask("POST", "/call", IDENTITY, peer=peer)
            assert answer.value["output"] == {"peer": peer, "surface": "http"}


@pytest.mark.parametrize(
    "header",
    ["Bearer alk_12345678_" + "x" * 27, "Bearer nonsense", "Basic YTpi", "Bearer", "Bearer ", "", "alk_x", "Bearer é",
     "Bearer " + "x" * 4000],
)  # fmt: skip
async def test_a_credential_that_is_none_is_refused_and_nobody_falls_back(header: str) -> None:
    async with _door() as door, door.connect() as http:
        answer = await http.ask("POST", "/call", IDENTITY, ("Authorization", header), peer=None)
        assert (answer.status, answer.code) == (401, "FORBIDDEN")
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert door.bench.outcomes("test/identity") == []


async def test_two_credentials_are_none() -> None:
    async with _door() as door, door.connect() as http:
        twice = [("Authorization", f"Bearer {door.tokens[peer]}") for peer in ("alice", "bob")]
        answer = await http.ask("POST", "/call", IDENTITY, *twice, peer=None)
        assert answer.status == 401


async def test_what_a_connection_was_good_for_before_is_looked_at_again() -> None:
    async with _door() as door, door.connect() as http:
        alice, bob = (("Authorization", f"Bearer {door.tokens[peer]}") for peer in ("alice", "bob"))
        for header, peer in ((alice, "alice"), (alice, "alice"), (bob, "bob"), (alice, "alice")):
            answer = await http.ask("POST", "/call", IDENTITY, header, peer=None)
            assert answer.value["output"]["peer"] == peer
        twice = await http.ask("POST", "/call", IDENTITY, alice, bob, peer=None)
        assert twice.status == 401
        door.change({"alice": ("*",)}, without=["alice"])  # and not yet rechecked
        gone = await http.ask("POST", "/call", IDENTITY, alice, peer=None)
        assert (gone.status, gone.value["detail"]) == (401, "the token is not valid")
        await http.send(request("GET", "/search", host="evil.example"))
        assert (await http.answer()).status == 403


async def test_tokens_that_are_guessed_count_and_end_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    guess = "alk_guessed1_" + "z" * 27
    async with _door(auth_attempts=3) as door, door.connect(remote="127.0.0.9") as http:
        for number in range(3):
            answer = await http.ask("GET", "/search", None, ("Authorization", f"Bearer {guess}"), peer=None)
            assert (answer.status, answer.value["denial_id"][:4]) == (401, "den_")
            assert (answer.headers.get("connection") == "close") == (number == 2)
        assert await http.rest() == b""
        assert door.failed == ["127.0.0.9"] * 3
        assert [record["decision"] for record in door.bench.audit.records] == ["deny"] * 3
        assert guess not in caplog.text
        assert guess not in str(door.bench.audit.records)
        assert caplog.text.count("result=reject") == 3


async def test_a_token_that_was_taken_away_ends_the_connection_that_has_it() -> None:
    async with _door() as door, door.connect() as http:
        await http.ask("POST", "/call", IDENTITY)
        door.reload(PEERS, without=["alice"])
        assert await http.rest() == b""
    async with _door() as door, door.connect() as http:
        door.change(PEERS, without=["alice"])
        assert (await http.ask("POST", "/call", IDENTITY)).status == 401


async def test_open_paths_look_at_no_credential() -> None:
    async with _door() as door, door.connect() as http:
        for path in ("/healthz", "/readyz", "/docs"):
            answer = await http.ask("GET", path, None, ("Authorization", "Bearer wrong"), peer=None)
            assert answer.status == 200
        assert door.failed == []


@pytest.mark.parametrize(("text", "token"), [("Bearer a", "a"), ("bearer  a ", "a"), ("BEARER a", "a")])
def test_the_scheme_is_of_any_case(text: str, token: str) -> None:
    assert bearer_of(text) == token


def test_what_is_no_bearer_is_refused() -> None:
    for text in (None, "", "Bearer", "Basic x"):
        with pytest.raises(HttpError):
            bearer_of(text)


# --- places for nobody ------------------------------------------------------------------------------------------------


async def test_those_who_are_nobody_have_a_part_of_the_places() -> None:
    async with _door() as door:
        door.doors.limits = DoorLimits(half_open=1000, connections_per_address=8)
        async with door.connect() as first, door.connect() as second, door.connect() as third:
            for http in (first, second):
                assert (await http.ask("GET", "/healthz", peer=None)).status == 200
            answer = await third.ask("GET", "/healthz", peer=None)
            assert (answer.status, answer.headers["connection"]) == (429, "close")
            assert "retry-after" in answer.headers
        async with door.connect() as known:
            assert (await known.call("test/identity")).status == 200
        await eventually(lambda: not door.live, "all are gone")
        assert door.doors._anonymous._connections.total() == 0


async def test_saying_who_one_is_gives_the_place_back() -> None:
    async with _door() as door, door.connect() as http:
        await http.ask("GET", "/healthz", peer=None)
        assert door.doors._anonymous._connections.total() == 1
        await http.call("test/identity")
        assert door.doors._anonymous._connections.total() == 0


async def test_nobody_stays_for_ever() -> None:
    async with _door() as door, door.connect() as http:
        assert (await http.ask("GET", "/healthz", peer=None)).headers.get("connection") is None
        (connection,) = door.router.connections
        connection.since = time.time() - LIFETIME_S - 1
        assert (await http.ask("GET", "/healthz", peer=None)).headers["connection"] == "close"
        assert await http.rest() == b""


async def test_calls_of_nobody_are_counted_also_when_they_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anonymous, "CALLS_PER_S", 0.0)
    async with _door() as door:
        statuses = []
        for _ in range(6):
            async with door.connect() as http:
                for _ in range(50):
                    answer = await http.ask("POST", "/call", {"operation": "no/such"}, peer=None)
                    statuses.append(answer.status)
        assert statuses == [401] * int(BURST) + [429] * (300 - int(BURST))


async def test_documents_count_as_calls_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anonymous, "CALLS_PER_S", 0.0)
    async with _door() as door, door.connect() as http:
        statuses = [(await http.ask("GET", "/openapi.json", peer=None)).status for _ in range(int(BURST) + 1)]
        assert statuses == [200] * int(BURST) + [429]


async def test_the_body_of_nobody_is_small() -> None:
    value = {"operation": "test/identity", "input": {"x": "y" * 70_000}}
    async with _door() as door, door.connect() as http:
        assert (await http.ask("POST", "/call", value, peer=None)).status == 413
    async with _door() as door, door.connect() as http:
        assert (await http.ask("POST", "/call", value)).status == 422


# --- plaintext from elsewhere --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
async def test_plaintext_of_other_machines_gets_nothing(method: str) -> None:
    async with _door() as door, door.connect(remote=OUTSIDE) as http:
        answer = await http.ask(method, "/healthz", peer=None)
        assert (answer.status, answer.code, answer.headers["connection"]) == (403, "FORBIDDEN", "close")
        assert "TLS" in answer.value["message"]
        assert await http.rest() == b""


async def test_or_a_redirect_where_there_is_a_name_for_it() -> None:
    async with _door(https_host="node.example:8022") as door:
        async with door.connect(remote=OUTSIDE) as http:
            await http.send(request("GET", "/ops/a%0d%0aSet-Cookie:x//%2F%2Fevil?q=%0d%0a", host="evil.example"))
            answer = await http.answer()
            assert answer.status == 308
            where = answer.headers["location"]
            assert where == "https://node.example:8022/ops/a%0D%0ASet-Cookie%3Ax//%2F%2Fevil?q=%0d%0a".replace(
                "%2F%2F", "//"
            )
            assert "set-cookie" not in answer.headers
        for data in (b"POST / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nAuthorization: Bearer x\r\n\r\n"):
            async with door.connect(remote=OUTSIDE) as http:
                await http.send(data)
                assert (await http.answer()).status == 403
        async with door.connect(remote=OUTSIDE) as http:
            assert (await http.upgrade("alknet.call.v1")).status == 403
        assert door.failed == []


async def test_plaintext_may_be_closed_to_this_machine_as_well() -> None:
    async with _door(plaintext_loopback=False) as door, door.connect(remote="::1") as http:
        assert (await http.ask("GET", "/healthz")).status == 403


# --- the trace -----------------------------------------------------------------------------------------------------


async def test_a_trace_goes_on_in_every_answer() -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    async with _door() as door, door.connect() as http:
        for path in ("/healthz", "/nothing"):
            answer = await http.ask("GET", path, None, ("traceparent", f"00-{trace}-b7ad6b7169203331-01"))
            version, found, span, flags = answer.headers["traceparent"].split("-")
            assert (version, found, flags) == ("00", trace, "01")
            assert span != "b7ad6b7169203331"
