"""From annotations to JSON Schemas (2020-12), and to the functions that check inputs and outputs by them; pydantic's.

Inputs are read leniently (``"5"`` is an integer where one is wanted: HTTP queries have nothing but text), and no
message repeats a value of them, because it may be a secret. What is rendered is plain data that every codec writes in
the same way; bytes stay bytes, as msgpack has them and the JSON codec knows what to do.
"""

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, Final, NotRequired, get_args

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import PydanticUndefined, SchemaError, core_schema, to_jsonable_python

from alknet.call.binary import OUTPUT, Bytes, to_base64
from alknet.call.errors import CallError
from alknet.call.specs import ErrorSpec
from alknet.errors import UsageError

if sys.version_info >= (3, 12):
    from typing import TypedDict
else:  # pydantic cannot see all of an older one
    from typing_extensions import TypedDict

__all__ = ["Bytes", "InputShape", "OutputError", "build_input", "build_output", "check_details"]

MAX_MISTAKES: Final = 20
"""Mistakes in an input that are told one by one."""
MAX_LOCATED: Final = 1000
"""More mistakes than this are only counted: a body can be made to have 100,000, which take a second to describe."""
MAX_PATH_PARTS: Final = 64
MAX_PATH_CHARS: Final = 64
"""Of one part of a path, which can be a key that the caller made up."""


class OutputError(ValueError):
    """A handler answered something else than its operation declares. The message says where, and repeats no value."""


# --- JSON Schemas -------------------------------------------------------------------------------------------------


class _PlainBytesError(Exception):
    """A type has bytes that JSON could not carry."""


class _Generator(GenerateJsonSchema):
    """No title where it only repeats a field's name; no plain bytes."""

    has_any = False

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def bytes_schema(self, schema: core_schema.BytesSchema) -> JsonSchemaValue:
        raise _PlainBytesError

    def any_schema(self, schema: core_schema.AnySchema) -> JsonSchemaValue:
        self.has_any = True
        return super().any_schema(schema)


def _adapter(kind: Any, what: str, *, output: bool) -> tuple[TypeAdapter[Any], dict[str, Any], bool]:
    """(its adapter, its JSON Schema, whether something of it may be bytes when it is rendered)."""
    generator = _Generator(by_alias=True)
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
        schema = generator.generate(adapter.core_schema, mode="serialization" if output else "validation")
    except _PlainBytesError:
        raise UsageError(
            f"{what} has bytes, which JSON cannot carry", hint="annotate them as alknet.Bytes: base64 in JSON"
        ) from None
    except (PydanticUserError, SchemaError, NameError, TypeError) as exc:
        reason = str(exc).partition("\n")[0]
        raise UsageError(
            f"{what} has a type that callers cannot be told: {reason}",
            hint="use types that JSON can hold: numbers, text, lists, dicts, dataclasses, pydantic models",
        ) from exc
    return adapter, schema, generator.has_any or _is_open(schema)


def _is_open(schema: Any) -> bool:
    """Whether bytes, or fields of no known type, are in it."""
    if isinstance(schema, dict):
        if "contentEncoding" in schema or schema.get("additionalProperties") is True:
            return True
        schema = schema.values()
    elif not isinstance(schema, list):
        return False
    return any(_is_open(part) for part in schema)


# --- inputs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InputShape:
    """What a function takes. `parse` makes keyword arguments of an input, or raises INVALID_INPUT; `fields` maps each
    parameter to what callers call it (its alias, if it has one)."""

    schema: dict[str, Any]
    parse: Callable[[Any], dict[str, Any]]
    fields: Mapping[str, str]


def build_input(parameters: Sequence[inspect.Parameter], *, secrets: Iterable[str] = ()) -> InputShape:
    """The shape of an input with these parameters as its fields; `UsageError` if they have types that cannot be told.

    Nothing is said about the values of the parameters in `secrets`, not even what is wrong with them.
    """
    fields = {parameter.name: _field_name(parameter) for parameter in parameters}
    kind = _typed_dict(parameters)
    try:
        adapter, schema, _ = _adapter(kind, "an input", output=False)
    except UsageError:
        for parameter in parameters:
            _adapter(_typed_dict([parameter]), f"parameter {parameter.name!r}", output=False)
        raise
    schema.pop("title", None)
    schema.setdefault("properties", {})
    validate = adapter.validator.validate_python
    for parameter in parameters:
        if parameter.default is not inspect.Parameter.empty:
            _show_default(schema["properties"][fields[parameter.name]], fields[parameter.name], parameter, validate)
    hidden = frozenset(fields[name] for name in secrets if name in fields)

    def parse(value: Any) -> dict[str, Any]:
        try:
            return validate({} if value is None else value)  # type: ignore[no-any-return]
        except ValidationError as exc:
            # Without the cause: it holds the input.
            raise _invalid_input(exc, value, hidden) from None

    return InputShape(schema, parse, fields)


