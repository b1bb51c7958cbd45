"""``ops``: which operations there are on a peer, for whoever asks."""

import asyncio
import shlex
from difflib import get_close_matches
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, Final

import click

from alknet.cli.app import Invocation, pass_invocation
from alknet.cli.client import accept_new_option, accepter, call_options, open_peer, run_async
from alknet.cli.output import print_table
from alknet.cli.values import alternatives, pairs, properties_of, resolve, to_json
from alknet.errors import InvalidInputError, NotFoundError
from alknet.logs import printable

if TYPE_CHECKING:
    from alknet.client import Peer

__all__ = ["describe_operations", "hint_for", "list_operations", "ops"]

MAX_NAMES: Final = 10_000
PAGE: Final = 1000
"""The most that a node lists at once; it ends a page by bytes before that."""
MAX_PAGES: Final = 100
"""As many as these names fill: a node that goes on for ever is asked no further."""
AT_ONCE: Final = 32
"""Schemas that are asked for at the same time."""
MAX_BYTES: Final = 64 * 1024 * 1024
"""Of all that a node says of its operations, as JSON."""
HINT_TIMEOUT_S: Final = 5.0
"""What it may take to find out what somebody meant."""
MAX_NEAR: Final = 3
NEAR: Final = 0.8
"""How much of a name must be like another one to be meant by it."""
MAX_NAME_CHARS: Final = 128
"""Of a name that may be meant: to compare takes quadratic time."""
MAX_ROWS: Final = 100
"""Of a table, and other things that an operation says several of."""
MAX_TYPES: Final = 100
"""That one input may be made of, to be put into words; the rest is an ellipsis."""
MAX_TYPE_DEPTH: Final = 5
MAX_VALUES: Final = 20
"""Of an enumeration."""


@click.command()
@call_options
@accept_new_option
@click.option("--query", default="", help="Words to look for in names, summaries and tags.")
@click.option(
    "--python", "is_python", is_flag=True, help="Write a Python module with a typed function for each of them."
)
@click.option("-o", "--output", type=click.File("w", encoding="utf-8", lazy=True), help="Write that to a file.")
@click.argument("peer", default=".")
@click.argument("name", required=False)
@pass_invocation
def ops(
    invocation: Invocation,
    carrier: str,
    token: str | None,
    verbose: bool,
    accept_new: bool,
    query: str,
    is_python: bool,
    output: IO[str] | None,
    peer: str,
    name: str | None,
) -> None:
    """The operations that I may call on PEER (the local node if none is given); with NAME, how to call that one.

    With --python a module for programs: every operation as a function with the types of its inputs and outputs.

    \b
    alknet ops
    alknet ops hub --query 'read file'
    alknet ops hub fs/read
    alknet ops hub --python -o hub_client.py
    """
    from alknet.call.errors import CallError

    if output is not None and not is_python:
        raise click.UsageError("-o goes with --python")
    if invocation.json and is_python:
        raise click.UsageError("--python writes Python, not JSON")

    async def main() -> Any:
        async with open_peer(
            invocation, peer, carrier=carrier, token=token, verbose=verbose, accept_new=accepter(yes=accept_new)
        ) as opened:
            if name is None:
                return await (describe_operations if is_python else list_operations)(opened, query)
            try:
                found = await opened.call("services/schema", name=name)
            except CallError as exc:
                exc.hint = exc.hint or await hint_for(opened, peer, name, exc)
                raise
            return [found] if is_python else found

    answer = run_async(main)
    if is_python:
        from alknet.call.typed_client import client_module

        if not answer:
            where = f" with {query!r} in name, summary or tags" if query else ""
            raise NotFoundError(f"there are no operations that you may call{where}: nothing was written")
        command = _command(invocation.jump, peer, query, name)
        click.echo(client_module(answer, node=peer, via=invocation.jump, command=command), file=output, nl=False)
    elif invocation.json:
        click.echo(to_json(answer, escaped=True))
    elif name is None:
        rows = [(one["name"], one["kind"], one["summary"]) for one in answer]
        where = f" with {query!r} in name, summary or tags" if query else ""
        print_table(("NAME", "KIND", "SUMMARY"), rows, empty=f"no operations that you may call{where}")
        if len(answer) == MAX_NAMES:
            click.echo(f"alknet: these are the first {MAX_NAMES}; --query WORDS finds the others", err=True)
    else:
        _explain(peer, answer, jump=invocation.jump)


