"""The statements of a typed client: a type, an error's class, an operation's method, as their lines."""

from collections.abc import Collection, Sequence
from typing import Any, Final

from alknet.call.specs import Kind
from alknet.call.typed_names import Names
from alknet.call.typed_source import LINE_CHARS, docstring, identifier, identifiers, literal, shortened
from alknet.call.typed_types import ANY, Alias, Choice, Field, Inputs, Plain, Record, Type, Union, union

__all__ = ["PARAMETERS", "SHADOWS", "error_class", "method", "type_statement"]

PARAMETERS: Final = frozenset({"self", "timeout"})
"""What every method has; an input of that name gets another one."""
SHADOWS: Final = frozenset({"bool", "bytes", "dict", "float", "int", "list", "str", "tuple"})
"""Built-in names that annotations use, and that methods may have."""
MAX_SCOPES: Final = 20
MAX_SCOPE_CHARS: Final = 200


# --- types --------------------------------------------------------------------------------------------------------


def type_statement(key: int, names: Names) -> list[str]:
    """The statement that makes a named type."""
    body, name = names.bodies[key], names.names[key]
    if isinstance(body, Alias):
        lines = _alias(name, body.type, names)
        names.written(key, is_text=not names.is_written(body.type))
        return lines
    names.used.add("TypedDict")
    lines = _record(name, body, names)
    names.written(key)
    return lines


def _alias(name: str, type_: Type, names: Names) -> list[str]:
    names.used.add("TypeAlias")
    begin = f"{name}: TypeAlias = "
    text = names.annotation(type_)
    if len(begin) + len(text) > LINE_CHARS and names.is_written(type_):
        if isinstance(type_, Choice):
            return [f"{begin}Literal[", *(f"    {value}," for value in type_.values), "]"]
        if isinstance(type_, Union):
            first, *others = (names.text(part) for part in type_.parts)
            return [f"{begin}(", f"    {first}", *(f"    | {one}" for one in others), ")"]
    return [begin + text]


def _record(name: str, record: Record, names: Names) -> list[str]:
    keys = [field.name for field in record.fields]
    if any(identifier(key) != key or names.means(key) for key in keys):
        # As a call, where any text can be a key.
        fields = [f"        {literal(one.name)}: {_annotation(one, names)}," for one in record.fields]
        lines = [f"{name} = TypedDict(", f'    "{name}",', "    {", *fields, "    },", ")"]
        return [*lines, *docstring(record.note)]
    lines = [f"class {name}(TypedDict):"]
    if said := docstring(record.note, 4):
        lines += [*said, ""]
    for one in record.fields:
        lines += [f"    {one.name}: {_annotation(one, names, SHADOWS.intersection(keys))}", *docstring(one.note, 4)]
    return lines


def _annotation(field: Field, names: Names, shadowed: Collection[str] = ()) -> str:
    text = names.annotation(field.type, shadowed)
    if field.is_required:
        return text
    names.used.add("NotRequired")
    return f"NotRequired[{text}]"


def error_class(name: str, code: str, note: str, details: Type | None, names: Names) -> list[str]:
    """The class of a declared error. Its details may be missing, whatever is declared."""
    lines = [f"class {name}(CallError):"]
    if said := docstring(note, 4):
        lines += [*said, ""]
    lines.append(f"    code = {literal(code)}")
    if details is not None:
        lines.append(f"    details: {names.annotation(union([details, Plain('None')]))}")
    return lines


# --- methods ------------------------------------------------------------------------------------------------------


def method(
    name: str,
    spec: dict[str, Any],
    inputs: Inputs,
    output: Type,
    raised: Sequence[tuple[str, str]],
    names: Names,
    shadowed: Collection[str],
) -> list[str]:
    """The method that calls an operation. `raised` are the classes of its errors, and what is said of them."""
    is_stream = spec["kind"] == Kind.SUBSCRIPTION
    written = _Parameters(inputs, names, shadowed)
    answer = names.annotation(names.settled(output), shadowed)
    returned, define = (f"Subscription[{answer}]", "def") if is_stream else (answer, "async def")
    lines = _fitted(f"    {define} {name}(", written.parameters, f") -> {returned}:")
    lines += docstring(_said(spec, written.notes, raised), 8)
    call = "return self._subscribe(" if is_stream else "return await self._call("
    arguments = [literal(spec["name"]), written.value, "timeout"]
    if raised:
        arguments.append(f"({', '.join(kind for kind, _ in raised)}{',' if len(raised) == 1 else ''})")
    for line in _fitted(f"        {call}", arguments, ")"):
        # A dictionary that does not fit, either, has a line for each key.
        if line.strip() == f"{written.value}," and len(line) > LINE_CHARS:
            lines += _exploded("            {", written.items, "},")
        elif line.startswith("            (") and len(line) > LINE_CHARS:
            lines += _exploded("            (", [kind for kind, _ in raised], "),")
        else:
            lines.append(line)
    return lines


