"""Every way to call an operation of a node, each as a function that looks alike to a test: those over HTTP, the call
protocol on its carriers, and stock ssh.

``PEER:NAME`` is the operation of a peer of the node, for those ways that have words for it.
"""

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import alknet
from alknet import CallError, Peer
from testkit.http_doors import Answer, Ask, Door, http_doors, is_stream, named
from testkit.node import NodeProcess

__all__ = ["asks_peer", "call_doors"]

OK: Final = "ok"


def asks_peer(peer: Peer, token: str | None = None) -> Ask:
    """Over this connection, with a token in each call if there is one."""

    async def ask(name: str, text: str) -> Answer:
        value = json.loads(text)
        at, operation = named(name)
        extra = {key: one for key, one in (("auth_token", token), ("peer", at)) if one is not None}
        try:
            if not is_stream(name):
                return OK, "", None, await peer._session.call(operation, value, **extra)
            async with peer._session.subscribe(operation, value, **extra) as items:
                return OK, "", None, [item async for item in items]
        except CallError as exc:
            return exc.code, str(exc), exc.denial_id, None

    return ask


def asks_command(node: NodeProcess, key: str, control: Path) -> Ask:
    """``ssh node op NAME JSON``."""
    options = ("-o", "ControlMaster=auto", "-o", "ControlPersist=yes", "-o", f"ControlPath={control}")

    async def ask(name: str, text: str) -> Answer | None:
        if named(name)[0] is not None:
            return None
        command = node.ssh_command("op", name, text, key=key, options=options)
        result = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=30
        )
        if result.returncode == 0:
            items = [json.loads(line) for line in result.stdout.splitlines()]
            return OK, "", None, items if is_stream(name) else items[0]
        said = re.match(r"alknet: ([A-Z_]+): (.*?)(?: \((den_\w+)\))?\n", result.stderr)
        assert said is not None, result.stderr
        assert result.stdout == ""
        assert result.returncode == CallError(said[1], "").exit_code
        return said[1], said[2], said[3], None

    return ask


@asynccontextmanager
async def call_doors(node: NodeProcess, who: str, token: str | None, directory: Path) -> AsyncIterator[dict[str, Door]]:
    """Every way in that there is for `who`, whose the token is: a peer with a key, ``anonymous``, or ``narrowed``, who
    has no more than a token of the peer ``with``.

    SSH lets nobody in without a key, and has no place for a token at login; HTTP has none for a key.
    """
    async with AsyncExitStack() as stack:

        async def connect(peer: str = ".", **how: Any) -> Peer:
            return await stack.enter_async_context(alknet.connect(peer, home=node.home, **how))

        identity = node.home / "keys" / "owner" if who == "owner" else node.keys / who
        found: dict[str, Door] = {}
        for carrier in ("quic", "tls"):
            if who == "anonymous":
                found[carrier] = Door(asks_peer(await connect(carrier=carrier, anonymous=True)), carrier)
            elif who == "narrowed":
                found[carrier] = Door(asks_peer(await connect(carrier=carrier, token=token)), carrier)
                nobody = await connect(carrier=carrier, anonymous=True)
                found[f"{carrier}, token in the call"] = Door(asks_peer(nobody, token), carrier)
            else:
                found[carrier] = Door(asks_peer(await connect(carrier=carrier, identity=identity)), carrier)
        if who == "narrowed":
            full = await connect("with@.", carrier="ssh", identity=node.keys / "with")
            found["ssh, token in the call"] = Door(asks_peer(full, token), "ssh")
        elif who != "anonymous":
            found["ssh"] = Door(asks_peer(await connect(f"{who}@.", carrier="ssh", identity=identity)), "ssh")
            control = directory / "control"
            found["ssh op"] = Door(asks_command(node, who, control), "ssh")
            stack.callback(
                subprocess.run, ["ssh", "-F", "none", "-O", "exit", "-o", f"ControlPath={control}", "x"],
                capture_output=True,
            )  # fmt: skip
        yield found | await stack.enter_async_context(http_doors(node, token))
