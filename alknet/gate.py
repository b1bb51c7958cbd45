"""How a door asks the access decision: one call that decides and writes the audit log.

A door never calls :func:`alknet.access.authorize` itself. It calls :meth:`Gate.ask`, acts only if the answer's
`decision` is a yes, and says how the act ended with :meth:`Act.done`.
"""

import itertools
import logging
import math
import os
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from alknet.access import Access, Authority, Context, Decision, Identity, Policy, authorize, deny
from alknet.actions import ACTIONS, Verdict
from alknet.audit import NOTHING, AuditSink, Facts
from alknet.clock import Clock
from alknet.errors import AuditError

__all__ = ["RULE_READ_ONLY", "Act", "Gate"]

log = logging.getLogger("alknet.audit")

MAX_REMEMBERED: Final = 5_000
"""Decisions that are kept of each kind; see `Gate.peek`."""
MAX_TOLD: Final = 500
"""The same of those that are kept with what the caller made up: a name at a peer, whom it calls for."""
MAX_TOLD_CHARS: Final = 512
"""Of a resource for which a decision is kept."""
TARGETED: Final = ("forward/", "socks/")
"""Actions whose resource is where somebody goes to; it is recorded only where the policy says so."""
NEVER_ASKED: Final = (None, None, math.inf)
RULE_AUDIT: Final = "audit.required"
RULE_CREDENTIAL: Final = "credential:removed"
RULE_CHANGED: Final = "session:changed"
RULE_READ_ONLY: Final = "fs.read_only"


class Gate:
    """The current policy, the audit log and the clock, as every door sees them.

    A reload replaces `policy`; whoever holds live things then calls :meth:`still` for each of them.
    """

    def __init__(self, policy: Policy, audit: AuditSink, clock: Clock, *, audit_required: bool = False) -> None:
        self._policy = policy
        self._allowed: dict[tuple[object, ...], tuple[Decision, float]] = {}
        """Each with the time at which it ends."""
        self._told_allowed: dict[tuple[object, ...], tuple[Decision, float]] = {}
        """The same for each resource, which the caller names."""
        self._usual: dict[tuple[object, ...], tuple[Decision, Facts, float]] = {}
        """The same with what the audit log has of it, for those who ask again and again over one connection."""
        self._told: dict[tuple[object, ...], tuple[Decision, Facts, float]] = {}
        """The same where the caller has a word in that, apart: none may crowd out what others ask."""
        self.clock = clock
        self.audit_required = audit_required
        self._audit = audit
        self._prefix = os.urandom(6).hex()
        self._numbers = itertools.count(1)

    @property
    def policy(self) -> Policy:
        """What decides now."""
        return self._policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        self._policy = policy
        self._allowed.clear()
        self._told_allowed.clear()
        self._usual.clear()
        self._told.clear()

    def ask(
        self,
        caller: Identity | Authority | None,
        action: str,
        resource: str | None = None,
        *,
        surface: str,
        access: Access | None = None,
        soon: bool = False,
        barred: Verdict | None = None,
        **facts: Any,
    ) -> "Act":
        """Decide, and write the intent (or the denial) before anything is done.

        The credential is looked up again, so that an identity that was kept for a while brings no old rights along.
        `access` is what an operation asks for; its name is the action. `facts` (remote, connection, via, …) go into
        the audit line as they are; the target of a forward goes there only where the policy says so. `barred` is what
        the door itself has found against the caller's proof; what is no operation is denied for that. When the line
        cannot be written the act is refused if `audit.required`, and otherwise allowed with an error in the log.

        With `soon` the act begins in a later round of the event loop, so that its line may be written with others; not
        if `audit.required`, which has to know at once.
        """
        usual = decision = record = None
        kept, most = self._usual, MAX_REMEMBERED
        if access is not None and isinstance(caller, Identity) and (resource is None or not _minds_resource(access)):
            usual = (caller, action, resource, access, surface, *facts.items())
            if resource is not None or facts.get("forwarded_for"):
                kept, most = self._told, MAX_TOLD
            decision, record, until = kept.get(usual, NEVER_ASKED)
            if until != math.inf and self.clock.wall() >= until:
                decision = None
        if decision is None or record is None:
            if barred is None:
                decision = self.still(caller, action, resource, access=access)
            else:
                decision = deny(caller, action, resource, self.policy, *barred)
            record = Facts(
                surface=surface,
                peer=None if caller is None else caller.id,
                action=action,
                resource=resource if access is not None or self._records(action) else None,
                decision="allow" if decision.allowed else "deny",
                rule=decision.rule,
                denial_id=decision.denial_id,
                **facts,
            )
            end = None if usual is None else self._good_until(caller, decision)
            if usual is not None and end is not None:
                _remember(kept, usual, (decision, record, end), most)
        soon = soon and not self.audit_required
        act = Act(self, decision, record, f"req_{self._prefix}{next(self._numbers):x}", soon=soon)
        if not act.begin() and decision.allowed and self.audit_required:
            reason = "the audit log cannot be written, and this node acts only on the record"
            act.refuse(deny(caller, action, resource, self.policy, RULE_AUDIT, reason))
        return act

    def _records(self, action: str) -> bool:
        """Whether the resource of `action` may be written down: targets of forwards only where an operator wants it."""
        return self._policy.record_targets or not action.startswith(TARGETED)

    def peek(
        self,
        caller: Identity | Authority | None,
        action: str,
        resource: str | None = None,
        *,
        access: Access | None = None,
    ) -> Decision:
        """The decision alone, for questions (`alknet can`) and for lists of what a caller may do.

        The same caller doing the same again is the usual case, and under one policy the answer is the same as long as
        no time is part of it: it is remembered until the policy changes.
        """
        question, kept, most = self._question(caller, action, resource, access)
        if question is None:
            return authorize(caller, action, resource, Context(self._policy, self.clock.wall()), access=access)
        known = kept.get(question)
        if known is not None and (known[1] == math.inf or self.clock.wall() < known[1]):
            return known[0]
        decision = authorize(caller, action, resource, Context(self._policy, self.clock.wall()), access=access)
        until = self._good_until(caller, decision)
        if until is not None:  # a yes; what it says of the resource is said of this one
            _remember(kept, question, (decision, until), most)
        return decision

    def _question(
        self, caller: Identity | Authority | None, action: str, resource: str | None, access: Access | None
    ) -> tuple[tuple[object, ...] | None, dict[tuple[object, ...], tuple[Decision, float]], int]:
        """What a decision depends on besides policy and time, where it is remembered, and with how many others; None
        for what is not remembered."""
        if isinstance(caller, Identity):
            if access is not None:
                if resource is None or not _minds_resource(access):
                    return (caller, action, access), self._allowed, MAX_REMEMBERED
            elif (known := ACTIONS.get(action)) is not None:
                if resource is None or not known.minds_resource:
                    return (caller, action), self._allowed, MAX_REMEMBERED
                if len(resource) <= MAX_TOLD_CHARS:
                    return (caller, action, resource), self._told_allowed, MAX_TOLD
        return None, self._allowed, 0

    def _good_until(self, caller: Identity | Authority | None, decision: Decision) -> float | None:
        """When a yes ends under this policy, in seconds since 1970; None for what is not to be remembered."""
        if not isinstance(caller, Identity) or not decision.allowed:
            return None
        peer = self._policy.peers.get(caller.id)
        if peer is None:
            return None
        return min((end for end in (peer.expires_at, caller.expires_at) if end is not None), default=math.inf)

    def still(
        self,
        caller: Identity | Authority | None,
        action: str,
        resource: str | None = None,
        *,
        access: Access | None = None,
    ) -> Decision:
        """Whether what was allowed before is allowed under the current policy, credential included."""
        if isinstance(caller, Identity):
            renewed = self.policy.renew(caller)
            if renewed is None and caller.id in self.policy.peers:
                why = None if caller.certificate is None else self.policy.lookup_principal(caller.certificate)
                if isinstance(why, tuple):
                    return deny(caller, action, resource, self.policy, *why)
                reason = f"the credential no longer belongs to peer {caller.id!r}"
                return deny(caller, action, resource, self.policy, RULE_CREDENTIAL, reason)
            caller = renewed or caller
        return self.peek(caller, action, resource, access=access)

    def changed(self, identity: Identity, action: str, resource: str | None) -> Decision:
        """The denial of a live thing that is still allowed, but would now be done in another way."""
        reason = f"the settings of peer {identity.id!r} changed, and this would now be run otherwise"
        return deny(identity, action, resource, self.policy, RULE_CHANGED, reason)

    def beyond(
        self, caller: Identity | Authority | None, action: str, resource: str | None, rule: str, reason: str
    ) -> Decision:
        """The denial of what an allowed act turned out to reach for. Only the act itself can see that, so `rule` is no
        part of the policy; may be called from any thread."""
        return deny(caller, action, resource, self.policy, rule, reason)

    def note(self, record: Mapping[str, Any], *, more: Mapping[str, Any] = NOTHING, soon: bool = False) -> bool:
        """Write one audit record as it is; False (and an error in the log) when that fails."""
        try:
            self._audit.write(record, more=more, soon=soon)
        except AuditError as exc:
            log.error("audit line lost: %s", exc)
            return False
        return True