class _Parameters:
    """An operation's inputs as a method's parameters, what is said of each, and the value that they make."""

    def __init__(self, inputs: Inputs, names: Names, shadowed: Collection[str]) -> None:
        self.notes: list[tuple[str, str]] = []
        self.items: list[str] = []
        last = "timeout: float | None = None"
        if inputs.whole is not None:
            whole = names.settled(inputs.whole)
            default = " = None" if whole == ANY else ""
            self.parameters = ["self", f"value: {names.annotation(whole, shadowed)}{default}", "/", "*", last]
            self.value = "value"
            return
        known = identifiers([field.name for field in inputs.fields], PARAMETERS)
        self.parameters = ["self", "*"]
        for field in inputs.fields:
            name = known[field.name]
            default = "" if field.is_required else " = UNSET"
            self.parameters.append(f"{name}: {names.annotation(names.settled(field.type), shadowed)}{default}")
            self.items.append(f"{literal(field.name)}: {name}")
            real = "" if name == field.name else f"The input {literal(field.name)}."
            if said := f"{real} {field.note}".strip():
                self.notes.append((name, said))
        self.parameters.append(last)
        if inputs.others is not None:
            others = identifiers([*known.values(), ""], PARAMETERS)[""]
            self.parameters.append(f"**{others}: {names.annotation(names.settled(inputs.others), shadowed)}")
            self.items.insert(0, f"**{others}")
        self.value = f"{{{', '.join(self.items)}}}"


def _fitted(begin: str, parts: Sequence[str], end: str) -> list[str]:
    """A bracket on one line if it fits, else with a line for each part."""
    line = begin + ", ".join(parts) + end
    return [line] if len(line) <= LINE_CHARS else _exploded(begin, parts, end)


def _exploded(begin: str, parts: Sequence[str], end: str) -> list[str]:
    margin = " " * (len(begin) - len(begin.lstrip()))
    return [begin, *(f"{margin}    {part}," for part in parts), margin + end]


def _said(spec: dict[str, Any], notes: Sequence[tuple[str, str]], raised: Sequence[tuple[str, str]]) -> str:
    """The docstring of a method."""
    paragraphs = [_text(spec, "summary"), _text(spec, "description")]
    if notes:
        paragraphs.append("\n".join(["Args:", *(f"    {name}: {note}" for name, note in notes)]))
    if raised:
        paragraphs.append("\n".join(["Raises:", *(f"    {kind}: {' '.join(note.split())}" for kind, note in raised)]))
    is_change = spec["kind"] == Kind.MUTATION
    marks = [word for word in ("idempotent", "destructive") if is_change and spec.get(word) is True]
    words = ", ".join([str(spec["kind"]).capitalize(), *marks])
    paragraphs.append(f"{words}. {_access(spec.get('access'))}".strip())
    return "\n\n".join(one for one in paragraphs if one)


def _access(access: Any) -> str:
    """Who may call it."""
    if not isinstance(access, dict):
        return ""
    if access.get("public") is True:
        return "For anybody."
    needed = _scopes(access.get("required_scopes"))
    if any_of := _scopes(access.get("required_scopes_any")):
        needed.append(" or ".join(any_of))
    return f"Scope: {' and '.join(needed)}." if needed else ""


def _scopes(value: Any) -> list[str]:
    found = value[:MAX_SCOPES] if isinstance(value, list) else []
    return [shortened(scope, MAX_SCOPE_CHARS) for scope in found if isinstance(scope, str)]


def _text(spec: dict[str, Any], key: str) -> str:
    found = spec.get(key)
    return found.strip() if isinstance(found, str) else ""
