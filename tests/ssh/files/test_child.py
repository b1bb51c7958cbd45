"""The process as a whole: stock `sftp` and asyncssh over pipes, who it becomes, how it ends, and what it never does."""

import asyncio
import json
import os
import pwd
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from asyncssh.sftp import SFTPClientHandler
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alknet.errors import BrokenError
from alknet.ssh.files.child import MAX_NOTES, Notes, PipeOutput
from alknet.ssh.files.packets import MAX_PACKET_BYTES, MAX_READ_BYTES
from testkit import file_child
from testkit.file_child import FileChild, field, packet

REALPATH, STAT, STATUS, NAME, ATTRS = 16, 17, 101, 104, 105
SFTP_S = 20
SIZE = 600_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "dir").mkdir(parents=True)
    (root / "file").write_bytes(os.urandom(SIZE))
    return root


# --- clients ----------------------------------------------------------------------------------------------------------


@pytest.mark.interop
def test_stock_sftp_puts_gets_lists_and_renames(root: Path, tmp_path: Path) -> None:
    assert shutil.which("sftp"), "CI must have OpenSSH's clients"
    where = tmp_path / "here"
    where.mkdir()
    (where / "up").write_bytes(os.urandom(SIZE))
    (root / "big").write_bytes(b"old")
    script = (
        "put up\nput up big\nget file\nmkdir d\nrename up d/up\nln -s d link\nls -l link/\nreget file part\ndf\n"
        "cp d/up d/copy\nchmod 600 d/up\nln d/up hard\nls -la\nrm big\n-rmdir d\nget /../file out\n"
    )
    (where / "part").write_bytes((root / "file").read_bytes()[:100_000])
    server = f"{sys.executable} {file_child.__file__} {root}"
    done = subprocess.run(
        ["sftp", "-q", "-b", "-", "-D", server],
        input=script,
        cwd=where,
        capture_output=True,
        text=True,
        timeout=SFTP_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in ("file", "part", "out"):
        assert (where / name).read_bytes() == (root / "file").read_bytes()
    for name in ("d/up", "d/copy", "hard"):
        assert (root / name).read_bytes() == (where / "up").read_bytes()
    assert sorted(os.listdir(root)) == ["d", "dir", "file", "hard", "link"]
    assert "-rw-r--r--" in done.stdout
    assert "link/up" in done.stdout


class _Reader(asyncio.StreamReader):
    """A pipe as asyncssh's SFTP client wants it."""

    logger = asyncssh.logging.logger

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class _Writer:
    """The same for the other direction."""

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport
        self.channel = self

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def write_eof(self) -> None:
        self._transport.close()

    def close(self) -> None:
        self._transport.close()


@asynccontextmanager
async def asyncssh_client(child: FileChild) -> AsyncIterator[asyncssh.SFTPClient]:
    loop = asyncio.get_running_loop()
    reader: Any = _Reader(limit=1 << 22)
    assert child.process.stdin is not None
    incoming, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(os.dup(child.process.stdout.fileno()), "rb")
    )
    outgoing, _ = await loop.connect_write_pipe(asyncio.Protocol, os.fdopen(os.dup(child.process.stdin.fileno()), "wb"))
    child.process.stdin.close()
    child.process.stdin = None
    try:
        handler = SFTPClientHandler(loop, "strict", reader, _Writer(outgoing), 3)
        await handler.start()
        async with asyncio.TaskGroup() as group:
            group.create_task(handler.recv_packets())
            await handler.request_limits()
            handler._nonstandard_symlink = True  # the order of OpenSSH, which asyncssh knows by the name of a server
            client = asyncssh.SFTPClient(handler, "utf-8", "strict")
            yield client
            client.exit()  # the task group waits until it has ended
    finally:
        outgoing.close()
        incoming.close()
        await asyncio.sleep(0)  # which closes the descriptors


