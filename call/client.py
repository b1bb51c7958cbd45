"""Reaching a node for operation calls: dial, hello, session.

Over QUIC and TLS the two ends prove themselves in the hello; over a channel of an SSH connection, SSH has done so.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from alknet.alpn.dial import CARRIERS, Dialed, dial, first_stream
from alknet.alpn.errors import AlpnRefused, ConnectionClosed
from alknet.alpn.streams import Connection, Stream
from alknet.call.carried import ALPN, ChannelConnection
from alknet.call.channel import Channel
from alknet.call.codecs import CODECS
from alknet.call.errors import CallError, FrameError, HelloError
from alknet.call.frames import CEILING_MAX_FRAME, DEFAULT_MAX_FRAME, HELLO_MAX_FRAME
from alknet.call.hello import DIALER_NAMESPACE, Accepted, Challenge, DialerHello
from alknet.call.machine import Limits
from alknet.call.serving import Server
from alknet.call.session import DEFAULT_TIMEOUT_S, Session, Sizes
from alknet.call.trust import NodeKeyError, NodeTrust
from alknet.errors import UnavailableError
from alknet.keys import PublicKey
from alknet.sshsig import SignatureError, Signer, sign

__all__ = ["CallTarget", "Credentials", "Link", "ServerOf", "connect", "over_connection", "over_stream"]

HELLO_TIMEOUT_S: Final = 10.0
MAX_KEYS: Final = 6
"""Keys of an agent that are tried, each on a connection of its own."""
PATIENCE_S: Final = 5.0
"""When a person took longer to say whether a node is the right one, it has hung up meanwhile: it is dialled anew."""
MAX_INBOUND_FRAME: Final = 8 * 1024 * 1024
"""What a node may send in one frame, whatever it says of itself: a subscription may have many of them unread."""
MAX_PEER_TIMEOUT_S: Final = 300.0
"""How long a node may say that a call takes by default; a call that says how long it may take is not bound by it."""


ServerOf = Callable[[Challenge, Connection], Server]
"""Who serves the calls of the other side, which has proven itself with the challenge, on that connection. It may refuse
with a `CallError`."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What proves who calls: keys, tried in order, and a token; nothing of both is to be nobody."""

    keys: Sequence[Signer] = ()
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class CallTarget:
    """Whom to reach, as whom, and how to know that it is them."""

    addresses: tuple[tuple[str, int], ...]
    credentials: Credentials
    trust: NodeTrust
    name: str
    """For messages."""


@dataclass(frozen=True, slots=True)
class Link:
    """A session, the carrier below it, and what the hello said."""

    session: Session
    carrier: Connection
    node: str
    """What the node calls itself."""
    node_key: PublicKey | None
    """Proven; None where SSH has proven the host instead."""
    identity: str | None
    """As which peer the node knows this side."""


@asynccontextmanager
async def connect(
    target: CallTarget,
    *,
    carriers: Sequence[str] = CARRIERS,
    report: Callable[[str], None] = lambda line: None,
    codecs: Sequence[str] = ("msgpack", "json"),
    server_of: ServerOf | None = None,
) -> AsyncIterator[Link]:
    """Open a session, and close it in order afterwards.

    `server_of` gives who serves the calls of the other side. Raises `UnavailableError` when no
    address answers, `NodeKeyError` when it is not the right node, `HelloError` when it proves nothing, and `CallError`
    FORBIDDEN when it does not let this side in.
    """
    keys = tuple(target.credentials.keys)[:MAX_KEYS] or (None,)
    for last, key in zip([*[False] * (len(keys) - 1), True], keys, strict=True):
        dialed = await _dial(target, carriers, report)
        try:
            try:
                link = await _open(target, dialed, key, codecs, server_of)
            except _TookLong:
                dialed.connection.close()
                dialed = await _dial(target, carriers, report)
                link = await _open(target, dialed, key, codecs, server_of, patience_s=math.inf)
        except (CallError, SignatureError, UnavailableError) as exc:
            dialed.connection.close()
            # Another key may do: an agent may have lost this one, and the node may not know it.
            if last or (isinstance(exc, CallError) and (exc.code != "FORBIDDEN" or exc.denial_id is not None)):
                raise
            if isinstance(exc, NodeKeyError | _Silent):
                raise
        except BaseException:
            dialed.connection.close()
            raise
        else:
            break
    try:
        yield link
    finally:
        await link.session.aclose()
        link.carrier.close()


async def _dial(target: CallTarget, carriers: Sequence[str], report: Callable[[str], None]) -> Dialed:
    try:
        return await dial(target.addresses, alpn=ALPN, carriers=carriers, report=report)
    except AlpnRefused as exc:
        raise UnavailableError(f"{target.name} serves no operations: {exc}") from exc
    except UnavailableError as exc:
        raise UnavailableError(f"{target.name} cannot be reached: {exc}", hint="is it running?") from exc


