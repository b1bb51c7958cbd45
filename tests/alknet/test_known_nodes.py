"""What known_nodes remembers, what it refuses to read, and that two writers lose nothing."""

import fcntl
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet import known_nodes as module
from alknet.errors import ConfigError, InvalidInputError, UnavailableError
from alknet.keys import PublicKey
from alknet.known_nodes import HOST_KEY, NODE_KEY, KnownKey, KnownNodes, address_text


def ed25519(number: int, comment: str = "") -> PublicKey:
    raw = number.to_bytes(32, "big")
    return PublicKey("ssh-ed25519", b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + raw, comment)


A, B = ed25519(1), ed25519(2)
ECDSA = PublicKey.parse(
    "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBEmKSENjQEezOmxkZMy7opKgwFB9"
    "nkt5YRrYMjNuG5N87uRgg6CLrbo5wAdT/y6v0mKV0U2w0WZ2YB/++Tpockg="
)


@pytest.fixture
def known(tmp_path: Path) -> KnownNodes:
    return KnownNodes(tmp_path / "known_nodes")


def write(known: KnownNodes, text: str) -> None:
    known.path.write_text(text, encoding="utf-8")
    known.path.chmod(0o600)


# --- what is remembered ---------------------------------------------------------------------------------------


def test_a_file_that_is_not_there_knows_nobody(known: KnownNodes) -> None:
    assert known.find("node.example", 7022, HOST_KEY) is None
    assert list(known.path.parent.iterdir()) == []


def test_a_key_is_found_for_its_address_and_role_only(known: KnownNodes) -> None:
    known.add("node.example", 7022, HOST_KEY, A)
    known.add("node.example", 7022, NODE_KEY, B)
    assert known.find("node.example", 7022, HOST_KEY) == A
    assert known.find("node.example", 7022, NODE_KEY) == B
    assert known.find("node.example", 7023, HOST_KEY) is None
    assert known.find("other.example", 7022, HOST_KEY) is None
    assert known.lookup("node.example", 7022, NODE_KEY) == KnownKey(B, 2)


def test_a_line_reads_as_it_is_documented_and_carries_no_foreign_comment(known: KnownNodes) -> None:
    known.add("2001:DB8:0::1", 22, HOST_KEY, ed25519(1, "x\nevil.example:1 host-key"))
    assert known.path.read_text() == f"[2001:db8::1]:22 host-key {A}\n"


def test_a_host_key_may_be_of_any_kind_and_a_node_key_may_not(known: KnownNodes) -> None:
    known.add("node.example", 22, HOST_KEY, ECDSA)
    assert known.find("node.example", 22, HOST_KEY) == ECDSA
    with pytest.raises(InvalidInputError, match="must be ssh-ed25519"):
        known.add("node.example", 22, NODE_KEY, ECDSA)
    write(known, f"node.example:22 node-key {ECDSA}\n")
    with pytest.raises(ConfigError, match=r"known_nodes:1: is a node-key of type ecdsa"):
        known.find("node.example", 22, NODE_KEY)


@pytest.mark.parametrize(
    ("host", "same"),
    [("Node.Example", "node.example"), ("::1", "0:0::1"), ("FE80::1%eth0", "fe80::1%eth0"), ("192.0.2.1", "192.0.2.1")],
)
def test_one_address_is_one_however_it_is_written(known: KnownNodes, host: str, same: str) -> None:
    known.add(host, 7022, HOST_KEY, A)
    assert known.find(same, 7022, HOST_KEY) == A
    write(known, known.path.read_text().upper().replace("HOST-KEY", "host-key").split(" host-key")[0])
    write(known, f"{known.path.read_text()} host-key {A}")
    assert known.find(same, 7022, HOST_KEY) == A, "also when a person wrote it in capitals"


@pytest.mark.parametrize("host", ["", " ", "a b", "a#b", "a\nb", "[::1]", "a:b", "x" * 256, "a\u2028b", "\udc80"])
def test_what_cannot_be_a_host_is_refused_before_it_is_written(known: KnownNodes, host: str) -> None:
    with pytest.raises(InvalidInputError, match="is neither a host's name nor an address"):
        known.add(host, 7022, HOST_KEY, A)
    assert not known.path.exists()


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_what_cannot_be_a_port_is_refused(known: KnownNodes, port: int) -> None:
    with pytest.raises(InvalidInputError, match="is not a port"):
        known.find("node.example", port, HOST_KEY)


def test_a_role_that_is_none_is_refused(known: KnownNodes) -> None:
    for question in (lambda: known.find("a", 1, "key"), lambda: known.add("a", 1, "key", A)):
        with pytest.raises(InvalidInputError, match="'key' is none of host-key, node-key"):
            question()


# --- adding and forgetting ------------------------------------------------------------------------------------


