"""A Python module with a typed function for each of a node's operations, made of what ``services/schema`` answers.

The module needs nothing but alknet and the standard library. It may be made of a stranger's words: these stand in it
as literals and docstrings only (`alknet.call.typed_source`), and everything has a bound.
"""

import builtins
import inspect
import keyword
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard

from alknet._version import __version__
from alknet.call import typed_base
from alknet.call.specs import MAX_NAME_CHARS, Kind, check_code, is_name
from alknet.call.typed_names import Names, allocate
from alknet.call.typed_schemas import Types
from alknet.call.typed_source import class_name, docstring, identifiers, literal, shortened
from alknet.call.typed_statements import PARAMETERS, SHADOWS, error_class, method, type_statement
from alknet.call.typed_types import Inputs, Type
from alknet.errors import InvalidInputError, UsageError

__all__ = ["client_module"]

MAX_OPERATIONS: Final = 10_000
MAX_MODULE_CHARS: Final = 64 * 1024 * 1024
MAX_ERRORS: Final = 100
"""Of one operation; the others are plain `CallError`s."""
MAX_NODE_CHARS: Final = 200
ALWAYS: Final = ("Any", "Final", "Generic", "Protocol", "Self", "TypeVar")
"""Of `typing`, what every module needs."""
PERHAPS: Final = ("Literal", "NotRequired", "TypeAlias", "TypedDict")
CLIENT: Final = "Client"
COPIED: Final = "# --- from here on it is copied ---\n"
MEMBERS: Final = frozenset((*ALWAYS, *PERHAPS, *typed_base.__all__, "builtins"))
"""What a method's annotations may name, so that no method of the same class can be called so."""
RESERVED: Final = frozenset((*dir(builtins), *keyword.kwlist, *MEMBERS, *PARAMETERS, CLIENT, "Awaitable", "Sequence"))
HOW: Final = """
Made by `{command}` (alknet {version}); make it again rather than edit it.

    async with alknet.connect({target}) as peer:
        api = Client(peer)

What is answered is taken at the node's word. It is plain data: objects are dictionaries, tuples arrive as lists.
`timeout` is in seconds. Errors that an operation declares have classes here; all others are `alknet.CallError`.
"""


@dataclass(slots=True)
class _Failure:
    """An error that an operation declares, and the names that its class would like, the best one first."""

    code: str
    note: str
    details: Type | None
    wanted: tuple[str, str]


@dataclass(slots=True)
class _Described:
    """What a description says of an operation, as far as it makes sense."""

    spec: dict[str, Any]
    inputs: Inputs
    output: Type
    failures: list[_Failure]

    def types(self) -> "Iterator[Type]":
        """Every type that its method and its errors write."""
        yield from (one.type for one in self.inputs.fields)
        details = (one.details for one in self.failures)
        yield from (one for one in (self.inputs.others, self.inputs.whole, self.output, *details) if one is not None)


@dataclass(slots=True)
class _Space:
    """The operations below one name, by the next segment of theirs; `operation` is what has just this name."""

    name: str
    operation: _Described | None = None
    children: "dict[str, _Space]" = field(default_factory=dict)

    def walk(self) -> "Iterator[_Space]":
        """What has something below it, itself last."""
        for _, child in sorted(self.children.items()):
            if child.children:
                yield from child.walk()
        yield self

    def members(self) -> dict[str, str]:
        """What each segment below it is called in Python."""
        return identifiers(self.children, MEMBERS)


def client_module(
    descriptions: Sequence[Any], *, node: str, via: str | None = None, command: str = "alknet ops PEER --python"
) -> str:
    """The source of a module that calls these operations; the same for the same descriptions in any order.

    `node` and `via` are how one connects to it, and `command` is what made the module. Raises `InvalidInputError` for
    what describes no operations.
    """
    if len(descriptions) > MAX_OPERATIONS:
        raise InvalidInputError(f"the peer describes more than {MAX_OPERATIONS} operations")
    types = Types()
    root = _Space("")
    for spec in sorted(map(_checked, descriptions), key=lambda one: str(one["name"])):
        space = root
        for segment in spec["name"].split("/"):
            name = f"{space.name}/{segment}".removeprefix("/")
            space = space.children.setdefault(segment, _Space(name))
        if space.operation is not None:
            raise InvalidInputError(f"the peer describes the operation {space.name} twice")
        space.operation = _read(spec, types)
    text = _Module(root, types).source(node, via, command)
    if len(text) > MAX_MODULE_CHARS:
        raise InvalidInputError(f"the peer's operations make a module of more than {MAX_MODULE_CHARS} characters")
    return text


# --- what is described --------------------------------------------------------------------------------------------


def _checked(spec: Any) -> dict[str, Any]:
    """A description that names an operation and its kind."""
    if isinstance(spec, dict):
        name = spec.get("name")
        if isinstance(name, str) and is_name(name) and spec.get("kind") in list(Kind):
            return spec
        if isinstance(name, str):
            raise InvalidInputError(f"the peer's description of {shortened(name, MAX_NAME_CHARS)!r} makes no sense")
    raise InvalidInputError("what the peer says of an operation makes no sense")


