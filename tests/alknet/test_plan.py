"""What a request comes to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.access import Certificate, SshRights
from alknet.plan import SFTP, Kind, Request, make_plan


def test_an_exec_is_run_by_the_users_shell() -> None:
    plan = make_plan(Request(Kind.EXEC, "echo a; id"), SshRights(user="bob"))
    assert (plan.action, plan.resource, plan.script, plan.words) == ("ssh/exec", "echo a; id", "echo a; id", None)


def test_a_shell_runs_the_shell_itself() -> None:
    plan = make_plan(Request(Kind.SHELL), SshRights(shell="/bin/zsh"))
    assert (plan.action, plan.resource, plan.shell, plan.script, plan.words) == (
        "ssh/shell",
        None,
        "/bin/zsh",
        None,
        None,
    )


def test_a_subsystem_is_decided_by_what_it_is_asked() -> None:
    plan = make_plan(Request(Kind.SUBSYSTEM, "alknet-call"), SshRights())
    assert (plan.action, plan.subsystem) == (None, "alknet-call")


@pytest.mark.parametrize("request_", [Request(Kind.EXEC, "id"), Request(Kind.SHELL), Request(Kind.SUBSYSTEM, "x")])
def test_a_forced_command_replaces_every_kind(request_: Request) -> None:
    plan = make_plan(request_, SshRights(force_command="only this"))
    assert (plan.action, plan.resource, plan.script, plan.subsystem) == ("ssh/exec", "only this", "only this", None)
    assert plan.original == (request_.text or None)


def test_listed_commands_are_split_into_words_and_never_reach_a_shell() -> None:
    rights = SshRights(commands=("git-upload-pack *",))
    plan = make_plan(Request(Kind.EXEC, "git-upload-pack '/srv/a b'; id"), rights)
    assert (plan.words, plan.script) == (("git-upload-pack", "/srv/a b;", "id"), None)


def test_what_cannot_be_split_has_no_words() -> None:
    assert make_plan(Request(Kind.EXEC, "echo 'open"), SshRights(commands=("*",))).words == ()


def test_any_change_of_the_rights_that_matters_changes_the_plan() -> None:
    request = Request(Kind.EXEC, "id")
    plans = [
        make_plan(request, rights)
        for rights in (
            SshRights(user="a"),
            SshRights(user="b"),
            SshRights(user="a", shell="/bin/sh"),
            SshRights(user="a", commands=("id",)),
            SshRights(user="a", force_command="id"),
        )
    ]
    assert len(set(plans)) == len(plans)


@pytest.mark.parametrize(
    ("request_", "rights", "argv"),
    [
        (Request(Kind.EXEC, "id; id"), SshRights(), ["/bin/x", "-c", "id; id"]),
        (Request(Kind.EXEC, "id 'a b'"), SshRights(commands=("id *",)), ["id", "a b"]),
        (Request(Kind.EXEC, "id"), SshRights(force_command="date"), ["/bin/x", "-c", "date"]),
        (Request(Kind.SHELL), SshRights(), ["/bin/x", "-l"]),
    ],
)
def test_what_is_run_in_the_end(request_: Request, rights: SshRights, argv: list[str]) -> None:
    assert make_plan(request_, rights).argv("/bin/x") == argv


# --- commands that the node itself carries out ----------------------------------------------------------------------

COMMANDS = ("op",)


@pytest.mark.parametrize("text", ["op", "op ", "op node/status", 'op a/b {"x": "; id"}', "op 'open", "op a/b\nid"])
@pytest.mark.parametrize("rights", [SshRights(), SshRights(user="bob"), SshRights(commands=()), SshRights(shell="/x")])
def test_a_command_of_the_node_is_decided_by_what_it_is_asked(text: str, rights: SshRights) -> None:
    plan = make_plan(Request(Kind.EXEC, text), rights, COMMANDS)
    assert (plan.action, plan.command) == (None, text)
    assert (plan.script, plan.words, plan.subsystem) == (None, None, None)


@pytest.mark.parametrize("text", ["ops", "op\tx", " op x", "OP x", "op;id", "'op' x", "/op x", ""])
def test_what_only_looks_like_a_command_of_the_node_is_a_program(text: str) -> None:
    plan = make_plan(Request(Kind.EXEC, text), SshRights(), COMMANDS)
    assert (plan.action, plan.command, plan.script) == ("ssh/exec", None, text)
    listed = make_plan(Request(Kind.EXEC, text), SshRights(commands=("op *",)), COMMANDS)
    assert (listed.action, listed.command) == ("ssh/exec", None)


@pytest.mark.parametrize("kind", [Kind.SHELL, Kind.SUBSYSTEM])
def test_only_an_exec_is_a_command_of_the_node(kind: Kind) -> None:
    assert make_plan(Request(kind, "op"), SshRights(), COMMANDS).command is None


def test_a_forced_command_replaces_commands_of_the_node() -> None:
    plan = make_plan(Request(Kind.EXEC, "op node/status"), SshRights(force_command="only this"), COMMANDS)
    assert (plan.action, plan.command, plan.script, plan.original) == (
        "ssh/exec",
        None,
        "only this",
        "op node/status",
    )


# --- files ----------------------------------------------------------------------------------------------------------


def test_sftp_serves_the_peers_directory() -> None:
    plan = make_plan(Request(Kind.SUBSYSTEM, SFTP), SshRights(user="bob", sftp_root="/srv"))
    assert (plan.action, plan.resource, plan.files, plan.user) == ("sftp/read", None, "/srv", "bob")
    assert (plan.subsystem, plan.script, plan.words) == (None, None, None)
    assert make_plan(Request(Kind.SUBSYSTEM, SFTP), SshRights()).files == ""  # which the decision refuses
    assert make_plan(Request(Kind.EXEC, SFTP), SshRights(sftp_root="/srv")).files is None


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("scp -t /x", "sftp/write"),
        ("scp -f /x", "sftp/read"),
        ("scp -v -r -p -d -t 'a b'", "sftp/write"),
        ("scp -qrf -- -t", "sftp/read"),
        ("scp -f -- -x; id", "sftp/read"),
    ],
)
def test_the_far_side_of_scp_is_served_and_not_run(text: str, action: str) -> None:
    rights = SshRights(sftp_root="/srv")
    plan = make_plan(Request(Kind.EXEC, text), rights)
    assert (plan.action, plan.resource, plan.files, plan.script) == (action, None, "/srv", text)
    for other in (SshRights(), SshRights(sftp_root="/srv", commands=("scp *",))):
        run = make_plan(Request(Kind.EXEC, text), other)
        assert (run.action, run.files) == ("ssh/exec", None)


@pytest.mark.parametrize(
    "text",
    [
        "scp",
        "scp a b:c",
        "scp -tf x",
        "scp -r x",
        "scp -r x -t",
        "scp -- -t",
        "/usr/bin/scp -t x",
        "scp 'open",
        "scpt",
        "",
    ],
)
def test_any_other_scp_is_a_command(text: str) -> None:
    plan = make_plan(Request(Kind.EXEC, text), SshRights(sftp_root="/srv"))
    assert (plan.action, plan.files, plan.script) == ("ssh/exec", None, text)


@pytest.mark.parametrize("request_", [Request(Kind.SUBSYSTEM, SFTP), Request(Kind.EXEC, "scp -t x")])
def test_a_forced_command_replaces_files_too(request_: Request) -> None:
    plan = make_plan(request_, SshRights(force_command="only this", sftp_root="/srv"))
    assert (plan.action, plan.files, plan.script, plan.original) == ("ssh/exec", None, "only this", request_.text)


def test_a_directory_that_changes_changes_the_plan() -> None:
    plans = [make_plan(Request(Kind.SUBSYSTEM, SFTP), SshRights(sftp_root=root)) for root in ("/a", "/b")]
    assert plans[0] != plans[1]


# --- certificates ---------------------------------------------------------------------------------------------------


def certificate(force_command: str | None) -> Certificate:
    return Certificate(
        key="SHA256:k",
        authority="SHA256:a",
        serial=1,
        key_id="id",
        principals=("bob",),
        permits=frozenset(),
        force_command=force_command,
        valid_before=None,
    )


@pytest.mark.parametrize(
    "request_",
    [
        Request(Kind.EXEC, "op x"),
        Request(Kind.SHELL),
        Request(Kind.SUBSYSTEM, "alknet-call"),
        Request(Kind.SUBSYSTEM, SFTP),
    ],
)
def test_what_a_certificate_forces_is_run_instead_of_everything(request_: Request) -> None:
    plan = make_plan(request_, SshRights(sftp_root="/srv"), COMMANDS, certificate("date -u"))
    assert (plan.action, plan.resource, plan.script, plan.files, plan.command) == (
        "ssh/exec", "date -u", "date -u", None, None,
    )  # fmt: skip
    listed = make_plan(request_, SshRights(commands=("date *",)), COMMANDS, certificate("date -u"))
    assert (listed.words, listed.script) == (("date", "-u"), None)
    assert make_plan(request_, SshRights(), COMMANDS, certificate(None)) == make_plan(request_, SshRights(), COMMANDS)


@given(st.text(), st.booleans(), st.booleans(), st.sampled_from(Kind))
def test_exactly_one_thing_is_run(text: str, is_forced: bool, is_listed: bool, kind: Kind) -> None:
    rights = SshRights(force_command="x" if is_forced else None, commands=("y",) if is_listed else None)
    plan = make_plan(Request(kind, text), rights, COMMANDS)
    chosen = [value for value in (plan.subsystem, plan.command, plan.words, plan.script) if value is not None]
    assert len(chosen) == (0 if kind is Kind.SHELL and not is_forced else 1)
    assert (plan.action is None) is (plan.subsystem is not None or plan.command is not None)
