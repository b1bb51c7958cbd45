"""What all operations on files have in common: how a caller is refused, and the digest of a file."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from blake3 import blake3

from alknet.access import Authority, Identity
from alknet.call.context import Caller, OperationContext
from alknet.call.errors import CallError
from alknet.services.files import digest_of
from alknet.services.files_roots import Root, Roots
from testkit.files_bench import FilesBench

OPERATIONS = {"fs/list", "fs/stat", "fs/read", "fs/hash", "fs/write", "fs/remove"}
READING = OPERATIONS - {"fs/write", "fs/remove"}


@pytest.fixture
async def bench(tmp_path: Path) -> FilesBench:
    bench = FilesBench(tmp_path)
    (bench.home / "keys").mkdir(parents=True)
    (bench.home / "keys" / "node").write_bytes(b"secret")
    (bench.fixed / "file").write_bytes(b"fixed")
    return bench


def value_of(name: str, path: str) -> dict[str, str]:
    return {"path": path, "text": "x"} if name == "fs/write" else {"path": path}


async def test_the_operations_are_these_and_say_what_they_do(bench: FilesBench) -> None:
    specs = {name: one.spec for name, one in bench.dispatcher.registry.operations.items() if name.startswith("fs/")}
    assert specs.keys() == OPERATIONS
    assert {name for name, spec in specs.items() if spec.kind == "query"} == READING
    assert {name for name, spec in specs.items() if spec.destructive} == OPERATIONS - READING
    for name, spec in specs.items():
        assert spec.access.required_scopes == (("fs:read",) if name in READING else ("fs:write",))
        assert spec.resource_id_path == "$.path"
        assert spec.summary
        assert spec.examples
        assert all("description" in field for field in spec.input_schema["properties"].values()), name


@pytest.mark.parametrize("name", sorted(OPERATIONS))
async def test_who_may_read_may_not_write(bench: FilesBench, name: str) -> None:
    call = bench.call(name, value_of(name, "root/new"), peer="reader")
    with pytest.raises(CallError) as caught:
        await call
    assert caught.value.code == ("NOT_FOUND" if name in READING else "FORBIDDEN")
    assert not (bench.root / "new").exists()


@pytest.mark.parametrize("name", sorted(OPERATIONS))
async def test_a_home_is_out_of_reach_with_a_denial_that_the_audit_log_has(bench: FilesBench, name: str) -> None:
    path = "root/home" if name == "fs/list" else "root/home/keys/node"
    error = await bench.refusal(name, value_of(name, path))
    assert error.code == "FORBIDDEN"
    record = bench.audit.records[-1]
    assert (record["action"], record["resource"], record["outcome"]) == (name, path, "error FORBIDDEN")
    assert (record["decision"], record["rule"], record["denial_id"]) == ("deny", "fs.protected", error.denial_id)
    assert error.denial_id is not None
    assert bench.unmatched() == {}
    assert (bench.home / "keys" / "node").read_bytes() == b"secret"
    again = await bench.refusal(name, value_of(name, path))
    assert again.denial_id == error.denial_id


async def test_the_owner_reaches_a_home_and_its_authority_does_not(bench: FilesBench) -> None:
    assert (await bench.call("fs/read", {"path": "root/home/keys/node"}, peer="owner"))["text"] == "secret"
    caller = Caller(Authority("owner", frozenset({"*"})), "composed")
    with pytest.raises(CallError) as caught:
        await bench.dispatcher.prepare("fs/read", {"path": "root/home/keys/node"}, caller).call()
    assert caught.value.code == "FORBIDDEN"


@pytest.mark.parametrize("scopes", [("fs:*",), ("fs:read", "fs:write")])
async def test_a_narrow_token_of_the_owner_reaches_no_key_that_would_widen_it(
    bench: FilesBench, scopes: tuple[str, ...]
) -> None:
    narrow = Caller(Identity("owner", frozenset(scopes), "key:SHA256:owner"), "memory")
    for name in sorted(OPERATIONS):
        path = "root/home" if name == "fs/list" else "root/home/keys/node"
        with pytest.raises(CallError) as caught:
            await bench.dispatcher.prepare(name, value_of(name, path), narrow).call()
        assert "[fs.protected]" in str(caught.value)


@pytest.mark.parametrize("peer", ["alice", "owner"])
@pytest.mark.parametrize("name", sorted(OPERATIONS - READING))
async def test_a_read_only_root_is_so_for_everybody(bench: FilesBench, name: str, peer: str) -> None:
    error = await bench.refusal(name, value_of(name, "fixed/file"), peer=peer)
    assert (error.code, "[fs.read_only]" in str(error)) == ("FORBIDDEN", True)
    assert (bench.audit.records[-1]["rule"], error.denial_id is not None) == ("fs.read_only", True)
    assert (bench.fixed / "file").read_bytes() == b"fixed"


@pytest.mark.parametrize("name", sorted(OPERATIONS))
async def test_no_error_tells_where_a_root_is(bench: FilesBench, name: str, tmp_path: Path) -> None:
    (bench.root / "link").symlink_to(tmp_path)
    (bench.root / "d").mkdir()
    (bench.root / "d" / "f").touch()
    bench.serve_files(Root.of("gone", str(tmp_path / "gone")))
    for path in ("root/none/none", "root/link/x", "gone/x", "other", "root/../x", "root/" + "n" * 300, "root/d/f/x"):
        error = await bench.refusal(name, value_of(name, path))
        assert error.code in {"NOT_FOUND", "WRONG_KIND", "INVALID_INPUT"}, path
        assert str(tmp_path) not in f"{error} {error.details} {error.hint}"


async def test_the_audit_log_has_the_path_and_not_the_content(bench: FilesBench) -> None:
    await bench.call("fs/write", {"path": "root/new", "text": "confidential"})
    assert [record["resource"] for record in bench.audit.records] == ["root/new", "root/new"]
    assert "confidential" not in str(bench.audit.records)


def test_a_digest_is_of_the_whole_file_and_can_be_given_up(tmp_path: Path) -> None:
    data = os.urandom(3 * 1024 * 1024 + 7)
    (tmp_path / "file").write_bytes(data)
    with Roots([Root.of("r", str(tmp_path))]).reach("r/file") as spot:
        before = spot.info()  # reading may change the time of the last access
        assert digest_of(spot, _context(is_over=False)) == (blake3(data).hexdigest(), before)
        assert digest_of(spot, _context(is_over=True))[0] == blake3(b"").hexdigest()


def _context(*, is_over: bool) -> OperationContext:
    """Of a call that has ended, or not."""
    return cast("OperationContext", SimpleNamespace(is_over=is_over))
