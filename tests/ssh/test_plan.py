"""What a request comes to."""

import pytest

from alknet.access import SshRights
from alknet.ssh.plan import Kind, Request, make_plan


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
