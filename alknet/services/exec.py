"""``exec/run``: a command of a caller, as the same user and under the same rules as one over SSH.

Whether it may run is decided as the action ``exec/run`` of :mod:`alknet.actions`; what then runs is what
:mod:`alknet.plan` makes of it for SSH, so that a peer gets no further by one way than by the other.
"""

import asyncio
import codecs
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Final, Literal

from pydantic import Field

from alknet.access import Decision, Identity, SshRights
from alknet.call.binary import Bytes
from alknet.call.context import OperationContext
from alknet.call.operations import OperationError, operation
from alknet.child import Child, signal_name, start_child
from alknet.descriptors import Sink, Source
from alknet.errors import DeniedError, InvalidInputError, NotFoundError, UnavailableError
from alknet.gate import Gate
from alknet.plan import Kind, Plan, Request, make_plan
from alknet.runas import ClientEnvironment, environment, run_as

__all__ = ["BytesOutput", "ExecService", "Exit", "NotStarted", "TextOutput"]

ACTION: Final = "exec/run"
GRACE_S: Final = 0.1
"""Between SIGTERM and SIGKILL for a process group that nobody waits for any more, or whose time is over."""
ITEM_BYTES: Final = 32 * 1024
HELD_BYTES: Final = 256 * 1024
"""With so much output that was not taken, the command has to wait."""
MAX_STDIN_BYTES: Final = 512 * 1024
MAX_COMMAND_CHARS: Final = 64 * 1024
MAX_TIMEOUT_S: Final = 86_400.0
MAX_RUNS_PER_PEER: Final = 64

Stream = Literal["stdout", "stderr"]


class NotStarted(OperationError):
    """The command could not be started: there is no such program, or no such user."""

    code = "NOT_STARTED"
    http_status = 422


@dataclass(frozen=True, slots=True)
class TextOutput:
    """What the command has written; bytes that are no UTF-8 stand as U+FFFD."""

    stream: Stream
    text: str


@dataclass(frozen=True, slots=True)
class BytesOutput:
    """What the command has written, byte for byte."""

    stream: Stream
    data: Bytes


@dataclass(frozen=True, slots=True)
class Exit:
    """The last item: the exit code, or the signal that ended the command, such as TERM; and whether that was because
    its time was over."""

    exit_code: int | None
    signal: str | None
    timed_out: bool