async def list_operations(peer: "Peer", query: str = "") -> list[dict[str, Any]]:
    """What the caller may call, in the order of their names; the first `MAX_NAMES` of them."""
    found: list[dict[str, Any]] = []
    cursor = ""
    for _ in range(MAX_PAGES):
        page = await peer.call("services/list", query=query, cursor=cursor, limit=PAGE)
        operations = page.get("operations") if isinstance(page, dict) else None
        if not isinstance(operations, list) or not all(map(_is_listed, operations)):
            raise InvalidInputError("the peer's list of operations makes no sense")
        found += operations[: MAX_NAMES - len(found)]
        after = page.get("next_cursor")
        if not isinstance(after, str) or after <= cursor or len(found) == MAX_NAMES:
            break
        cursor = after
    return found


async def describe_operations(peer: "Peer", query: str = "") -> list[dict[str, Any]]:
    """What the node says of each operation in the list. One that is gone by the time it is asked for is left out."""
    names = [one["name"] for one in await list_operations(peer, query)]
    found: list[dict[str, Any]] = []
    size = 0
    for start in range(0, len(names), AT_ONCE):
        for answer in await asyncio.gather(*(_describe(peer, name) for name in names[start : start + AT_ONCE])):
            if answer is None:
                continue
            if not isinstance(answer, dict):
                raise InvalidInputError("what the peer says of an operation makes no sense")
            size += len(to_json(answer))
            if size > MAX_BYTES:
                raise InvalidInputError(f"the peer says more than {MAX_BYTES} bytes of its operations")
            found.append(answer)
    return found


async def _describe(peer: "Peer", name: str) -> Any:
    """What the node says of an operation; None if it is gone."""
    from alknet.call.errors import CallError

    try:
        return await peer.call("services/schema", name=name)
    except CallError as exc:
        if exc.code != "NOT_FOUND":
            raise
        return None


def _command(jump: str | None, peer: str, query: str, name: str | None) -> str:
    """What makes the same module again."""
    options = [*(["-J", jump] if jump is not None else []), *(["--query", query] if query else [])]
    return shlex.join(["alknet", "ops", *options, "--python", peer, *([name] if name else [])])


def _is_listed(one: Any) -> bool:
    return isinstance(one, dict) and all(isinstance(one.get(key), str) for key in ("name", "kind", "summary"))


async def hint_for(opened: "Peer", peer: str, name: str, error: Exception) -> str:
    """What to do about an operation that was not found; nothing if it is there and did not find something itself."""
    from alknet.call.errors import CallError

    if getattr(error, "code", "") != "NOT_FOUND":
        return ""
    try:
        async with asyncio.timeout(HINT_TIMEOUT_S):
            known = [one["name"] for one in await list_operations(opened)]
    except (CallError, InvalidInputError, TimeoutError):
        return ""
    if name.removeprefix("/") in known:
        return ""
    short = [one for one in known if len(one) <= MAX_NAME_CHARS]
    near = get_close_matches(name[:MAX_NAME_CHARS], short, n=MAX_NEAR, cutoff=NEAR)
    return f"did you mean {' or '.join(near)}?" if near else f"'alknet ops {peer}' lists those that you may call"


# --- one operation, for people ------------------------------------------------------------------------------------


