"""Stock ssh forwards through a node: ports and sockets both ways, an agent, a jump, and what the rules forbid."""

import os
import pwd
import re
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from testkit.as_user import Launcher
from testkit.carriers import running
from testkit.echo import Address, connected, echoing, exchange, is_cut_off, listens
from testkit.node import NodeProcess, free_port, make_key, wait_until
from testkit.stock_clients import PROXY, TCP, StockClients, unfinished
from testkit.stock_sshd import Sshd, sshd_in
from testkit.users import TEST_USER

pytestmark = pytest.mark.interop

BLOB = os.urandom(1024 * 1024)
REVOKED_WITHIN_S = 2.0
CARRIERS = (TCP, PROXY)
HERE = "127.0.0.1"


@pytest.fixture(scope="module")
def place(test_user: pwd.struct_passwd) -> Iterator[Path]:
    """A directory of the test user, with a short name: that of a unix socket is limited."""
    with tempfile.TemporaryDirectory(prefix="alknet-") as directory:
        os.chown(directory, test_user.pw_uid, test_user.pw_gid)
        os.chmod(directory, 0o755)
        yield Path(directory)


@pytest.fixture(scope="module")
def echo() -> Iterator[tuple[str, int]]:
    with echoing() as address:
        assert not isinstance(address, str)
        yield address


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with sshd_in(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of `BLOB`."""
    directory = tmp_path_factory.mktemp("web")
    (directory / "page").write_bytes(BLOB)
    with ThreadingHTTPServer((HERE, 0), partial(SimpleHTTPRequestHandler, directory=str(directory))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://{HERE}:{server.server_port}/page"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory,
    launcher: Launcher,
    place: Path,
    echo: tuple[str, int],
    sshd: Sshd,
    page: str,
) -> Iterator[NodeProcess]:
    """Root's node with a peer ``bob`` that may forward, and run nothing, and one ``runner`` that may bring an agent."""
    targets = [f"{HERE}:{port}" for port in (echo[1], sshd.port, _port_of(page))]
    with NodeProcess(tmp_path_factory.mktemp("node"), launcher=launcher) as node:
        node.write_peer("bob", _forwarder(place, *targets))
        node.write_peer("runner", f'scopes = ["ssh:exec", "ssh:agent"]\n[ssh]\nuser = "{TEST_USER}"')
        node.alknet("config", "reload")
        yield node
        assert unfinished(node) == []


@pytest.fixture(scope="module")
def bob(shared: NodeProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StockClients]:
    with StockClients(shared, tmp_path_factory.mktemp("clients"), "bob") as clients:
        yield clients


def _forwarder(place: Path, *local: str, ssh: str = f'user = "{TEST_USER}"') -> str:
    """A peer's entry: it may forward to `local`, listen on loopback, and both by unix sockets in `place`."""
    rules = [("local", target) for target in local]
    rules += [("remote", "localhost:*"), ("unix", f"{place}/*")]
    lines = [f'{{action = "allow", direction = "{way}", target = "{target}"}},' for way, target in rules]
    return "\n".join(['scopes = ["forward:*", "ssh:agent"]', "forward = [", *lines, "]", "[ssh]", ssh])


def _port_of(url: str) -> int:
    return int(url.split(":")[2].split("/")[0])


def _last(node: NodeProcess, action: str) -> dict[str, Any]:
    return next(line for line in reversed(node.audit()) if line["action"] == action)


# --- both ways ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", CARRIERS)
def test_a_local_forward_to_a_port(bob: StockClients, echo: tuple[str, int], host: str) -> None:
    port = free_port()
    with bob.forwarding(host, "-L", f"{HERE}:{port}:{HERE}:{echo[1]}"):
        assert exchange((HERE, port), BLOB) == BLOB
        assert exchange((HERE, port), b"") == b""
    wait_until(lambda: not listens((HERE, port)), "the client listens no more")


@pytest.mark.parametrize("host", CARRIERS)
def test_a_remote_forward_of_a_port(bob: StockClients, echo: tuple[str, int], host: str) -> None:
    port = free_port()
    with bob.forwarding(host, "-R", f"localhost:{port}:{HERE}:{echo[1]}"):
        wait_until(lambda: listens((HERE, port)), "the node listens")
        assert exchange((HERE, port), BLOB) == BLOB
    wait_until(lambda: not listens((HERE, port)), "the node listens no more")


@pytest.mark.parametrize("host", CARRIERS)
def test_the_node_chooses_the_port_of_a_remote_forward(bob: StockClients, echo: tuple[str, int], host: str) -> None:
    with bob.forwarding(host, "-R", f"localhost:0:{HERE}:{echo[1]}") as forwarded:
        assert forwarded.port >= 1024
        assert exchange((HERE, forwarded.port), BLOB) == BLOB


@pytest.mark.parametrize("host", CARRIERS)
def test_a_local_forward_to_a_unix_socket(
    bob: StockClients, place: Path, test_user: pwd.struct_passwd, host: str
) -> None:
    near, far = place / f"near-{host}", place / f"echo-{host}"
    with echoing(far, uid=test_user.pw_uid), bob.forwarding(host, "-L", f"{near}:{far}"):
        assert exchange(str(near), BLOB) == BLOB


@pytest.mark.parametrize("host", CARRIERS)
def test_a_remote_forward_of_a_unix_socket_belongs_to_the_user(
    bob: StockClients, place: Path, test_user: pwd.struct_passwd, echo: tuple[str, int], host: str
) -> None:
    far = place / f"far-{host}"
    with bob.forwarding(host, "-R", f"{far}:{HERE}:{echo[1]}"):
        wait_until(lambda: listens(str(far)), "the node listens")
        found = far.stat()
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (test_user.pw_uid, 0o600)
        assert exchange(str(far), BLOB) == BLOB
    wait_until(lambda: not far.exists(), "its name is removed")


@pytest.mark.parametrize("host", CARRIERS)
def test_curl_through_a_dynamic_forward(bob: StockClients, page: str, host: str) -> None:
    """The rules decide for each target that is asked for."""
    port = free_port()
    curl = ["curl", "--silent", "--show-error", "--socks5-hostname", f"{HERE}:{port}"]
    with bob.forwarding(host, "-D", f"{HERE}:{port}"):
        assert subprocess.run([*curl, page], capture_output=True, check=True, timeout=20).stdout == BLOB
        refused = bob.run(*curl, f"http://{HERE}:{bob.node.port}/", check=False)
        assert refused.returncode in (52, 56, 97), refused  # ssh says that it connected before it asks the node
    assert _last(bob.node, "forward/local")["decision"] == "deny"


def test_curl_through_a_dynamic_forward_of_the_nodes_port(bob: StockClients, page: str) -> None:
    """The node only listens; it is the client that knows where to."""
    with bob.forwarding(TCP, "-R", f"localhost:{(port := free_port())}"):
        wait_until(lambda: listens((HERE, port)), "the node listens")
        curl = ["curl", "--silent", "--show-error", "--socks5-hostname", f"{HERE}:{port}"]
        assert subprocess.run([*curl, page], capture_output=True, check=True, timeout=20).stdout == BLOB


def test_forwards_while_keys_change(bob: StockClients, echo: tuple[str, int]) -> None:
    near, far = free_port(), free_port()
    back = f"{HERE}:{echo[1]}"
    options = ["-o", "RekeyLimit=1M", "-L", f"{HERE}:{near}:{back}", "-R", f"localhost:{far}:{back}"]
    with bob.forwarding(TCP, *options):
        wait_until(lambda: listens((HERE, far)), "the node listens")
        assert [exchange((HERE, port), 8 * BLOB) == 8 * BLOB for port in (near, far)] == [True, True]


@pytest.mark.parametrize("host", CARRIERS)
def test_a_jump_through_the_node_to_another_server(bob: StockClients, sshd: Sshd, tmp_path: Path, host: str) -> None:
    bob.add_host(
        f"behind-{host}",
        f"HostName {HERE}",
        f"Port {sshd.port}",
        "User root",
        f"IdentityFile {sshd.directory / 'client'}",
        "StrictHostKeyChecking no",
        f"UserKnownHostsFile {tmp_path / 'known_hosts'}",
        "LogLevel ERROR",
        "IdentitiesOnly yes",
        "IdentityAgent none",
    )
    bob.begin(host)
    result = bob.run(*bob.ssh, "-J", host, f"behind-{host}", "cat; echo $SSH_CONNECTION", input="in\n")
    first, second = result.stdout.splitlines()
    assert (first, second.split()[2:]) == ("in", [HERE, str(sshd.port)])


@pytest.mark.parametrize("host", CARRIERS)
def test_stdin_and_stdout_are_forwarded(bob: StockClients, echo: tuple[str, int], host: str) -> None:
    assert bob.run(*bob.ssh, "-W", f"{HERE}:{echo[1]}", host, input="there and back\n").stdout == "there and back\n"


@pytest.mark.parametrize("host", CARRIERS)
def test_programs_of_a_session_reach_the_clients_agent(shared: NodeProcess, tmp_path: Path, host: str) -> None:
    make_key(tmp_path / "in-agent")
    agent = str(tmp_path / "agent")
    with (
        StockClients(shared, tmp_path, "runner") as runner,
        running(["ssh-agent", "-D", "-a", agent], env=runner.env),
    ):
        wait_until(lambda: os.path.exists(agent), "the agent runs")
        env = {"SSH_AUTH_SOCK": agent}
        runner.run("ssh-add", "-q", str(tmp_path / "in-agent"), env=env)
        script = "ssh-add -l; stat -c '%U %a' $SSH_AUTH_SOCK; echo $SSH_AUTH_SOCK"
        result = runner.run(*runner.ssh, "-S", "none", "-A", "-o", f"IdentityAgent={agent}", host, script)
        listed, owner, path = result.stdout.splitlines()
        assert listed == runner.run("ssh-add", "-l", env=env).stdout.strip()
        assert owner == f"{TEST_USER} 600"
        wait_until(lambda: not os.path.exists(path), "the socket is gone with the connection")
        assert "not open a connection" in runner.on(TCP, "ssh-add -l", check=False, env=env).stderr


def test_forwards_need_no_right_to_run_anything(bob: StockClients) -> None:
    refused = bob.on(TCP, "id", check=False)
    assert (refused.returncode, "[scope:ssh:exec]" in refused.stderr) == (3, True)


def test_a_master_cancels_a_forward_and_others_stay(bob: StockClients, echo: tuple[str, int]) -> None:
    kept, gone = free_port(), free_port()
    with bob.forwarding(PROXY, "-R", f"localhost:{kept}:{HERE}:{echo[1]}"):
        with bob.forwarding(PROXY, "-R", f"localhost:{gone}:{HERE}:{echo[1]}"), connected((HERE, gone)) as held:
            held.sendall(b"before")
            assert held.recv(6) == b"before"
            bob.master("-O", "cancel", "-R", f"localhost:{gone}:{HERE}:{echo[1]}")
            wait_until(lambda: not listens((HERE, gone)), "the node listens no more")
            held.sendall(b"after")  # what was open stays open, as with OpenSSH
            assert held.recv(5) == b"after"
            bob.master("-O", "forward", "-R", f"localhost:{gone}:{HERE}:{echo[1]}")
        assert exchange((HERE, kept), b"still") == b"still"


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", ["127.99.0.1:80", f"[::ffff:{HERE}]:22", "169.254.169.254:80", "metadata.google.internal:80"]
)
def test_a_refused_channel_says_why(bob: StockClients, target: str) -> None:
    result = bob.run(*bob.ssh, "-W", target, TCP, check=False)
    assert result.returncode == 255
    denial = _last(bob.node, "forward/local")
    assert "administratively prohibited: refused: " in result.stderr
    assert f"[{denial['rule']}] ({denial['denial_id']})" in result.stderr
    assert "resource" not in denial
    assert target.rpartition(":")[0].strip("[]") not in bob.node.log_text()
    wait_until(lambda: f"denial_id={denial['denial_id']}" in bob.node.log_text(), "the log has it")