def _read(spec: dict[str, Any], types: Types) -> _Described:
    prefix = class_name(spec["name"])
    role = "Item" if spec["kind"] == Kind.SUBSCRIPTION else "Output"
    inputs = types.inputs(spec.get("input_schema"), prefix)
    output = types.output(spec.get("output_schema"), prefix, role)
    failures: dict[str, _Failure] = {}
    errors = spec.get("errors")
    for error in errors[:MAX_ERRORS] if isinstance(errors, list) else ():
        code = error.get("code") if isinstance(error, dict) else None
        if not _is_declarable(code) or code in failures:
            continue
        own = class_name(code.lower())
        schema, note = error.get("schema"), error.get("description")
        details = types.output(schema, prefix, f"{own}Details") if isinstance(schema, dict) else None
        failures[code] = _Failure(code, note if isinstance(note, str) else "", details, (own, prefix + own))
    return _Described(spec, inputs, output, [failures[code] for code in sorted(failures)])


def _is_declarable(code: Any) -> TypeGuard[str]:
    try:
        check_code(code, None)
    except UsageError:
        return False
    return True


# --- the module ---------------------------------------------------------------------------------------------------


class _Module:
    """The statements of a module."""

    def __init__(self, root: _Space, types: Types) -> None:
        self._spaces = list(root.walk())
        taken = set(RESERVED).union(*(space.members().values() for space in self._spaces))
        operations = [one.operation for space in self._spaces for _, one in sorted(space.children.items())]
        roots = [type_ for one in operations if one is not None for type_ in one.types()]
        self._names = Names(types.declared, roots)
        failures: dict[tuple[str, Type | None], _Failure] = {}
        for failure in (failure for one in operations if one is not None for failure in one.failures):
            known = failures.setdefault(self._key(failure), failure)
            known.note = known.note or failure.note
        self._failures = failures
        self._errors = dict(zip(failures, allocate([one.wanted for one in failures.values()], taken), strict=True))
        self._names.give(taken)
        below = [space.name for space in self._spaces if space is not root]
        homes = allocate([(f"{class_name(name)}Operations",) for name in below], taken)
        self._homes = {**dict(zip(below, homes, strict=True)), "": CLIENT}

    def source(self, node: str, via: str | None, command: str) -> str:
        names = self._names
        statements = [type_statement(key, names) for key in names.order()]
        for key, name in sorted(self._errors.items(), key=lambda one: one[1]):
            statements.append(error_class(name, key[0], self._failures[key].note, key[1], names))
        statements += [self._class(space) for space in self._spaces]
        own = [*typed_base.__all__, CLIENT, *self._homes.values(), *self._errors.values(), *names.names.values()]
        offered = [f'    "{name}",' for name in sorted(set(own), key=lambda one: (not one.isupper(), one))]
        shown = shortened(node, MAX_NODE_CHARS)
        target = literal(shown) + ("" if via is None else f", via={literal(shortened(via, MAX_NODE_CHARS))}")
        said = HOW.format(command=command, version=__version__, target=target).strip()
        head = [*docstring(f"Operations of the node {shown}, as typed functions.\n\n{said}"), ""]
        head += ["# mypy: disable-error-code=no-any-return", "", *self._imports()]
        head += ["", "__all__ = [", *offered, "]", ""]
        base = inspect.getsource(typed_base).partition(COPIED)[2].strip()
        return "\n\n\n".join(["\n".join([*head, base]), *map("\n".join, statements)]) + "\n"

    def _imports(self) -> list[str]:
        typing = sorted((*ALWAYS, *(name for name in PERHAPS if name in self._names.used)), key=str.lower)
        return [
            *(["import builtins"] if "builtins" in self._names.used else []),
            "from collections.abc import Awaitable, Sequence",
            f"from typing import {', '.join(typing)}",
            "",
            "from alknet import CallError",
        ]

    def _class(self, space: _Space) -> list[str]:
        members = space.members()
        shadowed = SHADOWS.intersection(members.values())
        what = f"``{space.name}/*``" if space.name else "What a caller may call."
        lines = [f"class {self._homes[space.name]}(_Namespace):", *docstring(what, 4)]
        below = [(members[segment], child) for segment, child in sorted(space.children.items()) if child.children]
        if below:
            lines += ["", "    def __init__(self, caller: Caller) -> None:", "        super().__init__(caller)"]
            lines += [f"        self.{name} = {self._homes[child.name]}(caller)" for name, child in below]
        if space.operation is not None:
            lines += ["", *self._method("__call__", space.operation, shadowed)]
        for segment, child in sorted(space.children.items(), key=lambda one: members[one[0]]):
            if child.operation is not None and not child.children:
                lines += ["", *self._method(members[segment], child.operation, shadowed)]
        return lines

    def _method(self, name: str, one: _Described, shadowed: frozenset[str]) -> list[str]:
        raised = [(self._errors[self._key(failure)], failure.note) for failure in one.failures]
        return method(name, one.spec, one.inputs, one.output, raised, self._names, shadowed)

    def _key(self, failure: _Failure) -> tuple[str, Type | None]:
        return failure.code, None if failure.details is None else self._names.settled(failure.details)