def test_the_file_is_private_and_nothing_is_left_beside_it(known: KnownNodes) -> None:
    known.add("node.example", 7022, HOST_KEY, A)
    assert stat.S_IMODE(known.path.stat().st_mode) == 0o600
    assert {path.name for path in known.path.parent.iterdir()} == {"known_nodes", ".known_nodes.lock"}


def test_a_directory_that_is_missing_is_made(tmp_path: Path) -> None:
    known = KnownNodes(tmp_path / "new" / "home" / "known_nodes")
    known.add("node.example", 7022, HOST_KEY, A)
    assert known.find("node.example", 7022, HOST_KEY) == A
    assert stat.S_IMODE(known.path.parent.stat().st_mode) == 0o700


def test_what_others_wrote_is_kept(known: KnownNodes) -> None:
    text = f"# mine\n\n a.example:1\thost-key {A} a note \nb.example:2 future-role whatever it says\n# end"
    write(known, text)
    known.add("c.example", 3, HOST_KEY, B)
    assert known.path.read_text() == f"{text}\nc.example:3 host-key {B}\n"
    assert known.find("a.example", 1, HOST_KEY) == PublicKey(A.kind, A.blob, "a note")
    assert known.forget("c.example", 3) == 1
    assert known.path.read_text() == text + "\n"


def test_adding_what_is_known_changes_nothing(known: KnownNodes) -> None:
    write(known, f"node.example:7022 host-key {A} by hand")
    known.add("node.example", 7022, HOST_KEY, A)
    assert known.path.read_text() == f"node.example:7022 host-key {A} by hand"


def test_another_key_is_not_put_in_the_place_of_a_known_one(known: KnownNodes) -> None:
    write(known, f"# first\nnode.example:7022 host-key {A}\n")
    with pytest.raises(ConfigError, match=r"known_nodes:2: another host-key is known for node\.example:7022") as caught:
        known.add("node.example", 7022, HOST_KEY, B)
    assert A.fingerprint in str(caught.value)
    assert B.fingerprint in str(caught.value)
    assert known.find("node.example", 7022, HOST_KEY) == A
    assert known.forget("NODE.example", 7022) == 1
    known.add("node.example", 7022, HOST_KEY, B)
    assert known.path.read_text() == f"# first\nnode.example:7022 host-key {B}\n"


def test_forgetting_takes_both_roles_and_no_other_address(known: KnownNodes) -> None:
    known.add("a.example", 1, HOST_KEY, A)
    known.add("a.example", 1, NODE_KEY, A)
    known.add("a.example", 2, HOST_KEY, A)
    assert known.forget("a.example", 1) == 2
    assert known.forget("a.example", 1) == 0
    assert known.path.read_text() == f"a.example:2 host-key {A}\n"


# --- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("x", "is not ADDRESS ROLE KEY"),
        ("node.example:7022 host-key", "is not ADDRESS ROLE KEY"),
        (f"node.example host-key {A}", "must start with host:port"),
        (f"::1:7022 host-key {A}", "must start with host:port"),
        (f"[::1] host-key {A}", "must start with host:port"),
        (f"node.example:{'9' * 5000} host-key {A}", "must start with host:port"),
        (f"node.example:0 host-key {A}", "is not a port"),
        (f":7022 host-key {A}", "is neither a host's name"),
        ("node.example:7022 host-key ssh-ed25519 AAAA", "damaged|holds another type"),
        ("node.example:7022 host-key nonsense", "is not an OpenSSH public-key line"),
    ],
)
def test_a_damaged_line_is_refused_by_its_number(known: KnownNodes, line: str, why: str) -> None:
    write(known, f"# one\n\n{line}\n")
    for question in (
        lambda: known.find("other.example", 1, HOST_KEY),
        lambda: known.add("other.example", 1, HOST_KEY, A),
        lambda: known.forget("other.example", 1),
    ):
        with pytest.raises(ConfigError, match=rf"known_nodes:3: .*({why})"):
            question()
    assert known.path.read_text() == f"# one\n\n{line}\n"


def test_two_keys_for_one_address_are_refused_by_both_numbers(known: KnownNodes) -> None:
    write(known, f"a.example:1 host-key {A}\n# and\nA.example:1 host-key {A}\na.example:1 host-key {B}\n")
    with pytest.raises(ConfigError, match=r"known_nodes:4: names another host-key for a\.example:1 than line 1 does"):
        known.find("z.example", 1, HOST_KEY)
    assert known.forget("a.example", 1) == 3, "which is a way out"


def test_text_that_is_not_utf8_is_refused_by_its_line(known: KnownNodes) -> None:
    known.path.write_bytes(b"# one\n# \xff\n")
    known.path.chmod(0o600)
    with pytest.raises(ConfigError, match="known_nodes:2: is not UTF-8"):
        known.find("a.example", 1, HOST_KEY)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_is_refused(known: KnownNodes, mode: int) -> None:
    known.add("a.example", 1, HOST_KEY, A)
    known.path.chmod(mode)
    with pytest.raises(ConfigError, match=f"has mode {mode:04o}, so that others can say which nodes are trusted"):
        known.find("a.example", 1, HOST_KEY)
    with pytest.raises(ConfigError, match="has mode"):
        known.add("b.example", 1, HOST_KEY, A)