def test_a_target_that_refuses_is_told_from_one_that_is_forbidden(bob: StockClients, shared: NodeProcess) -> None:
    with echoing() as address:
        pass
    with StockClients(shared, bob.directory, "owner") as owner:
        result = owner.run(*owner.ssh, "-W", f"{HERE}:{address[1]}", TCP, check=False)
    assert (result.returncode, "connect failed: Connection refused" in result.stderr) == (255, True)


def test_a_forbidden_path_is_refused_whether_it_is_there_or_not(bob: StockClients, place: Path) -> None:
    options = ["-L", f"{place / 'there'}:/etc/passwd", "-L", f"{place / 'not'}:/nowhere/passwd"]
    with bob.forwarding(TCP, *options) as forwarded:
        assert forwarded.client is not None
        assert forwarded.client.stderr is not None
        for name in ("there", "not"):
            assert is_cut_off(str(place / name))
            said = forwarded.client.stderr.readline().decode()
            assert "administratively prohibited: refused: no rule allows connections to /" in said, name


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "*:0", "localhost:1", "/etc/alknet-test"])
def test_a_refused_listener_is_explained_to_a_client_that_is_talkative(
    bob: StockClients, echo: tuple[str, int], listen: str
) -> None:
    options = ["-v", "-N", "-o", "ExitOnForwardFailure=yes", "-R", f"{listen}:{HERE}:{echo[1]}"]
    result = bob.run(*bob.ssh, *options, TCP, check=False)
    assert (result.returncode, "forwarding failed for listen p" in result.stderr) == (255, True)
    said = re.search(r"Remote: alknet: (.*)", result.stderr)
    assert said, result.stderr
    if listen == "localhost:1":  # no rule forbids that, but the user may not take it
        assert "Permission denied" in said[1]
    else:
        assert _last(bob.node, "forward/remote")["denial_id"] in said[1]