async def test_asyncssh_does_everything_it_knows(root: Path, tmp_path: Path) -> None:
    local = tmp_path / "local"
    (local / "sub").mkdir(parents=True)
    (local / "sub" / "x").write_bytes(os.urandom(SIZE))
    with FileChild(root) as child:
        async with asyncssh_client(child) as client:
            assert client.supports_remote_copy
            assert client.limits.max_read_len == MAX_READ_BYTES
            await client.put(str(local), "/", recurse=True, preserve=True)
            await client.get("/local/sub/x", str(tmp_path / "back"))
            await client.remote_copy("file", "copy")
            await client.posix_rename("copy", "local/sub/x")
            await client.link("file", "hard")
            await client.symlink("/dir", "link")
            assert await client.realpath("link") == "/dir"
            assert {str(entry.filename) for entry in await client.readdir("/")} >= {"file", "hard", "link", ".", ".."}
            assert (await client.statvfs("/")).namemax == os.statvfs(root).f_namemax
            assert await client.glob("loc*/s*/x") == ["local/sub/x"]
            await client.rmtree("local")
            async with client.open("file", "rb+") as file:
                await file.fsync()
                await file.truncate(10)
                assert (await file.stat()).size == 10
        assert child.end() == (0, "")
        assert len(child.answers.ended) == len(child.answers.asked)
    assert (tmp_path / "back").read_bytes() == (local / "sub" / "x").read_bytes()
    assert sorted(os.listdir(root)) == ["dir", "file", "hard", "link"]


# --- a session ----------------------------------------------------------------------------------------------------


def test_everything_that_is_offered_is_told(root: Path) -> None:
    with FileChild(root) as child:
        offered = child.begin()
        for name in ("posix-rename@openssh.com", "statvfs@openssh.com", "limits@openssh.com", "blake3@alknet"):
            assert field(name) in offered
        kind, data = child.request(200, field("blake3@alknet") + field("/file") + bytes(16))
        assert (kind, data) == (201, field(blake3((root / "file").read_bytes()).digest()))
        assert child.request(77, b"")[0] == STATUS
        assert child.end() == (0, "")


def test_requests_are_answered_in_order_however_many_there_are_at_once(root: Path) -> None:
    """Also to a client that takes no answer before it has sent everything."""
    with FileChild(root) as child:
        child.begin()
        _, handle = child.request(3, field("file") + struct.pack(">I", 1) + bytes(4))
        read = b"".join(
            packet(5, struct.pack(">I", n) + handle + struct.pack(">QI", n * 1000, 1000)) for n in range(600)
        )
        child.send(read)
        content = (root / "file").read_bytes()
        for number in range(600):
            assert child.answer() == (103, field(content[number * 1000 :][:1000]))
        assert child.end()[0] == 0


def test_a_refusal_is_on_stderr_as_well_where_every_client_shows_it(root: Path) -> None:
    with FileChild(root, decide=lambda action, path: False, protected=(str(root / "dir"),)) as child:
        child.begin()
        assert child.request(11, field("."))[0] == STATUS
        assert child.request(STAT, field("dir"))[0] == STATUS
        code, words = child.end()
    assert (code, words.splitlines()[0]) == (0, "alknet: read is not for you (den_1)")
    assert words.splitlines()[1].endswith("(den_2)")


@pytest.mark.parametrize(
    "sent",
    [
        packet(1, struct.pack(">I", 2)),
        packet(STAT, struct.pack(">I", 1) + field("/")),
        struct.pack(">I", MAX_PACKET_BYTES + 1),
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(100),
    ],
)
def test_what_is_no_session_ends_with_a_reason(root: Path, sent: bytes) -> None:
    with FileChild(root) as child:
        child.send(sent)
        code, words = child.end()
    assert (code, words[:8], words.count("\n")) == (1, "alknet: ", 1)


def test_a_root_that_is_not_there_is_told_with_a_hint(root: Path) -> None:
    with FileChild(root / "missing") as child:
        code, words = child.end()
    assert (code, words) == (
        1,
        "alknet: the directory that is served cannot be opened: no such file or directory; set sftp_root\n",
    )
    with FileChild(root / "dir", protected=(str(root),)) as child:
        code, words = child.end()
    assert (code, "out of reach" in words) == (1, True)


def test_a_mistake_of_ours_is_told_without_the_machines_directories(root: Path) -> None:
    no_path: Any = 7
    with FileChild(root, start=no_path) as child:
        code, words = child.end()
    assert (code, words.startswith("alknet: internal error: TypeError in "), "/" in words) == (1, True, False)


def test_a_node_that_goes_ends_it(root: Path) -> None:
    child = FileChild(root)
    child.begin()
    child._node.shutdown(socket.SHUT_RDWR)
    child.send(packet(11, struct.pack(">I", 1) + field("/")))
    assert child.process.wait(SFTP_S) == 1
    child.end()


def test_a_client_that_goes_ends_it(root: Path) -> None:
    with FileChild(root) as child:
        child.begin()
        assert child.process.stdout is not None
        child.process.stdout.close()
        child.process.stdout = None
        with suppress(BrokenPipeError):
            child.send(packet(STAT, struct.pack(">I", 1) + field("/")) * 1000)
        assert child.process.wait(SFTP_S) == 1
        with suppress(BrokenPipeError):
            child.end()


