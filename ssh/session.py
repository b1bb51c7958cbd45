"""One session channel: what was asked, the decision, and the process behind it.

Output flows from descriptor to channel only while both the channel's window and the connection have room; input flows
to the process only as it reads. The exit status is sent after the process has ended *and* its output has.
"""

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import asyncssh
from asyncssh.constants import EXTENDED_DATA_STDERR

from alknet.access import Decision, SshRights
from alknet.become import helper_argv
from alknet.child import signal_name
from alknet.errors import AlknetError
from alknet.gate import Act
from alknet.logs import event
from alknet.plan import Kind, Plan, Request, make_plan
from alknet.runas import ClientEnvironment, RunAs, environment, run_as
from alknet.ssh.channel import SessionChannel
from alknet.ssh.file_questions import FileQuestions, orders
from alknet.ssh.forward_acts import NotForwarded
from alknet.ssh.inner import Inner
from alknet.ssh.program import Program
from alknet.ssh.terminal import Terminal, TerminalSize, open_terminal

if TYPE_CHECKING:
    from alknet.ssh.connection import SshConnection

__all__ = ["Session"]

log = logging.getLogger("alknet.ssh")

EXIT_DENIED: Final = 3
EXIT_NOT_EXECUTABLE: Final = 126
EXIT_NOT_FOUND: Final = 127
BREAK_OFF_GRACE_S: Final = 1.0
"""What a channel that is broken off gets to send its last line."""


