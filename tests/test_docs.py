"""The documentation says what the code does: nothing is missing, nothing is stale, and what it tells to type works."""

import ast
import base64
import importlib
import importlib.util
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import asyncssh
import click
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel

import alknet
from alknet.access import Peer
from alknet.actions import ACTIONS
from alknet.alpn.admission import AdmissionLimits
from alknet.alpn.streams import ChannelBinding
from alknet.call.discovery import Discovery
from alknet.call.envelopes import Requested, error_payload
from alknet.call.errors import PROTOCOL_CODES, CallError
from alknet.call.hello import DialerHello, ListenerHello
from alknet.call.machine import Machine
from alknet.call.operations import operations_of
from alknet.call.subscription import Subscription
from alknet.cli.app import COMMANDS, EPILOG
from alknet.cli.escape import SHOWN
from alknet.clock import SystemClock
from alknet.config.forwarding import ForwardRule, NodeForwardRule, forward_rules
from alknet.config.model import Settings
from alknet.known_nodes import ROLES, KnownNodes
from alknet.services.machine import MachineServices
from alknet.services.node import NodeService
from alknet.targets import Rule
from alknet.tokens import make_token
from testkit.calls import CallDoor
from testkit.node import DEADLINE_S, NodeProcess, free_port, wait_until

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
RECORDS = sorted(path for path in (DOCS / "adr").glob("*.md") if not path.name.startswith("0000"))
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
FENCE = re.compile(r"^( *)```([^\n`]*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
FOLDERS = "alknet|alpn|bench|call|config|docs|examples|ssh|tests|vault"
FILTER = DOCS / "howto" / "fail2ban" / "alknet.conf"
ENVELOPES = "|".join(kind.partition(".")[2] for kind in Machine(prefix="x")._handlers)
LIMIT = re.compile(r"(MAX|DEFAULT|CEILING|HELLO_MAX)_|[A-Z_]+_S$")
WIRE = (
    "byte_channel",
    "byte_channels",
    "channel",
    "channel_serving",
    "channel_states",
    "client",
    "envelopes",
    "frames",
    "handler",
    "heartbeat",
    "hello",
    "machine",
    "session",
    "session_streams",
    "subscription",
)
WIRE += ("from_call", "remote_specs", "mesh", "breaker", "routing")


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load_generator()


def prose(path: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def first_column(page: str, heading: str) -> dict[str, list[str]]:
    """The first table below `heading`: the code in its first column, and the other cells."""
    text = (DOCS / page).read_text(encoding="utf-8").split(f"## {heading}\n", 1)[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in re.findall(r"^\|.*\|$", text, re.MULTILINE)]
    return {name: row[1:] for row in rows for name in re.findall(r"`([^`]+)`", row[0])}


# --- nothing is undocumented --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", generate.GENERATED)
def test_generated_references_are_up_to_date(name: str) -> None:
    written = (DOCS / "reference" / name).read_text(encoding="utf-8")
    assert written == generate.GENERATED[name](), "run: python docs/generate.py"


def test_every_settings_table_is_in_the_reference() -> None:
    schema = Settings.model_json_schema()
    assert {model.__name__ for _, model, _ in generate.TABLES} == set(schema["$defs"])


def test_every_setting_says_what_it_means_and_when_it_takes_effect() -> None:
    tables: list[tuple[str, type[BaseModel], str]] = generate.TABLES
    for heading, model, effect in tables:
        for name, field in model.model_fields.items():
            extra: Any = field.json_schema_extra or {}
            assert field.description, f"{heading} {name} has no description"
            assert extra.get("reload", effect) in ("live", "restart"), f"{heading} {name}"


def test_the_readme_lists_every_command() -> None:
    rows = re.findall(r"^\| `alknet ([\w-]+)` \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == list(COMMANDS)


def test_the_readme_lists_every_exit_code() -> None:
    assert EPILOG.replace("; ", ", ") in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


def test_every_command_and_option_says_what_it_does() -> None:
    for name, command in generate.commands():
        assert command.help, name
        options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
        assert [option.name for option in options if not option.help] == [], name


def test_every_action_is_explained_with_its_scope() -> None:
    documented = {
        name: cells[1].strip("`") for name, cells in first_column("explanation/access.md", "In what order").items()
    }
    assert documented == {name: action.scope or "none" for name, action in ACTIONS.items()}


def test_every_operation_of_a_node_is_explained_with_what_it_asks_for() -> None:
    table = first_column("explanation/access.md", "Operations of every node")
    documented = {name: (cells[0], cells[1].strip("`")) for name, cells in table.items()}
    own: Any = None  # what they need of a node, which nobody asks here
    operations = operations_of((NodeService(own), Discovery(own)))
    assert documented == {
        one.spec.name: (
            one.spec.kind,
            "public" if one.spec.access.public else ", ".join(one.spec.access.required_scopes) or "every peer",
        )
        for one in operations
    }


def test_every_operation_on_the_machine_is_explained_with_what_it_asks_for() -> None:
    table = first_column("explanation/access.md", "Operations on the machine")
    settings = Settings.model_validate({"fs": {"roots": {"a": "/"}}, "exec": {"enabled": True}})
    gate: Any = None  # nobody calls them here
    specs = [one.spec for one in operations_of(MachineServices(gate, SystemClock(), Path("/")).of(settings))]
    assert {name: (cells[0], cells[1].strip("`")) for name, cells in table.items()} == {
        spec.name: (spec.kind, ", ".join(spec.access.required_scopes)) for spec in specs
    }


def test_every_code_of_the_protocol_is_documented() -> None:
    documented = {code: cells[0] for code, cells in first_column("reference/call-protocol.md", "Codes").items()}
    assert documented == {code: "yes" if again else "no" for code, (again, _) in PROTOCOL_CODES.items()}


def test_every_envelope_is_documented_with_its_fields() -> None:
    documented = {
        kind: set(re.findall(r"`(\w+)`", cells[1]))
        for heading in ("Envelopes", "Byte channels")
        for kind, cells in first_column("reference/call-protocol.md", heading).items()
        if "." in kind
    }
    machine = Machine(prefix="x", peer_features=("credit", "channels"))
    assert set(documented) == set(machine._handlers) | set(Machine(prefix="x", has_streams=True)._handlers)
    request = {"operationId", "input", *(field.name for field in fields(Requested))} - {"id", "stream", "name"}
    assert documented["call.requested"] == {("timeout_ms" if name == "timeout_s" else name) for name in request}
    id, _ = machine.request(0, "a/b", None, credit=1)
    error = CallError("INTERNAL", "no", details={}, denial_id="den_1")
    sent = [machine.grant(id, 1), machine.goaway(1, "why"), machine.abort(id, "why")]
    channel, asked = machine.request_channel(0, "tcp", target="h:1", peer="bob", forwarded_for="carol")
    sent += [asked, machine.channels.close(channel, "why")]
    sent.append({"type": "call.error", "payload": error_payload(error)})
    machine = Machine(prefix="x")
    machine.receive(0, {"type": "call.requested", "id": "y", "payload": {"operationId": "/a/b", "credit": 1}})
    sent += [machine.respond("y", None), machine.complete("y")]
    machine.receive(0, {"type": "channel.open", "id": "z", "payload": {"service": "ssh", "credit": 1}})
    channels = machine.channels
    sent += [channels.accept("z"), channels.data("z", b"x"), channels.consumed("z", 1 << 20), channels.eof("z")]
    for envelope in sent:
        assert envelope is not None
        assert documented[envelope["type"]] == set(envelope["payload"]), envelope["type"]


def test_the_example_of_a_hello_is_what_both_ends_say(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (DOCS / "reference" / "call-protocol.md").read_text(encoding="utf-8")
    example = page.split("### An example\n")[1].split("```json\n")[1].split("```")[0]
    start, challenge, proof, accepted = (line.encode() for line in example.splitlines())
    nonces = [json.loads(json.loads(message)["payload"]["data"])["nonce"] for message in (start, challenge)]
    monkeypatch.setattr("alknet.call.hello._nonce", iter(nonces).__next__)
    binding = ChannelBinding("tls-spki", b"B" * 32)
    dialer = DialerHello(alpn="alknet/call", binding=binding)
    listener = ListenerHello(alpn="alknet/call", binding=binding)
    assert dialer.start() == start
    listener.started(start)
    said = dialer.challenged(challenge)
    assert said.key is not None
    listener.to_sign(node=said.node, key=said.key, limits=said.limits)
    listener.challenge(base64.b64decode(json.loads(challenge)["payload"]["signature"]))
    proven = listener.proven(proof)
    assert proven.key is not None
    dialer.to_sign(key=proven.key, token=None)
    assert dialer.proof(base64.b64decode(json.loads(proof)["payload"]["signature"])) == proof
    assert dialer.finished(accepted).identity == "alice"
    keys = [Ed25519PrivateKey.from_private_bytes(bytes(range(at, at + 32))) for at in (0, 32)]
    assert [said.key.blob[-32:], proven.key.blob[-32:]] == [key.public_key().public_bytes_raw() for key in keys]


async def test_a_token_in_a_request_counts_as_the_protocol_says(tmp_path: Path) -> None:
    @alknet.operation("test/via")
    async def via(*, ctx: alknet.OperationContext) -> str:
        return "" if ctx.identity is None else str(getattr(ctx.identity, "via", ""))

    door = CallDoor(tmp_path, [via])
    tokens = {peer: make_token(peer, ["test:via"], expires_at=None) for peer in ("alice", "bob")}
    bob = Peer("bob", {"*": "own"})
    door.gate.policy = door.policy(
        peers={"alice": Peer("alice", {"*": "own"}, (door.key.public_key.fingerprint,)), "bob": bob},
        tokens={token.prefix: token for _, token in tokens.values()},
    )
    text, token = tokens["alice"]
    for anonymous in (True, False):
        async with door.session(anonymous=anonymous) as link:
            assert await link.session.call("test/via", {}, auth_token=text) == f"token:{token.prefix}"
            with pytest.raises(CallError, match="not valid"):
                await link.session.call("test/via", {}, auth_token=text[:-1])
            if anonymous:
                assert (await link.session.call("test/via", {}, auth_token=tokens["bob"][0])).startswith("token:")
                with pytest.raises(CallError, match="authentication required"):
                    await link.session.call("test/via", {})
            else:
                with pytest.raises(CallError, match="another peer"):
                    await link.session.call("test/via", {}, auth_token=tokens["bob"][0])
                assert (await link.session.call("test/via", {})).startswith("key:")
    await door.aclose()


def test_the_page_about_python_names_all_that_is_public() -> None:
    documented = first_column("reference/python.md", "Names")
    assert set(documented) == set(alknet.__all__)
    page = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    for kind in (alknet.Peer, Subscription, alknet.OperationContext, alknet.Node):
        internal = {"received", "ended", "registry", "reload_settings", "end_connection"}
        public = {name for name in vars(kind) if not name.startswith("_")} - internal
        slots = {f.name for f in fields(kind) if not f.name.startswith("_")} if is_dataclass(kind) else set()
        assert [name for name in sorted(public | slots) if f"`{name}" not in page] == [], kind.__name__
    for function in (alknet.operation, alknet.connect):
        assert [n for n in inspect.signature(function).parameters if f"`{n}`" not in page] == [], function


def test_the_operations_of_the_how_to_are_operations() -> None:
    page = (DOCS / "howto" / "write-a-service.md").read_text(encoding="utf-8")
    module = ModuleType("shop")
    for _, info, body in FENCE.findall(page):
        if info == "python":
            exec(compile(body, "write-a-service.md", "exec"), vars(module))
    assert {one.spec.name for one in operations_of(module)} == {"counter/add", "clock/now", "shop/prices"}
    del module.__operations__  # type: ignore[attr-defined]
    assert {"clock/set", "pictures/shrink", "shop/order", "shop/report"} <= {
        one.spec.name for one in operations_of(module)
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_piece_of_python_can_be_compiled(name: str) -> None:
    for _, info, body in FENCE.findall((ROOT / name).read_text(encoding="utf-8")):
        if info == "python":
            compile(body, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def rules_in_the_code() -> set[str]:
    """Every rule name: the verdicts of `access` and `actions` are pairs of texts, those of `gate` are constants."""
    found = set()
    names = ("alknet/access.py", "alknet/actions.py", "ssh/certificates.py")
    sources = [(ROOT / name).read_text(encoding="utf-8") for name in names]
    for node in (node for source in sources for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.Tuple) and len(node.elts) == 2 and all(map(_is_text, node.elts)):
            first = node.elts[0]
            head = first.values[0] if isinstance(first, ast.JoinedStr) else first
            assert isinstance(head, ast.Constant)
            found.add(str(head.value) + ("NAME" if isinstance(first, ast.JoinedStr) else ""))
    constants = [(ROOT / "alknet" / name).read_text(encoding="utf-8") for name in ("gate.py", "guard.py")]
    for node in (node for source in constants for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target).startswith("RULE_"):
            assert isinstance(node.value, ast.Constant)
            found.add(str(node.value.value))
    for node in ast.walk(ast.parse((ROOT / "alknet" / "targets.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and str(node.value).startswith("forwarding."):
            found.add(str(node.value))
    found |= {rule.name.replace("[0]", "[N]") for rule in _forward_rules("NAME")}
    return found - {""}


def _forward_rules(peer: str) -> tuple[Rule, ...]:
    """One rule of a peer's own and one of the node's, which have numbers for names."""
    values: dict[str, Any] = {"action": "allow", "direction": "local", "target": "x:1"}
    return forward_rules([NodeForwardRule(**values)], {peer: ((), (ForwardRule(**values),))})[peer]


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def test_every_rule_is_explained_and_every_explained_rule_exists() -> None:
    rules = rules_in_the_code()
    assert rules >= {"anonymous", "peer:disabled", "scope:NAME", "ssh.user", "audit.required", "session:changed"}
    assert rules >= {"public", "token-scope:NAME", "token:expired", "resource:NAME", "scope:any", "authority"}
    assert set(first_column("explanation/access.md", "Rules")) == rules


def amount(text: str) -> float:
    """The number in a cell such as `32 KiB`, `10 s` or `64`."""
    number, _, unit = text.partition(" ")
    return float(number.replace(",", "")) * {"": 1, "s": 1, "KiB": 1024, "MiB": 1024 * 1024}[unit]


@pytest.mark.parametrize("heading", ["What a stranger can cost", "What a peer can cost"])
def test_every_limit_of_the_port_has_the_value_that_is_documented(heading: str) -> None:
    text = (DOCS / "explanation" / "port.md").read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    documented = re.findall(r"^\| `(\w+)\.([A-Z_]+)` \| ([^|]+) \|", text, re.MULTILINE)
    assert len(documented) >= 7
    for module, name, value in documented:
        assert getattr(importlib.import_module(f"alknet.alpn.{module}"), name) == amount(value), f"{module}.{name}"


def test_every_limit_of_operation_calls_has_the_value_that_is_documented() -> None:
    """And of the modules for the wire none is left out."""
    text = (
        (DOCS / "reference" / "call-protocol.md").read_text(encoding="utf-8").split("## Limits\n")[1].split("\n## ")[0]
    )
    documented = re.findall(r"^\| `(\w+)\.([A-Z_]+)` \| ([^|]+) \|", text, re.MULTILINE)
    for module, name, value in documented:
        assert getattr(importlib.import_module(f"alknet.call.{module}"), name) == amount(value), f"{module}.{name}"
    constants = {
        (module, node.target.id)
        for module in WIRE
        for node in ast.parse((ROOT / "call" / f"{module}.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and LIMIT.match(node.target.id)
    }
    assert constants - {(module, name) for module, name, _ in documented} == set()


def test_every_escape_character_is_documented() -> None:
    documented = {typed[1:] for typed in first_column("reference/client.md", "Escape characters")}
    assert documented == {shown.partition(" ")[0] for shown in SHOWN.values()} | {"~"}


def test_the_example_of_known_nodes_is_one(tmp_path: Path) -> None:
    page = (DOCS / "reference" / "client.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^## known_nodes\n.*?```text\n(.*?)```", page, re.MULTILINE | re.DOTALL)
    file = tmp_path / "known_nodes"
    file.write_text(example, encoding="utf-8")
    file.chmod(0o600)
    assert KnownNodes(file).find("2001:db8::1", 7022, "host-key") is not None
    assert {name for _, name, *_ in map(str.split, example.splitlines())} <= set(ROLES)
    assert [role for role in ROLES if f"`{role}`" not in page] == []


def test_every_reason_to_drop_a_datagram_is_documented() -> None:
    documented = set(first_column("reference/status.md", "Why a datagram was dropped"))
    source = (ROOT / "alpn" / "quic_listener.py").read_text(encoding="utf-8")
    reasons = {
        reason for index in re.findall(r"dropped\[(.*?)\] \+= 1", source) for reason in re.findall(r'"(\w+)"', index)
    }
    assert len(reasons) >= 8
    assert documented == reasons | {field.name for field in fields(AdmissionLimits)}


# --- nothing is stale ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_file_that_a_page_names_exists(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    if re.search(r"^- Status: superseded by", text, re.MULTILINE):
        return  # it tells of a time that is over, and is not edited
    named = set(re.findall(rf"(?<![\w./-])((?:{FOLDERS})/[\w./-]*\w\.[a-z]+|\.ci/\w+)", text))
    named |= set(re.findall(rf"`((?:{FOLDERS})/(?:[\w.-]+/)*)`", text))
    assert {path for path in named if not (ROOT / path).exists()} == set()


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name: str) -> None:
    page = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", prose(target), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in slugs, link


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_that_a_page_names_exists(name: str) -> None:
    sections = {"audit", "call", "limits", "node", "services"}
    known = {f"{s}.{key}" for s in sections for key in type(getattr(Settings(), s)).model_fields}
    named = set(
        re.findall(
            rf"`((?:{'|'.join(sections)})\.(?!py|jsonl|{ENVELOPES})[a-z_]+)`", (ROOT / name).read_text(encoding="utf-8")
        )
    )
    assert named - known == set()


@pytest.mark.parametrize("name", NAMES)
def test_every_alknet_command_on_a_page_exists(name: str) -> None:
    known = dict(generate.commands())
    text = (ROOT / name).read_text(encoding="utf-8")
    lines = [line for _, info, body in FENCE.findall(text) if info.startswith("sh") for line in body.splitlines()]
    lines = [line for line in lines if not line.startswith(("from ", "import "))]
    command = re.compile(r"(?:^|[ /])(alknet(?: --home \S+)? [a-z][a-z-]*(?: [a-z]+(?:-[a-z]+)?)?)\b")
    for line in [*lines, *re.findall(r"`(alknet [^`]+)`", prose(ROOT / name))]:
        for words in command.findall(line.split(" # ")[0]):
            called = re.sub(r" --home \S+", "", words)
            group = " ".join(called.split()[:2])
            assert group in known, line
            if isinstance(known[group], click.Group) and called != group:
                assert called in known, line


def test_a_superseded_record_names_one_that_replaces_it() -> None:
    numbers = {path.name[:4] for path in RECORDS}
    for path in RECORDS:
        for later in re.findall(r"^- Status: superseded by (\d{4})$", path.read_text(encoding="utf-8"), re.MULTILINE):
            assert later in numbers, path.name
            assert later > path.name[:4], path.name


@pytest.mark.parametrize("record", [path.name for path in RECORDS])
def test_a_decision_record_is_whole_and_names_the_test_that_holds_it(record: str) -> None:
    text = (DOCS / "adr" / record).read_text(encoding="utf-8")
    number = record[:4]
    assert text.startswith(f"# {number}. ")
    assert re.search(r"^- Status: (proposed|accepted|superseded by \d{4})$", text, re.MULTILINE)
    assert re.search(r"^- Date: \d{4}-\d\d-\d\d$", text, re.MULTILINE)
    sections = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert sections == ["Context", "Options", "Decision", "Consequences", "Confirmation"]
    assert re.search(r"`tests/[\w/]+\.py`", text.split("## Confirmation")[1])
    assert f"](adr/{record})" in (DOCS / "index.md").read_text(encoding="utf-8")


def test_decision_records_are_numbered_without_gaps() -> None:
    assert [int(path.name[:4]) for path in RECORDS] == list(range(1, len(RECORDS) + 1))


# --- what it tells to type works ------------------------------------------------------------------------------------


def runnable(path: Path) -> list[tuple[str, str, str | None]]:
    """(info, commands, expected output or None) of every block that is marked to be run."""
    text = path.read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    blocks = []
    for index, block in enumerate(found):
        if block[2].startswith("sh run"):
            after = found[index + 1] if index + 1 < len(found) else None
            is_output = after is not None and after[2] == "text" and not text[block.end() : after.start()].strip()
            blocks.append((block[2], block[3], after[3] if after is not None and is_output else None))
    return blocks


def assert_output(actual: str, expected: str) -> None:
    """`…` stands for anything in a line, a line of it alone for any lines."""
    lines = [
        "(?:.*\n)*" if line == "…" else re.escape(line).replace("…", ".*") + "\n" for line in expected.splitlines()
    ]
    assert re.fullmatch("".join(lines), actual), f"printed:\n{actual}\ndocumented:\n{expected}"


@contextmanager
def fresh_machine(directory: Path, port: int, start: str) -> Iterator[tuple[dict[str, str], str]]:
    """A home directory with a node that was started with the command `start`, and what that printed."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SSH_", "XDG_"))}
    env |= {"HOME": str(directory), "PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}
    printed = directory / "up.out"
    with printed.open("wb") as out, (directory / "up.log").open("wb") as log:
        # In the shell's place, so that it is the node that is told to stop.
        command = start.replace("alknet up", f"exec alknet up --no-user-keys --listen 127.0.0.1:{port}")
        node = subprocess.Popen(
            ["bash", "-c", command], stdout=out, stderr=log, stdin=subprocess.DEVNULL, cwd=directory, env=env
        )
    try:
        wait_until(lambda: "Ctrl-C" in printed.read_text() or node.poll() is not None, "the node is up")
        assert node.poll() is None, (directory / "up.log").read_text()
        yield env, printed.read_text()
    finally:
        node.terminate()
        node.wait(timeout=DEADLINE_S)


@pytest.mark.interop
@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/tutorial/first-node.md",
        "docs/tutorial/first-operation.md",
        "docs/howto/stock-ssh.md",
        "docs/howto/ssh-certificates.md",
        "docs/reference/http.md",
        "docs/howto/safe-hands.md",
        "docs/howto/typed-client.md",
        "docs/reference/mcp.md",
        "docs/reference/openapi.md",
    ],
)
def test_the_commands_on_a_page_do_what_it_says(page: str, tmp_path: Path) -> None:
    blocks = runnable(ROOT / page)
    assert blocks
    port = free_port()
    in_front = [block for block in blocks if block[0] == "sh run"]
    script = "set -eu -o pipefail\nexec 2>&1\n"
    script += "".join(f"echo '@@ {index}'\n{commands}" for index, (_, commands, _) in enumerate(in_front))
    starts = [(commands, expected) for info, commands, expected in blocks if info == "sh run background"]
    start, greeting = starts[0] if starts else ("alknet up\n", None)
    assert len(starts) <= 1
    assert start.endswith("alknet up\n")
    with fresh_machine(tmp_path, port, start) as (env, printed):
        if greeting is not None:
            assert_output(printed, greeting.replace("7022", str(port)))
        result = subprocess.run(
            ["bash", "-c", script.replace("7022", str(port))],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
            env=env,
        )
    assert result.returncode == 0, result.stdout
    outputs = re.split(r"^@@ \d+\n", result.stdout, flags=re.MULTILINE)[1:]
    for output, (_, _, expected) in zip(outputs, in_front, strict=True):
        if expected is not None:
            assert_output(output, expected.replace("7022", str(port)))


# --- log and audit lines --------------------------------------------------------------------------------------------

FORGED = 'x" result=accept remote_addr=192.0.2.1 y="'
FORGED_LINE = "host alknet[1]: WARNING alknet.ssh auth remote_addr=192.0.2.2 result=reject reason=x"


async def knock(node: NodeProcess, login: str, host: str) -> None:
    """Offer a stranger's key under a login name that stock ssh would not send."""
    node.key("stranger")
    with pytest.raises(asyncssh.PermissionDenied):
        await asyncssh.connect(
            host, node.port, username=login, client_keys=[str(node.keys / "stranger")], known_hosts=None, config=None
        )


def banned(lines: list[str], directory: Path) -> list[str]:
    """The addresses that fail2ban's own program finds in `lines` with the filter, sorted."""
    log = directory / "fail2ban.log"
    log.write_text("".join(line + "\n" for line in lines))
    command = ["fail2ban-regex", "--out", "ip", str(log), str(FILTER)]
    return sorted(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split())


@pytest.mark.interop
async def test_the_fail2ban_filter_finds_the_refused_hosts_and_no_others(node: NodeProcess, tmp_path: Path) -> None:
    node.write_peer("alice")
    node.write_peer("bob", "enabled = false")
    node.alknet("config", "reload")
    node.key("stranger")
    for key, login in (
        ("owner", "owner"),
        ("stranger", "root"),
        ("bob", "bob"),
        ("alice", " result=accept x"),
        ("alice", "alice"),
    ):
        node.ssh("true", key=key, login=login)
    for login, host in ((FORGED, "127.0.0.1"), (FORGED_LINE, "::1"), ("2026-11-21T07:02:02Z", "::1")):
        await knock(node, login, host)
    node.ssh(FORGED_LINE, key="alice", options=("-s",))  # a subsystem of that name, which is logged by INFO
    expected = ["127.0.0.1"] * 4 + ["::1"] * 2
    lines = wait_until(lambda: _whole_log(node, len(expected)), "every refusal is logged")
    assert sum("result=accept peer=" in line for line in lines) >= 3
    assert banned(lines, tmp_path) == expected
    journal = [f"{line.split(' ')[0].replace('Z', '+0000')} host alknet[77]: {line}" for line in lines]
    assert banned(journal, tmp_path) == expected


def _whole_log(node: NodeProcess, refusals: int) -> list[str] | None:
    lines = node.log_text().splitlines()
    return lines if sum(" result=reject reason=" in line for line in lines) >= refusals else None


@pytest.mark.interop
def test_every_field_of_an_audit_line_is_documented(node: NodeProcess) -> None:
    documented = set(first_column("reference/audit.md", "A line"))
    node.ssh("true")
    node.key("stranger")
    node.ssh("true", key="stranger")
    node.write_peer("alice")
    node.alknet("config", "reload")
    node.stop()
    found = {field for line in node.audit() for field in line}
    assert found - documented == set()
    example = re.search(
        r"```json\n(.*?)\n```", (DOCS / "reference" / "audit.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert example is not None
    assert set(json.loads(example[1])) <= documented


@pytest.mark.interop
def test_every_field_of_the_status_is_documented(node: NodeProcess) -> None:
    documented = first_column("reference/status.md", "Fields")
    command = node.ssh_command("echo in; read line")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as session:
        assert session.stdout is not None
        assert session.stdout.readline() == "in\n"
        status = node.json("status")
        session.communicate("\n", timeout=DEADLINE_S)
    assert set(documented) == set(status)
    for name in ("node", "listeners", "connections", "peers", "quic"):
        parts = status[name] if isinstance(status[name], list) else [status[name]]
        said = {field for cell in documented[name] for field in re.findall(r"`(\w+)`", cell)}
        assert parts, name
        assert {field for part in parts for field in part} - said == set(), name


def test_verify_says_what_the_reference_says_that_it_says() -> None:
    source = (ROOT / "alknet" / "audit_reader.py").read_text(encoding="utf-8")
    table = (DOCS / "reference" / "audit.md").read_text(encoding="utf-8").split("| damage |")[1].split("\n\n")[0]
    phrases = [phrase for phrase in re.findall(r"`([^`]+)`", table) if " " in phrase]
    assert len(phrases) >= 6
    assert [phrase for phrase in phrases if phrase not in source] == []


def test_the_service_unit_starts_the_command_that_exists() -> None:
    unit = (DOCS / "howto" / "alknet.service").read_text(encoding="utf-8")
    (command,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    words = shlex.split(command)
    assert (Path(words[0]).name, words[1], words[-1]) == ("alknet", "--home", "serve")
    assert "serve" in COMMANDS
