"""An SFTP session: why a peer refuses one is said, and nothing that it sends does harm."""

import random
import struct

import pytest

from alknet.errors import AlknetError, DeniedError, RemoteError, UnavailableError
from alknet.ssh.transfer_remote import RemoteFiles, open_files
from alknet.ssh.transfer_session import open_session
from testkit.sftp_servers import RawServer, Refusing, connected, string

HANDLE, DATA, NAME, ATTRS, STATUS = 102, 103, 104, 105, 101
OPEN, READ, OPENDIR, READDIR = 3, 5, 11, 12


async def test_a_refusal_is_said_with_its_denial() -> None:
    words = b"alknet: refused: no rule allows sftp/read (den_0123456789abcdef)\n"
    async with connected(lambda: Refusing(words, 3)) as ssh:
        with pytest.raises(
            DeniedError, match=r"^refused: no rule allows sftp/read \(den_0123456789abcdef\)$"
        ) as caught:
            async with open_session(ssh, "web"):
                pass
    assert caught.value.denial_id == "den_0123456789abcdef"


async def test_a_program_that_ends_is_no_refusal() -> None:
    async with connected(lambda: Refusing(b"sftp-server: not found\n", 127)) as ssh:
        with pytest.raises(UnavailableError, match="sftp-server: not found"):
            async with open_session(ssh, "web"):
                pass


async def test_a_server_without_files() -> None:
    async with connected(Refusing) as ssh:
        with pytest.raises(UnavailableError, match="web does not serve files"):
            async with open_session(ssh, "web"):
                pass


async def test_what_ends_in_the_middle_is_a_lost_connection() -> None:
    async with connected(lambda: RawServer(lambda *_: None)) as ssh, open_files(ssh, "web") as files:
        with pytest.raises(AlknetError, match="the connection was lost"):
            await files.info("x")
        assert files.is_lost


async def test_more_than_was_asked_for_is_refused() -> None:
    def answer(kind: int, number: int, body: bytes) -> bytes:
        head = number.to_bytes(4, "big")
        if kind == OPEN:
            return bytes([HANDLE]) + head + string(b"h")
        if kind == READ:
            return bytes([DATA]) + head + string(b"x" * 1000)
        return bytes([ATTRS]) + head + struct.pack(">IQ", 1, 100)

    async with connected(lambda: RawServer(answer)) as ssh, open_files(ssh, "web") as files:
        reader = await (await files.at("")).open("file")
        with pytest.raises(RemoteError, match="sent more than it was asked for"):
            await reader.read(0, 100)


async def test_a_listing_of_nothing_without_an_end_is_ended() -> None:
    def answer(kind: int, number: int, body: bytes) -> bytes:
        head = number.to_bytes(4, "big")
        if kind == READDIR:
            return bytes([NAME]) + head + struct.pack(">I", 0)
        return bytes([HANDLE]) + head + string(b"h")

    async with connected(lambda: RawServer(answer)) as ssh, open_files(ssh, "web") as files:
        with pytest.raises(RemoteError, match="over and over"):
            async for _ in files.listing(""):
                pass


async def test_whatever_is_answered_is_a_value_or_our_error() -> None:
    seeded = random.Random(7)

    def answer(kind: int, number: int, body: bytes) -> bytes:
        types = (STATUS, HANDLE, DATA, NAME, ATTRS, 201, seeded.randrange(256))
        return bytes([seeded.choice(types)]) + number.to_bytes(4, "big") + seeded.randbytes(seeded.randrange(40))

    async def all_requests(files: RemoteFiles) -> None:
        directory = await files.at("dir")
        for request in (
            files.info("x"),
            files.real("x"),
            directory.open("x"),
            directory.part("x", "0", mode=0o600, resume=True, readable=True),
            directory.make("x", 0o700),
            files.space("x"),
            files.rename("x", "y"),
        ):
            try:
                await request
            except AlknetError:
                if files.is_lost:
                    return

    async with connected(lambda: RawServer(answer)) as ssh:
        for _ in range(40):
            async with open_files(ssh, "web") as files:
                await all_requests(files)
