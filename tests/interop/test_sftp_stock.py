"""Stock scp, sftp and curl copy files to and from a node: as the peer's user, inside its root, by its rights."""

import base64
import hashlib
import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testkit.as_user import Launcher
from testkit.carriers import running
from testkit.copies import OLD, file_servers, look_at, make_tree, resume_after_kill
from testkit.node import NodeProcess, wait_until
from testkit.stock_clients import PROXY, TCP, StockClients, unfinished
from testkit.users import TEST_USER

pytestmark = pytest.mark.interop

MIB = 1024 * 1024
BLOB = os.urandom(3 * MIB + 17)
CARRIERS = (TCP, PROXY)
REVOKED_WITHIN_S = 2.0
SCP = {"sftp": (), "scp": ("-O",)}
"""The options for each protocol that scp speaks."""
MAX_CHILD_BYTES = 40 * MIB


@pytest.fixture(scope="module")
def root(test_user: pwd.struct_passwd) -> Iterator[Path]:
    """What peers see as ``/``."""
    with tempfile.TemporaryDirectory(prefix="alknet-") as directory:
        os.chmod(directory, 0o755)
        served = Path(directory, "root")
        served.mkdir()
        os.chown(served, test_user.pw_uid, test_user.pw_gid)
        Path(directory, "secret").write_text("secret")
        yield served


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher, root: Path) -> Iterator[NodeProcess]:
    """Root's node; ``bob`` may read and write files, ``reader`` and ``writer`` what they are called after."""
    with NodeProcess(tmp_path_factory.mktemp("node"), launcher=launcher) as node:
        for peer, scope in (("bob", "sftp:*"), ("reader", "sftp:read"), ("writer", "sftp:write"), ("nobody", "x")):
            node.write_peer(peer, _entry(root, scope))
        node.alknet("config", "reload")
        yield node
        assert unfinished(node) == []


def _entry(root: Path | str, *scopes: str, user: str = f'user = "{TEST_USER}"') -> str:
    quoted = ", ".join(f'"{scope}"' for scope in scopes)
    return f'scopes = [{quoted}]\n[ssh]\nsftp_root = "{root}"\n{user}'


@pytest.fixture(scope="module")
def bob(shared: NodeProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StockClients]:
    with StockClients(shared, tmp_path_factory.mktemp("clients"), "bob") as clients:
        yield clients


@pytest.fixture
def far(root: Path, test_user: pwd.struct_passwd) -> Iterator[Path]:
    """A directory of the test's own, which peers see as ``/t``."""
    directory = root / "t"
    directory.mkdir()
    os.chown(directory, test_user.pw_uid, test_user.pw_gid)
    yield directory
    shutil.rmtree(directory)


def _last(node: NodeProcess, action: str) -> dict[str, Any]:
    return next(line for line in reversed(node.audit()) if line["action"] == action)


# --- scp ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", CARRIERS)
@pytest.mark.parametrize("protocol", SCP)
def test_scp_copies_a_file_both_ways(
    bob: StockClients, far: Path, test_user: pwd.struct_passwd, tmp_path: Path, host: str, protocol: str
) -> None:
    near = tmp_path / "near"
    near.write_bytes(BLOB)
    near.chmod(0o751)
    os.utime(near, (OLD, OLD))
    bob.scp(*SCP[protocol], "-p", str(near), f"{host}:/t/far")
    made = (far / "far").stat()
    assert (far / "far").read_bytes() == BLOB
    assert (made.st_uid, stat.S_IMODE(made.st_mode), int(made.st_mtime)) == (test_user.pw_uid, 0o751, OLD)
    bob.scp(*SCP[protocol], "-p", f"{host}:/t/far", str(tmp_path / "back"))
    back = tmp_path / "back"
    assert back.read_bytes() == BLOB
    assert (stat.S_IMODE(back.stat().st_mode), int(back.stat().st_mtime)) == (0o751, OLD)