async def _open(
    target: CallTarget,
    dialed: Dialed,
    key: Signer | None,
    codecs: Sequence[str],
    server_of: ServerOf | None,
    *,
    patience_s: float | None = None,
) -> Link:
    def check(challenge: Challenge) -> None:
        assert challenge.key is not None
        began = time.monotonic()
        target.trust.check(dialed.host, dialed.port, challenge.key, dialed.connection.peer_certificates)
        if time.monotonic() - began > (PATIENCE_S if patience_s is None else patience_s):
            raise _TookLong

    try:
        return await over_connection(
            dialed.connection,
            check=check,
            key=key,
            token=target.credentials.token,
            codecs=codecs,
            server_of=server_of,
        )
    except CallError as exc:
        if exc.code == "FORBIDDEN":  # its words are about itself
            words = f"{target.name} refused: {exc}"
            raise CallError(exc.code, words, details=exc.details, denial_id=exc.denial_id, hint=exc.hint) from exc
        raise
    except ConnectionClosed as exc:
        raise _Silent(f"{target.name} was reached, and then lost") from exc
    except TimeoutError:
        raise _Silent(f"{target.name} did not say hello within {HELLO_TIMEOUT_S:g} s") from None


async def over_connection(
    connection: Connection,
    *,
    check: Callable[[Challenge], None],
    key: Signer | None = None,
    token: str | None = None,
    codecs: Sequence[str] = ("msgpack", "json"),
    server_of: ServerOf | None = None,
) -> Link:
    """Say hello on a connection that was dialled, and begin the session.

    `check` gets what the listener has proven before anything is sent to it, and raises if it is not who was meant.
    """
    if connection.channel_binding is None:
        raise HelloError("this carrier does not bind the hello to its connection")
    channel = await Channel.on(await first_stream(connection))
    hello = DialerHello(
        alpn=connection.alpn, binding=connection.channel_binding, codecs=codecs, serves=server_of is not None
    )
    async with asyncio.timeout(HELLO_TIMEOUT_S):
        challenge = await _challenge(channel, hello)
    check(challenge)
    async with asyncio.timeout(HELLO_TIMEOUT_S):
        message = hello.to_sign(key=None if key is None else key.public_key, token=token)
        signature = None if key is None else await sign(key, message, namespace=DIALER_NAMESPACE)
        channel.send(hello.proof(signature))
        accepted = hello.finished(await _next(channel))
    return _begin(connection, channel, challenge, accepted, server_of)


async def over_stream(
    stream: Stream,
    carrier: Connection,
    *,
    codecs: Sequence[str] = ("msgpack", "json"),
    server_of: ServerOf | None = None,
) -> Link:
    """Say hello on the subsystem ``alknet-call`` of an SSH connection, and begin the session."""
    channel = await Channel.on(stream)
    hello = DialerHello(alpn=ALPN, binding=None, codecs=codecs, serves=server_of is not None)
    async with asyncio.timeout(HELLO_TIMEOUT_S):
        challenge = await _challenge(channel, hello)
        accepted = hello.finished(await _next(channel))
    return _begin(ChannelConnection(carrier, stream, transport="ssh"), channel, challenge, accepted, server_of)


async def _challenge(channel: Channel, hello: DialerHello) -> Challenge:
    channel.send(hello.start())
    body = await _next(channel)
    if (refusal := hello.refused(body)) is not None:
        raise refusal
    return hello.challenged(body)


async def _next(channel: Channel) -> bytes:
    try:
        return await channel.next_body()
    except FrameError as exc:
        raise HelloError(f"the hello broke off: {exc}") from exc


def _begin(
    connection: Connection,
    channel: Channel,
    challenge: Challenge,
    accepted: Accepted,
    server_of: ServerOf | None,
) -> Link:
    anonymous = accepted.identity is None
    max_frame = challenge.limits.get("max_frame", DEFAULT_MAX_FRAME)
    max_frame = HELLO_MAX_FRAME if anonymous else min(max_frame, CEILING_MAX_FRAME)
    inbound = min(max(max_frame, DEFAULT_MAX_FRAME), MAX_INBOUND_FRAME)
    timeout_ms = challenge.limits.get("default_timeout_ms")
    session = Session(
        connection,
        channel,
        CODECS[challenge.codec],
        sizes=Sizes(inbound, max_frame),
        features=challenge.features,
        limits=Limits(),
        server=None if server_of is None else server_of(challenge, connection),
        peer_timeout_s=DEFAULT_TIMEOUT_S if timeout_ms is None else min(timeout_ms / 1000, MAX_PEER_TIMEOUT_S),
    )
    session.start()
    return Link(session, connection, challenge.node, challenge.key, accepted.identity)


class _TookLong(Exception):
    """Somebody was asked about the node, and said yes."""


class _Silent(UnavailableError):
    """The node was reached and did not answer: another key would change nothing."""
