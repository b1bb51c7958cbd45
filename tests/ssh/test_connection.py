"""Login and the bounds of one connection, with asyncssh as the client."""

import asyncio
from collections.abc import AsyncIterator

import asyncssh
import pytest
from asyncssh.packet import String

from alknet.access import Policy
from alknet.ssh.handler import SshSettings
from testkit.polling import eventually
from testkit.ssh_pair import CLIENT_KEY, Door, policy_with


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    door = Door()
    yield door
    await door.aclose()


async def test_a_login_is_recorded_with_what_proved_it(door: Door) -> None:
    async with door.connect():
        (connection,) = door.router.connections
        assert connection.identity is not None
        assert connection.identity.id == "bob"
        (intent,) = [r for r in door.audit.records if r["action"] == "ssh/login"]
    assert intent["via"].startswith("key:SHA256:")
    assert (intent["phase"], intent["remote"]) == ("intent", "192.0.2.1")
    await door.wait_empty()
    assert len(door.outcomes("ssh/login")) == 1


async def test_a_stranger_is_refused_and_counted_once_per_visit(door: Door) -> None:
    keys = [asyncssh.generate_private_key("ssh-ed25519") for _ in range(3)]
    with pytest.raises(asyncssh.PermissionDenied):
        async with door.connect(client_keys=keys):
            pass
    await door.wait_empty()
    (record,) = [r for r in door.audit.records if r["action"] == "ssh/login"]
    assert (record["decision"], record["rule"], record["peer"]) == ("deny", "anonymous", None)
    assert door.failed_hosts == ["192.0.2.1"]


async def test_wrong_keys_before_the_right_one_do_no_harm(door: Door) -> None:
    wrong = asyncssh.generate_private_key("ssh-ed25519")
    async with door.connect(client_keys=[wrong, CLIENT_KEY]) as client:
        assert (await client.run("exit 5")).exit_status == 5
    assert door.failed_hosts == []


async def test_a_refusal_after_proof_is_told_in_a_banner(door: Door) -> None:
    heard: list[str] = []

    class Listening(asyncssh.SSHClient):
        def auth_banner_received(self, msg: str, lang: str) -> None:
            heard.append(msg)

    with pytest.raises(asyncssh.PermissionDenied):
        async with door.connect(username="mallory", client_factory=Listening):
            pass
    (record,) = [r for r in door.audit.records if r["action"] == "ssh/login"]
    assert heard == [f"alknet: refused: the login name of peer 'bob' must be {_names()} [login-name] "
                     f"({record['denial_id']})\n"]  # fmt: skip


def _names() -> str:
    from alknet.config.policy import daemon_user

    return " or ".join(sorted([repr("bob"), repr(daemon_user().name)]))


async def test_a_probe_without_signature_decides_and_records_nothing(door: Door) -> None:
    class OnlyAsks(asyncssh.SSHClientConnection):
        async def public_key_auth_requested(self):  # type: ignore[no-untyped-def]
            keypair = await super().public_key_auth_requested()
            if keypair is not None:
                keypair.sign = lambda data: b"\0\0\0\x0bssh-ed25519\0\0\0\x40" + bytes(64)
            return keypair

    with pytest.raises(asyncssh.PermissionDenied):
        async with door.connect(OnlyAsks):
            pass
    assert not [r for r in door.audit.records if r["decision"] == "allow"]
    assert not any(c.identity for c in door.router.connections)


async def test_sha1_signatures_are_refused() -> None:
    from alknet.access import Peer
    from alknet.keys import fingerprint

    rsa = asyncssh.generate_private_key("ssh-rsa", key_size=2048)
    base = policy_with("ssh:*")
    peer = Peer("bob", base.peers["bob"].scopes, (fingerprint(rsa.public_data),), ssh=base.peers["bob"].ssh)
    door = Door(policy=Policy({"bob": peer}, "r", b"k" * 32, base.daemon))

    class OldClient(asyncssh.SSHClientConnection):
        def _choose_signature_alg(self, keypair):  # type: ignore[no-untyped-def]
            keypair.set_sig_algorithm(b"ssh-rsa")
            return True

    with pytest.raises(asyncssh.PermissionDenied):
        async with door.connect(OldClient, client_keys=[rsa], signature_algs=["ssh-rsa"]):
            pass
    async with door.connect(client_keys=[rsa]) as client:
        assert (await client.run("exit 5")).exit_status == 5
    await door.aclose()


