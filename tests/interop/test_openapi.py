"""The OpenAPI document of a node: the same from the command line as over HTTP, and good for code generators."""

import importlib
import json
import pkgutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from testkit.as_user import Launcher
from testkit.node import NodeProcess
from testkit.service_nodes import service_node

pytestmark = pytest.mark.interop

LITTLE = ["test:typed", "shop:*", "types:*"]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Iterator[NodeProcess]:
    """A node with operations of every type, and a peer that may call few of them."""
    with service_node(tmp_path_factory.mktemp("node"), launcher) as node:
        node.edit_config('["testkit.services"]', '["testkit.services", "testkit.typed_services"]')
        node.write_peer("little", f"scopes = {json.dumps(LITTLE)}")
        node.alknet("config", "reload")
        yield node


@pytest.fixture(scope="module")
def token(node: NodeProcess) -> str:
    """One of the peer that may do little."""
    scopes = [word for scope in LITTLE for word in ("--scope", scope)]
    return node.alknet("token", "create", "--peer", "little", *scopes).stdout.strip()


def over_http(node: NodeProcess, token: str | None) -> Any:
    request = urllib.request.Request(f"http://127.0.0.1:{node.port}/openapi.json")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def names(document: Any) -> list[str]:
    return [path.removeprefix("/ops/") for path in document["paths"]]


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_prints_what_the_node_answers_over_http(node: NodeProcess) -> None:
    printed = json.loads(node.alknet("openapi").stdout)
    token = node.alknet("token", "create", "--scope", "*").stdout.strip()
    answered = over_http(node, token)
    assert printed["servers"] == [{"url": f"http://127.0.0.1:{node.port}"}]
    assert {**printed, "servers": answered["servers"]} == answered
    assert printed["x-alknet"] == {"caller": "owner"}
    OpenAPIV31SpecValidator(printed).validate()


@pytest.mark.parametrize("carrier", ["tls", "quic"])
def test_each_caller_gets_the_document_of_what_it_may_call(carrier: str, node: NodeProcess, token: str) -> None:
    file = node.directory / f"token-{carrier}"
    file.write_text(token)
    printed = node.json("openapi", "--token-file", str(file), "--carrier", carrier)
    listed = [one["name"] for one in node.json("ops", "--token-file", str(file))]
    assert names(printed) == listed
    assert "shop/stock" in listed
    assert "test/wait" not in listed
    assert printed["x-alknet"] == {"caller": "little"}
    assert names(over_http(node, token)) == listed


def test_nobody_in_particular_gets_what_is_public(node: NodeProcess) -> None:
    found = over_http(node, None)
    assert "types/find" in names(found)
    assert "shop/stock" not in names(found)
    assert found["x-alknet"] == {"caller": None}


def test_it_is_written_to_a_file_or_printed_on_one_line(node: NodeProcess, tmp_path: Path) -> None:
    file = tmp_path / "openapi.json"
    assert node.alknet("openapi", "-o", str(file)).stdout == ""
    line = node.alknet("--json", "openapi").stdout
    assert line.count("\n") == 1
    assert json.loads(file.read_text(encoding="utf-8")) == json.loads(line)


def test_a_node_that_is_not_there_is_said_to_be_so(node: NodeProcess, tmp_path: Path) -> None:
    file = tmp_path / "openapi.json"
    result = node.alknet("openapi", "127.0.0.1:1", "-o", str(file), check=False)
    assert result.returncode == 5
    assert result.stdout == ""
    assert not file.exists()


# --- a generated client -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(node: NodeProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The package that openapi-python-client makes of the owner's document, ready to be imported."""
    directory = tmp_path_factory.mktemp("client")
    node.alknet("openapi", "-o", str(directory / "openapi.json"))
    (directory / "config.yml").write_text("post_hooks: []\n")
    made = subprocess.run(
        [
            *(sys.executable, "-m", "openapi_python_client", "generate", "--path", directory / "openapi.json"),
            *("--output-path", directory / "generated_client", "--meta", "none", "--config", directory / "config.yml"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    assert "WARNING" not in made.stdout + made.stderr, made.stdout
    compiled = [sys.executable, "-m", "compileall", "-q", directory / "generated_client"]
    subprocess.run(compiled, check=True, timeout=60)
    sys.path.insert(0, str(directory))
    try:
        yield "generated_client"
    finally:
        sys.path.remove(str(directory))


def imported(client: str, name: str) -> Any:
    return importlib.import_module(f"{client}.{name}")


@pytest.fixture
def caller(client: str, node: NodeProcess, token: str) -> Iterator[Any]:
    """The generated client as the peer that may do little."""
    made = imported(client, "client").AuthenticatedClient(base_url=f"http://127.0.0.1:{node.port}", token=token)
    with made as caller:
        yield caller


def test_it_compiles_and_every_module_of_it_can_be_imported(client: str) -> None:
    package = importlib.import_module(client)
    found = [one.name for one in pkgutil.walk_packages(package.__path__, f"{client}.")]
    for name in found:
        importlib.import_module(name)
    assert f"{client}.api.shop.shop_reserve" in found
    assert f"{client}.models.stock_output" in found


def test_it_calls_the_node_and_knows_the_types_of_answers_and_errors(client: str, caller: Any) -> None:
    models = imported(client, "models")
    stock = imported(client, "api.shop.shop_stock")
    found = stock.sync(client=caller, body=models.ShopStockInput(item="pears"))
    assert isinstance(found, models.StockOutput)
    assert (found.item, found.left) == ("pears", 3)
    missing = stock.sync_detailed(client=caller, body=models.ShopStockInput(item="none"))
    assert missing.status_code == 404
    assert isinstance(missing.parsed, models.NoSuchItem)
    assert missing.parsed.details["item"] == "none"

    reserve = imported(client, "api.shop.shop_reserve")
    refused = reserve.sync(client=caller, body=models.ShopReserveInput(item="pears", count=5), idempotency_key="k1")
    assert isinstance(refused, models.OutOfStock)
    assert isinstance(refused.details, models.StockOutput)
    wrong = reserve.sync_detailed(client=caller, body=models.ShopReserveInput(item="pears", count=50))
    assert (wrong.status_code, wrong.parsed.code) == (422, "INVALID_INPUT")

    denied = imported(client, "api.test.test_crash").sync_detailed(client=caller, body=models.TestCrashBody())
    assert (denied.status_code, denied.parsed.code) == (403, "FORBIDDEN")
    assert denied.parsed.denial_id.startswith("den_")

    tree = models.Tree(name="a", children=[models.Tree(name="b")])
    grown = imported(client, "api.types.types_grow").sync(client=caller, body=models.TypesGrowInput(tree=tree))
    assert [child.name for child in grown.children] == ["b"]


def test_the_get_form_is_a_function_of_its_own(client: str, caller: Any) -> None:
    found = imported(client, "api.types.types_findget").sync(
        client=caller, text="a b&c=ä", sizes=[1, 2], level=imported(client, "models").Level(2), exact=True
    )
    answer = found.to_dict()
    assert (answer["text"], answer["sizes"], answer["level"], answer["exact"]) == ("a b&c=ä", [1, 2], 2, True)


def test_what_has_no_get_form_says_which_method_it_takes(node: NodeProcess, token: str) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{node.port}/ops/shop/reserve?item=a")
    request.add_header("Authorization", f"Bearer {token}")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=20)
    with caught.value as answer:
        assert (answer.code, answer.headers["Allow"]) == (405, "POST")
