"""A responder on nats-py doing what `call.py` asks of a node, as far as NATS has it.

``python call_nats.py CERTIFICATE PORT TOKEN`` connects to the nats-server there over TLS, subscribes and says so. Who
may ask is nats-server's to decide, when a client logs in and when it publishes; inputs are validated here, as in
`call_grpc.py`. Between the two ends is a third process, so that there are two connections for each request.
"""

import asyncio
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import nats
import uvloop
from call_client import DATA, HOST, Order
from pydantic import TypeAdapter
from pydantic_core import to_json
from typing_extensions import TypedDict

__all__ = ["ASKER", "RESPONDER", "configuration", "connect"]

SUBJECT = "echo.say"
ASKER, RESPONDER = "asker", "responder"
DEADLINE_S = 30.0
NAME = "localhost"


class Text(TypedDict):
    data: str


def configuration(port: int, certificate: str, key: str, token: str) -> str:
    """Of nats-server: TLS, and what each of the two users may do."""
    return f"""\
listen: "{HOST}:{port}"
tls {{ cert_file: "{certificate}", key_file: "{key}" }}
authorization {{
  users = [
    {{ user: {ASKER}, password: "{token}", permissions: {{ publish: "{SUBJECT}", subscribe: "_INBOX.>" }} }}
    {{ user: {RESPONDER}, password: "{token}", permissions: {{ publish: "_INBOX.>", subscribe: "{SUBJECT}" }} }}
  ]
}}
"""


async def reach(port: int, user: str, token: str, certificate: str) -> Any:
    """A connection to nats-server as `user`."""
    return await nats.connect(
        f"tls://{HOST}:{port}",
        user=user,
        password=token,
        tls=ssl.create_default_context(cafile=certificate),
        tls_hostname=NAME,
        allow_reconnect=False,
    )


async def respond(certificate: str, port: int, token: str) -> None:
    """Answer until the process is ended."""
    client = await reach(port, RESPONDER, token, certificate)
    read = TypeAdapter(Text).validate_json

    async def say(message: Any) -> None:
        await message.respond(to_json(read(message.data)["data"]))

    await client.subscribe(SUBJECT, cb=say)
    await client.flush()
    print(port, flush=True)
    await asyncio.Event().wait()


class Requests:
    """The client's side."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._read = TypeAdapter(str).validate_json

    async def call(self) -> None:
        answer = await self._client.request(SUBJECT, to_json({"data": DATA}), timeout=DEADLINE_S)
        if self._read(answer.data) != DATA:
            raise RuntimeError("another text came back")

    def items(self, count: int) -> AsyncIterator[Any]:
        raise NotImplementedError("NATS has no streams of answers")


@asynccontextmanager
async def connect(order: Order) -> AsyncIterator[Requests]:
    """A connection that may ask."""
    client = await reach(order.port, ASKER, order.token, order.certificate)
    yield Requests(client)
    await client.close()


if __name__ == "__main__":
    uvloop.run(respond(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
