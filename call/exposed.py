"""Operations of peers as operations of this node: named under a prefix, asking for a scope of this node, and routed
among all peers that expose the same name.

No I/O; rebuilt whole from what the peers offer. An operation that stays what it was stays the same object.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Final

from alknet.access import Access, Authority
from alknet.call.forwarding import RoutedForward
from alknet.call.from_call import OWN_NAMESPACE
from alknet.call.operations import Forward, Operation, Style
from alknet.call.overlays import Overlays
from alknet.call.routing import Routes, Routing
from alknet.call.specs import Kind, OperationSpec, is_name

__all__ = ["NO_TERMS", "Exposed", "Exposure", "MeshSettings", "Terms", "agree", "forwarded"]


@dataclass(frozen=True, slots=True)
class Exposure:
    """Under which prefix a peer's operations are operations of this node, and the scope of this node that they ask for;
    None means the operation's own name here, with ``:`` for ``/``."""

    prefix: str
    scope: str | None = None

    def scope_of(self, name: str) -> str:
        """The scope that the operation which is `name` here asks for."""
        return self.scope or name.replace("/", ":")


@dataclass(frozen=True, slots=True)
class Terms:
    """What the configuration lets one peer bring: names that `offers` (globs) match, and how they are exposed."""

    offers: tuple[str, ...] = ()
    expose: Exposure | None = None

    def wants(self, name: str) -> bool:
        return not name.startswith(OWN_NAMESPACE) and any(fnmatchcase(name, glob) for glob in self.offers)


NO_TERMS: Final = Terms()


@dataclass(frozen=True, slots=True)
class MeshSettings:
    """What the configuration says about peers that bring operations."""

    routing: Routing = Routing.ROUND_ROBIN
    terms: Mapping[str, Terms] = field(default_factory=dict)
    """Of every peer that the node knows."""


class Exposed:
    """The exposed operations by name, and the peers behind each."""

    def __init__(self, overlays: Overlays, routes: Routes) -> None:
        self.operations: dict[str, Operation] = {}
        self.left_out: dict[str, tuple[str, ...]] = {}
        """Names that a peer offers and does not serve here, because it is not agreed on what is meant by them."""
        self._overlays = overlays
        self._routes = routes
        self._groups: dict[str, tuple[str, ...]] = {}
        """In the order in which the peers came first."""

    def peers(self, name: str) -> tuple[str, ...]:
        """Who serves the exposed operation now."""
        return self._groups.get(name, ())

    def rebuild(self, terms: Mapping[str, Terms]) -> bool:
        """Expose what the peers offer now; whether any operation is another one than before."""
        groups: dict[str, list[str]] = {}
        built: dict[str, Operation] = {}
        left_out: dict[str, list[str]] = {}
        for peer in self._overlays.peers:
            expose = terms.get(peer, NO_TERMS).expose
            if expose is None:
                continue
            for remote, spec in self._overlays.operations(peer).items():
                name = f"{expose.prefix}/{remote}"
                first = built.get(name)
                if first is None:
                    if not is_name(name):
                        continue  # too long for a name
                    built[name] = self._build(name, remote, spec, expose.scope_of(name))
                elif isinstance(first.forward, _Standing) and not first.forward.agrees_with(spec):
                    # Callers of this name expect another kind, or were not asked for what this one asks for.
                    left_out.setdefault(peer, []).append(name)
                    continue
                groups.setdefault(name, []).append(peer)
        self._groups = {name: tuple(peers) for name, peers in groups.items()}
        self.left_out = {peer: tuple(names) for peer, names in left_out.items()}
        is_same = built.keys() == self.operations.keys() and all(
            operation is self.operations[name] for name, operation in built.items()
        )
        self.operations = built
        return not is_same

    def withdraw(self, peer: str) -> None:
        """Send nothing to `peer` any more, which is gone; `rebuild` does the rest."""
        for name, peers in self._groups.items():
            if peer in peers:
                self._groups[name] = tuple(one for one in peers if one != peer)

    def _build(self, name: str, remote: str, spec: OperationSpec, scope: str) -> Operation:
        known = self.operations.get(name)
        if known is not None and isinstance(known.forward, _Standing) and known.forward.stands_for(spec, scope):
            return known
        theirs = spec.access
        access = Access(  # what the other node asks for comes on top
            required_scopes=tuple(dict.fromkeys((scope, *theirs.required_scopes))),
            required_scopes_any=theirs.required_scopes_any,
            resource_type=theirs.resource_type,
            resource_action=theirs.resource_action,
        )
        forward = _Standing(self, name, remote, spec, scope)
        return forwarded(replace(spec, name=name, access=access), forward)

    def forward(self, name: str, remote: str) -> RoutedForward:
        return RoutedForward(self._overlays, remote, lambda: self.peers(name), lambda: self._routes.of(name))


class _Standing:
    """Forwards calls of an exposed operation, and knows what it was made of."""

    def __init__(self, exposed: Exposed, name: str, remote: str, spec: OperationSpec, scope: str) -> None:
        forward = exposed.forward(name, remote)
        self.call, self.items, self.reaches = forward.call, forward.items, forward.reaches
        self._spec = spec
        self._scope = scope

    def agrees_with(self, other: OperationSpec) -> bool:
        return agree(self._spec, other)

    def stands_for(self, spec: OperationSpec, scope: str) -> bool:
        return (self._spec is spec or self._spec == spec) and self._scope == scope


def agree(one: OperationSpec, other: OperationSpec) -> bool:
    """Whether what was decided about a call of one holds for the other: peers do not speak for each other."""
    return _decides(one) == _decides(other)


def _decides(spec: OperationSpec) -> tuple[Any, ...]:
    """What the node in between goes by: how it is called, by whom, whether again, and what of it is written down."""
    access = replace(spec.access, public=False)
    return spec.kind, access, spec.idempotent, spec.resource_id_path, frozenset(spec.secret_inputs)


def forwarded(spec: OperationSpec, forward: Forward) -> Operation:
    """An operation that runs elsewhere. It is a leaf: it has no authority, and calls nothing."""
    is_stream = spec.kind is Kind.SUBSCRIPTION
    return Operation(
        spec=spec,
        handler=forward.items if is_stream else forward.call,
        style=Style.ASYNC_STREAM if is_stream else Style.ASYNC,
        parse_input=_as_it_is,
        render_output=_as_it_is,
        authority=Authority(spec.name),
        forward=forward,
    )


def _as_it_is(value: Any) -> Any:
    return value
