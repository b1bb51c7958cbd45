"""``exec/run``: who may run what, what comes of it, and that nothing of it is left."""

import asyncio
import os
import pwd
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.access import Access, Authority, Context, DaemonUser, Identity, Peer, Policy, SshRights, authorize
from alknet.call.context import Caller
from alknet.call.errors import CallError
from alknet.config.policy import daemon_user
from alknet.services import exec as exec_module
from alknet.services.exec import GRACE_S, HELD_BYTES, ITEM_BYTES, MAX_STDIN_BYTES, ExecService
from testkit.bench import Bench
from testkit.files_bench import descriptors
from testkit.node import own_seconds
from testkit.polling import eventually

ME = pwd.getpwuid(os.geteuid()).pw_name
MINE = SshRights(user=ME, as_daemon=True, shell="/bin/sh")
"""Runs as whoever runs the tests, whether or not that is root."""


def policy_of(rights: SshRights = MINE, *, daemon: DaemonUser | None = None, enabled: bool = True) -> Policy:
    alice = Peer("alice", {"exec:run": "own", "ssh:exec": "own"}, ("SHA256:alice",), ssh=rights)
    return Policy(
        {"alice": alice}, "r1", b"k" * 32, daemon=daemon_user() if daemon is None else daemon, run_enabled=enabled
    )


class ExecBench(Bench):
    """A bench on which only ``exec/run`` is served, to a peer that may run everything."""

    def __init__(self) -> None:
        super().__init__()
        self.others: list[psutil.Process] = []
        self.service = ExecService(self.gate)
        self.service.env_allow = ("LANG", "LC_*")
        self.gate.policy = policy_of()
        self.serve(self.service)

    async def run(self, command: str, **value: Any) -> list[dict[str, Any]]:
        """All items."""
        return await self.items("exec/run", {"command": command, **value})

    async def said(self, command: str, **value: Any) -> tuple[str, str, dict[str, Any]]:
        """What it has written to stdout and stderr, and how it has ended."""
        *output, end = await self.run(command, **value)
        out, err = ("".join(one["text"] for one in output if one["stream"] == s) for s in ("stdout", "stderr"))
        return out, err, end

    def children(self) -> list[psutil.Process]:
        """What was started since the test began, and is not reaped."""
        return [child for child in children() if child not in self.others]

    async def refusal(self, command: str, **value: Any) -> CallError:
        with pytest.raises(CallError) as caught:
            await self.run(command, **value)
        return caught.value


def ended(code: int | None = 0, *, signal: str | None = None, timed_out: bool = False) -> dict[str, Any]:
    return {"exit_code": code, "signal": signal, "timed_out": timed_out}


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


@pytest.fixture
async def bench() -> AsyncIterator[ExecBench]:
    """With a look at what is left afterwards: no process, no zombie, no descriptor."""
    bench = ExecBench()
    bench.others = children()  # of other tests of the same worker
    before = descriptors()
    yield bench
    assert descriptors() == before
    assert bench.children() == []
    assert bench.service._runs == set()
    assert bench.unmatched() == {}


# --- who may ------------------------------------------------------------------------------------------------------


def test_it_says_what_it_is(bench: ExecBench) -> None:
    spec = bench.dispatcher.registry.operations["exec/run"].spec
    assert (spec.kind, spec.destructive, spec.idempotent) == ("subscription", True, False)
    assert spec.access == Access(required_scopes=("exec:run",), rules="exec/run")
    assert all("description" in field for field in spec.input_schema["properties"].values())
    assert not ({"stdin", "env"} - set(spec.secret_inputs))


ROOT, USER = DaemonUser("root", is_root=True), DaemonUser("sam", is_root=False)
COMMANDS = st.sampled_from(["uptime", "git status -s", "git push", "rm -rf /", "'", "", "uptime; id", "uptime $(id)"])
RIGHTS = st.builds(
    SshRights,
    user=st.none() | st.sampled_from(["sam", "root", "other"]),
    as_daemon=st.booleans(),
    force_command=st.none(),
    commands=st.none() | st.sampled_from([(), ("uptime",), ("git status *", "uptime")]),
) | st.builds(SshRights, user=st.none() | st.just("sam"), as_daemon=st.booleans(), force_command=st.just("date"))


