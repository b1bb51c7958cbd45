"""What a client has forwarded, with asyncssh as the client and real sockets: what goes, what is refused, what ends."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import asyncssh
import psutil
import pytest
from asyncssh.packet import String

from alknet.resolver import dial
from alknet.ssh.forwarding import LIMIT
from alknet.ssh.handler import SshSettings
from testkit.polling import eventually, settled
from testkit.ssh_forwards import (
    ALL,
    HERE,
    Server,
    allowing,
    ask_globally,
    helpers,
    leave,
    nobody_there,
    reverse,
    serving,
    tell,
    visit,
)
from testkit.ssh_pair import Door

LIMITED = 4


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    """Allows all of loopback, and a few forwards at a time."""
    door = Door(policy=allowing(*ALL), settings=SshSettings(forwards_per_connection=LIMITED))
    yield door
    await door.wait_empty()
    assert door.unfinished() == set(), "every act has an outcome"
    await door.aclose()


# --- from here ------------------------------------------------------------------------------------------------


async def test_each_direction_ends_by_itself(door: Door) -> None:
    async def speaks_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.write_eof()
        heard.set_result(await reader.read())
        writer.close()

    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    data = os.urandom(1_000_001)
    async with serving(reverse) as port, serving(speaks_first) as other, door.connect() as client:
        assert await tell(*await client.open_connection(HERE, port, encoding=None), data) == data[::-1]
        reader, writer = await client.open_connection(HERE, other, encoding=None)
        assert await reader.read() == b"hello"
        writer.write(b"and ")
        await asyncio.sleep(0)
        writer.write(b"you")
        writer.write_eof()
        async with asyncio.timeout(10):
            assert await heard == b"and you"
        await eventually(lambda: door.outcomes("forward/local") == ["closed", "closed"], "both have ended")
    (intent, *_) = [r for r in door.audit.records if r["action"] == "forward/local"]
    assert (intent["peer"], intent["surface"], intent["remote"], intent["resource"]) == (
        "bob", "ssh", "192.0.2.1", None,
    )  # fmt: skip


async def test_a_target_that_breaks_off_takes_nobody_along(door: Door) -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.close()

    async with serving(reset) as broken, serving(reverse) as port, door.connect() as client:
        good_reader, good = await client.open_connection(HERE, port, encoding=None)
        reader, writer = await client.open_connection(HERE, broken, encoding=None)
        writer.write(b"x" * 100_000)
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        await eventually(lambda: door.outcomes("forward/local") == ["closed"], "the broken one has ended")
        assert await tell(good_reader, good, b"abc") == b"cba"


async def test_what_the_target_says_at_once_arrives(door: Door) -> None:
    """It may be read before the client knows that its channel is open."""
    banner = os.urandom(300_000)

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(banner)
        writer.close()

    async with serving(speak) as port, door.connect() as client:
        for _ in range(5):
            reader, writer = await client.open_connection(HERE, port, encoding=None)
            assert await reader.read() == banner
            writer.close()


# --- the client goes away -------------------------------------------------------------------------------------


async def _in_vain(opening: Coroutine[Any, Any, Any]) -> None:
    with pytest.raises(asyncssh.ChannelOpenError):
        await opening


async def test_a_client_that_leaves_while_a_name_is_looked_up_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    door, looked, answer = Door(policy=allowing("local *.example:*", *ALL)), asyncio.Event(), asyncio.Event()

    async def lookup(*_: Any, **__: Any) -> list[Any]:
        looked.set()
        await answer.wait()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.80", 80))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
    async with door.connect() as client, asyncio.TaskGroup() as group:
        group.create_task(_in_vain(client.open_connection("db.example", 80)))
        await looked.wait()
        before = psutil.Process().num_fds()
        await leave(client)
        await door.wait_empty()
        answer.set()
    await eventually(lambda: not door.unfinished(), "every act has an outcome")
    assert psutil.Process().num_fds() <= before
    await door.aclose()


async def test_a_client_that_leaves_while_a_target_is_dialled_leaves_nothing(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slowly(targets: Any) -> socket.socket:
        sock = await dial(targets)
        dialled.set()
        await answered.wait()
        return sock

    dialled, answered = asyncio.Event(), asyncio.Event()
    monkeypatch.setattr("alknet.ssh.forwarding.dial", slowly)
    with socket.create_server((HERE, 0)) as listening:
        async with door.connect() as client, asyncio.TaskGroup() as group:
            group.create_task(_in_vain(client.open_connection(*listening.getsockname())))
            await dialled.wait()
            assert door.unfinished() >= {"forward/local"}
            await leave(client)
            await door.wait_empty()
        answered.set()
        await eventually(lambda: door.outcomes("forward/local") == ["hung up"], "it is given up")
        with listening.accept()[0] as target:
            target.settimeout(5)
            assert target.recv(1) == b""


async def test_a_client_that_leaves_takes_all_its_forwards_along(door: Door) -> None:
    ended: list[bytes] = []

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            ended.append(await reader.read())
        except ConnectionError:
            ended.append(b"")
        writer.close()

    before = psutil.Process().num_fds()
    async with serving(hear) as port:
        async with door.connect() as client:
            (ssh,) = door.handler._connections
            await client.open_connection(HERE, port)
            listener = await client.create_server(asyncssh.SSHTCPSession, HERE, 0)
            reader, writer = await asyncio.open_connection(HERE, listener.get_port())
            await eventually(lambda: ssh.forwarding.count == 3, "all are open")
            await leave(client)
        await eventually(lambda: len(ended) == 1, "the target heard of the end")
        async with asyncio.timeout(5):
            with pytest.raises(ConnectionError):
                await reader.readexactly(1) if await reader.read() else _reset()
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(HERE, listener.get_port())
    assert ssh.forwarding.count == 0
    assert door.outcomes("forward/local") == door.outcomes("forward/remote") == ["hung up"]
    await eventually(lambda: psutil.Process().num_fds() <= before, "no descriptor is left")


def _reset() -> None:
    raise ConnectionResetError


async def test_an_orderly_stop_waits_for_connections_and_lets_no_new_ones_in(door: Door) -> None:
    async with serving(reverse) as port, door.connect() as client, asyncio.TaskGroup() as group:
        reader, writer = await client.open_connection(HERE, port, encoding=None)
        listener = await client.create_server(asyncssh.SSHTCPSession, HERE, 0)
        stopping = group.create_task(door.router.shutdown(asyncio.get_running_loop().time() + 20))
        (ssh,) = door.handler._connections
        await eventually(lambda: ssh.is_draining, "the node is stopping")
        with pytest.raises(asyncssh.ChannelOpenError, match="being ended"):
            await client.open_connection(HERE, port)
        with pytest.raises(asyncssh.ChannelListenError):
            await client.create_server(asyncssh.SSHTCPSession, HERE, 0)
        visitor = socket.create_connection((HERE, listener.get_port()))
        assert await tell(reader, writer, b"abc") == b"cba"
        async with asyncio.timeout(5):
            await stopping
        visitor.close()
    assert door.outcomes("forward/local") == ["closed"]


async def test_a_forward_that_fails_does_not_keep_an_orderly_stop_waiting(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(targets: Any) -> socket.socket:
        dialled.set()
        await answered.wait()
        raise ConnectionRefusedError(111, "refused")

    dialled, answered = asyncio.Event(), asyncio.Event()
    monkeypatch.setattr("alknet.ssh.forwarding.dial", fail)
    async with door.connect() as client, asyncio.TaskGroup() as group:
        group.create_task(_in_vain(client.open_connection(HERE, 80)))
        await dialled.wait()
        assert (await client.run("exit 5")).exit_status == 5
        stopping = group.create_task(door.router.shutdown(asyncio.get_running_loop().time() + 20))
        answered.set()
        async with asyncio.timeout(5):
            await stopping


async def test_a_stop_ends_what_is_open_at_its_deadline(door: Door) -> None:
    async with serving(reverse) as port, door.connect() as client:
        await client.open_connection(HERE, port)
        await door.aclose()
    assert door.outcomes("forward/local") == ["hung up"]


# --- limits ---------------------------------------------------------------------------------------------------


async def test_no_more_forwards_than_the_limit_and_more_again_afterwards(door: Door) -> None:
    async with serving(reverse) as port, door.connect() as client:
        open_ = [await client.open_connection(HERE, port, encoding=None) for _ in range(LIMITED - 1)]
        await client.create_server(asyncssh.SSHTCPSession, HERE, 0)
        with pytest.raises(asyncssh.ChannelOpenError, match=LIMIT.replace(".", r"\.")) as caught:
            await client.open_connection(HERE, port)
        assert caught.value.code == asyncssh.OPEN_RESOURCE_SHORTAGE
        with pytest.raises(asyncssh.ChannelListenError):
            await client.create_server(asyncssh.SSHTCPSession, HERE, 0)
        assert (await client.run("exit 5")).exit_status == 5, "sessions are counted apart"
        assert await tell(*open_.pop(), b"abc") == b"cba"
        await eventually(lambda: door.outcomes("forward/local") == ["closed"], "there is room")
        assert await tell(*await client.open_connection(HERE, port, encoding=None), b"def") == b"fed"


# --- to the client --------------------------------------------------------------------------------------------


async def test_a_listener_brings_whoever_connects_and_each_direction_ends_by_itself(door: Door) -> None:
    came: list[tuple[str, int]] = []

    def handler(host: str, port: int) -> Server:
        came.append((host, port))
        return reverse

    async with door.connect() as client:
        first = await client.start_server(handler, HERE, 0, encoding=None)
        second = await client.start_server(handler, HERE, 0, encoding=None)
        assert first.get_port() != second.get_port()
        data = os.urandom(1_000_001)
        for listener in (first, second):
            reader, writer = await asyncio.open_connection(HERE, listener.get_port())
            mine = writer.get_extra_info("sockname")
            assert await tell(reader, writer, data) == data[::-1]
            assert came.pop() == mine
        (ssh,) = door.handler._connections
        await eventually(lambda: ssh.forwarding.count == 2, "the connections have ended, the listeners have not")


async def test_a_listener_is_on_every_address_of_its_name_with_one_port(door: Door) -> None:
    async with door.connect() as client:
        listener = await client.start_server(lambda *_: reverse, "localhost", 0, encoding=None)
        assert await visit(listener.get_port()) == await visit(listener.get_port(), host="::1") == b"cba"


async def test_the_same_listener_twice_is_refused_and_the_first_goes_on(door: Door) -> None:
    async with door.connect() as client, door.connect() as other:
        listener = await client.start_server(lambda *_: reverse, HERE, 0, encoding=None)
        for asking in (client, other):
            asking._remote_listeners.clear()  # asyncssh's client would not ask
            with pytest.raises(asyncssh.ChannelListenError):
                await asking.start_server(lambda *_: reverse, HERE, listener.get_port())
        client._remote_listeners[HERE, listener.get_port()] = listener
        assert await visit(listener.get_port()) == b"cba"
    assert door.outcomes("forward/remote")[0] == "failed: EADDRINUSE"


async def test_cancelling_ends_the_listener_and_keeps_its_connections(door: Door) -> None:
    async with door.connect() as client:
        listener = await client.start_server(lambda *_: reverse, HERE, 0, encoding=None)
        reader, writer = await asyncio.open_connection(HERE, listener.get_port())
        (ssh,) = door.handler._connections
        await eventually(lambda: ssh.forwarding.count == 2, "it is open")
        assert await ask_globally(client, b"cancel-tcpip-forward", HERE, listener.get_port())
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(HERE, listener.get_port())
        assert door.outcomes("forward/remote") == []
        assert await tell(reader, writer, b"abc") == b"cba"
        await eventually(lambda: door.outcomes("forward/remote") == ["cancelled"], "the last one has left")


async def test_cancelling_what_is_not_there_fails_and_harms_nobody(door: Door) -> None:
    async with door.connect() as client:
        listener = await client.start_server(lambda *_: reverse, HERE, 0, encoding=None)
        for host, port in ((HERE, 1), ("localhost", listener.get_port()), ("", 0), ("x" * 5000, 70000)):
            assert not await ask_globally(client, b"cancel-tcpip-forward", host, port)
        kind, _ = await client._make_global_request(b"cancel-streamlocal-forward@openssh.com", String("/no/such"))
        assert kind == asyncssh.constants.MSG_REQUEST_FAILURE
        assert await visit(listener.get_port()) == b"cba"
        assert await ask_globally(client, b"cancel-tcpip-forward", HERE, listener.get_port())
        assert not await ask_globally(client, b"cancel-tcpip-forward", HERE, listener.get_port())


async def test_a_connection_that_the_client_refuses_is_closed(door: Door) -> None:
    def refuse(host: str, port: int) -> Server:
        raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "nobody is at home")

    async with door.connect() as client:
        listener = await client.start_server(refuse, HERE, 0, encoding=None)
        assert await visit(listener.get_port(), b"") == b""
        (ssh,) = door.handler._connections
        await eventually(lambda: ssh.forwarding.count == 1, "only the listener is left")


class NeverAnswers(asyncssh.SSHClientConnection):
    """Keeps everybody waiting who comes by a listener of its own."""

    def _process_forwarded_tcpip_open(self, packet: Any) -> Any:
        async def wait() -> Any:
            self.asked = getattr(self, "asked", 0) + 1
            await asyncio.Event().wait()

        for _ in range(2):
            packet.get_string(), packet.get_uint32()
        return self.create_tcp_channel(), wait()


async def test_a_client_that_never_answers_fills_its_own_room_and_nothing_else(door: Door) -> None:
    async with door.connect(NeverAnswers) as client:
        listener = await client.create_server(asyncssh.SSHTCPSession, HERE, 0)
        visitors = [socket.create_connection((HERE, listener.get_port())) for _ in range(LIMITED + 2)]
        for visitor in visitors:
            visitor.setblocking(False)
        (ssh,) = door.handler._connections
        await eventually(lambda: getattr(client, "asked", 0) == LIMITED - 1, "all the room is taken")
        assert ssh.forwarding.count == LIMITED
        sent = 0

        def stuff() -> int:
            nonlocal sent
            sent += sum(map(_stuff, visitors))
            return sent

        await settled(stuff)
        unread = [len(pump._early) for live in ssh.forwarding._lives() for pump in live.pumps]
        assert unread == [0] * (LIMITED - 1), "nobody is read before the client takes them"
        assert (await client.run("exit 5")).exit_status == 5
        with pytest.raises(asyncssh.ChannelOpenError, match="limits"):
            await client.open_connection(HERE, 1)
        await leave(client)
    await eventually(lambda: all(_is_closed(visitor) for visitor in visitors), "they are let go")
    for visitor in visitors:
        visitor.close()
    await door.wait_empty()
    assert ssh.forwarding.count == 0


def _stuff(sock: socket.socket) -> int:
    """How much a socket takes that nobody reads at the other end."""
    taken = 0
    try:
        while True:
            taken += sock.send(bytes(65536))
    except BlockingIOError:
        return taken


def _is_closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


async def test_who_does_not_get_in_waits_until_there_is_room(door: Door) -> None:
    async with door.connect() as client, asyncio.TaskGroup() as group:
        listener = await client.start_server(lambda *_: reverse, HERE, 0, encoding=None)
        first = [await asyncio.open_connection(HERE, listener.get_port()) for _ in range(LIMITED - 1)]
        (ssh,) = door.handler._connections
        await eventually(lambda: ssh.forwarding.count == LIMITED, "all the room is taken")
        late = group.create_task(visit(listener.get_port(), b"late"))
        assert await tell(*first.pop(), b"abc") == b"cba"
        assert await late == b"etal"
        for _, writer in first:
            writer.close()


# --- changes of the policy ------------------------------------------------------------------------------------


async def test_a_reload_ends_what_it_forbids_and_nothing_else() -> None:
    heard: list[tuple[str, bool]] = []

    class Listening(asyncssh.SSHClient):
        def debug_msg_received(self, msg: str, lang: str, always_display: bool) -> None:
            heard.append((msg, always_display))

    door = Door(policy=allowing(*ALL))
    connected = door.connect(client_factory=Listening)
    async with serving(reverse) as kept, serving(reverse) as lost, connected as client:
        good = await client.open_connection(HERE, kept, encoding=None)
        reader, _ = await client.open_connection(HERE, lost, encoding=None)
        free = nobody_there()
        listener = await client.start_server(lambda *_: reverse, HERE, 0, encoding=None)
        forbidden = await client.start_server(lambda *_: reverse, HERE, free, encoding=None)
        inside, writer = await asyncio.open_connection(HERE, free)
        (ssh,) = door.handler._connections
        await eventually(lambda: ssh.forwarding.count == 5, "all are open")
        rules = (f"not local {HERE}:{lost}", f"not remote {HERE}:{free}", *ALL)
        door.replace_policy(allowing(*rules, revision="r2"))
        async with asyncio.timeout(5):
            assert await reader.read() == b""
            with pytest.raises((ConnectionError, EOFError)):
                await inside.readexactly(1)
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(HERE, forbidden.get_port())
        assert await tell(*good, b"abc") == await visit(listener.get_port()) == b"cba"
    for action, rule in (("forward/local", "rules[0]"), ("forward/remote", "rules[1]")):
        (revoked,) = [r for r in door.audit.records if r.get("outcome") == "revoked" and r["action"] == action]
        assert (revoked["decision"], revoked["rule"]) == ("deny", rule)
        assert revoked["denial_id"].startswith("den_")
        (told,) = [words for words, for_people in heard if for_people and revoked["denial_id"] in words]
        assert told.startswith("alknet: a forward was ended: ")
    await door.aclose()


# --- changes of keys ------------------------------------------------------------------------------------------


async def test_changes_of_keys_lose_nothing_of_a_busy_forward(door: Door) -> None:
    data = os.urandom(4_000_003)
    async with serving(reverse) as port, door.connect(rekey_bytes=300_000) as client:
        listener = await client.start_server(lambda *_: reverse, HERE, 0, encoding=None)
        opened = await client.open_connection(HERE, port, encoding=None)
        answers = await asyncio.gather(tell(*opened, data), visit(listener.get_port(), data))
    assert answers == [data[::-1]] * 2


# --- unix sockets ---------------------------------------------------------------------------------------------


async def test_sockets_both_ways(tmp_path: Path) -> None:
    door = Door(policy=allowing(f"unix {tmp_path}/*"))
    theirs, mine, data = str(tmp_path / "there"), str(tmp_path / "here"), os.urandom(1_000_001)
    async with serving(reverse, path=theirs), door.connect() as client:
        assert await tell(*await client.open_unix_connection(theirs, encoding=None), data) == data[::-1]
        listener = await client.start_unix_server(lambda: reverse, mine, encoding=None)
        assert os.stat(mine).st_mode & 0o777 == 0o600
        assert await tell(*await asyncio.open_unix_connection(mine), data) == data[::-1]
        listener.close()
        await listener.wait_closed()
        await eventually(lambda: not os.path.exists(mine), "its name is gone")
        await client.start_unix_server(lambda: reverse, mine, encoding=None)
    await eventually(lambda: not os.path.exists(mine), "its name is gone with the connection")
    await eventually(lambda: not helpers(), "the helpers have ended")
    assert door.unfinished() == set()
    await door.aclose()


async def test_a_path_is_decided_by_where_it_leads(tmp_path: Path) -> None:
    allowed, forbidden = tmp_path / "a", tmp_path / "f"
    allowed.mkdir()
    forbidden.mkdir()
    (allowed / "link").symlink_to(forbidden / "socket")
    (allowed / "out").symlink_to(forbidden)
    (forbidden / "in").symlink_to(allowed)
    door = Door(policy=allowing(f"unix {allowed}/*"))
    there, here = serving(reverse, path=str(forbidden / "socket")), serving(reverse, path=str(allowed / "s"))
    async with there, here, door.connect() as client:
        for path in (allowed / "link", allowed / "out" / "socket", forbidden / "socket", f"{allowed}/../f/socket"):
            with pytest.raises(asyncssh.ChannelOpenError, match=r"forwarding\.default"):
                await client.open_unix_connection(str(path))
        for path in (allowed / "out" / "new", forbidden / "new", f"{allowed}/../f/new"):
            with pytest.raises(asyncssh.ChannelListenError):
                await client.start_unix_server(lambda: reverse, str(path))
        assert not list(forbidden.glob("new"))
        opened = await client.open_unix_connection(str(forbidden / "in" / "s"), encoding=None)
        assert await tell(*opened, b"abc") == b"cba"
    await eventually(lambda: not helpers(), "the helpers have ended")
    await door.aclose()


async def test_a_path_that_is_no_text_is_refused_with_words(tmp_path: Path) -> None:
    os.symlink(os.fsencode(tmp_path) + b"/\xff", tmp_path / "link")
    door = Door(policy=allowing("unix /nowhere/*"))
    async with serving(reverse, path=os.fsdecode(os.fsencode(tmp_path) + b"/\xff")), door.connect() as client:
        with pytest.raises(asyncssh.ChannelOpenError, match=r"forwarding\.default"):
            await client.open_unix_connection(str(tmp_path / "link"))
        assert (await client.run("exit 5")).exit_status == 5
    await door.aclose()


async def test_a_path_that_is_none_harms_nobody(tmp_path: Path) -> None:
    door = Door(policy=allowing("unix /**"))
    (tmp_path / "file").touch()
    async with door.connect() as client:
        for path in ("/a\0b", "relative", "", "/" + "x" * 300, "/" + "x" * 40_000, "/no/such", str(tmp_path / "file")):
            with pytest.raises(asyncssh.ChannelOpenError):
                await client.open_unix_connection(path)
            with pytest.raises(asyncssh.ChannelListenError):
                await client.start_unix_server(lambda: reverse, path)
        assert (await client.run("exit 5")).exit_status == 5
    await door.wait_empty()
    assert door.unfinished() == set()
    assert (tmp_path / "file").is_file()
    await eventually(lambda: not helpers(), "the helpers have ended")
    await door.aclose()


# --- the agent ------------------------------------------------------------------------------------------------


async def test_an_agent_is_offered_once_and_reaches_the_client(tmp_path: Path) -> None:
    door = Door(policy=allowing())
    async with serving(reverse, path=str(tmp_path / "agent")):
        async with door.connect(agent_forwarding=str(tmp_path / "agent")) as client:
            runs = [client.run("echo $SSH_AUTH_SOCK") for _ in range(3)]
            paths = {str(result.stdout).strip() for result in await asyncio.gather(*runs)}
            (path,) = paths
            assert os.stat(path).st_mode & 0o777 == 0o600
            assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700
            assert await tell(*await asyncio.open_unix_connection(path), b"abc") == b"cba"
        await eventually(lambda: not os.path.exists(os.path.dirname(path)), "nothing is left of it")
    await eventually(lambda: not helpers(), "the helper has ended")
    assert door.outcomes("ssh/agent") == ["hung up"]
    await door.aclose()


async def test_an_agent_is_refused_with_words_and_the_session_goes_on(tmp_path: Path) -> None:
    door = Door(policy=allowing(scopes=("ssh:exec",)))
    async with door.connect(agent_forwarding=str(tmp_path / "agent")) as client:
        result = await client.run("echo $SSH_AUTH_SOCK")
    assert (result.stdout, result.exit_status) == ("\n", 0)
    assert "the agent is not forwarded: refused: " in str(result.stderr)
    assert "[scope:ssh:agent] (den_" in str(result.stderr)
    await door.aclose()
