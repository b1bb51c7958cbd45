"""``ops``: which operations there are on a peer, for whoever asks."""

import json
from typing import Any

import click

from alknet.cli.app import Invocation, pass_invocation
from alknet.cli.client import accept_new_option, accepter, call_options, open_peer, run_async
from alknet.cli.output import print_json, print_table
from alknet.logs import printable

__all__ = ["ops"]

MAX_PAGES = 1000


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

    async def main() -> Any:
        async with open_peer(
            invocation, peer, carrier=carrier, token=token, verbose=verbose, accept_new=accepter(yes=accept_new)
        ) as opened:
            if name is not None:
                return await opened.call("services/schema", name=name)
            found: list[Any] = []
            cursor = ""
            for _ in range(MAX_PAGES):
                page = await opened.call("services/list", query=query, cursor=cursor)
                found += page["operations"]
                cursor = page["next_cursor"]
                if not cursor:
                    break
            return found

    answer = run_async(main)
    if invocation.json:
        print_json(answer)
    elif name is None:
        rows = [(one["name"], one["kind"], one["summary"]) for one in answer]
        print_table(("NAME", "KIND", "SUMMARY"), rows, empty="no operations that you may call")
    else:
        _explain(peer, answer)


def _explain(peer: str, spec: dict[str, Any]) -> None:
    """One operation, for people."""
    click.echo(f"{spec['name']}  {spec['kind']}, version {spec['version']}")
    for text in (spec["summary"], spec["description"]):
        if text:
            click.echo(printable(text) if "\n" not in text else "\n".join(map(printable, text.splitlines())))
    properties = spec["input_schema"].get("properties", {})
    required = spec["input_schema"].get("required", [])
    click.echo()
    rows = [
        (key, _type(schema), "required" if key in required else f"default {json.dumps(schema.get('default'))}",
         schema.get("description", ""))
        for key, schema in properties.items()
    ]  # fmt: skip
    print_table(("INPUT", "TYPE", "", "MEANING"), rows, empty="no input")
    click.echo(f"\noutput  {_type(spec['output_schema'])}")
    for error in spec["errors"]:
        click.echo(printable(f"error   {error['code']}  {error['description']}"))
    access = spec["access"]
    scopes = "anybody" if access["public"] else " and ".join(access["required_scopes"]) or "every peer"
    click.echo(f"access  {scopes}")
    stream = " --stream" if spec["kind"] == "subscription" else ""
    examples = [example.get("input", {}) for example in spec["examples"]]
    for value in examples or [{key: f"<{_type(properties[key])}>" for key in required}]:
        click.echo(printable(f"\nalknet call{stream} {peer} {spec['name']} '{json.dumps(value)}'"))


def _type(schema: Any) -> str:
    """A schema in a word or two."""
    if not isinstance(schema, dict):
        return "any"
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(json.dumps(value) for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items'))}"
    if schema.get("contentEncoding") == "base64":
        return "bytes"
    return str(schema.get("type") or schema.get("title") or str(schema.get("$ref", "any")).rpartition("/")[2])
