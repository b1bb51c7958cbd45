"""Stock ssh forwards through a node: ports and sockets both ways, an agent, a jump, and what the rules forbid."""

import os
import pwd
import re
import socket
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from testkit.as_user import Launcher
from testkit.carriers import running
from testkit.echo import Address, connected, echoing, exchange
from testkit.node import NodeProcess, free_port, wait_until
from testkit.stock_clients import PROXY, TCP, StockClients
from testkit.stock_sshd import sshd_in
from testkit.users import TEST_USER

pytestmark = pytest.mark.interop

BLOB = os.urandom(1024 * 1024)
REVOKED_WITHIN_S = 2.0
CARRIERS = (TCP, PROXY)
LOOPBACK = "127.0.0.1"


@pytest.fixture(scope="module")
def place(test_user: pwd.struct_passwd) -> Iterator[Path]:
    """A directory of the test user, with a short name: a unix socket's is limited."""
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
def shared(
    tmp_path_factory: pytest.TempPathFactory, launcher: Launcher, place: Path, echo: tuple[str, int]
) -> Iterator[NodeProcess]:
    """Root's node with a peer ``bob`` that may forward, and run nothing."""
    with NodeProcess(tmp_path_factory.mktemp("node"), launcher=launcher) as node:
        node.write_peer("bob", _forwarder(place, f"{LOOPBACK}:{echo[1]}"))
        node.alknet("config", "reload")
        yield node


@pytest.fixture(scope="module")
def bob(shared: NodeProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StockClients]:
    with StockClients(shared, tmp_path_factory.mktemp("bob"), "bob") as clients:
        yield clients


@pytest.fixture(scope="module")
def owner(shared: NodeProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StockClients]:
    with StockClients(shared, tmp_path_factory.mktemp("owner"), "owner") as clients:
        yield clients


def _forwarder(place: Path, *local: str, more: str = f'user = "{TEST_USER}"', scopes: str = '"forward:*"') -> str:
    rules = [("local", target) for target in local]
    rules += [("remote", "localhost:*"), ("unix", f"{place}/*")]
    lines = [f'{{action = "allow", direction = "{way}", target = "{target}"}},' for way, target in rules]
    return "\n".join([f"scopes = [{scopes}]", "forward = [", *lines, "]", "[ssh]", more])


def _forwards(node: NodeProcess, action: str) -> list[dict[str, Any]]:
    return [line for line in node.audit() if line["action"] == action]


# --- both ways ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", CARRIERS)
def test_a_local_forward_to_a_port(bob: StockClients, echo: tuple[str, int], host: str) -> None:
    port = free_port()
    with bob.forwarding(host, "-L", f"{LOOPBACK}:{port}:{LOOPBACK}:{echo[1]}"):
        assert exchange((LOOPBACK, port), BLOB) == BLOB
        assert exchange((LOOPBACK, port), b"") == b""


@pytest.mark.parametrize("host", CARRIERS)
def test_a_remote_forward_of_a_port(bob: StockClients, echo: tuple[str, int], host: str) -> None:
    port = free_port()
    with bob.forwarding(host, "-R", f"localhost:{port}:{LOOPBACK}:{echo[1]}"):
        assert exchange((LOOPBACK, port), BLOB) == BLOB
    wait_until(lambda: _is_free(port), "the node listens no more")


@pytest.mark.parametrize("host", CARRIERS)
def test_the_node_chooses_the_port_of_a_remote_forward(bob: StockClients, echo: tuple[str, int], host: str) -> None:
    with bob.forwarding(host, "-R", f"localhost:0:{LOOPBACK}:{echo[1]}") as forwarded:
        assert forwarded.port > 1023
        assert exchange((LOOPBACK, forwarded.port), BLOB) == BLOB


@pytest.mark.parametrize("host", CARRIERS)
def test_a_local_forward_to_a_unix_socket(
    bob: StockClients, place: Path, test_user: pwd.struct_passwd, tmp_path: Path, host: str
) -> None:
    here = str(tmp_path / "s")
    with (
        echoing(place / f"echo-{host}", uid=test_user.pw_uid) as far,
        bob.forwarding(host, "-L", f"{here}:{far}"),
    ):
        assert exchange(here, BLOB) == BLOB


@pytest.mark.parametrize("host", CARRIERS)
def test_a_remote_forward_of_a_unix_socket_belongs_to_the_user(
    bob: StockClients, place: Path, test_user: pwd.struct_passwd, echo: tuple[str, int], host: str
) -> None:
    far = place / f"r-{host}"
    with bob.forwarding(host, "-R", f"{far}:{LOOPBACK}:{echo[1]}"):
        wait_until(far.exists, "the socket is there")
        found = far.stat()
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (test_user.pw_uid, 0o600)
        assert exchange(str(far), BLOB) == BLOB
    wait_until(lambda: not far.exists(), "its name is removed")


@pytest.mark.parametrize("host", CARRIERS)
def test_curl_through_a_dynamic_forward(bob: StockClients, echo: tuple[str, int], host: str, tmp_path: Path) -> None:
    """The rules decide for each target that the browser behind it asks for."""
    (tmp_path / "page").write_bytes(BLOB)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer((LOOPBACK, 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
        try:
            with _allowed(bob, echo, server.server_port), bob.forwarding(host, "-D", f"{LOOPBACK}:{(port := free_port())}"):
                through = ("curl", "--silent", "--show-error", "--socks5-hostname", f"{LOOPBACK}:{port}")
                came = subprocess.run(
                    [*through, f"http://{LOOPBACK}:{server.server_port}/page"], capture_output=True, check=True, timeout=20
                )
                assert came.stdout == BLOB
                other = bob.run(*through, f"http://{LOOPBACK}:{bob.node.port}/page", check=False)
                assert other.returncode == 97, other  # the SOCKS server said no
        finally:
            server.shutdown()