# --- an ordinary user's node ----------------------------------------------------------------------------------------


def test_an_ordinary_users_node_forwards_as_itself(
    user_node: NodeProcess, test_user: pwd.struct_passwd, place: Path, echo: tuple[str, int], tmp_path: Path
) -> None:
    user_node.write_peer("bob", _forwarder(place, f"{HERE}:{echo[1]}", ssh="as_daemon = true"))
    user_node.alknet("config", "reload")
    near, far, port = place / "own-near", place / "own-far", free_port()
    back = f"{HERE}:{echo[1]}"
    options = ["-L", f"{near}:{back}", "-R", f"{far}:{back}", "-R", f"localhost:{port}:{back}"]
    with StockClients(user_node, tmp_path, "bob") as clients, clients.forwarding(TCP, *options):
        wait_until(lambda: listens(str(far)), "the node listens")
        assert far.stat().st_uid == test_user.pw_uid
        addresses: list[Address] = [str(near), str(far), (HERE, port)]
        assert [exchange(address, BLOB) == BLOB for address in addresses] == [True] * 3
    user_node.write_peer("bob", _forwarder(place, f"{HERE}:{echo[1]}", ssh=""))
    user_node.alknet("config", "reload")
    with StockClients(user_node, place, "bob") as clients:
        with clients.forwarding(TCP, "-L", f"{place / 'own-again'}:{far}"):
            assert is_cut_off(str(place / "own-again"))
        assert _last(user_node, "forward/local")["decision"] == "deny"
        assert clients.run(*clients.ssh, "-W", back, TCP, input="x").stdout == "x"


