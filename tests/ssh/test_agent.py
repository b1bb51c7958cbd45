"""Keys of a real ssh-agent, agents that are none, that are gone and that do not answer."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncssh
import pytest

from alknet.errors import AlknetError, NotFoundError, UnavailableError
from alknet.keys import PublicKey
from alknet.ssh import agent as module
from alknet.ssh.agent import agent_signers
from alknet.sshsig import SignatureError, Signer, sign, verify
from testkit.node import wait_until
from testkit.polling import eventually, settled

MESSAGE = b"what was said"
NAMESPACE = "alknet-test-1"


@pytest.fixture
def directory() -> Iterator[Path]:
    """With a short name: a socket's path has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="alknet-") as made:
        yield Path(made)


@dataclass(frozen=True)
class Agent:
    """A running ssh-agent."""

    socket: Path
    process: "subprocess.Popen[bytes]"

    def add(self, name: str, *options: str, comment: str = "") -> PublicKey:
        """Make a key of the kind that `options` say, and give it to the agent."""
        path = self.socket.with_name(name)
        made = ["ssh-keygen", "-q", "-N", "", "-C", comment, "-f", str(path), *(options or ("-t", "ed25519"))]
        subprocess.run(made, check=True, timeout=30)
        self.ssh_add("-q", str(path))
        return PublicKey.parse(path.with_suffix(".pub").read_text())

    def add_certificate(self, name: str, authority: str) -> None:
        """Have one key certify the other, and give that to the agent as well."""
        path, by = self.socket.with_name(name), self.socket.with_name(authority)
        subprocess.run(["ssh-keygen", "-q", "-s", by, "-I", "x", path.with_suffix(".pub")], check=True, timeout=30)
        self.ssh_add("-q", str(path))

    def ssh_add(self, *arguments: str) -> None:
        subprocess.run(["ssh-add", *arguments], env=self.environment, check=True, capture_output=True, timeout=30)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SSH_AUTH_SOCK": str(self.socket)}

    def open_descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@pytest.fixture
def agent(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    """A fresh ssh-agent, which SSH_AUTH_SOCK names."""
    socket = directory / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.DEVNULL)
    try:
        assert wait_until(socket.exists, "the agent listens")
        monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
        yield Agent(socket, process)
    finally:
        process.terminate()
        process.wait(10)


# --- a real agent -------------------------------------------------------------------------------------------------


async def test_each_key_of_the_agent_signs(agent: Agent) -> None:
    keys = [agent.add("one", comment="one of two"), agent.add("two", comment="two\x1b[2J of two")]
    signers = await agent_signers()
    assert [signer.public_key.blob for signer in signers] == [key.blob for key in keys]
    assert [signer.public_key.comment for signer in signers] == ["one of two", "two\\x1b[2J of two"]
    for signer, key in zip(signers, keys, strict=True):
        checked: Signer = signer
        assert verify(await sign(checked, MESSAGE, namespace=NAMESPACE), MESSAGE, namespace=NAMESPACE).blob == key.blob


async def test_only_ed25519_keys_are_offered(agent: Agent) -> None:
    agent.add("rsa", "-t", "rsa", "-b", "2048")
    with pytest.raises(NotFoundError, match="offers no Ed25519 key: of its 1 keys none is an Ed25519 one"):
        await agent_signers()
    key = agent.add("ed25519")
    agent.add_certificate("ed25519", "rsa")
    assert [signer.public_key.blob for signer in await agent_signers()] == [key.blob], "its certificate is left out"


async def test_two_may_sign_at_once(agent: Agent) -> None:
    agent.add("one")
    agent.add("two")
    one, two = await agent_signers()
    blobs = await asyncio.gather(*(sign(s, MESSAGE, namespace=NAMESPACE) for s in [one, two] * 10))
    assert [verify(b, MESSAGE, namespace=NAMESPACE).blob for b in blobs] == [
        one.public_key.blob,
        two.public_key.blob,
    ] * 10


async def test_nothing_stays_open(agent: Agent) -> None:
    agent.add("one")
    before = await settled(agent.open_descriptors)
    mine = len(os.listdir("/proc/self/fd"))
    (signer,) = await agent_signers()
    await signer.sign(MESSAGE)
    assert len(os.listdir("/proc/self/fd")) == mine
    await eventually(lambda: agent.open_descriptors() == before, "the agent has closed its ends")


