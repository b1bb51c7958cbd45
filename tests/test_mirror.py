"""The tests mirror the tree, and no file needs a table of contents."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("alknet", "alpn", "call", "config", "ssh", "vault")
MAX_LINES = 400
MAX_TEST_LINES = 700  # a test file is read case by case, not from top to bottom

COVERED_ELSEWHERE = {
    # source: (the test that covers it, why that is the better place)
    "ssh/forward_acts.py": (
        "tests/ssh/test_forwarding.py",
        "an act is seen by its beginning and its end in the audit log",
    ),
    "alknet/audit_reader.py": ("tests/alknet/test_audit.py", "what a log promises is seen by reading it"),
    "alknet/status.py": ("tests/interop/test_cli.py", "it says what a whole node is doing"),
    "alknet/__main__.py": ("tests/interop/test_daemon.py", "nodes and commands are started through it"),
    "alknet/_version.py": ("tests/test_architecture.py", "holds one value"),
    "alknet/node.py": ("tests/interop/test_daemon.py", "it puts the parts together; what counts is a whole node"),
    "alknet/cli/app.py": ("tests/interop/test_cli.py", "options, errors and exit codes are seen from outside"),
    "alknet/cli/output.py": ("tests/interop/test_cli.py", "a table is seen from outside"),
    "alknet/cli/audit.py": ("tests/interop/test_cli.py", "a command is what a process prints and exits with"),
    "alknet/client.py": ("tests/interop/test_calls.py", "it needs a node to call"),
    "alknet/cli/ca.py": ("tests/interop/test_ssh_certificates.py", "what it signs, others have to read"),
    "alknet/cli/call.py": ("tests/interop/test_call_cli.py", "a command is what a process prints and exits with"),
    "alknet/cli/client.py": ("tests/interop/test_cli.py", "it needs a running node to ask"),
    "alknet/cli/mcp.py": ("tests/interop/test_mcp_bridge.py", "a command is what a process says and answers"),
    "alknet/gateway/mcp/backend.py": ("tests/alknet/gateway/mcp/test_calling.py", "says what two others are"),
    "alknet/cli/completion.py": ("tests/interop/test_cli.py", "a command is what a process prints and exits with"),
    "alknet/cli/config.py": ("tests/interop/test_cli.py", "a command is what a process prints and exits with"),
    "alknet/cli/daemon.py": ("tests/interop/test_daemon.py", "a command is what a process prints and exits with"),
    "alknet/cli/openapi.py": ("tests/interop/test_openapi.py", "a command is what a process prints and exits with"),
    "alknet/cli/ops.py": ("tests/interop/test_call_cli.py", "a command is what a process prints and exits with"),
    "alknet/cli/peers.py": ("tests/interop/test_cli.py", "a command is what a process prints and exits with"),
    "alknet/cli/ping.py": ("tests/interop/test_carriers.py", "it needs a node to reach"),
    "alknet/cli/proxy.py": ("tests/interop/test_proxy.py", "it is a program between two others"),
    "alknet/cli/running.py": ("tests/interop/test_cli.py", "it needs a running node to ask"),
    "alknet/cli/sftp.py": ("tests/interop/test_alknet_cp.py", "a prompt is seen from outside"),
    "alknet/cli/ssh.py": ("tests/interop/test_cli.py", "it needs a node and a terminal"),
    "alknet/cli/ssh_session.py": ("tests/interop/test_client_terminal.py", "it needs a node and a terminal"),
    "alknet/cli/tokens.py": ("tests/interop/test_tokens.py", "a command is what a process prints and exits with"),
    "alknet/gateway/settings.py": ("tests/alknet/gateway/test_protocol.py", "a bound is seen where it is kept"),
    "call/import_errors.py": ("tests/call/test_from_call.py", "an error is seen where it is raised"),
    "config/base.py": ("tests/config/test_gateway.py", "every model is one of these"),
    "alpn/quic_events.py": ("tests/alpn/test_quic.py", "it says what an engine tells"),
    "ssh/files/failures.py": ("tests/ssh/files/test_server.py", "a failure is seen in the answer that tells it"),
    "ssh/files/handles.py": ("tests/ssh/files/test_server.py", "a handle is what a request gives and another uses"),
    "ssh/files/scp_exchange.py": ("tests/ssh/files/test_scp.py", "one side of a protocol is seen from the other"),
    "ssh/files/syscalls.py": ("tests/ssh/files/test_places.py", "what the calls are for is what they must hold"),
}

WITHOUT_SOURCE = {
    # test: the reason why it mirrors no source
    "tests/alpn/test_bad_network.py": "the contract on a network that loses; every part of QUIC has its share",
    "tests/alknet/gateway/test_attacks.py": "what a stranger may send over HTTP; every part withstands a share",
    "tests/call/test_attacks.py": "what an other side may do to a session; every part of a session withstands a share",
    "tests/call/test_mesh_attacks.py": "what a peer that brings operations may do; each part of it has a share",
}


def sources() -> list[str]:
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return [str(path.relative_to(ROOT)) for path in files if path.name != "__init__.py"]


def mirror(source: str) -> Path:
    path = Path(source)
    return ROOT / "tests" / path.parent / f"test_{path.name}"


@pytest.mark.parametrize("source", sorted(set(sources()) - set(COVERED_ELSEWHERE)))
def test_each_source_file_has_a_test_file_in_the_same_place(source: str) -> None:
    assert mirror(source).exists(), f"write {mirror(source).relative_to(ROOT)}"


@pytest.mark.parametrize("source", COVERED_ELSEWHERE)
def test_an_exception_is_still_needed_and_the_test_it_names_is_there(source: str) -> None:
    test, reason = COVERED_ELSEWHERE[source]
    assert (ROOT / source).exists()
    assert (ROOT / test).exists()
    assert reason
    assert not mirror(source).exists(), "it has its own test now: remove the exception"


def test_each_test_file_in_a_mirrored_folder_belongs_to_a_source_file() -> None:
    tests = {path for folder in FOLDERS for path in (ROOT / "tests" / folder).rglob("test_*.py")}
    assert tests - {mirror(source) for source in sources()} == {ROOT / test for test in WITHOUT_SOURCE}


def test_no_file_is_too_long() -> None:
    files = [path for folder in (*FOLDERS, "bench", "docs", "tests") for path in (ROOT / folder).rglob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    limits = {name: MAX_TEST_LINES if name.startswith("tests/") else MAX_LINES for name in lengths}
    assert {name: lines for name, lines in lengths.items() if lines > limits[name]} == {}