@given(rights=RIGHTS, command=COMMANDS, daemon=st.sampled_from([ROOT, USER]))
def test_a_peer_may_run_what_it_may_run_over_ssh_and_nothing_else(
    rights: SshRights, command: str, daemon: DaemonUser
) -> None:
    policy = policy_of(rights, daemon=daemon)
    identity = Identity("alice", frozenset({"*"}), "key:SHA256:alice")
    context = Context(policy, 0.0)
    over_ssh = authorize(identity, "ssh/exec", command, context)
    access = Access(required_scopes=("exec:run",), rules="exec/run")
    as_operation = authorize(identity, "exec/run", command, context, access=access)
    as_question = authorize(identity, "exec/run", command, context)
    assert bool(as_operation) == bool(over_ssh)
    assert as_operation == as_question
    assert over_ssh or (as_operation.rule, as_operation.reason) == (over_ssh.rule, over_ssh.reason)


@pytest.mark.parametrize(
    ("policy", "rule"),
    [
        (policy_of(enabled=False), "exec.enabled"),
        (policy_of(SshRights(), daemon=ROOT), "ssh.user"),
        (policy_of(SshRights(), daemon=USER), "ssh.as_daemon"),
        (policy_of(replace(MINE, commands=("id *",))), "ssh.commands"),
    ],
)
async def test_a_refusal_names_its_rule_and_runs_nothing(bench: ExecBench, policy: Policy, rule: str) -> None:
    bench.gate.policy = policy
    error = await bench.refusal("touch /tmp/alknet-test-never")
    (record,) = bench.audit.records
    assert (error.code, error.denial_id) == ("FORBIDDEN", record["denial_id"])
    assert (record["rule"], record["resource"], record["outcome"]) == (rule, "touch /tmp/alknet-test-never", "denied")


async def test_an_operation_cannot_run_commands_for_others(bench: ExecBench) -> None:
    caller = Caller(Authority("shop/report", frozenset({"*"})), "composed")
    with pytest.raises(CallError) as caught:
        bench.dispatcher.prepare("exec/run", {"command": "id"}, caller, streaming=True)
    assert (caught.value.code, bench.audit.records[-1]["rule"]) == ("FORBIDDEN", "peer:needed")


async def test_it_is_listed_for_those_who_may_run_something(bench: ExecBench) -> None:
    operation = bench.dispatcher.registry.operations["exec/run"]
    for rights, listed in (
        (MINE, True),
        (replace(MINE, commands=("git status *", "ls ?")), True),
        (replace(MINE, commands=()), False),
        (replace(MINE, force_command="date"), True),
        (SshRights(), False),
    ):
        bench.gate.policy = policy_of(rights)
        assert bench.dispatcher.may(bench.caller().identity, operation) is listed, rights


# --- what runs ----------------------------------------------------------------------------------------------------


async def test_output_and_exit_code(bench: ExecBench) -> None:
    assert await bench.said("echo out; echo err >&2; exit 7") == ("out\n", "err\n", ended(7))
    assert await bench.said("kill -USR1 $$") == ("", "", ended(None, signal="USR1"))
    assert bench.outcomes("exec/run") == ["ok", "ok"]
    assert [record["items"] for record in bench.audit.records if "items" in record] == [3, 1]


async def test_input_is_text_or_bytes_and_then_ends(bench: ExecBench) -> None:
    assert (await bench.said("cat", stdin="grüße"))[0] == "grüße"
    assert (await bench.said("od -An -tx1", stdin_bytes=b"\0\xff"))[0].split() == ["00", "ff"]
    assert (await bench.said("cat"))[0] == ""
    assert (await bench.said("wc -c", stdin_bytes=bytes(MAX_STDIN_BYTES)))[0].strip() == str(MAX_STDIN_BYTES)
    assert (await bench.said("true", stdin_bytes=bytes(MAX_STDIN_BYTES)))[2] == ended()


