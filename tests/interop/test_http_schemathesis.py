"""schemathesis, which makes requests of the OpenAPI document and holds the answers against it."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testkit.as_user import Launcher
from testkit.node import NodeProcess
from testkit.service_nodes import service_node

pytestmark = pytest.mark.interop

EXAMPLES = {"owner": 8, "nobody": 4}
"""Requests that are made up for each operation, beside those that cover each schema's edges."""
LEFT_OUT = {
    "/ops/node/reload": "reloads the node at each call",
    "/ops/services/changed": "its stream has no end, and schemathesis reads to the end",
    "/ops/types/times": "schemathesis cannot read `prefixItems` in an answer",
}
CONFIG = """
[checks]
positive_data_acceptance.expected-statuses = ["2xx", 404, 409, 429]

[[operations]]
include-path = "/ops/shop/watch"
[operations.checks]
# It holds each event of a stream against the schema of the whole body; 3.1 has none for events.
response_schema_conformance.enabled = false

[[operations]]
include-path-regex = "/ops/(types/find|more/length)"
[operations.checks]
# It makes no base64 of `contentEncoding`.
positive_data_acceptance.enabled = false

[[operations]]
include-path-regex = "/ops/(shop/(pay|reserve|restock)|more/(book|nothing))"
[operations.checks]
# It sends the same Idempotency-Key with other inputs, which is refused with 422.
positive_data_acceptance.enabled = false
"""
CHECKED_NOT = (
    "negative_data_rejection",  # inputs are read leniently: "5" is an integer where one is wanted
)


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Iterator[NodeProcess]:
    modules = ("testkit.typed_services", "testkit.more_services")
    with service_node(tmp_path_factory.mktemp("typed"), launcher, modules=modules) as node:
        yield node


@pytest.mark.parametrize("who", EXAMPLES)
def test_no_request_breaks_the_node_or_the_document(typed: NodeProcess, who: str, tmp_path: Path) -> None:
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG, encoding="utf-8")
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run"]
    command += ["--seed", "1", "--max-examples", str(EXAMPLES[who]), "--no-color", "--generation-database", "none"]
    command += ["--phases", "examples,coverage,fuzzing", "--continue-on-failure", "--warnings", "off"]
    command += ["--exclude-checks", ",".join(CHECKED_NOT)]
    for path in LEFT_OUT:
        command += ["--exclude-path", path]
    if who == "owner":
        token = typed.json("token", "create", "--scope", "*")["token"]
        command += ["--header", f"Authorization: Bearer {token}"]
    result = subprocess.run(
        [*command, f"http://127.0.0.1:{typed.port}/openapi.json"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    made = re.search(r"(\d+) generated, (\d+) passed", result.stdout)
    assert made is not None, result.stdout
    assert int(made[1]) == int(made[2]) > 100
