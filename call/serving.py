"""What the other side of one session asks for: a task for each of its calls, the answers on the stream that the request
came on, and a task for each byte channel that it opens."""

import asyncio
import contextlib
import logging
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from alknet.call.channel import Channel
from alknet.call.channel_serving import ByteService, ServedChannel
from alknet.call.envelopes import ChannelRequested, Envelope, Requested
from alknet.call.errors import CallError, unknown_operation
from alknet.call.machine import Machine
from alknet.logs import event
from alknet.tasks import Tasks

if TYPE_CHECKING:
    from alknet.call.byte_channels import ByteChannels
    from alknet.call.prepared import Prepared

__all__ = ["ByteService", "ChannelRequested", "Nobody", "Server", "Serving"]

log = logging.getLogger("alknet.call")

MAX_WAITING_BYTES: Final = 64 * 1024 * 1024
"""Answers of one session that wait for an other side that does not read; those beyond become errors. It takes slow
handlers with large outputs to get there: nothing is begun while a stream is full."""
ENDING_GRACE_S: Final = 2.0
"""What handlers may take to clean up once they are cancelled with their session; it does not wait longer for them."""
UNPREPARED: Final = "the call could not be prepared; see the node's log"


class Server(Protocol):
    """Who serves inbound calls, and what is asked for with them."""

    def prepare(self, request: Requested) -> "Prepared":
        """Everything up to the handler; raises `CallError`."""

    async def accept_channel(self, request: ChannelRequested) -> ByteService:
        """Accept a byte channel, or raise `CallError` to refuse it. May take its time, above all to reach somebody; it
        is cancelled when the other side gives up. What it returns is run, once."""


class Nobody:
    """Serves no operations, and no byte channels."""

    def prepare(self, request: Requested) -> "Prepared":
        raise unknown_operation(request.name)

    async def accept_channel(self, request: ChannelRequested) -> ByteService:
        raise CallError("NOT_FOUND", f"no byte channel leads to {request.service} here")


class _Running:
    """An inbound call that runs, and what a subscription waits for."""

    __slots__ = ("channel", "credited", "prepared", "task")

    def __init__(self, task: "asyncio.Task[None]", prepared: "Prepared", channel: Channel) -> None:
        self.task = task
        self.prepared = prepared
        self.channel = channel
        self.credited: asyncio.Event | None = None

    @property
    def name(self) -> str:
        return self.prepared.operation.spec.name