_TYPED_DICT: Final[Any] = TypedDict
"""For type checkers the fields of one must stand in the source."""


def _typed_dict(parameters: Sequence[inspect.Parameter]) -> Any:
    fields = {
        p.name: p.annotation if p.default is inspect.Parameter.empty else NotRequired[p.annotation] for p in parameters
    }
    kind = _TYPED_DICT("Input", fields)
    kind.__pydantic_config__ = ConfigDict(extra="forbid", hide_input_in_errors=True)
    return kind


def _field_name(parameter: inspect.Parameter) -> str:
    if isinstance(parameter.default, FieldInfo):
        raise UsageError(
            f"parameter {parameter.name!r} has a Field as its default",
            hint=f"write {parameter.name}: Annotated[TYPE, Field(…)] and the default itself after it",
        )
    name = parameter.name
    for extra in get_args(parameter.annotation)[1:] if hasattr(parameter.annotation, "__metadata__") else ():
        if not isinstance(extra, FieldInfo):
            continue
        if extra.default is not PydanticUndefined or extra.default_factory is not None:
            raise UsageError(
                f"parameter {name!r} has its default in Field(…)", hint="give the default to the parameter itself"
            )
        alias = extra.validation_alias if extra.validation_alias is not None else extra.alias
        if alias is not None and not isinstance(alias, str):
            raise UsageError(f"parameter {parameter.name!r} has several names", hint="give it one alias, a str")
        name = alias or name
    return name


def _show_default(schema: dict[str, Any], field: str, parameter: inspect.Parameter, validate: Any) -> None:
    """Tell callers the default if it is one that they could have given."""
    try:
        given = parameter.default
        default = to_base64(given) if isinstance(given, bytes) else to_jsonable_python(given, by_alias=True)
        json.dumps(default, allow_nan=False)
        validate({field: default})
    except ValidationError as exc:
        if any(error["loc"][:1] == (field,) for error in exc.errors(include_url=False)):
            return
    except (ValueError, TypeError):
        return
    schema["default"] = default


def _invalid_input(exc: ValidationError, value: Any, hidden: frozenset[str]) -> CallError:
    mistakes, count = _mistakes(exc, value, hidden)
    more = f" (and {count - 1} more)" if count > 1 else ""
    return CallError("INVALID_INPUT", _sentence("input", mistakes[0]) + more, details=mistakes)


# --- outputs ------------------------------------------------------------------------------------------------------

_SAID_BY_PYDANTIC: Final = re.compile(r"Expected `([^`]{1,100})`[^\[`]*\[field_name='(\w+)'")
_SCALARS: Final = frozenset({str, int, float, bool, NoneType, bytes})


def build_output(annotation: Any) -> tuple[dict[str, Any], Callable[[Any], Any]]:
    """(the JSON Schema of an answer, what makes plain data of it or raises `OutputError`)."""
    if annotation is Any:
        return {}, _as_it_is
    adapter, schema, is_open = _adapter(NoneType if annotation is None else annotation, "the answer", output=True)
    validate, dump = adapter.validator.validate_python, adapter.serializer.to_python

    def render(value: Any) -> Any:
        try:
            # An object is taken as its class made it, and compared with its own types when it is taken apart.
            found = validate(value, context=OUTPUT)
            if not is_open:
                return dump(found, mode="json", by_alias=True, warnings="error")
            return _plain(dump(found, mode="python", by_alias=True, warnings="error"))
        except ValidationError as exc:
            mistakes, _ = _mistakes(exc, value, frozenset())
            raise OutputError(_sentence("output", mistakes[0])) from None
        except ValueError as exc:
            known = _SAID_BY_PYDANTIC.search(str(exc))
            what = f"{known[2]} should be {known[1]}" if known else f"a {type(value).__name__} cannot be taken apart"
            raise OutputError(f"output: {what}") from None
        except RecursionError:
            raise OutputError(f"output: a {type(value).__name__} is nested too deeply, or holds itself") from None

    if annotation in (str, int, float, bool, NoneType, None, Bytes):
        return schema, _render_exactly(
            bytes if annotation == Bytes else NoneType if annotation is None else annotation, render
        )
    return schema, _render_dict(render) if annotation == dict[str, Any] else render