class Session(asyncssh.SSHServerSession[bytes]):
    """A session of a logged-in peer."""

    def __init__(self, connection: "SshConnection") -> None:
        self._connection = connection
        self._gate = connection.handler.gate
        self._channel: SessionChannel | None = None
        self._request: Request | None = None
        self._plan: Plan | None = None
        self._act: Act | None = None
        self.env = ClientEnvironment(connection.handler.settings.env_allow)
        self._term: str | None = None
        self._size: TerminalSize = (0, 0, 0, 0)
        self._modes: dict[int, int] = {}
        self._program: Program | None = None
        self._inner: Inner | None = None
        self._files: FileQuestions | None = None
        self._agent_path: str | None = None
        self._channel_paused = False
        self._is_over = False

    # --- what the client asks for -----------------------------------------------------------------------------

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        assert isinstance(chan, SessionChannel)
        self._channel = chan
        self._connection.session_began(self)

    def pty_requested(self, term_type: str | None, term_size: TerminalSize, term_modes: Mapping[int, int]) -> bool:
        if "\0" in (term_type or "") or not self._may_have_terminal():
            return False
        self._term, self._size, self._modes = term_type or "dumb", term_size, dict(term_modes)
        return True

    def _may_have_terminal(self) -> bool:
        """Where the peer's certificate withholds one, what is asked for next runs without it, as with OpenSSH."""
        identity = self._connection.identity
        if identity.certificate is None or self._gate.still(identity, "ssh/pty"):
            return True
        act = self._gate.ask(identity, "ssh/pty", **self._connection.facts())
        self._say(f"alknet: no terminal: {act.decision}")
        return False

    async def agent_requested(self) -> bool:
        try:
            self._agent_path = await self._connection.forwarding.listen_for_agent()
        except NotForwarded as exc:
            self._say(f"alknet: the agent is not forwarded: {exc}")
            return False
        return True

    def shell_requested(self) -> bool:
        return self._ask(Request(Kind.SHELL))

    def exec_requested(self, command: str) -> bool:
        return "\0" not in command and self._ask(Request(Kind.EXEC, command))

    def subsystem_requested(self, subsystem: str) -> bool:
        return self._ask(Request(Kind.SUBSYSTEM, subsystem))

    def _ask(self, request: Request) -> bool:
        """Take the request, or fail it where even a refusal on stderr would be misplaced."""
        if self._is_over or self._connection.is_ending or self._connection.is_draining:
            return False
        self._request = request
        self._plan = plan = self._make_plan()
        name = plan.subsystem
        if name is not None and name not in self._connection.handler.subsystems:
            log.info(event("no such subsystem", peer=self._connection.identity.id, subsystem=name))
            return False
        return True

    def _make_plan(self) -> Plan:
        assert self._request is not None
        peer = self._gate.policy.peers.get(self._connection.identity.id)
        # A peer that has just been removed has no rights left; the decision says so.
        rights, certificate = SshRights() if peer is None else peer.ssh, self._connection.identity.certificate
        return make_plan(self._request, rights, self._connection.handler.commands, certificate)

    # --- running it -------------------------------------------------------------------------------------------

    def session_started(self) -> None:
        plan = self._plan
        assert plan is not None
        if plan.subsystem is not None or plan.command is not None:
            self._start_inner(plan)
            return
        act = self._gate.ask(
            self._connection.identity,
            self._action(plan),
            plan.resource,
            **self._connection.facts(),
            terminal=self._term is not None or None,
        )
        if not act.decision:
            self._say(f"alknet: refused: {act.decision}")
            self._exit(EXIT_DENIED)
            self._connection.session_denied()
            return
        self._act = act
        try:
            self._start_process(plan)
        except (OSError, ValueError, AlknetError) as exc:
            self._could_not_start(plan, exc)
        except Exception as exc:
            log.exception(event("session failed to start", peer=self._connection.identity.id))
            self._could_not_start(plan, exc)

    def _action(self, plan: Plan) -> str:
        """What a request is decided as: SFTP is for those who may read files, and for those who may write them."""
        assert plan.action is not None
        if plan.files is not None and plan.script is None:
            may_write = self._gate.peek(self._connection.identity, "sftp/write")
            if may_write and not self._gate.peek(self._connection.identity, plan.action):
                return "sftp/write"
        return plan.action

    def _start_inner(self, plan: Plan) -> None:
        """A part of the node speaks on the channel; it asks its own decisions."""
        assert self._channel is not None
        connection = self._connection
        handler, identity, carrier = connection.handler, connection.identity, connection.connection
        self._inner = Inner(connection, self._channel, self._exit)
        if plan.subsystem is not None:
            subsystem = handler.subsystems[plan.subsystem]
            self._inner.start(plan.subsystem, lambda stream: subsystem(stream, identity, carrier), is_command=False)
        else:
            name, _, rest = (plan.command or "").partition(" ")
            command = handler.commands[name]
            self._inner.start(name, lambda stream: command(stream, identity, carrier, rest), is_command=True)

    def _start_process(self, plan: Plan) -> None:
        user = run_as(plan.user, shell=plan.shell)
        if plan.files is not None:
            self._serve_files(plan, user)
            return
        connection = self._connection
        terminal: Terminal | None = None
        if self._term is not None:
            terminal = open_terminal(self._size, self._modes, owner=user.uid if user.change else None)
        env = environment(
            user,
            peer=connection.identity.id,
            connection=connection.connection.id,
            remote=connection.connection.remote,
            local=connection.connection.local,
            from_client=self.env.variables,
            term=self._term,
            tty=None if terminal is None else terminal.path,
            original_command=plan.original,
            agent=self._agent_path,
        )
        self._run(plan.argv(user.shell), user, env, terminal=terminal)

    def _serve_files(self, plan: Plan, user: RunAs) -> None:
        """A helper serves them; it asks here about everything that it is to open or to change."""
        connection = self._connection
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ends: dict[str, Any] = {"on_broken": self._hang_up, "on_denied": connection.session_denied}
        with theirs:
            self._files = FileQuestions(control, self._gate, lambda: connection.identity, connection.facts(), **ends)
            argv = helper_argv("alknet.ssh.files.child", user, theirs.fileno())
            self._run(argv, user, {}, pass_fd=theirs.fileno(), becomes_user=True)
        self._files.begin(orders(plan, user, connection.identity, connection.handler.protected))

    def _run(self, argv: list[str], user: RunAs, env: Mapping[str, str], **how: Any) -> None:
        self._program = Program(
            argv,
            user=user,
            env=env,
            terminal=how.pop("terminal", None),
            on_output=self._send,
            on_input_drained=self._input_drained,
            on_end=self._program_ended,
            **how,
        )
        self._resume_output()

    def _could_not_start(self, plan: Plan, exc: Exception) -> None:
        what = plan.words[0] if plan.words else plan.shell or "the shell"
        why = exc.strerror if isinstance(exc, OSError) else str(exc)
        self._say(f"alknet: cannot run {what}: {why}")
        not_found = isinstance(exc, OSError) and exc.errno == errno.ENOENT
        status = EXIT_NOT_FOUND if not_found else EXIT_NOT_EXECUTABLE
        self._close_files()
        self._done(f"not started: {why}")
        self._exit(status)

    # --- output -----------------------------------------------------------------------------------------------

    def _send(self, data: bytes, datatype: int | None = None) -> None:
        if self._channel is not None and not self._channel.is_closing():
            self._channel.write(data, datatype)

    def _send_stderr(self, data: bytes) -> None:
        self._send(data, EXTENDED_DATA_STDERR)

    def pause_writing(self) -> None:
        self._channel_paused = True
        self._pause_output()

    def resume_writing(self) -> None:
        self._channel_paused = False
        self._resume_output()

    def connection_paused(self) -> None:
        """The connection as a whole has no room."""
        self._pause_output()

    def connection_resumed(self) -> None:
        self._resume_output()

    def _pause_output(self) -> None:
        if self._program is not None:
            self._program.pause()
        if self._inner is not None:
            self._inner.stream.pause_writing()

    def _resume_output(self) -> None:
        if self._channel_paused or self._connection.is_write_paused:
            return
        if self._program is not None:
            self._program.resume()
        if self._inner is not None:
            self._inner.stream.resume_writing()

    # --- input ------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes, datatype: int | None) -> None:
        if self._inner is not None:
            self._inner.stream.data_received(data)
        elif self._program is not None and not self._program.write(data):
            assert self._channel is not None
            self._channel.pause_reading()

    def _input_drained(self) -> None:
        if self._channel is not None:
            self._channel.resume_reading()

    def eof_received(self) -> bool:
        if self._inner is not None:
            self._inner.stream.eof_received()
        elif self._program is not None:
            self._program.write_eof()
        return True  # the other direction stays open

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        self._size = (width, height, pixwidth, pixheight)
        if self._program is not None:
            self._program.resize(self._size)

    def signal_received(self, name: str) -> None:
        if self._program is not None:
            self._program.signal(name)

    # --- the end ----------------------------------------------------------------------------------------------

    def _program_ended(self, status: int) -> None:
        self._close_files()
        if os.WIFSIGNALED(status):
            name = signal_name(os.WTERMSIG(status))
            self._done(f"signal {name}")
            if self._channel is not None:
                self._channel.exit_with_signal(name, os.WCOREDUMP(status))
        else:
            self._done(f"exit {os.WEXITSTATUS(status)}")
            self._exit(os.WEXITSTATUS(status))
        # A group whose connection was cut is first given its time to end; see `Child.hang_up`.
        if self._program is not None and self._channel is not None and not self._is_over:
            self._program.reap()

    def recheck(self) -> None:
        """End this session if the current policy forbids it, or would run it otherwise than it runs."""
        plan = self._plan
        identity = self._connection.identity
        if self._files is not None and (denial := self._files.recheck()) is not None:
            self.revoke(denial)
            return
        if self._inner is not None and plan is not None:
            new = self._make_plan()
            if (new.subsystem, new.command) == (plan.subsystem, plan.command):
                self._inner.stream.recheck()  # it asks its own decisions
            else:
                self.revoke(self._gate.changed(identity, "ssh/exec", plan.subsystem or plan.command))
            return
        if self._act is None or plan is None or plan.action is None:
            return
        action = self._action(plan)
        decision = self._gate.still(identity, action, plan.resource)
        if decision and self._make_plan() != plan:
            decision = self._gate.changed(identity, action, plan.resource)
        if not decision:
            self.revoke(decision)

    def revoke(self, decision: Decision, *, login: bool = False) -> None:
        """The right was taken away, or that to be here at all (`login`): say so and end."""
        if self._is_over or (login and self._inner is not None and self._inner.speak_last()):
            return
        self._done("revoked", rule=decision.rule, denial_id=decision.denial_id, decision="deny")
        self._break_off(f"access was taken away: {decision}")
        self._exit(EXIT_DENIED)

    def end(self, reason: str) -> None:
        """The connection is being ended for `reason`."""
        if self._is_over or (self._inner is not None and self._inner.has_last_word):
            return
        self._done(f"ended: {reason}")
        self._break_off(reason)
        if self._channel is not None:
            self._channel.exit_with_signal("HUP", msg=reason)

    def _break_off(self, reason: str) -> None:
        self._is_over = True
        self._say(f"alknet: {reason}")
        self._hang_up()
        if self._channel is not None:
            # A client that does not read would keep the channel open with what is still unsent.
            asyncio.get_running_loop().call_later(BREAK_OFF_GRACE_S, self._channel.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.session_ended(self)
        self._channel = None
        if self._inner is not None:
            self._inner.connection_lost()
        self._done("hung up")
        self._hang_up()

    def _hang_up(self) -> None:
        """End the process group and forget its output."""
        self._close_files()
        if self._program is not None and (child := self._program.abandon()) is not None:
            self._connection.handler.hang_up(child, terminal_closed=self._program.has_terminal)

    def _close_files(self) -> None:
        if self._files is not None:
            self._files.close()

    def _done(self, outcome: str, **facts: str | None) -> None:
        if self._act is not None:
            self._act.done(outcome, **facts)

    def _say(self, text: str) -> None:
        """A line from the node itself, on stderr (which a terminal shows in raw mode)."""
        end = "\r\n" if self._term is not None else "\n"
        self._send_stderr((text + end).encode("utf-8", "backslashreplace"))  # a command may be no text

    def _exit(self, status: int) -> None:
        if self._channel is not None:
            self._channel.exit(status)
