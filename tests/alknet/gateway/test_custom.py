"""Routes of services over real HTTP: who gets in, what they see, how they fail, and how they end."""

import asyncio
import contextlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from alknet import CallError, Node, OperationContext, OperationError, RouteContext, operation, route
from alknet.alpn.admission import Admission, AdmissionLimits
from alknet.alpn.first_byte import Opening
from alknet.alpn.port import Port, plain
from alknet.alpn.router import Router
from alknet.alpn.tls_listener import DEFAULT_ALPN
from alknet.call.doorkeeper import Doorkeeper
from alknet.call.operations import served_by
from alknet.call.registry import Registry
from alknet.errors import AlknetError, ConfigError, InvalidInputError, NotFoundError, UnavailableError, UsageError
from alknet.gateway.server import GatewayHandler
from alknet.gateway.settings import GatewaySettings
from alknet.replies import Replies
from alknet.tokens import make_token
from testkit.as_user import Launcher
from testkit.bench import Bench
from testkit.node import NodeProcess
from testkit.polling import eventually

MAX_BODY = 10_000
PEERS = {"alice": ("*",), "bob": ("models:read",), "carol": ("other",)}


class Web:
    """A gateway on a port of loopback. Each peer of `PEERS` has a token."""

    def __init__(self, *served: Any) -> None:
        self.bench = Bench(*served, peers=PEERS)
        made = {peer: make_token(peer, ("*",), expires_at=None) for peer in PEERS}
        self.tokens = {peer: text for peer, (text, _) in made.items()}
        self._kept = {token.prefix: token for _, token in made.values()}
        self.forbid()
        self.doors = Doorkeeper(self.bench.gate)
        self.handler = GatewayHandler(
            self.bench.dispatcher,
            self.doors,
            GatewaySettings(mcp=False, max_body=MAX_BODY),
            replies=Replies(sqlite3.connect(":memory:", isolation_level=None)),
            serve_calls=self._serve_calls,
        )
        self.handler.check(self.bench.dispatcher.registry)
        self.router = Router([self.handler])
        self._port = Port(Admission(AdmissionLimits()), {Opening.HTTP: plain(DEFAULT_ALPN, self.router)})
        self.url = ""

    def forbid(self, *peers: str) -> None:
        """Another policy, in which these peers may do nothing."""
        left = {peer: () if peer in peers else scopes for peer, scopes in PEERS.items()}
        self.bench.gate.policy = replace(self.bench.policy(left), tokens=self._kept)

    @asynccontextmanager
    async def client(self, peer: str | None = "alice") -> AsyncIterator[httpx2.AsyncClient]:
        headers = {} if peer is None else {"authorization": f"Bearer {self.tokens[peer]}"}
        async with httpx2.AsyncClient(base_url=self.url, headers=headers, timeout=20) as client:
            yield client

    async def ask(self, method: str, path: str, *, peer: str | None = "alice", **how: Any) -> httpx2.Response:
        async with self.client(peer) as client:
            return await client.request(method, path, **how)

    def use_up(self) -> None:
        """Call so often as nobody that the next one is one too many."""
        with contextlib.suppress(CallError):
            while True:
                self.doors.anonymous_called("127.0.0.1")

    def outcome(self, action: str) -> str:
        return self.bench.outcome(action)

    async def __aenter__(self) -> "Web":
        self._port.listen(("127.0.0.1",), 0)
        self.url = f"http://127.0.0.1:{self._port.addresses[0].port}"
        await self.handler.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._port.stop_accepting()
        await self.router.shutdown(asyncio.get_running_loop().time())
        await self.bench.aclose()
        assert self.bench.unmatched() == {}

    @staticmethod
    async def _serve_calls(*_: Any) -> int:
        raise AssertionError("no WebSocket is served here")


class SoldOut(OperationError):
    """There are none left."""

    code = "SOLD_OUT"
    http_status = 409


@operation("model/complete", scopes=["models:read"])
async def complete(prompt: str) -> AsyncIterator[str]:
    for word in prompt.split():
        yield word


@operation("model/who", public=True)
async def who(*, ctx: OperationContext) -> dict[str, Any]:
    return {"peer": None if ctx.identity is None else ctx.identity.id, "surface": ctx.surface, "trace": ctx.traceparent}


@operation("model/order", kind="mutation", scopes=["models:buy"], errors=[SoldOut])
async def order() -> None:
    raise SoldOut("none of them")