class ExecService:
    """The operation, and the commands that it runs. `env_allow` names the variables that callers may set."""

    def __init__(self, gate: Gate) -> None:
        self.env_allow: tuple[str, ...] = ()
        self._gate = gate
        self._runs: set[_Run] = set()

    @operation(
        ACTION,
        kind="subscription",
        scopes=["exec:run"],
        rules=ACTION,
        resource_id="$.command",
        destructive=True,
        errors=[NotStarted],
        secret_inputs=["stdin", "stdin_bytes", "env"],
        examples=[
            {"input": {"command": "uname -a; df -h /"}},
            {"input": {"command": "sort -u", "stdin": "b\na\nb\n", "timeout_s": 10}},
        ],
    )
    async def run(
        self,
        command: Annotated[
            str, Field(min_length=1, max_length=MAX_COMMAND_CHARS, description="As one would type it into a shell.")
        ],
        stdin: Annotated[
            str | None, Field(max_length=MAX_STDIN_BYTES, description="What the command reads, as text.")
        ] = None,
        stdin_bytes: Annotated[
            Bytes | None, Field(max_length=MAX_STDIN_BYTES, description="The same as bytes (base64 in JSON).")
        ] = None,
        env: Annotated[
            dict[str, str] | None, Field(description="Environment variables to set; the node allows a few names.")
        ] = None,
        timeout_s: Annotated[
            float | None, Field(gt=0, le=MAX_TIMEOUT_S, description="End the command after so many seconds.")
        ] = None,
        as_bytes: Annotated[
            bool, Field(description="Give the output as `data` (base64 in JSON), byte for byte.")
        ] = False,
        *,
        ctx: OperationContext,
    ) -> AsyncIterator[TextOutput | BytesOutput | Exit]:
        """Run a shell command on this machine and give its output as it comes, then its exit code.

        It runs in the home directory of its user, without a terminal; use `cd DIR && …` for another directory. Nothing
        is lost when output is taken slowly: the command waits. It ends, with all that it started (but for what made a
        session of its own, as setsid does), when the subscription is given up or `timeout_s` is over; give one for what
        may not end by itself. The last item comes when its output is closed as well: send that of a background process
        elsewhere.
        """
        identity = ctx.identity
        assert isinstance(identity, Identity)  # the action's own rules let nobody else in
        decision = self._gate.still(identity, ACTION, command)
        if not decision:  # since it was asked
            raise DeniedError(decision.words, denial_id=decision.denial_id, rule=decision.rule)
        if sum(run.identity.id == identity.id for run in self._runs) >= MAX_RUNS_PER_PEER:
            raise UnavailableError(f"{MAX_RUNS_PER_PEER} commands of yours run already")
        data = _input(command, stdin, stdin_bytes)
        allowed = self._variables(env or {})
        run = _Run(identity, command, self._plan(identity, command))
        self._runs.add(run)
        try:
            run.start(data, allowed, connection=ctx.connection, timeout_s=timeout_s)
            texts = {stream: codecs.getincrementaldecoder("utf-8")("replace") for stream in _STREAMS}
            async for stream, piece in run.output():
                if as_bytes:
                    yield BytesOutput(stream, piece)
                elif text := texts[stream].decode(piece):
                    yield TextOutput(stream, text)
            for stream, decoder in texts.items():
                if text := decoder.decode(b"", True):
                    yield TextOutput(stream, text)
            yield run.exit()
        finally:
            try:
                await run.aclose()
            finally:
                self._runs.discard(run)

    def recheck(self) -> None:
        """End what the current policy would run otherwise; what it forbids ends as any other call."""
        for run in tuple(self._runs):
            if self._plan(run.identity, run.command) != run.plan:
                run.revoke(self._gate.changed(run.identity, ACTION, run.command))

    def close(self) -> None:
        """End what still runs, at once; for when the node ends. Idempotent."""
        for run in tuple(self._runs):
            run.kill()

    def _plan(self, identity: Identity, command: str) -> Plan:
        peer = self._gate.policy.peers.get(identity.id)
        return make_plan(Request(Kind.EXEC, command), SshRights() if peer is None else peer.ssh)

    def _variables(self, env: dict[str, str]) -> dict[str, str]:
        kept = ClientEnvironment(self.env_allow)
        for name, value in env.items():
            if not kept.offer(name.encode("utf-8", "surrogatepass"), value.encode("utf-8", "surrogatepass")):
                names = ", ".join(self.env_allow) or "none"
                raise InvalidInputError(
                    "env: a variable is not allowed, or there are too many", hint=f"allowed: {names}"
                )
        return kept.variables


