"""What the process that serves files to a client asks of the node: may this be read, may that be written.

Every question is an act of its own, from the answer until the process says how it ended. The process is on the other
side of :mod:`alknet.ssh.files.questions`; it works for the peer and may be as slow, or as broken, as it likes.
"""

import asyncio
import json
import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final

from alknet.access import Decision, Identity
from alknet.gate import Act, Gate
from alknet.logs import event
from alknet.plan import Plan
from alknet.runas import RunAs, directory_of

__all__ = ["FileQuestions", "orders"]

log = logging.getLogger("alknet.ssh")

OWNER: Final = "owner"
ACTIONS: Final = {"read": "sftp/read", "write": "sftp/write"}
MAX_MESSAGE_BYTES: Final = 64 * 1024
MAX_OPEN: Final = 1024
"""Acts of one session that have not ended; a client has fewer files open."""
MESSAGES_PER_TURN: Final = 16
DENIAL_COST: Final = 0.1
"""Of a refused session: who copies a directory may be refused for every file in it."""


def orders(plan: Plan, user: RunAs, caller: Identity, protected: Sequence[str]) -> dict[str, Any]:
    """What the process is to serve. `protected` is out of reach for all but ``owner`` with all its scopes: there lie
    keys that would turn a narrower credential of owner's into owner itself."""
    sees_all = caller.id == OWNER and "*" in caller.scopes
    root = directory_of(plan.files or "", user)
    if not os.path.isdir(root):  # the client is told by the process, which may see less
        log.warning(event("this root is no directory", setting="sftp_root", peer=caller.id, path=root))
    return {
        "mode": "sftp" if plan.script is None else "scp",
        "command": plan.script,
        "root": root,
        "start": user.home if root == "/" else "/",
        "protected": [] if sees_all else list(protected),
    }


class FileQuestions:
    """The node's end of the control socket, which it owns. `on_broken` is called when the process talks nonsense,
    `on_denied` after each refusal, with what it costs: a client may ask in vain without end."""

    def __init__(
        self,
        control: socket.socket,
        gate: Gate,
        caller: Callable[[], Identity],
        facts: dict[str, Any],
        *,
        on_broken: Callable[[], None],
        on_denied: Callable[[float], None] = lambda cost: None,
    ) -> None:
        self._control = control
        self._gate = gate
        self._caller = caller
        self._facts = facts
        self._on_broken = on_broken
        self._on_denied = on_denied
        self._open: dict[int, tuple[Act, str, str]] = {}
        self._loop = asyncio.get_running_loop()
        control.setblocking(False)
        self._loop.add_reader(control, self._readable)

    def begin(self, order: dict[str, Any]) -> None:
        """Tell the process what to serve."""
        self._control.send(json.dumps(order).encode())

    def recheck(self) -> Decision | None:
        """End the acts that go on and are no longer allowed; returns the first's denial, for which the process, which
        may have its files open, has to end."""
        first: Decision | None = None
        for number, (act, action, path) in tuple(self._open.items()):
            decision = self._gate.still(self._caller(), action, path)
            if not decision:
                del self._open[number]
                act.done("revoked", rule=decision.rule, denial_id=decision.denial_id, decision="deny")
                first = first or decision
        return first

    def close(self, outcome: str = "hung up") -> None:
        """The process has ended, or has to; idempotent."""
        if self._control.fileno() >= 0:
            self._loop.remove_reader(self._control)
            self._control.close()
        for act, _, _ in self._open.values():
            act.done(outcome)
        self._open.clear()

    def _readable(self) -> None:
        for _ in range(MESSAGES_PER_TURN):
            try:
                data = self._control.recv(MAX_MESSAGE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.close()
                return
            try:
                self._take(json.loads(data))
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError, OSError) as exc:
                log.error(event("the process that serves files is broken", reason=exc))
                self.close()
                self._on_broken()
                return

    def _take(self, message: dict[str, Any]) -> None:
        if "ask" in message:
            self._ask(int(message["ask"]), ACTIONS[message["action"]], str(message["path"]))
        elif "done" in message:
            known = self._open.pop(int(message["done"]), None)
            if known is not None:
                known[0].done(str(message["outcome"]))
        else:
            denial = self._gate.beyond(
                self._caller(), ACTIONS[message["action"]], message["path"], message["rule"], message["reason"]
            )
            self._answer(int(message["barred"]), denial)

    def _ask(self, number: int, action: str, path: str) -> None:
        if number in self._open or len(self._open) >= MAX_OPEN:
            raise ValueError("it asks without end")
        act = self._gate.ask(self._caller(), action, path, **self._facts, soon=True)
        if act.decision:
            self._open[number] = (act, action, path)
        self._answer(number, act.decision)

    def _answer(self, number: int, decision: Decision) -> None:
        answer = {"answer": number, "allowed": decision.allowed, "words": "" if decision else str(decision)}
        self._control.send(json.dumps(answer).encode())
        if not decision:
            self._on_denied(DENIAL_COST)
