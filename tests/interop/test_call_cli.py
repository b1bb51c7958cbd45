"""``alknet ops``, ``alknet call`` and ``ssh node op`` as people and programs use them."""

import asyncio
import io
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pexpect
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import TypeAliasType

from alknet.call.errors import CallError
from alknet.call.operations import operation, operations_of
from alknet.cli import ops
from alknet.errors import InvalidInputError
from testkit.as_user import Launcher
from testkit.carriers import alknet, running, wait_for
from testkit.node import NodeProcess, wait_until
from testkit.service_nodes import service_node

pytestmark = pytest.mark.interop

ABOUT = ["services/changed", "services/list", "services/list-peers", "services/schema"]
"""The operations about operations that every peer may call."""

STOPPED_S = 0.2
OUTPUT = {
    "name": "a", "count": 1, "ratio": 0.5, "flag": False, "mode": "slow", "tags": None, "sizes": [], "limit": None,
    "options": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Iterator[NodeProcess]:
    """One node for all of these tests, with a peer that may do little."""
    with service_node(tmp_path_factory.mktemp("node"), launcher) as node:
        node.write_peer("little", 'scopes = ["test:typed", "matrix:read"]')
        node.alknet("config", "reload")
        yield node


def call(node: NodeProcess, *words: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of ``alknet call . WORD…``, whose options may be anywhere."""
    result = node.alknet("call", ".", *words, check=False)
    return result.returncode, result.stdout, result.stderr


def seen(node: NodeProcess, mark: str) -> Any:
    return json.loads(call(node, "--json", "test/seen", f"mark={mark}")[1])


# --- finding operations ------------------------------------------------------------------------------------------


def test_ops_lists_what_the_caller_may_call_and_nothing_else(node: NodeProcess) -> None:
    mine = node.alknet("ops").stdout.splitlines()
    assert mine[0] == "NAME\tKIND\tSUMMARY"
    assert "test/echo\tquery\tAnswer with what it is given." in mine
    assert "test/count\tsubscription\tThe numbers below `to`, each with so many letters." in mine
    assert not any("matrix/inside" in line for line in mine)
    identity = ("--identity", str(node.keys / "little"))
    theirs = [line.split("\t")[0] for line in node.alknet("ops", ".", *identity).stdout.splitlines()[1:]]
    assert theirs == [*ABOUT, "test/identity", "test/typed"]
    assert [one["name"] for one in node.json("ops", *identity)] == theirs
    assert [one["name"] for one in node.json("ops", "--query", "VALUES input")] == ["test/typed"]  # a tag, a summary
    assert [one["name"] for one in node.json("ops", "--query", "values zebra")] == []
    assert node.alknet("ops", "--query", "zebra").stdout == (
        "no operations that you may call with 'zebra' in name, summary or tags\n"
    )


def test_ops_with_a_name_shows_how_to_call_it(node: NodeProcess) -> None:
    shown = node.alknet("ops", ".", "test/typed").stdout
    assert shown.startswith("test/typed  query, version 1\nAnswer with its inputs, as they arrived.\nOne of every type")
    for row in (
        "name\tstring\trequired\tWhat it is called.\n",
        "count\tinteger\t1\tHow many.\n",
        "mode\tfast or slow\tslow\t\n",
        "tags\tlist of string or null\t\t\n",
        "access  scope test:typed\n",
    ):
        assert row in shown
    example = shown.splitlines()[-1]
    assert example == "alknet call . test/typed name=a count=2"
    assert json.loads(node.alknet(*example.split()[1:]).stdout) == OUTPUT | {"count": 2}
    assert node.alknet("ops", ".", "test/digest").stdout.endswith("\nalknet call . test/digest data=@FILE\n")
    stream = node.alknet("ops", ".", "test/count").stdout
    assert "output  each item is object\n" in stream
    assert stream.endswith("\nalknet call --stream . test/count to=INTEGER\n")
    assert (
        "error   SOLD_OUT  There are fewer left than were asked for.\n" in node.alknet("ops", ".", "test/order").stdout
    )
    assert "access  scope matrix:one or matrix:two\n" in node.alknet("ops", ".", "matrix/wide").stdout
    assert "access  anybody\n" in node.alknet("ops", ".", "test/identity").stdout
    assert node.json("ops", ".", "test/count")["input_schema"]["required"] == ["to"]


@pytest.mark.parametrize("command", ["ops", "call"])
def test_a_name_that_is_not_there_is_corrected(node: NodeProcess, command: str) -> None:
    for name, hint in (
        ("test/typd", "did you mean test/typed?"),
        ("services/lists", "did you mean services/list or services/stats or services/list-peers?"),
        ("zebra/stripes", "'alknet ops .' lists those that you may call"),
    ):
        result = node.alknet(command, ".", name, check=False)
        assert (result.returncode, result.stdout) == (4, "")
        assert f"  hint: {hint}\n" in result.stderr


# --- inputs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        (["name=a"], {}),
        (['{"name": "a"}'], {}),
        ([' {"name": "ü\\n"}'], {"name": "ü\n"}),
        (["name=5"], {"name": "5"}),
        (["name=a=b c"], {"name": "a=b c"}),
        (["name=", "count=7", "ratio=2", "flag=true", "mode=fast"],
         {"name": "", "count": 7, "ratio": 2.0, "flag": True, "mode": "fast"}),
        (["name=a", "tags=5", "tags=x", "sizes=1", "sizes=2"], {"tags": ["5", "x"], "sizes": [1, 2]}),
        (["name=a", 'tags=["5"]', "sizes=[]"], {"tags": ["5"]}),
        (["name=a", "limit=3", 'options={"a": [null]}'], {"limit": 3, "options": {"a": [None]}}),
        (["name=a", "limit=null"], {}),
    ],
)  # fmt: skip
def test_pairs_are_typed_by_the_schema(node: NodeProcess, words: list[str], changed: dict[str, Any]) -> None:
    code, out, err = call(node, "test/typed", *words)
    assert (code, err) == (0, "")
    assert json.loads(out) == OUTPUT | changed


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["name=a", "cuont=3"], 6, "there is no input 'cuont'\n  hint: did you mean 'count'? It takes name, count"),
        (["name"], 6, "'name' is neither key=value nor a JSON object\n  hint: write name=VALUE"),
        (["[1]"], 6, "'[1]' is neither key=value nor a JSON object\n  hint: as in name=value"),
        (["name=a", "count=many"], 6, "count takes an integer, not 'many'"),
        (["name=a", "flag=yes"], 6, "flag takes true or false, not 'yes'"),
        (["name=a", "name=b"], 6, "name is given twice"),
        (["name=a", "count=-1"], 6, "input.count: should be greater than or equal to 0\n  hint: 'alknet ops . test/ty"),
        (["name=a", "mode=fst"], 6, "input.mode: should be 'fast' or 'slow'"),
        ([], 6, "input.name: is missing"),
        (['{"count": "x", "no": 1}'], 6, "the input is wrong:\n        name: is missing\n        count: should be"),
        (["{name: 1}"], 6, "the input is not JSON: Expecting property name"),
        (['{"name": NaN}'], 6, "the input is not JSON: NaN is no JSON"),
        (["--timeout", "soon", "name=a"], 2, "--timeout must be a duration"),
        (["--timeout", "0s", "name=a"], 2, "--timeout must be more than nothing"),
        (["--token-file", "/no/such", "name=a"], 2, "'/no/such': No such file"),
        (["--token-file", "/dev/null", "name=a"], 2, "there is no token in it"),
        (["-o", "/no/such/file", "name=a"], 2, "'/no/such/file': No such file"),
    ],
)
def test_a_wrong_input_is_explained(node: NodeProcess, words: list[str], code: int, message: str) -> None:
    result, out, err = call(node, "test/typed", *words)
    assert (result, out) == (code, "")
    assert message in err
    assert err.startswith("alknet: ")


def test_bytes_come_from_a_file_and_go_to_a_file_or_a_pipe(node: NodeProcess, tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(os.urandom(5000))
    code, out, _ = call(node, "test/digest", f"data=@{path}")
    assert (code, json.loads(out)["bytes"]) == (0, 5000)
    assert call(node, "test/digest", "data=@/no/such")[0::2] == (4, "alknet: data: there is no file '/no/such'\n")
    assert json.loads(call(node, "test/digest", "data=AAAA")[1])["bytes"] == 3
    blob = bytes(range(256)) + b"\0"
    piped = subprocess.run(alknet(node, "call", ".", "test/blob", "size=257"), capture_output=True, cwd="/", check=True)
    assert piped.stdout == blob
    assert call(node, "test/blob", "size=257", "-o", str(path)) == (0, "", "")
    assert path.read_bytes() == blob
    assert call(node, "--json", "test/blob", "size=3")[1] == '"AAAA"\n'
    assert call(node, "test/blob", "size=wrong", "-o", str(tmp_path / "none"))[0] == 6
    assert not (tmp_path / "none").exists()


# --- outputs and exit codes ----------------------------------------------------------------------------------------


def test_json_is_one_line_for_each_output(node: NodeProcess) -> None:
    value = {"text": "a\nü", "list": [1, None]}
    words = ("test/echo", json.dumps({"value": value}))
    assert call(node, "--json", *words)[1] == '{"text":"a\nü","list":[1,null]}\n'.replace("a\n", "a\\n")
    assert call(node, "test/echo", "value=two\nlines")[1] == "two\nlines\n"
    assert call(node, "--json", "test/echo", "value=two\nlines")[1] == '"two\\nlines"\n'
    assert call(node, "test/echo")[1] == "null\n"
    items = call(node, "--stream", "test/count", "to=3")[1].splitlines()
    assert [json.loads(item)["number"] for item in items] == [0, 1, 2]
    assert call(node, "--stream", "--json", "test/numbers", "to=3") == (0, "0\n1\n2\n", "")


def test_each_kind_of_failure_has_its_exit_code(node: NodeProcess, tmp_path: Path) -> None:
    assert call(node, "test/order", "item=a", "amount=9") == (
        1, "", 'alknet: SOLD_OUT: only 3 of a are left\n        {"left":3}\n',
    )  # fmt: skip
    code, _, err = call(node, "test/crash")
    assert (code, "secret" in err) == (1, False)
    assert re.fullmatch(r"alknet: test/crash failed; the node's log has it as err_\w+\n", err)
    assert call(node)[0] == 2
    little = ("--identity", str(node.keys / "little"))
    for words in (["node/kill", "id=c1"], ["node/kill", '{"id": "c1"}']):
        code, _, err = call(node, *words, *little)
        assert code == 3
        assert re.search(r"peer 'little' lacks the scope node:admin.* \(den_\w+\)", err)
    assert call(node, "test/none")[0] == 4
    code, _, err = call(node, "--timeout", "200ms", "test/wait", "mark=slow")
    assert (code, "in time" in err) == (5, True)
    code, _, err = call(node, "test/count", "to=1")
    assert (code, "  hint: --stream subscribes to it\n" in err) == (6, True)
    code, _, err = call(node, "--stream", "test/echo")
    assert (code, "  hint: leave out --stream\n" in err) == (6, True)
    result = node.alknet("--home", str(tmp_path), "call", ".", "test/echo", check=False)
    assert (result.returncode, "no node runs on" in result.stderr) == (5, True)
    assert node.alknet("call", "127.0.0.1:1", "test/echo", check=False).returncode == 5


def test_a_token_instead_of_a_key(node: NodeProcess, tmp_path: Path) -> None:
    made = node.json("token", "create", "--peer", "little", "--scope", "test:typed")
    path = tmp_path / "token"
    path.write_text(made["token"] + "\n")
    token = ("--token-file", str(path))
    assert json.loads(call(node, "test/identity", *token)[1]) == {"peer": "little", "surface": "tls"}
    assert call(node, "test/typed", "name=a", *token)[0] == 0
    code, _, err = call(node, "test/echo", *token)
    assert (code, "the token of peer 'little' lacks" in err or "lacks the scope" in err) == (3, True)
    names = [one["name"] for one in node.json("ops", ".", *token)]
    assert names == [*ABOUT, "test/identity", "test/typed"]
    result = node.alknet("call", "--token-file", "-", ".", "test/identity", input=made["token"])
    assert json.loads(result.stdout)["peer"] == "little"
    code, _, err = call(node, "test/identity", *token, "--carrier", "ssh")  # not as the owner instead
    assert (code, "SSH lets in keys, not a token" in err) == (2, True)
    node.alknet("token", "revoke", made["prefix"])
    code, _, err = call(node, "test/identity", *token)
    assert (code, "the token is not valid" in err) == (3, True)
    assert made["token"] not in err


@pytest.mark.parametrize("carrier", ["quic", "tls", "ssh"])
def test_the_carrier_can_be_chosen_and_is_told(node: NodeProcess, carrier: str) -> None:
    code, out, err = call(node, "-v", "--carrier", carrier, "test/identity")
    assert (code, json.loads(out)) == (0, {"peer": "owner", "surface": carrier})
    assert re.search(rf"alknet: \w+ to 127\.0\.0\.1:{node.port}: connected in \d+ ms\n", err)


# --- stopping it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("carrier", ["quic", "tls", "ssh"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_far_handler(node: NodeProcess, carrier: str, number: int) -> None:
    mark = f"{carrier}-{number}"
    with running(alknet(node, "call", "--carrier", carrier, ".", "test/wait", f"mark={mark}")) as caller:
        wait_until(lambda: seen(node, mark), "the handler runs")
        stopped = time.monotonic()
        caller.send_signal(number)
        _, err = caller.communicate(timeout=10)
        ended = wait_until(lambda: (s := seen(node, mark))["how"] and s, "the handler has ended", timeout_s=5)
    assert ended["how"] == "CancelledError"
    assert ended["ended"] - stopped < STOPPED_S
    assert caller.returncode == 128 + number
    assert b"Traceback" not in err


def test_a_reader_that_has_seen_enough_ends_the_subscription(node: NodeProcess) -> None:
    with running(alknet(node, "call", "--stream", ".", "test/paced", "mark=head")) as caller:
        wait_for(caller, b"0\n")
        assert caller.stdout is not None
        caller.stdout.close()
        assert caller.wait(timeout=10) == 0
        assert caller.stderr is not None
        assert caller.stderr.read() == b""
    assert wait_until(lambda: seen(node, "head")["how"], "the handler has ended")


# --- on a terminal -------------------------------------------------------------------------------------------------


def on_terminal(node: NodeProcess, *words: str) -> tuple[str, int | None]:
    command = alknet(node, *words)
    child = pexpect.spawn(command[0], command[1:], timeout=20, encoding="utf-8", dimensions=(30, 100), cwd="/")
    text = child.read()
    child.close()
    return text.replace("\r\n", "\n"), child.exitstatus


def test_a_terminal_gets_tables_and_indented_json(node: NodeProcess) -> None:
    assert on_terminal(node, "call", ".", "test/identity") == ('{\n  "peer": "owner",\n  "surface": "tls"\n}\n', 0)
    assert on_terminal(node, "--json", "call", ".", "test/thread", "value=1") == ("2\n", 0)
    table, code = on_terminal(node, "ops", "--query", "letters")
    assert code == 0
    assert re.search(r"^test/text +query +So many letters\. *$", table, re.MULTILINE)


def test_what_others_send_does_not_steer_the_terminal(node: NodeProcess) -> None:
    evil = "\x1b[31mred\x07\x9b2J\u202e"
    for words in (["test/echo", f"value={evil}"], ["test/echo", json.dumps({"value": [evil]})]):
        text, code = on_terminal(node, "call", ".", *words)
        assert code == 0
        assert not set(evil) & set(text) - set("[31mred2J")
        assert "red" in text
    assert on_terminal(node, "call", ".", "test/echo", "value=tab\there\nnext") == ("tab\there\nnext\n", 0)


@pytest.mark.parametrize("how", [["--json"], ["-o", "-"], ["-o", "/dev/tty"], ["--json", "-o", "-"]])
@pytest.mark.parametrize("is_text", [True, False])
def test_nor_does_it_where_a_form_or_a_file_is_asked_for(node: NodeProcess, how: list[str], is_text: bool) -> None:
    evil = "\x1b]0;t\x07\x9b31m\x7f\u202e\u2066"
    value = json.dumps({"value": f"red{evil}" if is_text else [f"red{evil}", {f"k{evil}": 1}]})
    text, code = on_terminal(node, "call", *how, ".", "test/echo", value)
    assert code == 0
    assert all(c.isprintable() or c == "\n" for c in text)
    assert "red" in text
    if not is_text or "--json" in how:
        assert json.loads(text) == json.loads(value)["value"]


def test_what_goes_elsewhere_is_what_was_sent(node: NodeProcess, tmp_path: Path) -> None:
    evil, path = "\x1b[31m\x9b\x7f\u202e", tmp_path / "file"
    assert call(node, "test/echo", json.dumps({"value": evil}))[1] == f"{evil}\n"
    assert call(node, "-o", str(path), "test/echo", json.dumps({"value": evil}))[0] == 0
    assert path.read_text() == f"{evil}\n"


@pytest.mark.parametrize("run", [call, lambda node, *words: on_terminal(node, "call", ".", *words)])
def test_an_error_of_the_other_side_is_one_line(node: NodeProcess, run: Any) -> None:
    item = "a\n  hint: your key has expired, run x\u2028\x85\x1b[2J" + "b" * 2000
    shown = [str(text) for text in run(node, "test/order", json.dumps({"item": item, "amount": 9}))]
    (text,) = [text for text in shown if "SOLD_OUT" in text]
    said, details = text.splitlines()[0], text.splitlines()[1:]
    assert said.startswith(r"alknet: SOLD_OUT: only 3 of a\n  hint: your key has expired, run x\u2028\x85\x1b[2Jbbb")
    assert (len(said), said[-1]) == (len("alknet: ") + 1001, "…")
    assert details == ['        {"left":3}']


def test_a_terminal_gets_no_bytes(node: NodeProcess) -> None:
    text, code = on_terminal(node, "call", ".", "test/blob", "size=4")
    assert (text, code) == (
        "alknet: the output is 4 bytes\n  hint: -o FILE writes them to a file, --json shows them\n", 2,
    )  # fmt: skip


def test_ctrl_c_on_a_terminal_stops_the_far_handler(node: NodeProcess) -> None:
    command = alknet(node, "call", "--stream", ".", "test/endless", "mark=ctrl-c")
    child = pexpect.spawn(command[0], command[1:], timeout=20, encoding="utf-8", cwd="/")
    child.expect_exact("0\r\n")
    stopped = time.monotonic()
    child.sendcontrol("c")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130
    ended = wait_until(lambda: (s := seen(node, "ctrl-c"))["how"] and s, "the handler has ended")
    assert ended["ended"] - stopped < STOPPED_S


# --- what a peer may say of its operations ---------------------------------------------------------------------------

Tree = TypeAliasType("Tree", "list[Tree] | str")
KEYS = ["properties", "type", "anyOf", "oneOf", "enum", "const", "$ref", "$defs", "items", "title", "default"]
ANYTHING = st.recursive(
    st.none() | st.integers() | st.text(max_size=3) | st.binary(max_size=3) | st.sampled_from(["array", "#/$defs/a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*KEYS, "a", "public"]), inner),
    max_leaves=12,
)
SAID = ["name", "summary", "input_schema", "output_schema", "errors", "access", "examples"]


@operation("tree/plant", public=True, examples=[{"input": {"tree": ["a", ["b"]]}}])
async def plant(tree: Tree, rows: list[list[list[int]]] | None = None) -> Tree:
    """Plant it."""
    return tree


def explained(answer: Any, jump: str | None = None) -> str:
    with redirect_stdout(io.StringIO()) as out:
        ops._explain("hub", answer, jump=jump)
    return out.getvalue()


def test_a_type_that_contains_itself_is_explained() -> None:
    (found,) = operations_of(plant)
    text = explained(found.spec.describe())
    assert "\ntree\tlist of … or string\trequired\t\n" in text
    assert "\nrows\tlist of list of list of integer or null\t\t\n" in text
    assert "\noutput  list of … or string\n" in text
    assert text.endswith("""\nalknet call hub tree/plant '{"tree":["a",["b"]]}'\n""")
    through = explained(found.spec.describe(), jump="bob@relay")
    assert through == text.replace("alknet call hub", "alknet call -J bob@relay hub")


@given(ANYTHING, st.dictionaries(st.sampled_from(SAID), ANYTHING))
def test_whatever_is_said_of_an_operation_is_shown_in_lines(answer: Any, spec: Any) -> None:
    for one in (answer, spec, {"input_schema": {"properties": spec, "$defs": spec}, "access": {"public": True}}):
        assert all(c.isprintable() or c in "\n\t" for c in explained(one))


@pytest.mark.parametrize("width", [1, 3, 100])
def test_schemas_that_have_no_end_are_explained_up_to_a_point(width: int) -> None:
    lists = {"type": "array", "items": {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}]}}
    branches = [{"type": "array", "items": {"$ref": f"#/$defs/{n}"}} for n in range(width)]
    schema = {
        "$defs": {"a": lists, "b": {"anyOf": [lists] * width}, **{str(n): {"anyOf": branches} for n in range(width)}},
        "properties": {f"p{n}": {"$ref": f"#/$defs/{'ab0'[n % 3]}"} for n in range(300)},
    }
    began = time.monotonic()
    text = explained({"name": "a/b", "input_schema": schema, "output_schema": schema})
    assert time.monotonic() - began < 5
    assert "…" in text
    assert len(text) < 1_000_000


class Endless:
    """A peer whose list of operations has no end, or makes no sense."""

    def __init__(self, **page: Any) -> None:
        self.asked = 0
        self.page = page

    async def call(self, name: str, **values: Any) -> Any:
        assert name == "services/list"
        self.asked += 1
        one = {"name": f"a/{'b' * 10_000}", "kind": "query", "summary": ""}
        return {"operations": [one] * 10, "next_cursor": f"{self.asked:09}"} | self.page


@pytest.mark.parametrize(
    ("page", "most"),
    [({}, 100), ({"next_cursor": "same"}, 2), ({"next_cursor": 5}, 1), ({"operations": []}, 100)],
)
async def test_a_list_without_end_is_given_up(page: dict[str, Any], most: int) -> None:
    peer = Endless(**page)
    assert len(await ops.list_operations(peer)) <= 10_000  # type: ignore[arg-type]
    assert peer.asked == most
    one = {"name": "a/b", "kind": "query", "summary": ""}
    peer = Endless(operations=[one] * 6000)
    assert len(await ops.list_operations(peer)) == 10_000  # type: ignore[arg-type]
    assert peer.asked == 2


@pytest.mark.parametrize("listed", [None, {}, "x", [1], [{"name": "a/b"}], [{"name": 1, "kind": "", "summary": ""}]])
async def test_a_list_that_makes_no_sense_is_refused_and_no_hint(listed: Any) -> None:
    with pytest.raises(InvalidInputError, match="makes no sense"):
        await ops.list_operations(Endless(operations=listed))  # type: ignore[arg-type]
    error = CallError("NOT_FOUND", "no")
    assert await ops.hint_for(Endless(operations=listed), "hub", "a/c", error) == ""  # type: ignore[arg-type]
    found = await ops.hint_for(Endless(), "hub", "a/" + "b" * 9_999, error)  # type: ignore[arg-type]
    assert found == "'alknet ops hub' lists those that you may call"


async def test_a_hint_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        async def call(self, name: str, **values: Any) -> Any:
            await asyncio.Event().wait()

    monkeypatch.setattr(ops, "HINT_TIMEOUT_S", 0.01)
    assert await ops.hint_for(Silent(), "hub", "a/b", CallError("NOT_FOUND", "no")) == ""  # type: ignore[arg-type]


# --- stock ssh -----------------------------------------------------------------------------------------------------


def test_stock_ssh_calls_operations(node: NodeProcess) -> None:
    for words, code, out, err in (
        (["op", "test/echo", '{"value": {"ü": [1]}}'], 0, '{"ü":[1]}\n', ""),
        (["op", "/test/thread", '{"value": 1}'], 0, "2\n", ""),
        (["op", "test/numbers", '{"to": 3}'], 0, "0\n1\n2\n", ""),
        (["op test/echo"], 0, "null\n", ""),
        (["op", "test/blob", '{"size": 3}'], 0, '"AAAA"\n', ""),
        (["op"], 2, "", "alknet: op needs the name of an operation: op NAME '{\"key\": \"value\"}'\n"),
        (["op", "test/none"], 4, "", "alknet: NOT_FOUND: operation not found: test/none\n"),
        (["op", "test/echo", "value=1"], 6, "", "hint: all that follows the name is JSON: ssh HOST op NAME '{…}'\n"),
        (["op", "test/typed", '{"count": "x"}'], 6, "",
         "        name: is missing\n        count: should be a valid integer"),
        (["op", "test/order", '{"item": "a", "amount": 9}'], 1, "", "alknet: SOLD_OUT: only 3 of a are left\n"),
    ):  # fmt: skip
        result = node.ssh(*words)
        assert (result.returncode, result.stdout.decode()) == (code, out), (words, result.stderr)
        assert err in result.stderr.decode()


def test_stock_ssh_is_denied_what_the_peer_may_not(node: NodeProcess) -> None:
    result = node.ssh("op", "node/kill", '{"id": "c1"}', key="little")
    assert (result.returncode, result.stdout) == (3, b"")
    assert re.fullmatch(r"alknet: FORBIDDEN: .*lacks the scope node:admin.* \(den_\w+\)\n", result.stderr.decode())


def test_a_stock_ssh_that_goes_away_stops_the_far_handler(node: NodeProcess) -> None:
    with running(node.ssh_command("op", "test/endless", '{"mark": "ssh-gone"}')) as caller:
        wait_for(caller, b"0\n")
        stopped = time.monotonic()
        caller.terminate()
        ended = wait_until(lambda: (s := seen(node, "ssh-gone"))["how"] and s, "the handler has ended")
    assert ended["ended"] - stopped < STOPPED_S