@pytest.mark.parametrize("host", CARRIERS)
@pytest.mark.parametrize("protocol", SCP)
def test_scp_copies_directories_both_ways(
    bob: StockClients, far: Path, tmp_path: Path, host: str, protocol: str
) -> None:
    tree = make_tree(tmp_path / "tree", 40)
    bob.scp(*SCP[protocol], "-r", "-p", str(tree), f"{host}:/t")
    assert look_at(far / "tree") == look_at(tree)
    bob.scp(*SCP[protocol], "-r", "-p", f"{host}:/t/tree", str(tmp_path / "back"))
    assert look_at(tmp_path / "back") == look_at(tree)


@pytest.mark.parametrize("protocol", SCP)
def test_scp_while_keys_change(bob: StockClients, far: Path, tmp_path: Path, protocol: str) -> None:
    near = tmp_path / "near"
    near.write_bytes(3 * BLOB)
    options = (*SCP[protocol], "-o", "RekeyLimit=1M")
    bob.scp(*options, str(near), f"{TCP}:/t/far")
    bob.scp(*options, f"{TCP}:/t/far", str(tmp_path / "back"))
    assert (far / "far").read_bytes() == (tmp_path / "back").read_bytes() == 3 * BLOB


@pytest.mark.parametrize("protocol", SCP)
def test_scp_of_what_is_not_there_fails(bob: StockClients, far: Path, tmp_path: Path, protocol: str) -> None:
    for path in ("/t/none", "/../secret", "/etc/passwd"):
        result = bob.scp(*SCP[protocol], f"{TCP}:{path}", str(tmp_path), check=False)
        assert (result.returncode, "no such file" in result.stderr.lower()) == (1, True), result
    assert list(tmp_path.iterdir()) == []


def test_scp_by_a_shell_where_the_peer_may_run_it(
    shared: NodeProcess, test_user: pwd.struct_passwd, tmp_path: Path
) -> None:
    shared.write_peer("runner", f'scopes = ["ssh:exec"]\n[ssh]\nuser = "{TEST_USER}"')
    shared.alknet("config", "reload")
    near, far = tmp_path / "near", Path(test_user.pw_dir, "by-scp")
    near.write_bytes(BLOB)
    with StockClients(shared, tmp_path, "runner") as runner:
        runner.scp("-O", str(near), f"{TCP}:by-scp")
        runner.scp("-O", f"{TCP}:by-scp", str(tmp_path / "back"))
    assert far.read_bytes() == BLOB == (tmp_path / "back").read_bytes()
    far.unlink()


# --- sftp -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", CARRIERS)
def test_an_sftp_batch(bob: StockClients, far: Path, test_user: pwd.struct_passwd, tmp_path: Path, host: str) -> None:
    near = tmp_path / "near"
    near.write_bytes(BLOB)
    near.chmod(0o600)
    result = bob.sftp(
        host,
        "pwd",
        "cd /t",
        f"put {near} far",
        "rename far renamed",
        "ln renamed hard",
        "ln -s renamed soft",
        "chmod 640 renamed",
        "mkdir d",
        f"put -f {near} d/again",
        "rm d/again",
        "rmdir d",
        "df -h",
        "ls -l",
        f"get soft {tmp_path / 'back'}",
    )
    said = result.stdout
    assert "Remote working directory: /\n" in said
    assert "%" in said  # the disk's use
    listed = {line.split()[8]: line.split() for line in said.splitlines() if line.startswith(("-", "l"))}
    assert set(listed) == {"renamed", "hard", "soft"}
    assert listed["renamed"][0] == "-rw-r-----"
    assert listed["renamed"][2:5] == [TEST_USER, TEST_USER, str(len(BLOB))]
    assert (tmp_path / "back").read_bytes() == BLOB
    assert (far / "hard").stat().st_nlink == 2
    assert os.readlink(far / "soft") == "renamed"
    assert {path.lstat().st_uid for path in far.iterdir()} == {test_user.pw_uid}


