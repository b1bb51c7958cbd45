"""User and host certificates with stock ssh, ssh-keygen and ssh-agent, and with our own client and ``alknet ca``."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from testkit.as_user import Launcher
from testkit.node import NodeProcess, make_key, wait_until

pytestmark = pytest.mark.interop

ENDED_WITHIN_S = 2.0
ALICE = 'principals = ["alice", "ops"]\nscopes = ["ssh:*"]\n\n[ssh]\nuser = "root"\nas_daemon = true\n'
BOB = 'principals = ["bob"]\n'


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Iterator[NodeProcess]:
    """A node that believes the authority keys/ca for a*, ops and bob, and shows a host certificate."""
    node = NodeProcess(tmp_path_factory.mktemp("certificates"), launcher=launcher)
    for name in ("ca", "wrong_ca", "id"):
        make_key(node.keys / name)
    for name, text in (("alice", ALICE), ("bob", BOB)):
        put(node, name, text)
    config = node.home / "alknet.toml"
    made = node.alknet("ca", "init", "--hosts", "[127.0.0.1]:*")
    (node.directory / "known_hosts").write_text(made.stdout.splitlines()[-1] + "\n")
    shown = node.alknet("ca", "sign-host", "--principal", "127.0.0.1", "--principal", "hub").stdout.splitlines()[-1]
    node.edit_config('host_cert = ""', shown)
    table = f'\n[[ssh.user_ca]]\nkey = "{line(node, "ca")}"\nprincipals = ["a*", "ops", "bob"]\n'
    config.write_text(config.read_text() + table + made.stdout[made.stdout.index("[[") : made.stdout.index("\n\n#")])
    with node:
        yield node


def put(node: NodeProcess, name: str, text: str) -> None:
    path = node.home / "peers.d" / f"{name}.toml"
    path.write_text(text)
    path.chmod(0o600)


def line(node: NodeProcess, name: str) -> str:
    return (node.keys / f"{name}.pub").read_text().strip()


def sign(
    node: NodeProcess, *options: str, principals: str = "alice", ca: str = "ca", validity: str = "-5m:+1h"
) -> Path:
    """A certificate of keys/id by ssh-keygen, beside it, where ssh finds it."""
    command = ["ssh-keygen", "-q", "-s", str(node.keys / ca), "-I", "an id", "-z", "12", "-V", validity]
    if principals:
        command += ["-n", principals]
    for option in options:
        command += ["-O", option]
    subprocess.run([*command, str(node.keys / "id.pub")], check=True, timeout=30)
    return node.keys / "id-cert.pub"


@pytest.mark.parametrize("principals", ["alice", "nobody,ops"])
def test_stock_ssh_gets_in_with_a_certificate(shared: NodeProcess, principals: str) -> None:
    sign(shared, principals=principals)
    result = shared.ssh("echo in as $ALKNET_PEER", key="id", login="alice")
    assert (result.returncode, result.stdout) == (0, b"in as alice\n"), result.stderr
    assert shared.ssh("op", "services/list", key="id", login="alice").returncode == 0
    log = shared.log_text()
    assert re.search(
        r'result=accept peer=alice key=SHA256:\S+ user=alice .*certificate="an id" certificate_serial=12', log
    )


REFUSED = {
    # case: how it is signed, the rule that says no
    "expired": ({"validity": "-2h:-1h"}, "certificate:expired"),
    "not yet valid": ({"validity": "+1h:+2h"}, "certificate:not-yet-valid"),
    "of a principal of nobody": ({"principals": "ann"}, "certificate:principals"),
    "of a principal that its authority may not sign for": ({"principals": "root"}, "certificate:principals"),
    "of two peers": ({"principals": "alice,bob"}, "certificate:principals"),
    "of no principal": ({"principals": ""}, "certificate:principals"),
    "with an unknown demand": ({"options": ["critical:unheard=of"]}, "certificate:critical-option"),
    "from elsewhere": ({"options": ["source-address=192.0.2.0/24"]}, "certificate:source-address"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_certificate_that_does_not_count_is_refused_with_the_reason(shared: NodeProcess, case: str) -> None:
    how, rule = REFUSED[case]
    how = dict(how)
    sign(shared, *how.pop("options", ()), **how)  # type: ignore[arg-type]
    result = shared.ssh("id", key="id", login="alice")
    assert (result.returncode, result.stdout) == (255, b"")
    assert f"[{rule}] (den_".encode() in result.stderr
    assert f"result=reject reason={rule} denial_id=den_" in shared.log_text()


def test_an_authority_that_is_not_known_vouches_for_nobody(shared: NodeProcess) -> None:
    sign(shared, ca="wrong_ca")
    result = shared.ssh("id", key="id", login="alice")
    assert (result.returncode, b"alknet:" in result.stderr) == (255, False)
    wait_until(lambda: "result=reject reason=unknown-" in shared.log_text(), "the refusal is in the log")


def test_what_a_certificate_forces_permits_and_withholds(shared: NodeProcess) -> None:
    sign(shared, "force-command=echo forced $SSH_ORIGINAL_COMMAND", "source-address=127.0.0.0/8")
    assert shared.ssh("id", "-u", key="id", login="alice").stdout == b"forced id -u\n"
    assert shared.ssh("op", "services/list", key="id", login="alice").stdout == b"forced op services/list\n"
    sign(shared, "no-pty")
    result = shared.ssh("tty", key="id", login="alice", options=["-tt"])
    assert (result.returncode, result.stdout) == (255, b"")  # what ssh does of which a terminal is demanded
    assert b"PTY allocation request failed" in result.stderr
    (denial,) = [record for record in shared.audit() if record["action"] == "ssh/pty"]
    assert (denial["rule"], denial["peer"]) == ("certificate:permit-pty", "alice")
    assert shared.ssh("tty", key="id", login="alice", options=["-T"]).stdout == b"not a tty\n"


def test_rsa_certificates_are_signed_for_with_sha2(shared: NodeProcess) -> None:
    for name in ("rsa_ca", "rsa"):
        subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", shared.keys / name], check=True)
    ca, key = shared.keys / "rsa_ca", shared.keys / "rsa"
    config = shared.home / "alknet.toml"
    config.write_text(
        f'{config.read_text()}\n[[ssh.user_ca]]\nkey = "{line(shared, "rsa_ca")}"\nprincipals = ["ops"]\n'
    )
    shared.alknet("config", "reload")
    for algorithm, code in (("rsa-sha2-512", 7), ("rsa-sha2-256", 7), ("ssh-rsa", 255)):
        command = ["ssh-keygen", "-q", "-s", ca, "-t", algorithm, "-I", "r", "-n", "ops", "-V", "+1h", f"{key}.pub"]
        subprocess.run(command, check=True, timeout=30)
        assert shared.ssh("exit", "7", key="rsa", login="alice").returncode == code, algorithm


def test_stock_ssh_believes_the_hosts_certificate(shared: NodeProcess) -> None:
    known = f"UserKnownHostsFile={shared.directory / 'known_hosts'}"
    command = [known if word.startswith("UserKnownHostsFile=") else word for word in shared.ssh_command("exit 7")]
    assert subprocess.run(command, timeout=60).returncode == 7
    # It is for no other name, and nobody knows the key by itself.
    command[1:1] = ["-o", "HostKeyAlias=[127.0.0.1]:other"]
    result = subprocess.run(command, capture_output=True, timeout=60)
    assert (result.returncode, b"Host key verification failed" in result.stderr) == (255, True)


def test_what_alknet_ca_signs_is_what_ssh_keygen_reads_and_both_clients_use(shared: NodeProcess) -> None:
    public = str(shared.keys / "id.pub")
    shared.alknet(
        "ca", "sign-user", public, "--principal", "ops", "--ttl", "8h", "--source-address", "127.0.0.1/32",
        "--source-address", "::1/128", "--no-port-forwarding", "--id", "laptop of alice", "--force",
    )  # fmt: skip
    said = subprocess.run(["ssh-keygen", "-L", "-f", f"{public[:-4]}-cert.pub"], capture_output=True, text=True).stdout
    assert 'Key ID: "laptop of alice"' in said
    assert "source-address 127.0.0.1/32,::1/128" in said
    assert "permit-pty" in said
    assert "port-forwarding" not in said
    assert shared.ssh("exit 7", key="id", login="alice").returncode == 7
    host_ca = (shared.home / "keys" / "host_ca.pub").read_text().strip()
    put(shared, "hub", f'addresses = ["127.0.0.1:{shared.port}"]\nhost_ca = "{host_ca}"\n')
    result = shared.alknet("ssh", "--identity", public[:-4], "alice@hub", "echo in as $ALKNET_PEER", check=False)
    assert (result.returncode, result.stdout) == (0, "in as alice\n"), result.stderr
    again = shared.alknet("ca", "sign-user", public, "--principal", "ops", check=False)
    assert (again.returncode, "is there already" in again.stderr) == (2, True)


MISTAKES = {
    # words: exit code, what is said
    "sign-user KEY --principal a,b": (6, "'a,b' is no principal"),
    "sign-user KEY --principal *": (6, "'*' is no principal"),
    "sign-user KEY": (2, "Missing option '--principal'"),
    "sign-user KEY --principal a --ttl 0s": (6, "--ttl '0s' must be 1s to 366d"),
    "sign-user KEY --principal a --ttl 367d": (6, "--ttl '367d' must be 1s to 366d"),
    "sign-user KEY --principal a --source-address 10.0.0.1/8": (6, "10.0.0.1/8 has host bits set"),
    "sign-user /nowhere.pub --principal a": (4, "cannot be read as a public key file"),
    "sign-user PRIVATE --principal a": (6, "is a private key"),
    "sign-host KEY": (2, "Missing option '--principal'"),
    "--home /nowhere sign-user KEY --principal a": (4, "there is no such key"),
}


@pytest.mark.parametrize("words", MISTAKES)
def test_what_is_wrong_with_a_wish_for_a_signature_is_said(shared: NodeProcess, words: str, tmp_path: Path) -> None:
    names = {"KEY": str(shared.keys / "ca.pub"), "PRIVATE": str(shared.keys / "ca")}
    arguments = [names.get(word, word) for word in words.split()]
    result = shared.alknet("ca", *arguments, "-o", str(tmp_path / "made"), check=False)
    code, said = MISTAKES[words]
    assert (result.returncode, said in result.stderr) == (code, True), result.stderr
    assert not (tmp_path / "made").exists()


def test_authorities_are_kept_and_programs_get_json(shared: NodeProcess, tmp_path: Path) -> None:
    before = (shared.home / "keys" / "user_ca").read_bytes()
    made = shared.json("ca", "init", "--principal", "a*")
    assert (shared.home / "keys" / "user_ca").read_bytes() == before
    assert (shared.home / "keys" / "user_ca").stat().st_mode & 0o777 == 0o600
    assert made["user_ca"]["key"] in made["alknet_toml"]
    assert made["known_hosts"] == f"@cert-authority * {made['host_ca']['key']}"
    path = tmp_path / "x-cert.pub"
    signed = shared.json("ca", "sign-user", line(shared, "id"), "--principal", "a", "-o", str(path))
    assert (signed["certificate"], signed["principals"]) == (str(path), ["a"])
    assert signed["authority"] == made["user_ca"]["fingerprint"]
    shown = subprocess.run(["ssh-keygen", "-L", "-f", path], capture_output=True, text=True, timeout=30).stdout
    assert f"Serial: {signed['serial']}" in shown


def test_our_client_uses_the_certificates_of_an_agent(shared: NodeProcess, tmp_path: Path) -> None:
    sign(shared, principals="ops")
    path = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
    try:
        wait_until(path.exists, "the agent listens")
        environment = os.environ | {"SSH_AUTH_SOCK": str(path)}
        subprocess.run(["ssh-add", "-q", shared.keys / "id"], env=environment, check=True, timeout=30)
        (tmp_path / "home").mkdir()
        known = (shared.home / "keys" / "known_hosts").read_text()
        (tmp_path / ".ssh").mkdir()
        (tmp_path / ".ssh" / "known_hosts").write_text((shared.directory / "known_hosts").read_text() + known)
        command = ["--home", tmp_path / "home", "ssh", f"alice@127.0.0.1:{shared.port}", "exit 7"]
        result = subprocess.run(
            [sys.executable, "-m", "alknet", *map(str, command)],
            env=environment | {"HOME": str(tmp_path)}, capture_output=True, text=True, timeout=60, cwd="/",
        )  # fmt: skip
        assert result.returncode == 7, result.stderr
    finally:
        agent.terminate()
        agent.wait()


@pytest.mark.parametrize("cause", ["authority", "principal", "end"])
def test_a_live_session_ends_with_what_it_stands_on(shared: NodeProcess, cause: str) -> None:
    sign(shared, principals="ops", validity="-5m:+3s" if cause == "end" else "+1h")
    signed = time.time()
    command = shared.ssh_command("echo in; exec sleep 1000", key="id", login="alice")
    config, entry = shared.home / "alknet.toml", shared.home / "peers.d" / "alice.toml"
    before = {path: path.read_text() for path in (config, entry)}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"in\n"
        if cause == "authority":
            config.write_text(before[config].replace('["a*", "ops", "bob"]', '["bob"]'))
        elif cause == "principal":
            entry.write_text(before[entry].replace(', "ops"', ""))
        if cause != "end":
            shared.alknet("config", "reload")
        _, stderr = process.communicate(timeout=ENDED_WITHIN_S + (3 if cause == "end" else 0))
        assert process.returncode != 0
        assert b"access was taken away" in stderr
        rules = {"authority": "principals", "principal": "principals", "end": "expired"}
        assert f"[certificate:{rules[cause]}] (den_".encode() in stderr
        if cause == "end":
            assert time.time() - signed < 3 + ENDED_WITHIN_S
    finally:
        process.kill()
        process.communicate()
        for path, text in before.items():
            path.write_text(text)
        shared.alknet("config", "reload")