# --- changes --------------------------------------------------------------------------------------------------------


def test_a_reload_closes_exactly_the_forwards_that_it_forbids(
    shared: NodeProcess, test_user: pwd.struct_passwd, echo: tuple[str, int], place: Path, tmp_path: Path
) -> None:
    def allow(*local: str, remote: str) -> None:
        shared.write_peer("carol", _forwarder(place, *local).replace("localhost:*", remote))
        shared.alknet("config", "reload")

    with ExitStack() as stack:
        other = stack.enter_context(echoing())
        far = place / "carol"
        stack.enter_context(echoing(far, uid=test_user.pw_uid))
        ports = [free_port() for _ in range(5)]
        back = f"{HERE}:{echo[1]}"
        allow(back, f"{HERE}:{other[1]}", remote="localhost:*")
        options = ["-L", f"{ports[0]}:{back}", "-L", f"{ports[1]}:{HERE}:{other[1]}", "-L", f"{ports[2]}:{far}"]
        options += ["-R", f"localhost:{ports[3]}:{back}", "-R", f"localhost:{ports[4]}:{back}"]
        carol = stack.enter_context(StockClients(shared, tmp_path, "carol"))
        stack.enter_context(carol.forwarding(TCP, *options))
        for port in ports[3:]:
            wait_until(lambda port=port: listens((HERE, port)), "the node listens")  # type: ignore[misc]
        held = [stack.enter_context(connected((HERE, port))) for port in ports]
        for connection in held:
            connection.sendall(b"1")
            assert connection.recv(1) == b"1"
        allow(back, remote=f"localhost:{ports[3]}")
        for number in (1, 4):
            held[number].settimeout(REVOKED_WITHIN_S)
            assert held[number].recv(1) == b"", number
        for number in (0, 2, 3):
            held[number].sendall(b"2")
            assert held[number].recv(1) == b"2", number
        assert not listens((HERE, ports[4]))
        assert exchange((HERE, ports[3]), BLOB) == BLOB
        assert is_cut_off((HERE, ports[1]))
        revoked = [line for line in shared.audit() if line.get("peer") == "carol" and line.get("outcome") == "revoked"]
        assert sorted(line["action"] for line in revoked) == ["forward/local", "forward/remote"]
        assert all(line["denial_id"].startswith("den_") for line in revoked)