@pytest.mark.parametrize("name", ["ssh-dss", "rsa-sha2-256-cert-v01@openssh.com", "ssh-ed25519\0", "\xff", "", "none"])
async def test_a_signature_by_another_name_than_those_offered_is_refused(door: Door, name: str) -> None:
    """The key is the right one, and so is the signature: only what it calls itself is not on the list."""
    said = name.encode("latin-1")

    class Renames(asyncssh.SSHClientConnection):
        async def public_key_auth_requested(self):  # type: ignore[no-untyped-def]
            keypair = await super().public_key_auth_requested()
            if keypair is not None:
                sign = keypair.sign
                keypair.sign = lambda data: String(said) + sign(data)[4 + len("ssh-ed25519") :]
            return keypair

    with pytest.raises(asyncssh.PermissionDenied):
        async with door.connect(Renames):
            pass
    assert not [r for r in door.audit.records if r["decision"] == "allow"]


async def test_a_known_key_that_never_signed_is_logged_as_such(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    class Unable(asyncssh.SSHClientConnection):
        async def public_key_auth_requested(self):  # type: ignore[no-untyped-def]
            keypair = await super().public_key_auth_requested()
            if keypair is not None:
                keypair.sign = lambda data: b"\0\0\0\x0bssh-ed25519\0\0\0\x40" + bytes(64)
            return keypair

    stranger = asyncssh.generate_private_key("ssh-ed25519")
    for kind, key in ((Unable, CLIENT_KEY), (asyncssh.SSHClientConnection, stranger)):
        with caplog.at_level("WARNING", "alknet.ssh"), pytest.raises(asyncssh.PermissionDenied):
            async with door.connect(kind, client_keys=[key]):
                pass
        await door.wait_empty()
    reasons = [r.getMessage().split(" attempts=")[0] for r in caplog.records if r.getMessage().startswith("auth ")]
    assert reasons == [f"auth remote_addr=192.0.2.1 result=reject reason={x}" for x in ("not-signed", "unknown-key")]


class Terrapin(asyncssh.SSHClientConnection):
    """A client that knows nothing of the strict key exchange."""

    _strict_kex = property(lambda self: False, lambda self, value: None)  # type: ignore[assignment]

    def _get_extra_kex_algs(self) -> list[bytes]:
        return []


@pytest.mark.parametrize(
    ("cipher", "mac"),
    [("aes128-gcm@openssh.com", "hmac-sha2-256-etm@openssh.com"), ("aes128-ctr", "hmac-sha2-256")],
)
async def test_a_client_without_strict_key_exchange_may_choose_what_is_safe(door: Door, cipher: str, mac: str) -> None:
    async with door.connect(Terrapin, encryption_algs=[cipher], mac_algs=[mac]) as client:
        assert (await client.run("exit 5")).exit_status == 5


async def test_a_client_that_chooses_what_is_unsafe_for_it_is_turned_away(door: Door) -> None:
    macs = ["hmac-sha2-256-etm@openssh.com", "hmac-sha2-256"]
    with pytest.raises(asyncssh.KeyExchangeFailed, match="needs the strict key exchange"):
        async with door.connect(Terrapin, encryption_algs=["aes128-ctr"], mac_algs=macs):
            pass
    async with door.connect(encryption_algs=["aes128-ctr"], mac_algs=macs) as strict:
        assert strict.get_extra_info("send_mac") == macs[0]


@pytest.mark.parametrize("method", ["password", "keyboard-interactive", "hostbased", "none"])
async def test_other_ways_to_log_in_do_not_exist(door: Door, method: str) -> None:
    with pytest.raises(asyncssh.PermissionDenied) as caught:
        async with door.connect(
            client_keys=None, password="x", preferred_auth=method, password_auth=True, kbdint_auth=True
        ):
            pass
    assert caught.value


async def test_the_login_grace_ends_a_connection_that_does_not_log_in() -> None:
    door = Door(settings=SshSettings(login_grace_s=0.05))
    options = await asyncssh.SSHClientConnectionOptions.construct(
        username="bob", client_keys=None, known_hosts=None, config=None, agent_path=None
    )

    class Slow(asyncssh.SSHClientConnection):
        def try_next_auth(self, *, next_method: bool = False) -> None:
            """Say nothing more."""

    client = Slow(asyncio.get_running_loop(), options)
    await door.attach(client)
    async with asyncio.timeout(5):
        await client.wait_closed()
    assert door.failed_hosts == []
    await door.aclose()


async def test_a_login_stops_the_login_grace() -> None:
    door = Door(settings=SshSettings(login_grace_s=0.2))
    async with door.connect() as client:
        assert (await client.run("sleep 0.4; exit 5")).exit_status == 5
    await door.aclose()


async def test_too_many_refusals_end_the_connection() -> None:
    door = Door(settings=SshSettings(auth_attempts=2))
    keys = [asyncssh.generate_private_key("ssh-ed25519") for _ in range(5)]
    with pytest.raises(asyncssh.DisconnectError, match="Too many authentication failures"):
        async with door.connect(client_keys=keys):
            pass
    await door.aclose()


async def test_no_more_connections_of_one_peer_than_the_limit(caplog: pytest.LogCaptureFixture) -> None:
    door = Door(settings=SshSettings(connections_per_peer=2))
    heard: list[str] = []

    class Listening(asyncssh.SSHClient):
        def auth_banner_received(self, msg: str, lang: str) -> None:
            heard.append(msg)

    async with door.connect():
        async with door.connect():
            with pytest.raises(asyncssh.PermissionDenied):
                async with door.connect(client_factory=Listening):
                    pass
            assert heard == ["alknet: refused: limits.connections_per_peer allows no more connections of this peer\n"]
            assert door.outcomes("ssh/login") == ["limits.connections_per_peer"]
            assert door.handler.connections_of("bob") == 2
            (refusal,) = [r.getMessage() for r in caplog.records if " result=reject " in r.getMessage()]
            assert refusal.startswith(
                "auth remote_addr=192.0.2.1 result=reject reason=limits.connections_per_peer peer=bob key=SHA256:"
            )
        await eventually(lambda: door.handler.connections_of("bob") == 1, "one of them has left")
        async with door.connect() as third:
            assert (await third.run("exit 5")).exit_status == 5
    assert door.handler.connections_of("alice") == 0
    assert [r["peer"] for r in door.audit.records if r["action"] == "ssh/login" and r["peer"] != "bob"] == []
    assert door.failed_hosts == []
    await door.aclose()


async def test_no_more_channels_than_the_limit() -> None:
    door = Door(settings=SshSettings(channels_per_connection=2))
    async with door.connect() as client:
        running = [await client.create_process("cat") for _ in range(2)]
        with pytest.raises(asyncssh.ChannelOpenError, match=r"limits\.channels_per_connection"):
            await client.create_process("cat")
        running[0].stdin.write_eof()
        await running[0].wait()
        assert (await client.run("exit 5")).exit_status == 5
        running[1].stdin.write_eof()
    await door.aclose()


@pytest.mark.parametrize(
    "opening",
    [
        lambda client: client.create_connection(asyncssh.SSHTCPSession, "127.0.0.1", 22),
        lambda client: client.create_unix_connection(asyncssh.SSHUNIXSession, "/tmp/x"),
    ],
)
async def test_forwards_are_refused(door: Door, opening) -> None:  # type: ignore[no-untyped-def]
    async with door.connect() as client:
        with pytest.raises(asyncssh.ChannelOpenError):
            await opening(client)


async def test_remote_forwards_are_refused(door: Door) -> None:
    async with door.connect() as client:
        with pytest.raises(asyncssh.ChannelListenError):
            await client.forward_remote_port("127.0.0.1", 0, "127.0.0.1", 22)
        with pytest.raises(asyncssh.ChannelListenError):
            await client.forward_remote_path("/tmp/alknet-test-socket", "/tmp/other")


async def test_a_revoked_login_disconnects_an_idle_client_with_the_reason(door: Door) -> None:
    lost: list[Exception | None] = []

    class Watching(asyncssh.SSHClient):
        def connection_lost(self, exc: Exception | None) -> None:
            lost.append(exc)

    async with door.connect(client_factory=Watching) as client:
        door.replace_policy(policy_with("ssh:*", revision="r2", peer_id="alice"))
        async with asyncio.timeout(5):
            await client.wait_closed()
    assert door.outcomes("ssh/login") == ["revoked"]


async def test_a_policy_that_takes_nothing_leaves_everybody_alone(door: Door) -> None:
    async with door.connect() as client:
        process = await client.create_process("cat", encoding=None)
        door.replace_policy(policy_with("ssh:*", "node:read", revision="r2"))
        process.stdin.write(b"still here")
        process.stdin.write_eof()
        assert await process.stdout.read() == b"still here"