def test_sftp_copies_directories_both_ways(bob: StockClients, far: Path, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", 200)
    bob.sftp(TCP, f"put -R -p {tree} /t")
    assert look_at(far / "tree") == look_at(tree)
    bob.sftp(TCP, f"get -R -p /t/tree {tmp_path / 'back'}")
    assert look_at(tmp_path / "back") == look_at(tree)


def test_sftp_appends_and_goes_on_beyond_four_gib(bob: StockClients, far: Path, tmp_path: Path) -> None:
    """Files with holes: only their ends are transferred."""
    near, size = tmp_path / "near", 5 * 1024 * MIB
    for path, length in ((near, size + len(BLOB)), (far / "far", size)):
        with path.open("wb") as file:
            file.truncate(length)
    with near.open("r+b") as file:
        file.seek(size)
        file.write(BLOB)
    os.chmod(far / "far", 0o666)
    bob.sftp(TCP, f"reput {near} /t/far")
    with (far / "far").open("rb") as file:
        file.seek(size)
        assert file.read() == BLOB
    with near.open("r+b") as file:
        file.truncate(size)
    bob.sftp(TCP, f"reget /t/far {near}")
    with near.open("rb") as file:
        file.seek(size)
        assert file.read() == BLOB
    assert (far / "far").stat().st_blocks * 512 < 2 * len(BLOB)


@pytest.mark.parametrize(("host", "mib"), [(TCP, 24), (PROXY, 8)])
def test_a_transfer_whose_client_was_killed_goes_on_where_it_was(
    bob: StockClients, far: Path, tmp_path: Path, host: str, mib: int
) -> None:
    near, back = tmp_path / "near", tmp_path / "back"
    near.write_bytes(os.urandom(mib * MIB))
    resume_after_kill(bob, host, f"put {near} /t/far", near, far / "far", kbit_per_s=400_000)
    resume_after_kill(bob, host, f"get /t/far {back}", far / "far", back, kbit_per_s=400_000)


def test_a_long_listing_takes_no_memory(bob: StockClients, far: Path) -> None:
    names = {f"file-{number:05}" for number in range(5000)}
    for name in names:
        (far / name).touch()
    with running(["sftp", "-q", "-F", str(bob.config), "-b", "-", TCP], env=bob.env) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(b"ls -1f /t\npwd\n")
        client.stdin.flush()
        listed = []
        while not (line := client.stdout.readline().decode()).startswith("Remote working directory"):
            assert line
            listed.append(line.strip())
        (child,) = file_servers(bob.node)
        assert child.memory_info().rss < MAX_CHILD_BYTES
        assert child.username() == TEST_USER
        client.stdin.close()
        assert client.wait(20) == 0
    assert {line.removeprefix("/t/") for line in listed if "file-" in line} == names


# --- rights ---------------------------------------------------------------------------------------------------------


def test_reading_and_writing_are_rights_of_their_own(shared: NodeProcess, far: Path, tmp_path: Path) -> None:
    (far / "file").write_text("content")
    near = tmp_path / "near"
    near.write_text("new")
    changes = [f"put {near} /t/new", f"put {near} /t/file", "rm /t/file", "mkdir /t/d", "rename /t/file /t/g"]
    changes += ["chmod 777 /t/file", "ln -s /t/file /t/h", "ln /t/file /t/h"]
    with StockClients(shared, tmp_path, "reader") as reader:
        refused = reader.sftp(TCP, f"get /t/file {tmp_path / 'got'}", "ls -l /t", *(f"-{change}" for change in changes))
        assert (tmp_path / "got").read_text() == "content"
        denials = [line for line in shared.audit() if line.get("peer") == "reader" and line["decision"] == "deny"]
        assert [line["action"] for line in denials] == ["sftp/write"] * len(changes), refused.stderr
        for protocol in SCP:
            copied = reader.scp(*SCP[protocol], str(near), f"{TCP}:/t/new", check=False)
            assert (copied.returncode != 0, _last(shared, "sftp/write")["denial_id"] in copied.stderr) == (True, True)
    with StockClients(shared, tmp_path, "writer") as writer:
        wishes = (f"-get /t/file {tmp_path / 'not'}", "-ls /t/")
        writer.sftp(TCP, f"put {near} /t/new", "rename /t/new /t/newer", *wishes)
        denials = [line for line in shared.audit() if line.get("peer") == "writer" and line["decision"] == "deny"]
        assert {line["action"] for line in denials} == {"sftp/read"}
        assert len(denials) >= len(wishes)
    assert {path.name for path in far.iterdir()} == {"file", "newer"}
    assert not (tmp_path / "not").exists()


def test_a_peer_without_either_right_is_told_why(shared: NodeProcess, tmp_path: Path) -> None:
    with StockClients(shared, tmp_path, "nobody") as nobody:
        for command in (["sftp", "-b", "-"], ["scp", "-O", str(tmp_path / "of-nobody" / "config")]):
            where = TCP if command[0] == "sftp" else f"{TCP}:/t"
            result = nobody.run(command[0], "-F", str(nobody.config), *command[1:], where, check=False)
            assert result.returncode != 0
            assert "alknet: refused: " in result.stderr
            assert "[scope:sftp:" in result.stderr
            assert "(den_" in result.stderr


def test_nothing_leads_out_of_the_root(bob: StockClients, root: Path, far: Path, tmp_path: Path) -> None:
    (far / "up").symlink_to(root.parent / "secret")
    (far / "etc").symlink_to("/etc")
    (far / "climb").symlink_to("../../../secret")
    paths = ("/t/up", "/t/etc/passwd", "/t/climb", "/../secret", "../../secret", root.parent / "secret")
    bob.sftp(TCP, *(f"-get {path} {tmp_path / 'out'}" for path in paths), f"-put {bob.config} /t/up", "-rm ../secret")
    assert (root.parent / "secret").read_text() == "secret"
    assert not (tmp_path / "out").exists()
    bob.sftp(TCP, "ln -s /t/inside /t/link", f"put {bob.config} /t/inside", f"get /t/link {tmp_path / 'in'}")
    assert (tmp_path / "in").read_text() == bob.config.read_text()


def test_the_nodes_home_is_out_of_reach_whatever_the_root(shared: NodeProcess, tmp_path: Path) -> None:
    shared.write_peer("all", _entry("/", "sftp:*", user='user = "root"\nas_daemon = true'))
    shared.alknet("config", "reload")
    key = shared.home / "keys" / "owner"
    with StockClients(shared, tmp_path, "all") as everywhere:
        wishes = (f"get {key} {tmp_path / 'key'}", f"rename {shared.home} /moved", f"ln {key} {tmp_path / 'key'}")
        everywhere.sftp(TCP, f"get /etc/hostname {tmp_path / 'hostname'}", *(f"-{wish}" for wish in wishes))
    assert (tmp_path / "hostname").read_bytes() == Path("/etc/hostname").read_bytes()
    assert not (tmp_path / "key").exists()
    assert key.exists()
    with StockClients(shared, tmp_path, "owner") as owner:
        owner.sftp(TCP, f"get {key} {tmp_path / 'key'}")
    assert (tmp_path / "key").read_bytes() == key.read_bytes()


def test_an_ordinary_users_node_serves_files_as_itself(
    user_node: NodeProcess, test_user: pwd.struct_passwd, far: Path, root: Path, tmp_path: Path
) -> None:
    user_node.write_peer("bob", _entry(root, "sftp:*", user=""))
    user_node.write_peer("rootless", 'scopes = ["sftp:*"]\n[ssh]\nas_daemon = true')
    user_node.alknet("config", "reload")
    with StockClients(user_node, tmp_path, "bob") as clients:
        for protocol in SCP:
            clients.scp(*SCP[protocol], str(clients.config), f"{TCP}:/t/{protocol}")
            clients.scp(*SCP[protocol], f"{TCP}:/t/{protocol}", str(tmp_path / protocol))
            assert (tmp_path / protocol).read_text() == clients.config.read_text()
            assert (far / protocol).stat().st_uid == test_user.pw_uid
    with StockClients(user_node, tmp_path, "rootless") as clients:
        result = clients.sftp(TCP, "ls", check=False)
        assert (result.returncode != 0, "sftp_root" in result.stderr) == (True, True), result


# --- changes --------------------------------------------------------------------------------------------------------


def test_a_reload_that_takes_writing_ends_a_session_that_writes_and_no_other(
    shared: NodeProcess, root: Path, far: Path, tmp_path: Path
) -> None:
    (far / "file").write_bytes(BLOB)
    near = tmp_path / "near"
    near.write_bytes(bytes(64 * MIB))
    shared.write_peer("carol", _entry(root, "sftp:*"))
    shared.alknet("config", "reload")
    with StockClients(shared, tmp_path, "carol") as carol:
        batch = ["sftp", "-q", "-F", str(carol.config), "-b", "-"]
        with (
            running([*batch, "-l", "40000", TCP], env=carol.env) as writer,
            running([*batch, TCP], env=carol.env) as reader,
        ):
            for client, line in ((writer, f"put {near} /t/new"), (reader, f"get /t/file {tmp_path / 'one'}")):
                assert client.stdin is not None
                client.stdin.write(f"{line}\n".encode())
                client.stdin.flush()
            wait_until(lambda: (far / "new").exists() and (far / "new").stat().st_size, "it is writing")
            wait_until(lambda: _size(tmp_path / "one") == len(BLOB), "the other one has read")
            shared.write_peer("carol", _entry(root, "sftp:read"))
            shared.alknet("config", "reload")
            _, stderr = writer.communicate(timeout=REVOKED_WITHIN_S)
            assert b"access was taken away" in stderr
            assert b"[scope:sftp:write] (den_" in stderr
            _, stderr = reader.communicate(f"get /t/file {tmp_path / 'two'}\n".encode(), timeout=20)
            assert (reader.returncode, stderr) == (0, b"")
    assert (tmp_path / "two").read_bytes() == BLOB
    revoked = [x for x in shared.audit() if x.get("peer") == "carol" and x.get("outcome") == "revoked"]
    assert [(line["action"], line["rule"]) for line in revoked] == [
        ("sftp/write", "scope:sftp:write"),  # the file
        ("sftp/read", "scope:sftp:write"),  # the session
    ]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


# --- curl -----------------------------------------------------------------------------------------------------------


def test_curl_lists_gets_and_puts(bob: StockClients, far: Path, tmp_path: Path) -> None:
    """Its library, libssh2, knows no strict key exchange."""
    near, key = tmp_path / "near", bob.node.keys / "bob"
    near.write_bytes(BLOB)
    host_key = (bob.node.home / "keys" / "known_hosts").read_text().split()[2]
    digest = base64.b64encode(hashlib.sha256(base64.b64decode(host_key)).digest()).decode().rstrip("=")
    url = f"sftp://bob@127.0.0.1:{bob.node.port}"
    curl = ("curl", "-sS", "--key", str(key), "--pubkey", f"{key}.pub", "--hostpubsha256", digest)
    bob.run(*curl, "--ftp-create-dirs", "-T", str(near), f"{url}/t/d/far")
    assert (far / "d" / "far").read_bytes() == BLOB
    assert " far\n" in bob.run(*curl, f"{url}/t/d/").stdout
    (tmp_path / "back").write_bytes(BLOB[:MIB])
    bob.run(*curl, "-C", "-", "-o", str(tmp_path / "back"), f"{url}/t/d/far")
    assert (tmp_path / "back").read_bytes() == BLOB
    bob.run(*curl, "-Q", "rename /t/d/far /t/d/renamed", "-Q", "chmod 600 /t/d/renamed", f"{url}/t/")
    assert stat.S_IMODE((far / "d" / "renamed").stat().st_mode) == 0o600
