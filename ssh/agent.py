"""The Ed25519 keys of the ssh-agent that runs for this user, as signers.

The agent is asked on a connection of its own each time: nothing stays open, and an answer that comes too late for one
question is never taken for that of the next.
"""

import asyncio
import base64
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import asyncssh

from alknet.errors import InvalidInputError, NotFoundError, UnavailableError
from alknet.keys import PublicKey
from alknet.logs import printable

__all__ = ["AgentSigner", "agent_signers"]

ANSWER_TIMEOUT_S: Final = 60.0
"""For each answer: the agent may ask its user first, who has to find the window."""
MAX_ANSWER_BYTES: Final = 256 * 1024
"""OpenSSH's own bound for messages to and from an agent."""
MAX_COMMENT_CHARS: Final = 200
OTHER_SOCKET: Final = "SSH_AUTH_SOCK says where it is; --identity names a private key file instead"


@dataclass(frozen=True, slots=True)
class AgentSigner:
    """One key of the agent whose socket is at `path`; an `alknet.sshsig.Signer`."""

    public_key: PublicKey
    path: str

    async def sign(self, data: bytes) -> bytes:
        """Raises `UnavailableError` if the agent does not sign, or not within `ANSWER_TIMEOUT_S`."""
        async with _asked(self.path) as agent:
            try:
                return await agent.sign(self.public_key.blob, data)
            except ValueError as exc:
                raise UnavailableError(
                    f"the ssh-agent did not sign with {self.public_key.fingerprint}: {exc}",
                    hint="was the key removed ('ssh-add -l' lists them), the agent locked, or the question denied?",
                ) from exc


async def agent_signers(path: str | None = None) -> tuple[AgentSigner, ...]:
    """The agent's Ed25519 keys in its own order, at least one. Hardware keys and certificates are left out.

    `path` is that of its socket; without one SSH_AUTH_SOCK says it. Raises `NotFoundError` if there is no agent or it
    has no such key, and `UnavailableError` if it cannot be reached or does not answer as one.
    """
    path = path or os.environ.get("SSH_AUTH_SOCK")
    if not path:
        raise NotFoundError(
            "no ssh-agent runs here: SSH_AUTH_SOCK is not set", hint="--identity names a private key file instead"
        )
    async with _asked(path) as agent:
        try:
            pairs = await agent.get_keys()
            keys = [_public_key(pair) for pair in pairs if pair.algorithm == b"ssh-ed25519"]
        except ValueError as exc:
            raise UnavailableError(
                f"the ssh-agent at {path} did not say which keys it has: {exc}",
                hint=f"is it locked, or none at all? {OTHER_SOCKET}",
            ) from exc
    if not keys:
        others = f"of its {len(pairs)} keys none is an Ed25519 one" if pairs else "it has none, or it is locked"
        raise NotFoundError(
            f"the ssh-agent at {path} offers no Ed25519 key: {others}",
            hint="'ssh-add FILE' adds one, 'ssh-add -X' unlocks an agent; --identity names a private key file instead",
        )
    return tuple(AgentSigner(key, path) for key in keys)


def _public_key(pair: asyncssh.SSHKeyPair) -> PublicKey:
    try:
        key = PublicKey.parse(f"ssh-ed25519 {base64.b64encode(pair.public_data).decode('ascii')}")
    except InvalidInputError as exc:
        raise ValueError(f"one of its keys {exc}") from exc
    comment = (pair.get_comment_bytes() or b"").decode("utf-8", "replace")
    return PublicKey(key.kind, key.blob, printable(comment[:MAX_COMMENT_CHARS]))


class _Socket:
    """An open connection as asyncssh takes it, with a bound on answers: whatever listens there may be no agent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def open_agent_connection(self) -> tuple["_Socket", asyncio.StreamWriter]:
        return self, self._writer

    async def readexactly(self, n: int) -> bytes:
        if n > MAX_ANSWER_BYTES:
            raise EOFError(f"it announced {n} bytes, and an agent has no more than {MAX_ANSWER_BYTES} to say")
        return await self._reader.readexactly(n)


@contextlib.asynccontextmanager
async def _asked(path: str) -> AsyncIterator[asyncssh.SSHAgentClient]:
    """The agent, for one question; the time is for connecting and the answer together."""
    writer = None
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(path)
            yield asyncssh.SSHAgentClient(_Socket(reader, writer))
    except TimeoutError as exc:
        raise UnavailableError(
            f"the ssh-agent at {path} did not answer within {ANSWER_TIMEOUT_S:g} s", hint="does it wait for its user?"
        ) from exc
    except OSError as exc:
        raise UnavailableError(
            f"the ssh-agent at {path} cannot be reached: {exc.strerror or exc}", hint=OTHER_SOCKET
        ) from exc
    finally:
        if writer is not None:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