@route("/v1/models/{name}", methods=["GET", "DELETE"], scopes=["models:read"])
async def model(request: Request, ctx: RouteContext) -> Response:
    identity = ctx.identity
    return JSONResponse(
        {
            "name": request.path_params["name"],
            "query": dict(request.query_params),
            "method": request.method,
            "peer": None if identity is None else identity.id,
            "request_id": ctx.request_id,
            "credential": request.headers.get("authorization"),
        }
    )


@route("/v1/who", public=True)
async def route_who(request: Request, ctx: RouteContext) -> Response:
    return JSONResponse({**await ctx.call("model/who"), "context": ctx.traceparent})


@route("/v1/chat/completions", methods=["POST"], scopes=["models:read"])
async def chat(request: Request, ctx: RouteContext) -> Response:
    """As clients of OpenAI's API expect it."""
    asked = await request.json()
    tokens = ctx.stream("model/complete", prompt=asked["messages"][-1]["content"])

    async def events() -> AsyncIterator[str]:
        async for token in tokens:
            chunk = {"object": "chat.completion.chunk", "choices": [{"delta": {"content": token}}]}
            yield f"data: {json.dumps(chunk)}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


# --- who gets in ------------------------------------------------------------------------------------------------------


async def test_a_route_has_its_request_and_who_sends_it() -> None:
    async with Web(model) as web:
        answer = await web.ask("GET", "/v1/models/a%20b?x=1", peer="bob")
        assert answer.status_code == 200
        assert answer.json() == {
            "name": "a b", "query": {"x": "1"}, "method": "GET", "peer": "bob", "credential": None,
            "request_id": answer.headers["alknet-request-id"],
        }  # fmt: skip
        assert (answer.headers["cache-control"], answer.headers["x-content-type-options"]) == ("no-store", "nosniff")
        assert answer.headers["traceparent"].startswith("00-")
        begun, done = [r for r in web.bench.audit.records if r["action"] == "http/v1/models/{name}"]
        assert (begun["peer"], begun["surface"], begun["decision"], begun["rule"]) == (
            "bob", "http", "allow", "scope:models:read",
        )  # fmt: skip
        assert (begun["via"], begun["remote"]) == (f"token:{web.tokens['bob'][4:12]}", "127.0.0.1")
        assert (done["outcome"], done["request_id"]) == ("ok", answer.json()["request_id"])


@pytest.mark.parametrize(("peer", "status"), [("carol", 403), (None, 401)])
async def test_who_may_not_is_refused_before_the_function_with_a_denial_id(peer: str | None, status: int) -> None:
    async with Web(model) as web:
        answer = await web.ask("GET", "/v1/models/a", peer=peer)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
        record = next(r for r in web.bench.audit.records if r["action"] == "http/v1/models/{name}")
        problem = answer.json()
        assert (problem["code"], problem["denial_id"], problem["request_id"]) == (
            "FORBIDDEN", record["denial_id"], record["request_id"],
        )  # fmt: skip
        assert ("www-authenticate" in answer.headers) is (peer is None)


async def test_a_wrong_token_is_refused_although_the_route_is_public() -> None:
    async with Web(route_who, who) as web:
        answer = await web.ask("GET", "/v1/who", peer=None, headers={"authorization": "Bearer alk_wrong"})
        assert answer.status_code == 401
        answer = await web.ask("GET", "/v1/who", peer=None, headers={"origin": "https://elsewhere.example"})
        assert answer.status_code == 403
        answer = await web.ask("GET", "/v1/who", peer=None, headers={"host": "elsewhere.example"})
        assert answer.status_code == 403
        assert [r for r in web.bench.audit.records if r["action"].startswith("http/")] == []


