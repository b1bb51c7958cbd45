"""``ops``: which operations there are on a peer, for whoever asks."""

import json
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

import click

from alknet.cli.app import Invocation, pass_invocation
from alknet.cli.client import accept_new_option, accepter, call_options, open_peer, run_async
from alknet.cli.output import print_json, print_table
from alknet.cli.values import pairs, resolve
from alknet.logs import printable

if TYPE_CHECKING:
    from alknet.client import Peer

__all__ = ["hint_for", "list_operations", "ops"]

MAX_PAGES: Final = 1000
MAX_NEAR: Final = 3
NEAR: Final = 0.8
"""How much of a name must be like another one to be meant by it."""


@click.command()
@call_options
@accept_new_option
@click.option("--query", default="", help="Words to look for in names, summaries and tags.")
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
    peer: str,
    name: str | None,
) -> None:
    """The operations that I may call on PEER (the local node if none is given); with NAME, how to call that one.

    \b
    alknet ops
    alknet ops hub --query 'read file'
    alknet ops hub fs/read
    """
    from alknet.call.errors import CallError

    async def main() -> Any:
        async with open_peer(
            invocation, peer, carrier=carrier, token=token, verbose=verbose, accept_new=accepter(yes=accept_new)
        ) as opened:
            if name is None:
                return await list_operations(opened, query)
            try:
                return await opened.call("services/schema", name=name)
            except CallError as exc:
                exc.hint = exc.hint or await hint_for(opened, peer, name, exc)
                raise

    answer = run_async(main)
    if invocation.json:
        print_json(answer)
    elif name is None:
        rows = [(one["name"], one["kind"], one["summary"]) for one in answer]
        where = f" with {query!r} in name, summary or tags" if query else ""
        print_table(("NAME", "KIND", "SUMMARY"), rows, empty=f"no operations that you may call{where}")
    else:
        _explain(peer, answer)


async def list_operations(peer: "Peer", query: str = "") -> list[dict[str, Any]]:
    """All that the caller may call, in the order of their names."""
    found: list[dict[str, Any]] = []
    cursor = ""
    for _ in range(MAX_PAGES):
        page = await peer.call("services/list", query=query, cursor=cursor)
        found += page["operations"]
        cursor = page["next_cursor"]
        if not cursor:
            break
    return found


async def hint_for(opened: "Peer", peer: str, name: str, error: Exception) -> str:
    """What to do about an operation that was not found; nothing if it is there and did not find something itself."""
    from alknet.call.errors import CallError

    if getattr(error, "code", "") != "NOT_FOUND":
        return ""
    try:
        known = [str(one["name"]) for one in await list_operations(opened)]
    except CallError:
        return ""
    if name.removeprefix("/") in known:
        return ""
    near = get_close_matches(name, known, n=MAX_NEAR, cutoff=NEAR)
    return f"did you mean {' or '.join(near)}?" if near else f"'alknet ops {peer}' lists those that you may call"


# --- one operation, for people ------------------------------------------------------------------------------------


def _explain(peer: str, spec: dict[str, Any]) -> None:
    click.echo(printable(f"{spec['name']}  {spec['kind']}, version {spec['version']}"))
    for text in (spec["summary"], spec["description"]):
        for line in text.splitlines():
            click.echo(printable(line))
    schema = spec["input_schema"]
    properties, required = schema.get("properties", {}), schema.get("required", [])
    click.echo()
    rows = [
        (key, _type(one, schema), "required" if key in required else _default(one), one.get("description", ""))
        for key, one in properties.items()
    ]
    print_table(("INPUT", "TYPE", "DEFAULT", "MEANING"), rows, empty="no input")
    output = spec["output_schema"]
    fields = resolve(output, output).get("properties", {})
    click.echo()
    if fields:
        print_table(
            ("OUTPUT", "TYPE", "MEANING"),
            [(key, _type(one, output), one.get("description", "")) for key, one in fields.items()],
            empty="",
        )
        click.echo()
    else:
        each = "each item is " if spec["kind"] == "subscription" else ""
        click.echo(printable(f"output  {each}{_type(output, output)}"))
    for error in spec["errors"]:
        click.echo(printable(f"error   {error['code']}  {error['description']}"))
    click.echo(printable(f"access  {_access(spec['access'])}"))
    click.echo()
    stream = " --stream" if spec["kind"] == "subscription" else ""
    examples = [_words(example.get("input", {}), schema) for example in spec["examples"]]
    for words in examples or [" ".join(f"{key}={_placeholder(properties.get(key), schema)}" for key in required)]:
        click.echo(printable(f"alknet call{stream} {peer} {spec['name']} {words}".rstrip()))


def _words(value: Any, schema: dict[str, Any]) -> str:
    """An example's input as one types it."""
    text = pairs(value, schema) if isinstance(value, dict) else None
    return f"'{json.dumps(value, ensure_ascii=False)}'" if text is None else text


def _default(schema: dict[str, Any]) -> str:
    value = schema.get("default")
    return "" if value is None else str(value) if isinstance(value, str) and value else json.dumps(value)


def _placeholder(wanted: Any, schema: dict[str, Any]) -> str:
    one = resolve(wanted, schema)
    if one.get("enum"):
        return str(one["enum"][0])
    if one.get("contentEncoding") == "base64":
        return "@FILE"
    kind = one.get("type")
    return {"object": "'{…}'", "array": _type(one.get("items"), schema).upper()}.get(
        str(kind), str(kind or "x").upper()
    )


def _access(access: dict[str, Any]) -> str:
    """Who may call it."""
    if access["public"]:
        return "anybody"
    parts = list(access["required_scopes"])
    any_of = access["required_scopes_any"]
    if any_of is not None:
        words = " or ".join(any_of)
        parts.append(f"({words})" if parts and len(any_of) > 1 else words)
    text = f"scope {' and '.join(parts)}" if parts else "every peer"
    if access["resource_type"] is None:
        return text
    return f"{text}, and {access['resource_action'] or 'use'} of the {access['resource_type']}"


def _type(wanted: Any, schema: dict[str, Any]) -> str:
    """A schema in a word or two."""
    one = resolve(wanted, schema)
    several = one.get("anyOf") or one.get("oneOf")
    if several:
        return " or ".join(dict.fromkeys(_type(option, schema) for option in several))
    values = [one["const"]] if "const" in one else one.get("enum")
    if values:
        return " or ".join(value if isinstance(value, str) else json.dumps(value) for value in values)
    if one.get("type") == "array":
        return f"list of {_type(one.get('items'), schema)}"
    if one.get("contentEncoding") == "base64":
        return "bytes"
    if one.get("properties") and one.get("title"):
        return str(one["title"])
    return str(one.get("format") or one.get("type") or one.get("title") or "any")