def _explain(peer: str, answer: Any, *, jump: str | None) -> None:
    """All of it may come from a stranger: what has another shape than it should counts as not said."""
    spec = _object(answer)
    name, kind = _text(spec, "name"), _text(spec, "kind")
    click.echo(printable(f"{name}  {kind}, version {_text(spec, 'version')}"))
    for text in (_text(spec, "summary"), _text(spec, "description")):
        for line in text.splitlines():
            click.echo(printable(line))
    schema = _object(spec.get("input_schema"))
    properties, required = properties_of(schema), [one for one in _list(schema, "required") if isinstance(one, str)]
    click.echo()
    rows = [
        (key, _type(one, schema), "required" if key in required else _default(one), _text(_object(one), "description"))
        for key, one in islice(properties.items(), MAX_ROWS)
    ]
    print_table(("INPUT", "TYPE", "DEFAULT", "MEANING"), rows, empty="no input")
    output = _object(spec.get("output_schema"))
    fields = properties_of(resolve(output, output))
    click.echo()
    if fields:
        print_table(
            ("OUTPUT", "TYPE", "MEANING"),
            [
                (key, _type(one, output), _text(_object(one), "description"))
                for key, one in islice(fields.items(), MAX_ROWS)
            ],
            empty="",
        )
        click.echo()
    else:
        each = "each item is " if kind == "subscription" else ""
        click.echo(printable(f"output  {each}{_type(output, output)}"))
    for error in map(_object, _list(spec, "errors")):
        click.echo(printable(f"error   {_text(error, 'code')}  {_text(error, 'description')}"))
    click.echo(printable(f"access  {_access(_object(spec.get('access')))}"))
    click.echo()
    stream = " --stream" if kind == "subscription" else ""
    through = "" if jump is None else f" -J {shlex.quote(jump)}"
    examples = [_words(example.get("input", {}), schema) for example in map(_object, _list(spec, "examples"))]
    for words in examples or [" ".join(f"{key}={_placeholder(properties.get(key), schema)}" for key in required)]:
        click.echo(printable(f"alknet call{through}{stream} {peer} {name} {words}".rstrip()))


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: dict[str, Any], key: str) -> list[Any]:
    found = value.get(key)
    return found[:MAX_ROWS] if isinstance(found, list) else []


def _text(value: dict[str, Any], key: str) -> str:
    found = value.get(key)
    return found if isinstance(found, str) else ""


def _words(value: Any, schema: dict[str, Any]) -> str:
    """An example's input as one types it."""
    text = pairs(value, schema) if isinstance(value, dict) else None
    return shlex.quote(to_json(value)) if text is None else text


def _default(schema: Any) -> str:
    value = _object(schema).get("default")
    return "" if value is None else value if isinstance(value, str) and value else to_json(value)


def _placeholder(wanted: Any, schema: dict[str, Any]) -> str:
    one = resolve(wanted, schema)
    if values := _list(one, "enum"):
        return str(values[0])
    if one.get("contentEncoding") == "base64":
        return "@FILE"
    kind = _text(one, "type")
    return {"object": "'{…}'", "array": _type(one.get("items"), schema).upper()}.get(kind, (kind or "x").upper())


def _access(access: dict[str, Any]) -> str:
    """Who may call it."""
    if access.get("public") is True:
        return "anybody"
    parts = [str(scope) for scope in _list(access, "required_scopes")]
    any_of = [str(scope) for scope in _list(access, "required_scopes_any")]
    if any_of:
        words = " or ".join(any_of)
        parts.append(f"({words})" if parts and len(any_of) > 1 else words)
    text = f"scope {' and '.join(parts)}" if parts else "every peer"
    if access.get("resource_type") is None:
        return text
    return f"{text}, and {access.get('resource_action') or 'use'} of the {access['resource_type']}"


def _type(wanted: Any, schema: Any) -> str:
    """A schema in a word or two."""
    return _Types(schema).words(wanted)


class _Types:
    """One schema's types in words. Of one that contains itself, or is very large, it is the beginning."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._left = MAX_TYPES

    def words(self, wanted: Any, within: tuple[str, ...] = ()) -> str:
        reference = _text(_object(wanted), "$ref")
        if (reference and reference in within) or len(within) == MAX_TYPE_DEPTH:
            return "…"
        within = (*within, reference)
        return " or ".join(dict.fromkeys(self._one(option, within) for option in alternatives(wanted, self._schema)))

    def _one(self, option: dict[str, Any], within: tuple[str, ...]) -> str:
        self._left -= 1
        if self._left < 0:
            return "…"
        values = [option["const"]] if "const" in option else _list(option, "enum")
        if values:
            shown = [value if isinstance(value, str) else to_json(value) for value in values[:MAX_VALUES]]
            return " or ".join([*shown, *["…"][: len(values) > MAX_VALUES]])
        if option.get("type") == "array":
            return f"list of {self.words(option.get('items'), within)}"
        if option.get("contentEncoding") == "base64":
            return "bytes"
        title = _text(option, "title")
        if title and properties_of(option):
            return title
        several = [kind for kind in _list(option, "type") if isinstance(kind, str)]
        return _text(option, "format") or _text(option, "type") or " or ".join(several) or title or "any"