async def test_strangers_may_ask_so_often_only() -> None:
    async with Web(route_who, who) as web, web.client(None) as client:
        assert (await client.get("/v1/who")).status_code == 200
        for _ in range(100):  # 50 a second come back
            web.use_up()
            if (await client.get("/v1/who")).status_code == 429:
                break
        else:
            raise AssertionError("nobody was ever refused")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/models", 404, "NOT_FOUND"),
        ("GET", "/v1/models/", 404, "NOT_FOUND"),
        ("GET", "/v1/models/a/b", 404, "NOT_FOUND"),
        ("GET", "/v1/models/a%0a", 200, ""),
        ("GET", "/v1/models/%2e%2e", 404, "NOT_FOUND"),
        ("GET", "/v1/models/a%00", 404, "NOT_FOUND"),
        ("POST", "/v1/models/a", 405, "INVALID_OPERATION_TYPE"),
        ("DELETE", "/v1/models/a", 200, ""),
        ("HEAD", "/v1/models/a", 200, ""),
        ("GET", "/v1/number/" + "9" * 5000, 404, "NOT_FOUND"),
        ("GET", "/v1/number/12", 200, ""),
        ("GET", "/v1/number/x", 404, "NOT_FOUND"),
        ("GET", "/v1/rest/a/b", 200, ""),
        ("GET", "/v1/rest/a/%2e%2e/b", 404, "NOT_FOUND"),
        ("GET", "/v1/rest//etc/passwd", 404, "NOT_FOUND"),
        ("GET", "/v1/rest/%2fetc/passwd", 404, "NOT_FOUND"),
    ],
)
async def test_which_paths_it_serves(method: str, path: str, status: int, code: str) -> None:
    @route("/v1/number/{n:int}", public=True)
    async def number(request: Request, ctx: RouteContext) -> Response:
        return PlainTextResponse(str(request.path_params["n"] + 1))

    @route("/v1/rest/{where:path}", public=True)
    async def rest(request: Request, ctx: RouteContext) -> Response:
        return PlainTextResponse(request.path_params["where"])

    async with Web(model, number, rest) as web:
        answer = await web.ask(method, path)
        assert answer.status_code == status
        if code:
            assert answer.json()["code"] == code
        if status == 405:
            assert answer.headers["allow"] == "DELETE, GET"
        if method == "HEAD":
            assert answer.content == b""