def test_a_file_of_another_user_is_refused(known: KnownNodes, monkeypatch: pytest.MonkeyPatch) -> None:
    known.add("a.example", 1, HOST_KEY, A)
    if os.geteuid() == 0:
        os.chown(known.path, 1, -1)
    else:
        monkeypatch.setattr(module.os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ConfigError, match="belongs to user"):
        known.find("a.example", 1, HOST_KEY)


def test_a_pipe_or_directory_is_refused_and_not_waited_for(known: KnownNodes) -> None:
    os.mkfifo(known.path, 0o600)
    with pytest.raises(ConfigError, match="is not a regular file"):
        known.find("a.example", 1, HOST_KEY)


def test_a_file_has_a_largest_size_for_readers_and_writers(known: KnownNodes, monkeypatch: pytest.MonkeyPatch) -> None:
    known.add("a.example", 1, HOST_KEY, A)
    monkeypatch.setattr(module, "MAX_FILE_BYTES", known.path.stat().st_size)
    with pytest.raises(ConfigError, match="is larger than"):
        known.add("b.example", 1, HOST_KEY, A)
    assert known.find("a.example", 1, HOST_KEY) == A
    write(known, known.path.read_text() + "#")
    with pytest.raises(ConfigError, match="is larger than"):
        known.find("a.example", 1, HOST_KEY)


def test_a_write_that_fails_leaves_the_old_file(known: KnownNodes, monkeypatch: pytest.MonkeyPatch) -> None:
    known.add("a.example", 1, HOST_KEY, A)
    before = known.path.read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(ConfigError, match="cannot be written: No space left"):
        known.add("b.example", 1, HOST_KEY, A)
    assert known.path.read_bytes() == before
    assert not list(known.path.parent.glob("*.tmp"))


# --- two at once ----------------------------------------------------------------------------------------------

ADD = """
import sys
from pathlib import Path
from alknet.keys import PublicKey
from alknet.known_nodes import HOST_KEY, KnownNodes
for number in range(20):
    KnownNodes(Path(sys.argv[1])).add(f"{sys.argv[2]}-{number}.example", 7022, HOST_KEY, PublicKey.parse(sys.argv[3]))
"""


def test_commands_that_write_at_the_same_time_lose_nothing(known: KnownNodes) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", ADD, str(known.path), f"w{n}", str(A)]) for n in range(4)]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    assert len(known.path.read_text().splitlines()) == 80
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: known.add(f"t{n}.example", 7022, HOST_KEY, B), range(40)))
    assert len(known.path.read_text().splitlines()) == 120


def test_a_writer_does_not_wait_for_ever(known: KnownNodes, monkeypatch: pytest.MonkeyPatch) -> None:
    known.add("a.example", 1, HOST_KEY, A)
    holder = os.open(known.path.with_name(".known_nodes.lock"), os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    waits: list[float] = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    with pytest.raises(UnavailableError, match="another process is changing it"):
        known.add("b.example", 1, HOST_KEY, A)
    assert 1 < sum(waits) < 10
    assert known.find("a.example", 1, HOST_KEY) == A, "a reader does not wait"
    os.close(holder)


# --- any text -------------------------------------------------------------------------------------------------

hosts = st.from_regex(r"\A[a-zA-Z0-9-]{1,20}(\.[a-z]{1,5})?\Z") | st.ip_addresses().map(str)


@given(entries=st.dictionaries(st.tuples(hosts, st.integers(1, 65535)), st.integers(0, 9), max_size=8))
def test_what_was_added_is_found(tmp_path_factory: pytest.TempPathFactory, entries: dict[tuple[str, int], int]) -> None:
    known = KnownNodes(tmp_path_factory.mktemp("known") / "known_nodes")
    expected: dict[str, int] = {}
    for (host, port), number in entries.items():
        if expected.setdefault(address_text(host, port), number) == number:
            known.add(host, port, HOST_KEY, ed25519(number))
    for host, port in entries:
        assert known.find(host, port, HOST_KEY) == ed25519(expected[address_text(host, port)])


@given(
    text=st.text(max_size=200)
    | st.lists(st.sampled_from([f"a:1 host-key {A}", "#", "x", " ", "a:1 y z"])).map("\n".join)
)
def test_any_text_is_read_or_refused_with_a_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    known = KnownNodes(tmp_path_factory.mktemp("known") / "known_nodes")
    known.path.write_bytes(text.encode("utf-8", "surrogatepass"))
    known.path.chmod(0o600)
    said = ""
    try:
        known.find("a", 1, HOST_KEY)
    except ConfigError as exc:
        said = str(exc)
    assert said == "" or said.startswith(f"{known.path}:")