class _Run:
    """One command: its process, what it reads and what it has written."""

    def __init__(self, identity: Identity, command: str, plan: Plan) -> None:
        self.identity = identity
        self.command = command
        self.plan = plan
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._pieces: deque[tuple[Stream, bytearray]] = deque()
        self._held = 0
        self._child: Child | None = None
        self._stdin: Sink | None = None
        self._sources: list[Source] = []
        self._status: int | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._timed_out = False
        self._denial: Decision | None = None

    def start(self, data: bytes, variables: dict[str, str], *, connection: str | None, timeout_s: float | None) -> None:
        """Start the process; raises `NotStarted`."""
        plan = self.plan
        try:
            user = run_as(plan.user, shell=plan.shell)
            env = environment(
                user,
                peer=self.identity.id,
                connection=connection,
                remote=None,
                local=None,
                from_client=variables,
                original_command=plan.original,
            )
            self._child, pipes = start_child(
                plan.argv(user.shell), user=user, env=env, terminal=None, on_exit=self._exited
            )
        except (OSError, ValueError, NotFoundError) as exc:
            what = plan.words[0] if plan.words else plan.shell or "the shell"
            why = exc.strerror if isinstance(exc, OSError) else exc
            raise NotStarted(f"cannot run {what}: {why}") from exc
        assert pipes.stderr is not None
        self._stdin = Sink(pipes.stdin, _nothing)
        self._sources = [
            Source(fd, partial(self._wrote, stream), self._news.set)
            for stream, fd in zip(_STREAMS, (pipes.stdout, pipes.stderr), strict=True)
        ]
        self._stdin.write(data)
        self._stdin.finish()
        for source in self._sources:
            source.resume()
        if timeout_s is not None:
            self._timers.append(self._loop.call_later(timeout_s, self._time_over))

    async def output(self) -> AsyncIterator[tuple[Stream, bytes]]:
        """What it writes, in pieces, until it has ended; raises `DeniedError` when it may not go on."""
        while True:
            if self._denial is not None:
                denial = self._denial
                raise DeniedError(denial.words, denial_id=denial.denial_id, rule=denial.rule)
            if self._pieces:
                yield self._next()
            elif self._status is not None and not any(source.is_open for source in self._sources):
                return
            else:
                self._news.clear()
                await self._news.wait()

    def exit(self) -> Exit:
        """How it has ended."""
        assert self._status is not None
        if os.WIFSIGNALED(self._status):
            return Exit(None, signal_name(os.WTERMSIG(self._status)), self._timed_out)
        return Exit(os.WEXITSTATUS(self._status), None, self._timed_out)

    def revoke(self, denial: Decision) -> None:
        self._denial = denial
        self._news.set()

    def kill(self) -> None:
        if self._child is not None:
            self._child.kill()

    async def aclose(self) -> None:
        """Give everything back. A process group that is still wanted by nobody is ended: SIGTERM, and after `GRACE_S`
        SIGKILL, also when this is cancelled."""
        for timer in self._timers:
            timer.cancel()
        has_ended = self._status is not None and not any(source.is_open for source in self._sources)
        if self._stdin is not None:
            self._stdin.close()
        for source in self._sources:
            source.close()
        if self._child is None:
            return
        if has_ended and not self._timed_out:
            self._child.reap()
        elif self._child.is_running:
            self._child.hang_up(GRACE_S, number=signal.SIGTERM)
            await self._child.wait_ended(timeout_s=2 * GRACE_S)

    def _next(self) -> tuple[Stream, bytes]:
        stream, data = self._pieces[0]
        piece = bytes(data[:ITEM_BYTES])
        if len(piece) == len(data):
            self._pieces.popleft()
        else:
            del data[:ITEM_BYTES]
        was_full = self._held >= HELD_BYTES
        self._held -= len(piece)
        if was_full and self._held < HELD_BYTES:
            for source in self._sources:
                source.resume()
        return stream, piece

    def _wrote(self, stream: Stream, data: bytes) -> None:
        if self._pieces and self._pieces[-1][0] == stream:
            self._pieces[-1][1].extend(data)
        else:
            self._pieces.append((stream, bytearray(data)))
        self._held += len(data)
        if self._held >= HELD_BYTES:
            for source in self._sources:
                source.pause()
        self._news.set()

    def _exited(self, status: int) -> None:
        self._status = status
        self._news.set()

    def _time_over(self) -> None:
        self._timed_out = True
        if self._child is not None:
            self._child.hang_up(GRACE_S, number=signal.SIGTERM)
            self._timers.append(self._loop.call_later(GRACE_S, self._cut))

    def _cut(self) -> None:
        """The group has been killed; whoever has left it may hold the output open for ever."""
        for source in self._sources:
            source.end_when_empty()


_STREAMS: Final[tuple[Stream, Stream]] = ("stdout", "stderr")
_nothing: Final[Callable[[], None]] = lambda: None  # noqa: E731


def _input(command: str, text: str | None, data: bytes | None) -> bytes:
    if "\0" in command:
        raise InvalidInputError("command: it has a NUL character in it")
    if text is not None and data is not None:
        raise InvalidInputError("give stdin as text or as bytes, and not as both")
    try:
        command.encode()
        return data or (text or "").encode()
    except UnicodeEncodeError:
        raise InvalidInputError("command or stdin: it has half a surrogate pair in it") from None