class Act:
    """One attempted act: its decision, and the way to report how it ended."""

    def __init__(self, gate: Gate, decision: Decision, record: Facts, request_id: str, *, soon: bool = False) -> None:
        self.decision = decision
        self.request_id = request_id
        self._gate = gate
        self._record = record
        self._soon = soon
        self._started = gate.clock.monotonic()
        self._over = not decision.allowed

    def begin(self) -> bool:
        """Write the first line: the intent, or the denial. Whether that could be done."""
        if self._over:
            more = {"request_id": self.request_id, "phase": "outcome", "outcome": "denied"}
        else:
            more = {"request_id": self.request_id, "phase": "intent"}
        return self._gate.note(self._record, more=more, soon=self._soon)

    def refuse(self, denial: Decision) -> None:
        """Turn the act down after all, before it has begun."""
        self.decision = denial
        self._over = True

    def narrow(self, resource: str) -> None:
        """Have the outcome line say what the act turned out to be about; what is not recorded stays so."""
        if self._record["resource"] is not None:
            self._record = Facts(self._record, resource=resource)

    def done(self, outcome: str, **facts: Any) -> None:
        """Write the outcome line, once; later calls and calls on a denied act do nothing."""
        if self._over:
            return
        self._over = True
        elapsed_ms = round((self._gate.clock.monotonic() - self._started) * 1000, 3)
        more = {"request_id": self.request_id, "phase": "outcome", "outcome": outcome, "duration_ms": elapsed_ms}
        record = {**self._record, **facts} if facts else self._record  # facts may say otherwise than the intent did
        self._gate.note(record, more=more, soon=self._soon)


def _minds_resource(access: Access) -> bool:
    """Whether a yes depends on the resource, which is else no more than recorded."""
    return access.resource_type is not None or access.rules is not None


K = TypeVar("K")
V = TypeVar("V")


def _remember(kept: dict[K, V], key: K, value: V, most: int) -> None:
    if len(kept) >= most:
        kept.clear()
    kept[key] = value
