"""How the command line talks to a running node: one JSON request, one JSON answer, over an SSH subsystem.

An interim seam: operation calls will replace it, and with them these five functions become operations. A request is
``{"op": NAME, "input": {…}}``, an answer ``{"output": …}`` or ``{"error": {code, message, hint?, denial_id?}}``.
"""

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from alknet.access import Decision, Identity, Policy
from alknet.alpn.streams import Connection, Stream
from alknet.errors import AlknetError, DeniedError, InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from alknet.node import Node

__all__ = ["SUBSYSTEM", "Control", "can"]

SUBSYSTEM: Final = "alknet-control"
MAX_REQUEST_BYTES: Final = 64 * 1024

_Operation = Callable[[dict[str, Any], Connection], Awaitable[Any]]


class Control:
    """The subsystem's server side."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self.operations: dict[str, _Operation] = {
            "node/status": self._status,
            "node/sessions": self._sessions,
            "node/can": self._can,
            "node/reload": self._reload,
            "node/kill": self._kill,
        }

    async def __call__(self, stream: Stream, identity: Identity, connection: Connection) -> int:
        """Serve one request; the exit status is that of the error, or 0."""
        try:
            answer, status = {"output": await self._serve(stream, identity, connection)}, 0
        except AlknetError as exc:
            answer, status = {"error": _error(exc)}, exc.exit_code
        await stream.write(json.dumps(answer).encode() + b"\n")
        return status

    async def _serve(self, stream: Stream, identity: Identity, connection: Connection) -> Any:
        raw = b""
        while data := await stream.read():
            raw += data
            if len(raw) > MAX_REQUEST_BYTES:
                raise InvalidInputError(f"a request has at most {MAX_REQUEST_BYTES} bytes")
        try:
            request = json.loads(raw)
            name, values = request["op"], request.get("input", {})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            raise InvalidInputError('a request is {"op": NAME, "input": {…}}') from exc
        operation = self.operations.get(name) if isinstance(name, str) else None
        if operation is None or not isinstance(values, dict):
            raise InvalidInputError(f"there is no operation {name!r} with this kind of input")
        remote = None if connection.remote is None else connection.remote.host
        act = self._node.gate.ask(identity, name, surface="control", connection=connection.id, remote=remote)
        if not act.decision:
            raise DeniedError(act.decision.reason, denial_id=act.decision.denial_id)
        try:
            output = await operation(values, connection)
        except BaseException as exc:  # an intent is followed by an outcome, whatever came between
            act.done(f"error {exc.code if isinstance(exc, AlknetError) else AlknetError.code}")
            raise
        act.done("ok")
        return output

    async def _status(self, values: dict[str, Any], connection: Connection) -> Any:
        return self._node.status(leave_out=connection.id)

    async def _sessions(self, values: dict[str, Any], connection: Connection) -> Any:
        return self._node.status(leave_out=connection.id)["connections"]

    async def _can(self, values: dict[str, Any], connection: Connection) -> Any:
        policy = self._node.gate.policy
        peer_id, action = _text(values, "peer"), _text(values, "action")
        resource = values.get("resource")
        if resource is not None and not isinstance(resource, str):
            raise InvalidInputError("resource must be a text")
        if peer_id not in policy.peers:
            raise NotFoundError(f"there is no peer {peer_id!r}")
        identity = Identity(peer_id, frozenset(policy.peers[peer_id].scopes), "question")
        return can(self._node.gate.peek(identity, action, resource), policy, peer_id, action)

    async def _reload(self, values: dict[str, Any], connection: Connection) -> Any:
        report = await self._node.reload(f"peer {connection.identity.id}" if connection.identity else "?")
        return {
            "changed": report.changed,
            "needs_restart": report.needs_restart,
            "revision": self._node.gate.policy.revision,
        }

    async def _kill(self, values: dict[str, Any], connection: Connection) -> Any:
        ended = self._node.router.end(_text(values, "id"), "ended by the operator")
        return {"id": ended.id, "peer": None if ended.identity is None else ended.identity.id}


def can(decision: Decision, policy: Policy, peer_id: str, action: str) -> dict[str, Any]:
    """A decision as `alknet can --json` prints it. `note` says what a yes comes to where that is not obvious."""
    rights, note = policy.peers[peer_id].ssh, None
    if decision and action.startswith("ssh/e") and rights.force_command is not None:
        note = f"whatever is asked for, this runs: {rights.force_command}"
    elif decision and action in ("ssh/exec", "ssh/shell") and rights.as_daemon and not policy.daemon.is_root:
        note = f"equal to owner: it runs as {policy.daemon.name!r}, the user that the node runs as (as_daemon)"
    return {
        "allowed": decision.allowed,
        "rule": decision.rule,
        "reason": decision.reason,
        "denial_id": decision.denial_id,
        "note": note,
    }


def _text(values: dict[str, Any], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str):
        raise InvalidInputError(f"{name} must be a text")
    return value


def _error(exc: AlknetError) -> dict[str, Any]:
    error = {"code": exc.code, "message": str(exc), "exit_code": exc.exit_code}
    if exc.hint:
        error["hint"] = exc.hint
    if isinstance(exc, DeniedError) and exc.denial_id:
        error["denial_id"] = exc.denial_id
    return error