def _as_it_is(value: Any) -> Any:
    return value


def _render_exactly(kind: type, render: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: value if type(value) is kind else render(value)


def _render_dict(render: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def shallow(value: Any) -> Any:
        if type(value) is not dict:
            return render(value)
        for key in value:
            if type(key) is not str:
                return render(value)
        return value

    return shallow


def _plain(value: Any) -> Any:
    """What pydantic writes in JSON, except that bytes stay what they are."""
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is dict:
        return {key if type(key) is str else _key(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    return to_jsonable_python(value, by_alias=True, bytes_mode="base64")


def _key(key: Any) -> Any:
    return next(iter(to_jsonable_python({key: None}, bytes_mode="base64")))


def check_details(spec: ErrorSpec, details: Any) -> Any:
    """The details of a declared error as plain data; none (None) are always right.

    `OutputError` if they are not of the type that was declared. Of an error that is declared by a JSON Schema only they
    are passed on as they are.
    """
    return details if details is None or spec.render is None else spec.render(details)


# --- mistakes -----------------------------------------------------------------------------------------------------

_WORDS: Final = {
    "missing": "is missing",
    "extra_forbidden": "is not known",
    "dict_type": "should be an object",
    "mapping_type": "should be an object",
    "uuid_parsing": "should be a valid UUID",
}
_OWN_WORDS: Final = frozenset(get_args(core_schema.ErrorType)) - {"value_error", "assertion_error"}
"""The mistakes that pydantic itself puts into words, and never the value (but for those in `_WORDS` and a tag)."""
_HIDDEN: Final = "is not valid"
MIN_REPEATED_CHARS: Final = 3
"""A shorter value stands in any sentence by chance."""


def _mistakes(exc: ValidationError, value: Any, hidden: frozenset[str]) -> tuple[list[dict[str, Any]], int]:
    """(the first ones with their places in `value`, how many places there are)."""
    count = exc.error_count()
    if count > MAX_LOCATED:
        return [{"path": [], "message": f"{count} values are not valid"}], 1
    told: dict[tuple[str | int, ...], list[str]] = {}
    for error in exc.errors(include_url=False)[:MAX_MISTAKES]:
        path = _path(error["loc"], value, is_missing=error["type"] == "missing")
        message = _message(error)
        if path and path[0] in hidden and (len(path) > 1 or error["type"] != "missing"):
            path, message = path[:1], _HIDDEN
        told.setdefault(tuple(path), []).append(message)
    # A place that is wrong more than once is of a union: wrong for each of its types.
    mistakes = [{"path": list(path), "message": ", or ".join(dict.fromkeys(said))} for path, said in told.items()]
    return mistakes, count - sum(map(len, told.values())) + len(told)


def _path(location: Sequence[str | int], value: Any, *, is_missing: bool) -> list[str | int]:
    """Without the parts that name a branch of a union and not a place in the value."""
    path: list[str | int] = []
    for part in location[:-1] if is_missing else location:
        if isinstance(value, dict) and part in value:
            path.append(part[:MAX_PATH_CHARS] if isinstance(part, str) else part)
        elif isinstance(value, list | tuple) and isinstance(part, int) and 0 <= part < len(value):
            path.append(part)
        else:
            continue
        value = value[part]
    return [*path, *(location[-1:] if is_missing else ())][:MAX_PATH_PARTS]


def _message(error: Any) -> str:
    """pydantic's words, or those of the type's author unless they repeat the value."""
    kind, message, given = error["type"], str(error["msg"]), error["input"]
    if kind in _WORDS:
        return _WORDS[kind]
    if kind == "union_tag_invalid":
        return f"{error['ctx']['discriminator']} should be one of {error['ctx']['expected_tags']}"
    if kind not in _OWN_WORDS and isinstance(given, str | bytes | int | float):
        text = str(given)
        if repr(given) in message or (len(text) >= MIN_REPEATED_CHARS and text in message):
            return _HIDDEN
    return message.removeprefix("Value error, ").removeprefix("Assertion failed, ").removeprefix("Input ")


def _sentence(root: str, mistake: dict[str, Any]) -> str:
    return f"{'.'.join((root, *map(str, mistake['path'])))}: {mistake['message']}"
