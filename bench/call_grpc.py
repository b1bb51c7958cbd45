"""grpc.aio doing what `call.py` asks of a node: TLS, a bearer token and a scope for each call, validated inputs.

``python call_grpc.py CERTIFICATE KEY TOKEN`` listens on a free port of 127.0.0.1, prints that port and serves. The
messages are JSON that pydantic-core reads, validates and writes in one call each, which costs less here than classes
made by protobuf and validated afterwards. Each call has a deadline, as a node's calls have. The server runs on
uvloop and the client on asyncio's own event loop, which is what is fastest here.
"""

import hmac
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import call_operations
import grpc
import uvloop
from call_client import DATA, HOST, Order
from pydantic import TypeAdapter
from pydantic_core import to_json
from typing_extensions import TypedDict

__all__ = ["connect"]

NAME = "localhost"
"""What the certificate is for."""
DEADLINE_S = 30.0
SAY, COUNT = "/echo.Echo/Say", "/echo.Echo/Count"
SCOPES = {SAY: call_operations.SCOPE, COUNT: call_operations.SCOPE}
OPTIONS = [("grpc.ssl_target_name_override", NAME), ("grpc.use_local_subchannel_pool", 1)]


class Text(TypedDict):
    data: str


class Texts(TypedDict):
    data: str
    items: int


TEXT, TEXTS = TypeAdapter(Text), TypeAdapter(Texts)


class Bearer(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Lets calls through that bring the token, as far as its scopes go."""

    def __init__(self, token: str) -> None:
        self._token = f"Bearer {token}"
        self._scopes = frozenset({call_operations.SCOPE})

        async def refuse(request: Any, context: Any) -> None:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "forbidden")

        self._refusal = grpc.unary_unary_rpc_method_handler(refuse)

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        shown = dict(details.invocation_metadata).get("authorization", "")
        if not hmac.compare_digest(shown, self._token) or SCOPES.get(details.method) not in self._scopes:
            return self._refusal
        return await continuation(details)


async def _say(request: Text, context: Any) -> str:
    return request["data"]


async def _count(request: Texts, context: Any) -> AsyncIterator[str]:
    for _ in range(request["items"]):
        yield request["data"]


async def serve(certificate: bytes, key: bytes, token: str) -> None:
    """Serve until the process is ended."""
    server = grpc.aio.server(interceptors=[Bearer(token)])
    handlers = {
        "Say": grpc.unary_unary_rpc_method_handler(
            _say, request_deserializer=TEXT.validate_json, response_serializer=to_json
        ),
        "Count": grpc.unary_stream_rpc_method_handler(
            _count, request_deserializer=TEXTS.validate_json, response_serializer=to_json
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("echo.Echo", handlers),))
    port = server.add_secure_port(f"{HOST}:0", grpc.ssl_server_credentials([(key, certificate)]))
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


class Stub:
    """The client's side."""

    def __init__(self, channel: Any, token: str) -> None:
        self._metadata = (("authorization", f"Bearer {token}"),)
        answer = TypeAdapter(str).validate_json
        self._say = channel.unary_unary(SAY, request_serializer=to_json, response_deserializer=answer)
        self._count = channel.unary_stream(COUNT, request_serializer=to_json, response_deserializer=answer)

    async def call(self) -> None:
        if await self._say({"data": DATA}, metadata=self._metadata, timeout=DEADLINE_S) != DATA:
            raise RuntimeError("another text came back")

    def items(self, count: int) -> Any:
        return self._count({"data": DATA, "items": count}, metadata=self._metadata)


@asynccontextmanager
async def connect(order: Order) -> AsyncIterator[Stub]:
    """A channel whose connection is there."""
    credentials = grpc.ssl_channel_credentials(_read(order.certificate))
    async with grpc.aio.secure_channel(f"{HOST}:{order.port}", credentials, options=OPTIONS) as channel:
        await channel.channel_ready()
        yield Stub(channel, order.token)


def _read(path: str) -> bytes:
    return Path(path).read_bytes()


if __name__ == "__main__":
    uvloop.run(serve(_read(sys.argv[1]), _read(sys.argv[2]), sys.argv[3]))