async def test_the_path_may_be_given_and_is_kept(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    key = agent.add("one")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/nowhere")
    (signer,) = await agent_signers(str(agent.socket))
    assert verify(await sign(signer, MESSAGE, namespace="x"), MESSAGE, namespace="x").blob == key.blob


async def test_a_key_that_was_removed_meanwhile_does_not_sign(agent: Agent) -> None:
    agent.add("one")
    (signer,) = await agent_signers()
    agent.ssh_add("-D")
    why = f"the ssh-agent did not sign with {signer.public_key.fingerprint}: Unable to sign"
    with pytest.raises(UnavailableError, match=re.escape(why)) as caught:
        await sign(signer, MESSAGE, namespace=NAMESPACE)
    assert "was the key removed" in caught.value.hint
    with pytest.raises(NotFoundError, match="offers no Ed25519 key: it has none, or it is locked"):
        await agent_signers()


async def test_a_locked_agent_is_said_to_be_maybe_locked(agent: Agent) -> None:
    agent.add("one")
    (signer,) = await agent_signers()
    async with asyncssh.connect_agent(str(agent.socket)) as owner:
        await owner.lock("a password")
    with pytest.raises(NotFoundError, match="it has none, or it is locked") as caught:
        await agent_signers()
    assert "'ssh-add -X' unlocks" in caught.value.hint
    with pytest.raises(UnavailableError, match="did not sign"):
        await signer.sign(MESSAGE)


async def test_an_agent_that_has_ended_cannot_be_reached(agent: Agent) -> None:
    agent.add("one")
    (signer,) = await agent_signers()
    agent.process.terminate()
    agent.process.wait(10)
    for question in (agent_signers(), signer.sign(MESSAGE)):
        with pytest.raises(UnavailableError, match="agent cannot be reached: No such file") as caught:
            await question
        assert "SSH_AUTH_SOCK" in caught.value.hint


async def test_an_agent_that_hangs_is_not_waited_for_for_ever(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    agent.add("one")
    (signer,) = await agent_signers()
    mine = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(module, "ANSWER_TIMEOUT_S", 0.05)
    agent.process.send_signal(signal.SIGSTOP)
    try:
        for question in (agent_signers(), signer.sign(MESSAGE), signer.sign(bytes(8 * 1024 * 1024))):
            with pytest.raises(UnavailableError, match=r"did not answer within 0\.05 s"):
                await question
        assert len(os.listdir("/proc/self/fd")) == mine
    finally:
        agent.process.send_signal(signal.SIGCONT)


# --- no agent -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, ""])
async def test_without_an_agent_it_is_said(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    if value is not None:
        monkeypatch.setenv("SSH_AUTH_SOCK", value)
    with pytest.raises(NotFoundError, match="no ssh-agent runs here: SSH_AUTH_SOCK is not set") as caught:
        await agent_signers()
    assert "--identity" in caught.value.hint


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/nowhere/agent", "No such file"),
        ("/dev/null", "Connection refused|not a socket"),
        ("/" + "x" * 200, "too long"),
    ],
)
async def test_a_path_where_nobody_listens_is_named(path: str, why: str) -> None:
    with pytest.raises(UnavailableError, match=f"^the ssh-agent at {path} cannot be reached: .*({why})"):
        await agent_signers(path)


# --- an agent that answers nonsense -------------------------------------------------------------------------------


def string(raw: bytes) -> bytes:
    return len(raw).to_bytes(4, "big") + raw


KEY = string(b"ssh-ed25519") + string(bytes(range(32)))
ONE_KEY = string(b"\x0c" + b"\0\0\0\1" + string(KEY) + string(b"a comment"))


@contextlib.asynccontextmanager
async def answering(path: Path, *answers: bytes) -> AsyncIterator[str]:
    """Listens at `path`; whoever connects gets the next of `answers` to the request and is then hung up on."""
    left = list(answers)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))
            writer.write(left.pop(0))
            await writer.drain()
        writer.close()

    async with await asyncio.start_unix_server(answer, path):
        yield str(path)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "0 bytes read"),
        (b"\0\0", "2 bytes read"),
        (string(b""), "Incomplete packet"),
        (string(b"\x05"), "Unknown SSH agent response: 5"),
        (string(b"\x0e"), "Unknown SSH agent response: 14"),
        (string(b"\x0c"), "Incomplete packet"),
        (string(b"\x0c\xff\xff\xff\xff"), "Incomplete packet"),
        (string(b"\x0c\0\0\0\0more"), "Unexpected data"),
        (string(b"\x0c\0\0\0\1" + string(b"") + string(b"")), "Incomplete packet"),
        (string(b"\x0c\0\0\0\1" + string(KEY[:-1]) + string(b"")), "one of its keys has a damaged base64"),
        (
            string(b"\x0c\0\0\0\1" + string(KEY + string(b"")) + string(b"")),
            "one of its keys is not a whole Ed25519 key",
        ),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "it announced 1213486160 bytes"),
    ],
)
async def test_a_list_that_is_none_is_refused_with_what_is_wrong(directory: Path, answer: bytes, why: str) -> None:
    async with answering(directory / "agent", answer) as path:
        with pytest.raises(UnavailableError, match=f"^the ssh-agent at {path} did not say which keys it has: .*{why}"):
            await agent_signers(path)


@pytest.mark.parametrize(
    ("answer", "error", "why"),
    [
        (b"", UnavailableError, "did not sign with SHA256:.*: 0 bytes read"),
        (string(b"\x0c\0\0\0\0"), UnavailableError, "did not sign with .*: Unknown SSH agent response: 12"),
        (string(b"\x0e" + string(b"x") + b"more"), UnavailableError, "did not sign with .*: Unexpected data"),
        (b"\xff\xff\xff\xff", UnavailableError, "did not sign with .*: it announced 4294967295 bytes"),
        (string(b"\x0e" + string(b"")), SignatureError, "is not: the signature itself is cut short"),
        (string(b"\x0e" + string(string(b"ssh-rsa") + string(b"x"))), SignatureError, "is of type 'ssh-rsa'"),
        (string(b"\x0e" + string(string(b"ssh-ed25519") + string(bytes(64)))), SignatureError, "does not fit"),
    ],
)
async def test_what_is_no_signature_is_found_out(
    directory: Path, answer: bytes, error: type[AlknetError], why: str
) -> None:
    async with answering(directory / "agent", ONE_KEY, answer) as path:
        (signer,) = await agent_signers(path)
        assert signer.public_key == PublicKey("ssh-ed25519", KEY, "a comment")
        with pytest.raises(error, match=why):
            await sign(signer, MESSAGE, namespace=NAMESPACE)