@pytest.mark.parametrize(
    "value",
    [
        {"command": ""},
        {"command": "a\0b"},
        {"command": "echo \ud800"},
        {"command": "id", "stdin": "a", "stdin_bytes": b"b"},
        {"command": "id", "stdin": "\ud800"},
        {"command": "id", "stdin_bytes": bytes(MAX_STDIN_BYTES + 1)},
        {"command": "id", "timeout_s": 0},
        {"command": "id", "timeout_s": 1e9},
        {"command": ["id"]},
        {"command": "id", "cwd": "/"},
        {"command": "id", "env": {"LD_PRELOAD": "/tmp/x.so"}},
        {"command": "id", "env": {"LC_A": "a\0b"}},
        {"command": "id", "env": {"LC_A=B": "x"}},
        {"command": "id", "env": {f"LC_{number}": "x" for number in range(100)}},
    ],
)
async def test_what_cannot_be_run_is_invalid(bench: ExecBench, value: dict[str, Any]) -> None:
    with pytest.raises(CallError) as caught:
        await bench.items("exec/run", value)
    assert caught.value.code == "INVALID_INPUT"
    assert "/tmp/x.so" not in f"{caught.value}{caught.value.details}"


async def test_the_environment_is_the_users_and_has_nothing_of_the_nodes(
    bench: ExecBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALKNET_TEST_SECRET", "hush")
    out, _, _ = await bench.said("env; pwd; umask", env={"LC_ALL": "C", "LANG": "xx"})
    *variables, directory, umask = out.splitlines()
    env = dict(line.split("=", 1) for line in variables)
    assert {name: env[name] for name in ("LC_ALL", "LANG", "USER", "ALKNET_PEER")} == {
        "LC_ALL": "C", "LANG": "xx", "USER": ME, "ALKNET_PEER": "alice",
    }  # fmt: skip
    assert env.keys() <= {
        "LC_ALL", "LANG", "HOME", "USER", "LOGNAME", "SHELL", "PATH", "ALKNET_PEER", "PWD", "SHLVL", "_", "OLDPWD",
    }  # fmt: skip
    assert (directory, umask) == (pwd.getpwuid(os.geteuid()).pw_dir, "0022")


async def test_it_has_no_descriptors_of_the_node(bench: ExecBench) -> None:
    out, _, _ = await bench.said("ls /proc/self/fd | wc -l")
    assert int(out) == 4  # the three standard streams, and the directory that ls reads


async def test_a_list_of_commands_runs_them_without_a_shell(bench: ExecBench) -> None:
    bench.gate.policy = policy_of(replace(MINE, commands=("echo *", "no-such-program")))
    assert (await bench.said("echo a; id $(id) && id > /tmp/x"))[0] == "a; id $(id) && id > /tmp/x\n"
    assert (await bench.refusal("id")).code == "FORBIDDEN"
    error = await bench.refusal("no-such-program")
    assert (error.code, str(error)) == ("NOT_STARTED", "cannot run no-such-program: No such file or directory")


async def test_a_forced_command_runs_whatever_is_asked_for(bench: ExecBench) -> None:
    bench.gate.policy = policy_of(replace(MINE, force_command="echo forced: $SSH_ORIGINAL_COMMAND"))
    assert (await bench.said("rm -rf /nowhere"))[0] == "forced: rm -rf /nowhere\n"


async def test_a_user_or_a_shell_that_is_missing(bench: ExecBench) -> None:
    bench.gate.policy = policy_of(SshRights(user="nobody-here"), daemon=ROOT)
    error = await bench.refusal("id")
    assert (error.code, "no user nobody-here" in str(error)) == ("NOT_STARTED", True)
    bench.gate.policy = policy_of(replace(MINE, shell="/no/shell"))
    assert (await bench.refusal("id")).code == "NOT_STARTED"


# --- output -------------------------------------------------------------------------------------------------------


async def test_text_is_cut_between_characters_and_what_is_none_is_replaced(bench: ExecBench) -> None:
    out, _, _ = await bench.said(r"printf '\342'; sleep 0.05; printf '\202\254'; printf '\377'; printf '\342\202'")
    assert out == "€\ufffd\ufffd"
    *items, end = await bench.run(r"printf '\342\202\377'", as_bytes=True)
    assert (b"".join(one["data"] for one in items), end) == (b"\xe2\x82\xff", ended())


async def test_much_output_comes_whole_in_small_items(bench: ExecBench) -> None:
    *items, end = await bench.run("seq 400000; seq 400000 >&2", as_bytes=True)
    expected = "".join(f"{number}\n" for number in range(1, 400_001)).encode()
    for stream in ("stdout", "stderr"):
        assert b"".join(one["data"] for one in items if one["stream"] == stream) == expected
    assert max(len(one["data"]) for one in items) <= ITEM_BYTES
    assert end == ended()


async def test_a_slow_reader_makes_the_command_wait_and_loses_nothing(bench: ExecBench, tmp_path: Path) -> None:
    mark, size = tmp_path / "mark", 4 * 1024 * 1024
    prepared = bench.prepare(
        "exec/run", {"command": f"head -c {size} /dev/zero; touch {mark}", "as_bytes": True}, streaming=True
    )
    async with aclosing(prepared.stream()) as items:
        total = len((await anext(items))["data"])
        (run,) = bench.service._runs
        await eventually(lambda: run._held >= HELD_BYTES, "as much is held as may be")
        held = run._held
        for _ in range(20):
            await asyncio.sleep(0.005)
            assert (run._held, mark.exists()) == (held, False)
        assert held < HELD_BYTES + 256 * 1024
        async for item in items:
            total += len(item.get("data", b""))
    assert (total, mark.exists()) == (size, True)


# --- the end ------------------------------------------------------------------------------------------------------


def running(seconds: str) -> list[int]:
    return [p.pid for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", seconds]]


STUBBORN = "trap '' TERM HUP INT; sleep {0} & sleep {0} & echo ready; wait; wait; sleep {0}"


@pytest.mark.parametrize("command", ["sleep {0} & echo ready; sleep {0}", STUBBORN])
async def test_giving_up_ends_the_whole_group_soon(bench: ExecBench, command: str) -> None:
    seconds = own_seconds(1050)
    prepared = bench.prepare("exec/run", {"command": command.format(seconds)}, streaming=True)
    async with aclosing(prepared.stream()) as items:
        assert (await anext(items))["text"] == "ready\n"
        await eventually(lambda: len(running(seconds)) == 2, "both run")
        began = time.monotonic()
    assert GRACE_S <= 0.1  # with 200 ms as the limit
    assert time.monotonic() - began < 2  # a slow machine's
    await eventually(lambda: running(seconds) == [], "all of them have ended")
    assert bench.outcome("exec/run") == "aborted"


async def test_a_caller_that_is_cut_off_ends_it_even_while_it_is_being_cleaned_up(bench: ExecBench) -> None:
    seconds = own_seconds(1051)

    async def follow() -> None:
        async for _ in bench.prepare("exec/run", {"command": STUBBORN.format(seconds)}, streaming=True).stream():
            pass

    async with asyncio.TaskGroup() as group:
        task = group.create_task(follow())
        await eventually(lambda: len(running(seconds)) == 2, "they run")
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()  # and again, in the middle of it
    await eventually(lambda: running(seconds) == [] and bench.children() == [], "all of them have ended")


async def test_time_that_is_over_ends_it_with_what_it_had_written(bench: ExecBench) -> None:
    seconds = own_seconds(1052)
    out, _, end = await bench.said(f"echo begun; sleep {seconds}", timeout_s=0.2)
    assert (out, end) == ("begun\n", ended(None, signal="TERM", timed_out=True))
    out, _, end = await bench.said(STUBBORN.format(seconds), timeout_s=0.2)
    assert (out, end) == ("ready\n", ended(None, signal="KILL", timed_out=True))
    out, _, end = await bench.said(f"trap 'echo bye; exit 5' TERM; sleep {seconds} & wait", timeout_s=0.2)
    assert (out, end) == ("bye\n", ended(5, timed_out=True))
    assert running(seconds) == []


async def test_who_left_the_group_holds_up_nobody_whose_time_is_over(bench: ExecBench) -> None:
    seconds = own_seconds(1053)
    try:
        assert (await bench.run(f"setsid sleep {seconds} & sleep {seconds}", timeout_s=0.2))[-1]["timed_out"] is True
    finally:
        for pid in running(seconds):
            os.kill(pid, 9)
    await eventually(lambda: running(seconds) == [], "it has ended")


async def test_what_is_sent_to_the_background_lives_on(bench: ExecBench) -> None:
    """As over SSH: a command has ended when its output has, and then nothing of it is ended."""
    seconds = own_seconds(1054)
    assert await bench.said(f"nohup sleep {seconds} > /dev/null 2>&1 & echo on") == ("on\n", "", ended())
    (pid,) = await eventually(lambda: running(seconds), "it lives on")
    os.kill(pid, 9)


async def test_what_the_policy_forbids_or_would_run_otherwise_ends(bench: ExecBench) -> None:
    seconds = own_seconds(1055)
    for rights, rule in (
        (replace(MINE, shell="/bin/bash"), "session:changed"),
        (replace(MINE, force_command="date"), "session:changed"),
    ):
        bench.gate.policy = policy_of()
        prepared = bench.prepare("exec/run", {"command": f"echo in; sleep {seconds}"}, streaming=True)
        async with aclosing(prepared.stream()) as items:
            assert (await anext(items))["text"] == "in\n"
            bench.service.recheck()  # nothing has changed
            bench.gate.policy = policy_of(rights)
            assert prepared.revoked() is None  # as a decision it is still allowed
            bench.service.recheck()
            with pytest.raises(CallError) as caught:
                await anext(items)
        assert (caught.value.code, caught.value.denial_id is not None) == ("FORBIDDEN", True)
        record = bench.audit.records[-1]
        assert (record["rule"], record["denial_id"]) == (rule, caught.value.denial_id)
        bench.gate.policy = policy_of(replace(MINE, commands=()))
        assert prepared.revoked() is not None
    await eventually(lambda: running(seconds) == [], "they have ended")


async def test_rights_that_go_between_the_question_and_the_start_count(bench: ExecBench) -> None:
    prepared = bench.prepare("exec/run", {"command": "touch /tmp/alknet-test-never"}, streaming=True)
    bench.gate.policy = policy_of(replace(MINE, commands=()))
    with pytest.raises(CallError) as caught:
        await anext(prepared.stream())
    assert (caught.value.code, bench.audit.records[-1]["rule"]) == ("FORBIDDEN", "ssh.commands")


async def test_a_peer_runs_a_bounded_number_at_once(bench: ExecBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exec_module, "MAX_RUNS_PER_PEER", 2)
    seconds = own_seconds(1056)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(bench.run(f"sleep {seconds}")) for _ in range(2)]
        await eventually(lambda: len(running(seconds)) == 2, "two run")
        assert (await bench.refusal("true")).code == "UNAVAILABLE"
        for task in tasks:
            task.cancel()
    assert (await bench.said("echo again"))[0] == "again\n"


async def test_the_end_of_the_node_ends_what_runs(bench: ExecBench) -> None:
    seconds = own_seconds(1057)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(bench.run(STUBBORN.format(seconds)))
        await eventually(lambda: len(running(seconds)) == 2, "they run")
        bench.service.close()
        assert (await task)[-1] == ended(None, signal="KILL")
    bench.service.close()
    await eventually(lambda: running(seconds) == [], "they have ended")