def test_scp_and_how_it_ends(root: Path) -> None:
    with FileChild(root, command="scp -t dir") as child:
        child.send(b"C0644 3 new\nabc\0")
        assert child.end() == (0, "")
    assert (root / "dir" / "new").read_bytes() == b"abc"
    with FileChild(root, command="scp -f missing") as child:
        child.send(b"\0")
        assert child.end() == (1, "")
    with FileChild(root, command="scp -t dir", decide=lambda action, path: False) as child:
        child.send(b"C0644 3 new\n")
        assert child.end() == (3, "alknet: write is not for you (den_1)\n")


def test_it_becomes_the_user_before_it_opens_anything(test_user: pwd.struct_passwd) -> None:
    user = test_user
    with tempfile.TemporaryDirectory(dir=user.pw_dir) as directory:
        root = Path(directory)
        root.chmod(0o777)
        (root / "roots").write_bytes(b"root's")
        (root / "roots").chmod(0o600)
        ids = (str(user.pw_uid), str(user.pw_gid), ",".join(map(str, os.getgrouplist(user.pw_name, user.pw_gid))))
        with FileChild(root, ids=ids) as child:
            child.begin()
            _, data = child.request(3, field("roots") + struct.pack(">I", 1) + bytes(4))
            assert struct.unpack_from(">I", data) == (3,)
            assert child.request(3, field("new") + struct.pack(">III", 10, 4, 0o4666))[0] == 102
            process = Path(f"/proc/{child.process.pid}")
            assert "NoNewPrivs:\t1" in (process / "status").read_text()
            assert (process / "mem").stat().st_uid == 0, "no other process of the user looks into it"
            assert child.end()[0] == 0
        info = (root / "new").stat()
        assert (info.st_uid, info.st_gid, info.st_mode & 0o7777) == (user.pw_uid, user.pw_gid, 0o4644)


def test_it_loads_nothing_that_is_slow_to_load() -> None:
    heavy = ["asyncio", "asyncssh", "cryptography", "pydantic", "socket", "ssl", "threading", "logging", "uvloop"]
    code = f"import alknet.ssh.files.child, sys; print(*(name for name in {heavy} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# --- whatever is sent -----------------------------------------------------------------------------------------------


@given(pieces=st.lists(st.binary(max_size=40), max_size=4), begins=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=12)
def test_whatever_is_sent_it_ends_and_says_why(root: Path, pieces: list[bytes], begins: bool) -> None:
    with FileChild(root) as child:
        with suppress(BrokenPipeError):
            if begins:
                child.send(packet(1, struct.pack(">I", 3)))
            for piece in pieces:
                child.send(piece)
        code, words = child.end()
    assert (code, words) == (0, "") or (code == 1 and words.startswith("alknet: "))


def test_notes_are_few_and_never_waited_for() -> None:
    ours, theirs = os.pipe()
    note = Notes(theirs)
    note("a\x1b[2Jb\n" + "x" * 1000)
    first = os.read(ours, 10_000)
    assert (first[:16], len(first)) == (b"alknet: a?[2Jb?x", 509)
    for _ in range(2 * MAX_NOTES):
        note("more")
    assert os.read(ours, 10_000).count(b"\n") == MAX_NOTES - 1
    os.set_blocking(theirs, False)
    with suppress(BlockingIOError):
        while os.write(theirs, bytes(4096)):
            pass
    os.set_blocking(theirs, True)
    Notes(theirs)("nobody reads")
    os.close(ours)
    note = Notes(theirs)
    note("nobody is there")
    os.close(theirs)


def test_output_is_written_in_order_whatever_its_size() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        output = PipeOutput(theirs.fileno(), size=100)
        for size in (10, 200, 60, 60, 100, 101):
            output.send(bytes([size]) * size)
        space = output.space(50)
        space[:3] = b"abc"
        output.added(3)
        output.flush()
        expected = b"".join(bytes([size]) * size for size in (10, 200, 60, 60, 100, 101)) + b"abc"
        assert ours.recv(10_000) == expected
        ours.close()
        with pytest.raises(BrokenError):
            output.send(bytes(1000))


def test_the_orders_are_json(root: Path) -> None:
    """A path of any bytes is one that can be served."""
    strange = root / "\udcff"
    strange.mkdir()
    with FileChild(strange) as child:
        assert json.loads(json.dumps(dict(child.order)))["root"] == str(strange)
        child.begin()
        assert child.request(REALPATH, field("."))[0] == NAME
        assert child.end() == (0, "")