def test_a_peer_that_is_disabled_loses_its_forwards(
    shared: NodeProcess, place: Path, echo: tuple[str, int], tmp_path: Path
) -> None:
    text = _forwarder(place, f"{HERE}:{echo[1]}")
    shared.write_peer("dave", text)
    shared.alknet("config", "reload")
    near, far = free_port(), place / "dave"
    options = ["-L", f"{near}:{HERE}:{echo[1]}", "-R", f"{far}:{HERE}:{echo[1]}"]
    with StockClients(shared, tmp_path, "dave") as dave, dave.forwarding(TCP, *options) as forwarded:
        wait_until(lambda: listens(str(far)), "the node listens")
        with connected((HERE, near)) as one, connected(str(far)) as two:
            for connection in (one, two):
                connection.sendall(b"1")
                assert connection.recv(1) == b"1"
                connection.settimeout(REVOKED_WITHIN_S)
            shared.write_peer("dave", "enabled = false\n" + text)
            shared.alknet("config", "reload")
            assert (one.recv(1), two.recv(1)) == (b"", b"")
        assert forwarded.client is not None
        _, stderr = forwarded.client.communicate(timeout=REVOKED_WITHIN_S)
        assert b"[peer:disabled] (den_" in stderr
        wait_until(lambda: not far.exists(), "its name is removed")