class Serving:
    """Runs what `server` prepares and tells `machine`."""

    def __init__(self, machine: Machine, server: Server) -> None:
        self.is_idle = asyncio.Event()
        """Set while no inbound call runs, and no byte channel of the other side's."""
        self.is_idle.set()
        self._machine = machine
        self._server = server
        self._tasks = Tasks("operation")
        self._running: dict[str, _Running] = {}
        self._channels: dict[str, ServedChannel] = {}
        self._waiting_bytes = 0
        self._is_left = False

    def requested(self, channel: Channel, request: Requested) -> None:
        """Begin a call, or refuse it at once."""
        try:
            prepared = self._server.prepare(request)
        except CallError as exc:
            self._refuse(channel, request.id, exc)
        except Exception:
            log.exception(event("a call could not be prepared", operation=request.name))
            self._refuse(channel, request.id, CallError("INTERNAL", UNPREPARED))
        else:
            serve = self._serve_stream if prepared.is_stream else self._serve_call
            task = self._tasks.start(serve(channel, request.id, prepared), name=request.name)
            self._running[request.id] = _Running(task, prepared, channel)
            self.is_idle.clear()
            task.add_done_callback(partial(self._served, request.id))

    def channel_requested(self, channels: "ByteChannels", frames: Channel, request: ChannelRequested) -> None:
        """Begin to serve a byte channel."""
        served = self._channels[request.id] = ServedChannel(self._server, channels, frames, request)
        served.task = self._tasks.start(served.run(), name=served.name)
        self.is_idle.clear()
        served.task.add_done_callback(partial(self._served, request.id))

    def channel_closed(self, id: str) -> None:
        """The other side, or what it did, has ended a byte channel."""
        served = self._channels.get(id)
        if served is not None:
            served.given_up()

    def cancel(self, id: str, because: str) -> None:
        """Nobody wants the answer any more."""
        running = self._running.get(id)
        if running is not None:
            running.prepared.ended_because = because
            running.task.cancel()

    def credited(self, id: str) -> None:
        """More items of a subscription may be sent."""
        running = self._running.get(id)
        if running is not None and running.credited is not None:
            running.credited.set()

    def recheck(self) -> None:
        """End what the current policy forbids, each with the refusal."""
        for id, running in tuple(self._running.items()):
            denial = running.prepared.revoked()
            if denial is not None:
                running.channel.post(self._machine.fail(id, denial))
                running.task.cancel()
        for served in tuple(self._channels.values()):
            served.recheck()

    def end(self) -> None:
        """Cancel everything, what is cancelled already no second time; does not wait."""
        for running in self._running.values():
            if not running.task.cancelling():
                running.task.cancel()
        for served in self._channels.values():
            served.end()

    async def aclose(self) -> None:
        """Cancel everything and wait until it has ended, at most `ENDING_GRACE_S`: what goes on then is cancelled once
        more and left behind."""
        self.end()
        left = await self._tasks.wait(timeout_s=ENDING_GRACE_S)
        if left and not self._is_left:
            self._is_left = True
            names = sorted({running.name for running in self._all()})
            log.warning(event("operations did not end in time", count=left, operations=",".join(names)))
            self._tasks.cancel()

    def _all(self) -> "list[_Running | ServedChannel]":
        return [*self._running.values(), *self._channels.values()]

    def _refuse(self, channel: Channel, id: str, error: CallError) -> None:
        self._reply(channel, id, self._machine.fail(id, error))
        self._machine.finished(id)

    async def _serve_call(self, channel: Channel, id: str, prepared: "Prepared") -> None:
        try:
            if channel.is_full:
                await self._room_by(channel, prepared.deadline)
            reply = self._machine.respond(id, await prepared.call())
        except CallError as exc:
            reply = self._machine.fail(id, exc)
        body = self._encode(channel, id, reply)
        del reply  # while the body waits, nothing else holds the output
        if body and (not channel.is_full or await self._room_for(channel, id, body, prepared.deadline)):
            channel.send(body)

    async def _serve_stream(self, channel: Channel, id: str, prepared: "Prepared") -> None:
        async with contextlib.aclosing(prepared.stream()) as items:
            try:
                while True:
                    await self._wait_for_credit(id)
                    await channel.room()
                    try:
                        item = await anext(items)
                    except StopAsyncIteration:
                        break
                    body = self._encode(channel, id, self._machine.respond(id, item))
                    del item
                    if not body:
                        return
                    # Many may have found room, and each has an item now.
                    if channel.is_full and not await self._room_for(channel, id, body, None):
                        return
                    channel.send(body)
                reply = self._machine.complete(id)
            except CallError as exc:
                reply = self._machine.fail(id, exc)
            except asyncio.CancelledError:
                error = prepared.timed_out()
                if error is None:
                    raise
                reply = self._machine.fail(id, error)
        self._reply(channel, id, reply)

    async def _wait_for_credit(self, id: str) -> None:
        while self._machine.credit_of(id) == 0:
            running = self._running[id]
            running.credited = asyncio.Event()
            await running.credited.wait()

    async def _room_for(self, channel: Channel, id: str, body: bytes, deadline: float | None) -> bool:
        """Wait until `body`, an answer, may be sent. If it may not, the caller is told why in short."""
        if self._waiting_bytes and self._waiting_bytes + len(body) > MAX_WAITING_BYTES:
            words = f"more than {MAX_WAITING_BYTES} bytes of answers wait to be read"
            channel.post(self._machine.fail(id, CallError("RESOURCE_EXHAUSTED", words)))
            return False
        self._waiting_bytes += len(body)
        try:
            await self._room_by(channel, deadline)
        except CallError as exc:
            channel.post(self._machine.fail(id, exc))
            return False
        finally:
            self._waiting_bytes -= len(body)
        return True

    async def _room_by(self, channel: Channel, deadline: float | None) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await channel.room()
        except TimeoutError:
            raise CallError("TIMEOUT", "there was no room for the answer: what was sent before is not read") from None

    def _reply(self, channel: Channel, id: str, reply: Envelope | None) -> None:
        """Send an answer without waiting."""
        body = self._encode(channel, id, reply)
        if body:
            channel.send(body)

    def _encode(self, channel: Channel, id: str, reply: Envelope | None) -> bytes:
        """The body of an answer; none, once an error was sent instead, for one that cannot be sent."""
        if reply is None:
            return b""
        try:
            return channel.encode(reply)
        except CallError as exc:
            log.error(event("an output cannot be sent", reason=exc))
            ours = CallError("INTERNAL", str(exc)) if exc.code == "INVALID_INPUT" else exc
            channel.post(self._machine.fail(id, ours))
            return b""

    def _served(self, id: str, task: "asyncio.Task[None]") -> None:
        if id in self._channels:
            del self._channels[id]
        else:
            self._running.pop(id).prepared.drop()
        self._machine.finished(id)
        if not self._running and not self._channels:
            self.is_idle.set()