async def test_a_websocket_is_not_for_routes() -> None:
    async with Web(route_who, who) as web:
        headers = {"upgrade": "websocket", "connection": "upgrade", "sec-websocket-version": "13",
                   "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA=="}  # fmt: skip
        answer = await web.ask("GET", "/v1/who", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")


@pytest.mark.parametrize("path", ["/ops", "/ops/{x}", "/call", "/docs/x", "/mcp", "/openapi.json", "/alknet/other"])
async def test_what_is_the_nodes_own_no_route_takes(path: str) -> None:
    @route(path, public=True)
    async def taker(request: Request, ctx: RouteContext) -> Response:
        return Response()

    async with Web() as web:
        with pytest.raises(UsageError, match=f"taker .*the path {path.replace('{', '.')}.* the node's own") as caught:
            web.handler.check(Registry(served_by(taker)))
        assert caught.value.hint


# --- what it calls ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peer", ["bob", None])
async def test_what_it_calls_is_called_as_whoever_asks(peer: str | None) -> None:
    async with Web(route_who, who) as web:
        answer = (await web.ask("GET", "/v1/who", peer=peer)).json()
        assert (answer["peer"], answer["surface"]) == (peer, "http")
        assert answer["trace"] == answer["context"] != ""


@pytest.mark.parametrize(("peer", "status", "code"), [("alice", 409, "SOLD_OUT"), ("bob", 403, "FORBIDDEN")])
async def test_an_error_of_what_it_calls_is_the_answer_unless_it_deals_with_it(
    peer: str, status: int, code: str
) -> None:
    @route("/v1/orders", methods=["POST"], scopes=["models:read"])
    async def orders(request: Request, ctx: RouteContext) -> Response:
        try:
            await ctx.call("model/order")
        except CallError as exc:
            if "kept" in request.query_params:
                return JSONResponse({"error": exc.code}, 418)
            raise
        return Response()

    async with Web(orders, order) as web:
        answer = await web.ask("POST", "/v1/orders", peer=peer)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert web.outcome("http/v1/orders") == f"error {code}"
        answer = await web.ask("POST", "/v1/orders?kept", peer=peer)
        assert (answer.status_code, answer.json()) == (418, {"error": code})
        assert web.bench.outcomes("http/v1/orders") == [f"error {code}", "error HTTP_418"]


def completion(words: str) -> dict[str, Any]:
    return {"model": "m", "stream": True, "messages": [{"role": "user", "content": words}]}


async def test_a_subscription_in_the_form_that_clients_of_others_expect() -> None:
    async with Web(chat, complete) as web:
        answer = await web.ask("POST", "/v1/chat/completions", peer="bob", json=completion("one two three"))
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
        assert events.pop() == "[DONE]"
        assert [json.loads(one)["choices"][0]["delta"]["content"] for one in events] == ["one", "two", "three"]
        assert (web.outcome("model/complete"), web.outcome("http/v1/chat/completions")) == ("ok", "ok")


async def test_a_subscription_that_is_refused_has_a_real_status() -> None:
    @route("/v1/open", public=True)
    async def opened(request: Request, ctx: RouteContext) -> Response:
        return StreamingResponse(ctx.stream("model/complete", prompt="x"))

    async with Web(opened, complete) as web:
        answer = await web.ask("GET", "/v1/open", peer="carol")
        assert (answer.status_code, answer.json()["code"]) == (403, "FORBIDDEN")
        assert (await web.ask("GET", "/v1/open", peer="bob")).text == "x"


async def test_a_head_has_its_answer_before_an_endless_body_ends() -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x"
            await asyncio.sleep(0.01)

    @route("/v1/endless", public=True)
    async def opened(request: Request, ctx: RouteContext) -> Response:
        return StreamingResponse(endless(), media_type="text/x-endless")

    async with Web(opened) as web:
        answer = await web.ask("HEAD", "/v1/endless")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/x-endless; charset=utf-8")
        assert answer.content == b""
        await eventually(lambda: web.bench.outcomes("http/v1/endless"), "it is on record")
        assert web.outcome("http/v1/endless") == "ok"


async def test_a_subscription_that_was_not_read_is_on_record_and_ended() -> None:
    ended = []

    @operation("model/endless", public=True)
    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            ended.append("endless")

    @route("/v1/begin", public=True)
    async def begin(request: Request, ctx: RouteContext) -> Response:
        items = ctx.stream("model/endless")
        if "once" in request.query_params:
            return PlainTextResponse(str(await anext(items)))
        return PlainTextResponse("none")

    async with Web(begin, endless) as web:
        assert (await web.ask("GET", "/v1/begin?once")).text == "1"
        assert ended == ["endless"]
        assert (await web.ask("GET", "/v1/begin")).text == "none"
        assert web.bench.outcomes("model/endless") == ["aborted", "dropped"]


# --- how it fails -----------------------------------------------------------------------------------------------------


async def test_a_function_that_fails_tells_the_client_nothing_but_an_id(caplog: pytest.LogCaptureFixture) -> None:
    @route("/v1/fail", public=True)
    async def fail(request: Request, ctx: RouteContext) -> Response:
        if "none" in request.query_params:
            return None  # type: ignore[return-value]
        raise RuntimeError("a secret of the service")

    async with Web(fail) as web:
        for path in ("/v1/fail", "/v1/fail?none"):
            answer = await web.ask("GET", path)
            assert (answer.status_code, answer.json()["code"]) == (500, "INTERNAL")
            error_id = answer.json()["message"].rpartition(" ")[2]
            assert error_id.startswith("err_")
            assert error_id in caplog.text
            assert "secret" not in answer.text
        assert "a secret of the service" in caplog.text
        assert "answered NoneType, no Response" in caplog.text
        assert web.bench.outcomes("http/v1/fail") == ["error INTERNAL"] * 2


async def test_a_function_that_fails_midway_cuts_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    async def parts() -> AsyncIterator[str]:
        yield "part"
        raise RuntimeError("later")

    @route("/v1/midway", public=True)
    async def midway(request: Request, ctx: RouteContext) -> Response:
        return StreamingResponse(parts())

    async with Web(midway) as web:
        with pytest.raises(httpx2.RemoteProtocolError):
            await web.ask("GET", "/v1/midway")
        assert web.outcome("http/v1/midway") == "error INTERNAL"
        assert "answer cut short" in caplog.text


@pytest.mark.parametrize(("status", "code"), [(404, "NOT_FOUND"), (401, "FORBIDDEN"), (418, "INVALID_INPUT")])
async def test_starlettes_way_of_saying_no_is_the_gateways(status: int, code: str) -> None:
    @route("/v1/no", public=True)
    async def no(request: Request, ctx: RouteContext) -> Response:
        raise HTTPException(status, "not that one", headers={"X-Why": "so"})

    async with Web(no) as web:
        answer = await web.ask("GET", "/v1/no")
        assert (answer.status_code, answer.json()["code"], answer.json()["detail"]) == (status, code, "not that one")
        assert answer.headers["x-why"] == "so"


@pytest.mark.parametrize(
    ("error", "status"), [(NotFoundError("gone"), 404), (InvalidInputError("odd"), 422), (UnavailableError("off"), 503)]
)
async def test_what_an_operation_may_raise_a_route_may_raise(error: AlknetError, status: int) -> None:
    @route("/v1/raise", public=True)
    async def raises(request: Request, ctx: RouteContext) -> Response:
        raise error

    async with Web(raises) as web:
        answer = await web.ask("GET", "/v1/raise")
        assert (answer.status_code, answer.json()["code"], answer.json()["message"]) == (status, error.code, str(error))


@route("/v1/body", methods=["POST", "PUT"], public=True)
async def body(request: Request, ctx: RouteContext) -> Response:
    if "json" in request.query_params:
        return JSONResponse({"read": await request.json()})
    return PlainTextResponse(str(sum([len(part) async for part in request.stream()])))


async def chunks(size: int) -> AsyncIterator[bytes]:
    for _ in range(size // 1000):
        yield bytes(1000)


@pytest.mark.parametrize(("size", "status"), [(MAX_BODY, 200), (MAX_BODY + 1000, 413), (MAX_BODY * 100, 413)])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_is_bounded(size: int, status: int, chunked: bool) -> None:
    async with Web(body) as web:
        try:
            answer = await web.ask("PUT", "/v1/body", content=chunks(size) if chunked else bytes(size))
        except (httpx2.WriteError, httpx2.ReadError):
            assert size > MAX_BODY + 1000, "only a client that goes on sending misses the answer"
            return
        assert answer.status_code == status
        assert answer.text == str(size) if status == 200 else answer.json()["code"] == "RESOURCE_EXHAUSTED"


async def test_a_body_that_is_no_json_is_the_clients_mistake() -> None:
    async with Web(body) as web:
        assert (await web.ask("POST", "/v1/body?json", content=b'{"a": 1}')).json() == {"read": {"a": 1}}
        for wrong in (b"{", b"", b"[NaN]", b"[" * 100 + b"]" * 100):
            answer = await web.ask("POST", "/v1/body?json", content=wrong)
            assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_INPUT")


# --- how it ends ------------------------------------------------------------------------------------------------------


class Waiting:
    """A route that waits until it is told, and says how it ended."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.ended: list[str] = []

    @route("/v1/wait", scopes=["models:read"])
    async def wait(self, request: Request, ctx: RouteContext) -> Response:
        return PlainTextResponse(await self._held())

    @route("/v1/drip", scopes=["models:read"])
    async def drip(self, request: Request, ctx: RouteContext) -> Response:
        async def parts() -> AsyncIterator[str]:
            yield "begun\n"
            yield await self._held()

        return StreamingResponse(parts())

    async def _held(self) -> str:
        self.begun.set()
        try:
            await self.go_on.wait()
            self.ended.append("done")
            return "done"
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise


@pytest.fixture
def waiting() -> Waiting:
    return Waiting()


@pytest.mark.parametrize("path", ["/v1/wait", "/v1/drip"])
async def test_a_client_that_goes_away_ends_it(waiting: Waiting, path: str) -> None:
    async with Web(waiting) as web:
        async with web.client() as client:
            asking = asyncio.ensure_future(client.get(path))  # noqa: TID251
            await asyncio.wait_for(waiting.begun.wait(), 5)
            asking.cancel()
            await asyncio.wait([asking], timeout=5)
        await eventually(lambda: waiting.ended, "the function has ended")
        assert waiting.ended == ["cancelled"]
        await eventually(lambda: web.bench.outcomes(f"http{path}"), "it is on record")
        assert web.outcome(f"http{path}") == "aborted"


@pytest.mark.parametrize("path", ["/v1/wait", "/v1/drip"])
@pytest.mark.parametrize("how", ["revoked", "removed"])
async def test_what_is_forbidden_meanwhile_ends(waiting: Waiting, path: str, how: str) -> None:
    async with Web(waiting) as web, web.client("bob") as client:
        asking = asyncio.ensure_future(client.get(path))  # noqa: TID251
        await asyncio.wait_for(waiting.begun.wait(), 5)
        if how == "revoked":
            web.forbid("bob")
        else:
            web.bench.serve(model)
        web.router.recheck()
        await asyncio.wait([asking], timeout=5)
        assert waiting.ended == ["cancelled"]
        assert web.outcome(f"http{path}") == how
        last = web.bench.audit.records[-1]
        assert ("denial_id" in last and last["denial_id"] is not None) is (how == "revoked")
        if path == "/v1/drip":
            assert isinstance(asking.exception(), httpx2.RemoteProtocolError)
        else:
            status = {"revoked": (403, "FORBIDDEN"), "removed": (503, "UNAVAILABLE")}[how]
            assert (asking.result().status_code, asking.result().json()["code"]) == status


async def test_what_is_still_allowed_goes_on(waiting: Waiting) -> None:
    async with Web(waiting) as web, web.client("bob") as client:
        asking = asyncio.ensure_future(client.get("/v1/wait"))  # noqa: TID251
        await asyncio.wait_for(waiting.begun.wait(), 5)
        web.forbid("carol")
        web.bench.serve(waiting, model)
        web.router.recheck()
        waiting.go_on.set()
        assert (await asking).text == "done"


@pytest.mark.parametrize("finishes", [True, False])
async def test_a_node_that_stops_waits_and_then_ends_it(waiting: Waiting, finishes: bool) -> None:
    async with Web(waiting) as web, web.client() as client:
        asking = asyncio.ensure_future(client.get("/v1/wait"))  # noqa: TID251
        await asyncio.wait_for(waiting.begun.wait(), 5)
        loop = asyncio.get_running_loop()
        stopping = asyncio.ensure_future(web.router.shutdown(loop.time() + (10 if finishes else 0.1)))  # noqa: TID251
        await eventually(lambda: web.handler.app.is_draining, "it stops")
        if finishes:
            waiting.go_on.set()
        answer = await asking
        assert answer.status_code == (200 if finishes else 503)
        assert waiting.ended == ["done" if finishes else "cancelled"]
        await stopping


async def test_another_registry_serves_other_routes() -> None:
    async with Web(model) as web, web.client() as client:
        assert (await client.get("/v1/models/a")).status_code == 200
        web.bench.serve(route_who, who)
        assert (await client.get("/v1/models/a")).status_code == 404
        assert (await client.get("/v1/who")).status_code == 200


async def test_one_caller_has_so_many_at_the_same_time_only(waiting: Waiting) -> None:
    async with Web(waiting) as web, web.client() as client:
        web.handler.settings = replace(web.handler.settings, max_in_flight=1)
        asking = asyncio.ensure_future(client.get("/v1/wait"))  # noqa: TID251
        await asyncio.wait_for(waiting.begun.wait(), 5)
        assert (await client.get("/v1/wait")).status_code == 429
        waiting.go_on.set()
        assert (await asking).text == "done"


MODULE = """
from alknet import operation, route
@operation("late/op")
async def op() -> int: return 1
@route({path!r}, public=True)
async def late(request, ctx): ...
"""


async def test_a_node_neither_starts_nor_reloads_with_a_route_in_its_own_place(
    tmp_path: Path, launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = NodeProcess(tmp_path, launcher=launcher)
    monkeypatch.syspath_prepend(tmp_path)
    for name, path in (("late_wrong", "/call/late"), ("late_right", "/late")):
        (tmp_path / f"{name}.py").write_text(MODULE.format(path=path))
    async with Node(home.home) as node:
        home.edit_config("modules = []", 'modules = ["late_wrong"]')
        with pytest.raises(ConfigError, match=r"late_wrong\.late .*the path /call/late is below /call"):
            await node.reload("test")
        assert "late/op" not in node.registry
        home.edit_config('modules = ["late_wrong"]', 'modules = ["late_right"]')
        await node.reload("test")
        async with httpx2.AsyncClient(base_url=f"http://{node.addresses[0]}") as client:
            assert (await client.post("/late")).status_code == 405
    home.edit_config('modules = ["late_right"]', 'modules = ["late_wrong"]')
    with pytest.raises(UsageError, match="the path /call/late is below /call"):
        async with Node(home.home):
            raise AssertionError("it has started")


def test_declaring_a_route_loads_nothing_that_speaks_http() -> None:
    code = (
        "import sys; from alknet import route, operation\n"
        "@route('/x', public=True)\nasync def f(request, ctx): ...\n"
        "assert not {'starlette', 'uvicorn', 'alknet.gateway'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/", timeout=30)
