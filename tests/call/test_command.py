"""``ssh NODE op NAME '{json}'``: what is printed where, how it exits, and that it ends with its client."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.access import Identity
from alknet.alpn.memory import memory_pair
from alknet.alpn.streams import Address
from alknet.audit import NOTHING, MemoryAudit
from alknet.call.command import MAX_INPUT_CHARS, serve_command
from alknet.call.context import OperationContext
from alknet.call.dispatch import Dispatcher
from alknet.call.errors import CallError
from alknet.call.operations import OperationError, operation, operations_of
from alknet.call.registry import Registry
from alknet.call.schema import Bytes
from alknet.errors import UnavailableError
from alknet.ssh.handler import Command
from testkit.bench import Bench
from testkit.polling import eventually
from testkit.ssh_pair import Door, policy_with

ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\r\n\x7f"


class SoldOut(OperationError):
    """There is none left."""

    code = "SOLD_OUT"


class Service:
    """Operations to call, and what has become of the one that waits."""

    def __init__(self) -> None:
        self.begun = 0
        self.cancelled_at = 0.0

    @operation("do/echo")
    async def echo(self, value: Any = None, other: str = "") -> Any:
        return [value, other]

    @operation("do/bytes")
    async def bytes(self) -> Bytes:
        return b"\x00\xff"

    @operation("do/who")
    async def who(self, *, ctx: OperationContext) -> list[Any]:
        return [ctx.identity.id if ctx.identity else None, ctx.surface]

    @operation("do/wait")
    async def wait(self) -> None:
        self.begun += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled_at = time.monotonic()
            raise

    @operation("do/count")
    async def count(self, to: int = 3, fails: bool = False) -> AsyncIterator[int]:
        for n in range(to):
            yield n
        if fails:
            raise UnavailableError("no more", hint="later")

    @operation("do/follow")
    async def follow(self) -> AsyncIterator[str]:
        self.begun += 1
        try:
            yield "first"
            await asyncio.Event().wait()
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled_at = time.monotonic()
            raise

    @operation("do/flood")
    async def flood(self) -> AsyncIterator[str]:
        self.begun += 1
        try:
            while True:
                yield "x" * 65536
                await asyncio.sleep(0)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled_at = time.monotonic()
            raise

    @operation("do/fail", errors=[SoldOut])
    async def fail(self, code: str) -> None:
        if code == "SOLD_OUT":
            raise SoldOut(f"none {ESCAPES}", hint=f"try {ESCAPES}", details=[ESCAPES])
        raise RuntimeError("x-secret")

    @operation("do/infinite")
    async def infinite(self) -> Any:
        return float("inf")

    @operation("do/hidden", visibility="internal")
    async def hidden(self) -> None: ...


# --- without a door -----------------------------------------------------------------------------------------------


class Recorded:
    """A terminal that keeps what it is given."""

    def __init__(self) -> None:
        self.out = b""
        self.err = b""
        self.recheck: Callable[[], None] = lambda: None

    async def write(self, data: bytes) -> None:
        self.out += data

    async def write_error(self, data: bytes) -> None:
        self.err += data

    def on_recheck(self, recheck: Callable[[], None]) -> None:
        self.recheck = recheck


async def run(text: str, *scopes: str, bench: Bench | None = None, terminal: Recorded | None = None) -> tuple[int, Any]:
    """(exit status, terminal)."""
    bench = bench or Bench(Service(), peers={"bob": scopes or ("do:*",)})
    terminal = terminal or Recorded()
    _, connection = memory_pair(alpn="alknet/ssh", remote=Address("192.0.2.1", 4000))
    identity = bench.caller("bob").identity
    assert isinstance(identity, Identity)
    async with bench:
        status = await serve_command(bench.dispatcher, terminal, identity, connection, text)
    assert bench.unmatched() == {}
    return status, terminal


@pytest.mark.parametrize("text", ["", " ", "\t \n"])
async def test_without_a_name_it_says_how_it_is_used(text: str) -> None:
    status, terminal = await run(text)
    assert (status, terminal.out) == (2, b"")
    assert b"op NAME" in terminal.err


@pytest.mark.parametrize("text", ["do/who", "/do/who", "  do/who  ", "do/who {}", "do/who   { } ", "do/who null"])
async def test_the_output_is_one_line_of_json(text: str) -> None:
    status, terminal = await run(text)
    assert (status, terminal.out, terminal.err) == (0, b'["bob","ssh"]\n', b"")


@given(st.recursive(st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)),
       st.text(), st.sampled_from([None, 1, 4]), st.booleans())  # fmt: skip
async def test_the_json_arrives_untouched(value: Any, other: str, indent: int | None, is_ascii: bool) -> None:
    text = json.dumps({"value": value, "other": other}, indent=indent, ensure_ascii=is_ascii)
    status, terminal = await run(f"do/echo {text}")
    assert (status, terminal.err) == (0, b"")
    assert terminal.out.count(b"\n") == 1
    assert json.loads(terminal.out) == [value, other]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('do/echo {"value": "a  b"}', "a  b"),
        ('do/echo {"value": " - \'; rm -rf $HOME `id` "}', " - '; rm -rf $HOME `id` "),
        ('do/echo   {"value" :\t"grün ✓ 🙂"}', "grün ✓ 🙂"),
        ('do/echo {"value": "\\ud83d\\ude42"}', "🙂"),
        ('do/echo {"value": "op do/echo {}"}', "op do/echo {}"),
    ],
)
async def test_no_shell_reads_the_json(text: str, value: str) -> None:
    status, terminal = await run(text)
    assert (status, json.loads(terminal.out)[0]) == (0, value)


async def test_a_subscription_is_a_line_for_each_item() -> None:
    status, terminal = await run('do/count {"to": 3}')
    assert (status, terminal.out, terminal.err) == (0, b"0\n1\n2\n", b"")


async def test_bytes_are_base64() -> None:
    assert (await run("do/bytes"))[1].out == b'"AP8="\n'


async def test_a_subscription_that_fails_keeps_its_lines_and_says_why() -> None:
    status, terminal = await run('do/count {"to": 2, "fails": true}')
    assert (status, terminal.out) == (5, b"0\n1\n")
    assert terminal.err == b"alknet: UNAVAILABLE: no more\n  hint: later\n"


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        ("do/none", 4, "alknet: NOT_FOUND: operation not found: do/none\n"),
        ("do/hidden", 4, "alknet: NOT_FOUND: operation not found: do/hidden\n"),
        ("do/echo {", 6, "alknet: INVALID_INPUT: the input is not JSON"),
        ("do/echo {} {}", 6, "alknet: INVALID_INPUT: the input is not JSON"),
        ("do/echo \udcff", 6, "alknet: INVALID_INPUT: the input is not JSON"),
        ("do/echo " + "[" * 100, 6, "alknet: INVALID_INPUT: the input holds containers more than 64 deep"),
        ("do/echo []", 6, "alknet: INVALID_INPUT: "),
        ('do/count {"to": "x"}', 6, "alknet: INVALID_INPUT: input.to: "),
        ('do/fail {"code": "SOLD_OUT"}', 1, "alknet: SOLD_OUT: none "),
        ('do/fail {"code": "x"}', 1, "alknet: INTERNAL: do/fail failed; the node's log has it as err_"),
    ],
)
async def test_an_error_is_on_stderr_with_a_status_of_its_kind(text: str, status: int, said: str) -> None:
    found, terminal = await run(text)
    assert (found, terminal.out) == (status, b"")
    assert terminal.err.decode().startswith(said)
    assert "x-secret" not in terminal.err.decode()


async def test_a_refusal_names_its_denial() -> None:
    bench = Bench(Service(), peers={"bob": ("do:who",)})
    status, terminal = await run("do/echo {}", bench=bench)
    (record,) = bench.audit.records
    assert (status, terminal.out, record["outcome"], record["surface"]) == (3, b"", "denied", "ssh")
    assert terminal.err.startswith(b"alknet: FORBIDDEN: ")
    assert record["denial_id"].encode() in terminal.err
    assert record["remote"] == "192.0.2.1"


async def test_a_call_that_takes_too_long_exits_with_5() -> None:
    bench = Bench(Service(), peers={"bob": ("*",)}, default_timeout_s=0.02)
    status, terminal = await run("do/wait", bench=bench)
    assert (status, terminal.err) == (5, b"alknet: TIMEOUT: do/wait did not finish in time\n")


@pytest.mark.parametrize("over", [0, 1])
async def test_an_input_has_a_largest_size(over: int) -> None:
    text = '{"value": "' + "x" * (MAX_INPUT_CHARS - 13 + over) + '"}'
    assert len(text) == MAX_INPUT_CHARS + over
    status, terminal = await run(f"do/echo {text}")
    assert status == (6 if over else 0)
    assert (b"more than 1048576 characters" in terminal.err) is bool(over)


@pytest.mark.parametrize(
    "text",
    ['do/fail {"code": "SOLD_OUT"}', f"do/{ESCAPES}", ESCAPES.strip(), f"do/echo {ESCAPES}",
     f'do/echo {{"{ESCAPES}": 1}}', f'do/echo {{"{json.dumps(ESCAPES)[1:-1]}": 1}}', "do/\udcff\udc1b"],
)  # fmt: skip
async def test_an_error_moves_no_cursor(text: str) -> None:
    status, terminal = await run(text)
    assert status != 0
    said = terminal.err.decode()
    assert [line for line in said.split("\n") if not line.isprintable()] == []
    assert said.startswith("alknet: ")
    assert said.endswith("\n")


async def test_an_output_that_json_cannot_hold_is_an_error() -> None:
    status, terminal = await run("do/infinite")
    assert (status, terminal.out) == (1, b"")
    assert terminal.err.startswith(b"alknet: INTERNAL: ")


async def test_a_right_that_is_taken_away_ends_it() -> None:
    for text in ("do/wait", "do/follow"):
        service, terminal = Service(), Recorded()
        bench = Bench(service, peers={"bob": ("do:*",)})
        async with asyncio.TaskGroup() as group:
            task = group.create_task(run(text, bench=bench, terminal=terminal))
            await eventually(lambda service=service: service.begun, "it runs")
            terminal.recheck()
            await asyncio.sleep(0)
            assert not task.done()
            bench.gate.policy = bench.policy({"bob": ("do:who",)})
            terminal.recheck()
            terminal.recheck()
            status, _ = await task
        assert status == 3
        assert b"alknet: FORBIDDEN: access was taken away" in terminal.err
        assert bench.outcome(text) == "revoked"


# --- through the SSH door -----------------------------------------------------------------------------------------


@asynccontextmanager
async def door(*scopes: str, **rights: Any) -> AsyncIterator[tuple[Door, Service]]:
    commands: dict[str, Command] = {}
    service, opened = Service(), Door(policy=policy_with(*scopes, **rights), commands=commands)
    dispatcher = Dispatcher(Registry(operations_of(service)), opened.gate)
    commands["op"] = partial(serve_command, dispatcher)
    try:
        yield opened, service
    finally:
        await opened.aclose()
        await dispatcher.aclose()


async def test_a_stock_client_calls_without_any_ssh_scope() -> None:
    async with door("do:*") as (opened, _), opened.connect() as client:
        result = await client.run('op do/echo {"value": "grün  ✓"}')
        assert (result.exit_status, result.stdout, result.stderr) == (0, '["grün  ✓",""]\n', "")
        refused = await client.run("id")
        assert refused.exit_status == 3
        assert opened.outcomes("ssh/exec") == ["denied"]
        assert opened.outcomes("do/echo") == ["ok"]


@pytest.mark.parametrize(
    ("command", "status"),
    [("op", 2), ("op ", 2), ("op do/none", 4), ("op do/echo {", 6), ("op do/who", 0), ('op do/count {"to": 0}', 0),
     ('op do/fail {"code": "x"}', 1), ('op do/count {"fails": true}', 5), ("op node/kill", 4)],
)  # fmt: skip
async def test_the_status_is_the_clients(command: str, status: int) -> None:
    async with door("do:*") as (opened, _), opened.connect() as client:
        result = await client.run(command)
        assert result.exit_status == status
        assert (result.stderr == "") is (status == 0)


async def test_a_peer_without_the_scope_is_refused_and_stays_connected() -> None:
    async with door("ssh:*") as (opened, _), opened.connect() as client:
        result = await client.run("op do/who")
        assert (result.exit_status, result.stdout) == (3, "")
        assert "FORBIDDEN" in str(result.stderr)
        assert (await client.run("exit 7")).exit_status == 7


async def test_a_list_of_programs_does_not_rule_operations_out() -> None:
    async with door("do:*", "ssh:exec", commands=("true",)) as (opened, _), opened.connect() as client:
        assert (await client.run("op do/who")).stdout == '["bob","ssh"]\n'
        assert (await client.run("true")).exit_status == 0
        assert (await client.run("id")).exit_status == 3
        assert (await client.run("opp do/who")).exit_status == 3


async def test_a_forced_command_replaces_operations() -> None:
    async with door("*", force_command="echo forced: $SSH_ORIGINAL_COMMAND") as (opened, service):
        async with opened.connect() as client:
            assert (await client.run("op do/wait")).stdout == "forced: op do/wait\n"
        assert service.begun == 0


@pytest.mark.parametrize("name", ["do/wait", "do/follow", "do/flood"])
@pytest.mark.parametrize("whole_connection", [True, False])
async def test_hanging_up_cancels_the_handler_at_once(name: str, whole_connection: bool) -> None:
    async with door("do:*") as (opened, service), opened.connect() as client:
        process = await client.create_process(f"op {name}", encoding=None)
        await eventually(lambda: service.begun, "it runs")
        began = time.monotonic()
        if whole_connection:
            client.abort()
        else:
            process.channel.abort()
        await eventually(lambda: service.cancelled_at, "it was cancelled")
        assert service.cancelled_at - began < 0.2
        await eventually(lambda: opened.outcomes(name) == ["aborted"], "the audit log has it")


async def test_a_client_that_only_says_that_it_writes_no_more_gets_its_answer() -> None:
    async with door("do:*") as (opened, _), opened.connect() as client:
        process = await client.create_process("op do/count")
        process.stdin.write("nobody reads this\n")
        process.stdin.write_eof()
        assert await process.stdout.read() == "0\n1\n2\n"


async def test_a_reload_that_takes_the_scope_away_ends_it_and_says_why() -> None:
    async with door("do:*") as (opened, service), opened.connect() as client:
        process = await client.create_process("op do/follow")
        assert await process.stdout.readline() == '"first"\n'
        opened.replace_policy(policy_with("do:*", revision="r2"))
        opened.replace_policy(policy_with("do:who", revision="r3"))
        result = await asyncio.wait_for(process.wait(), 2)
        assert result.exit_status == 3
        assert "access was taken away" in str(result.stderr)
        assert opened.outcomes("do/follow") == ["revoked"]
        assert (await client.run("op do/who")).exit_status == 0
        assert service.cancelled_at


async def test_a_forced_command_that_comes_with_a_reload_ends_what_it_would_replace() -> None:
    async with door("do:*") as (opened, _), opened.connect() as client:
        process = await client.create_process("op do/follow")
        assert await process.stdout.readline() == '"first"\n'
        opened.replace_policy(policy_with("do:*", revision="r2", force_command="echo forced"))
        result = await asyncio.wait_for(process.wait(), 2)
        assert result.exit_status == 3
        assert "would now be run otherwise" in str(result.stderr)
        await eventually(lambda: opened.outcomes("do/follow") == ["aborted"], "the audit log has it")


async def test_a_node_that_stops_lets_it_finish_or_ends_it() -> None:
    async with door("do:*") as (opened, service), opened.connect() as client:
        process = await client.create_process("op do/follow")
        assert await process.stdout.readline() == '"first"\n'
        await opened.router.shutdown(asyncio.get_running_loop().time() + 0.1)
        await asyncio.wait_for(process.wait(), 5)
        assert service.cancelled_at


def test_an_error_of_a_call_knows_its_exit_status() -> None:
    assert [CallError(code, "").exit_code for code in ("FORBIDDEN", "NOT_FOUND", "TIMEOUT", "X")] == [3, 4, 5, 1]


async def test_what_it_does_is_on_record_before_it_is_done() -> None:
    """It runs in the task that asked, so its intent cannot wait for the next round of the event loop."""
    seen: list[tuple[str, bool]] = []

    class Noting(MemoryAudit):
        def write(self, record: Any, *, more: Any = NOTHING, soon: bool = False) -> None:
            seen.append((str({**record, **more}["phase"]), soon))

    class Said:
        async def write(self, data: bytes) -> None:
            pass

        write_error = write

        def on_recheck(self, recheck: Callable[[], None]) -> None:
            pass

    @operation("do/look")
    async def look() -> int:
        return len(seen)

    async with Bench(look) as bench:
        bench.gate._audit = Noting()
        connection, _ = memory_pair(alpn="alknet/ssh")
        identity = bench.caller().identity
        assert isinstance(identity, Identity)
        assert await serve_command(bench.dispatcher, Said(), identity, connection, "do/look") == 0
    assert seen == [("intent", False), ("outcome", False)]
