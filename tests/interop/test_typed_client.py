"""``alknet ops --python``: the module that it writes type-checks, refuses what is wrong, and does what it says."""

import asyncio
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import alknet
from alknet.call.typed_client import client_module
from testkit.as_user import Launcher
from testkit.mesh import MeshNodes
from testkit.node import NodeProcess
from testkit.service_nodes import service_node

pytestmark = pytest.mark.interop

ROOT = Path(__file__).resolve().parents[2]
MADE = ("hub_client.py", "difficult.py")
MODULES = ("testkit.services", "testkit.typed_services")
FOLDERS = ("alpn", "call", "config", "ssh", "vault")
# alknet is a dependency here: what a checker finds in it is no matter of the program's. The parts that programs do not
# touch are not read at all, which saves most of the time.
MYPY = """
[mypy]
strict = true
python_version = 3.11
[mypy-alknet.*]
follow_imports = silent
[mypy-alknet.node,alknet.gateway.*,alknet.offer,alknet.ssh.*,alknet.config.*,pydantic.*,pydantic_core.*,cryptography.*]
follow_imports = skip
"""
PROGRAM = """
import asyncio
import sys

import alknet
import hub_client


async def main(home: str) -> None:
    async with alknet.connect(".", home=home) as peer:
        api = hub_client.Client(peer)
        stock: hub_client.Stock = await api.shop.stock(item="pears")
        print(stock["item"].upper(), stock["left"] + 1)
        try:
            await api.shop.reserve(item="pears", count=5, timeout=10)
        except hub_client.OutOfStock as error:
            assert error.details is not None
            print(error.code, error.details["left"] + 1, error)
        try:
            await api.shop.reserve(item="pears", count=50)
        except alknet.CallError as error:
            print(type(error).__name__, error.code)
        async with api.shop.watch(item="pears") as items:
            async for item in items:
                print(item["left"] * 10)
        print(items.end)
        data: bytes = await api.types.look()
        print(data)
        found = await api.types.find(data=b"\\x00\\x01", colour="red", words=["a"])
        print(found["data"], found["colour"], found["ratio"])
        pet = await api.types.pick(pet={"kind": "cat"}, other=3)
        print(pet["kind"])
        tree: hub_client.Tree = {"name": "a", "children": [{"name": "b"}]}
        grown = await api.types.grow(tree=tree)
        print(grown["children"][0]["name"])
        one, two = (await api.types.shapes(points={"p": {"x": 1, "y": 2}}, pair=(1, "a"), several=["red"]))[0].values()
        listed = await api.services.list(limit=1)
        print(one, two, len(listed["operations"]))


asyncio.run(main(sys.argv[1]))
"""
PRINTED = """PEARS 4
OUT_OF_STOCK 4 There are fewer left than were asked for.
CallError INVALID_INPUT
0
10
20
completed
b'\\x00\\xff'
b'\\x00\\x01' red 0.5
cat
b
1.0 2.0 1
"""
WRONG = """
import hub_client
from alknet import Peer


async def wrong(peer: Peer) -> None:
    api = hub_client.Client(peer)
    await api.shop.stock(item=3)  # arg-type
    await api.shop.stock()  # call-arg
    await api.shop.stock("pears")  # call-arg
    await api.shop.stock(item="pears", no=1)  # call-arg
    await api.shop.nothing()  # attr-defined
    (await api.shop.stock(item="a"))["no"]  # typeddict-item
    await api.types.find(colour="blue")  # arg-type
    await api.types.grow(tree={"name": "a", "children": [{}]})  # typeddict-item
    async for item in api.shop.watch(item="a"):
        item["left"].upper()  # attr-defined
    text: str = await api.types.look()  # assignment
    api.shop.watch(item="a").items  # attr-defined
    hub_client.Client("hub")  # arg-type
"""
OBJECT = {"type": "object", "additionalProperties": False}
ODD = {
    "$defs": {
        "Json": {
            "anyOf": [
                {"type": "array", "items": {"$ref": "#/$defs/Json"}},
                {"type": "object", "additionalProperties": {"$ref": "#/$defs/Json"}},
                {"type": ["string", "null"]},
            ]
        },
        "Odd": {
            "type": "object",
            "properties": {
                "a-b": {"type": "array", "items": {"$ref": "#/$defs/Odd"}},
                "class": {"$ref": "#/$defs/Json"},
            },
            "required": ["a-b"],
        },
        "Either": {"anyOf": [{"$ref": "#/$defs/Odd"}, {"type": "integer"}]},
    }
}


def difficult() -> list[Any]:
    """What services of other kinds than ours may describe."""
    fields = {"list": {"type": "array"}, "str": {"type": "string"}, "Stock": {"enum": ["a" * 70, "b" * 70]}}
    stock = OBJECT | {"title": "Stock", "properties": fields}
    names = ["list", "dict", "str", "int", "Any", "Literal", "Stock", "UNSET", "Client", "timeout", "deep", "deep/list"]
    odd = OBJECT | {"properties": {key.lower(): {"$ref": f"#/$defs/{key}"} for key in ODD["$defs"]}} | ODD
    failure = {"code": "A", "schema": {"$ref": "#/$defs/Json"} | ODD}
    others = {"type": "object", "properties": {"a b": {"type": "string"}}, "additionalProperties": {"type": "string"}}
    whole = {"type": "array", "items": {"type": "integer"}}
    return [
        *({"name": f"a/{name}", "kind": "query", "input_schema": stock, "output_schema": stock} for name in names),
        {"name": "b/odd", "kind": "query", "input_schema": odd, "output_schema": {"$ref": "#/$defs/Either"} | ODD},
        {"name": "b/items", "kind": "subscription", "output_schema": failure["schema"], "errors": [failure]},
        {"name": "b/others", "kind": "mutation", "input_schema": others, "output_schema": {"type": "null"}},
        {"name": "b/whole", "kind": "mutation", "input_schema": whole, "output_schema": {"items": stock} | whole},
    ]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Iterator[NodeProcess]:
    with service_node(tmp_path_factory.mktemp("node"), launcher, modules=MODULES) as node:
        node.write_peer("little", 'scopes = ["shop:stock"]')
        node.alknet("config", "reload")
        yield node


@pytest.fixture(scope="module")
def directory(node: NodeProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a program and the module that it uses are."""
    directory = tmp_path_factory.mktemp("program")
    assert node.alknet("ops", ".", "--python", "-o", str(directory / "hub_client.py")).stdout == ""
    (directory / "program.py").write_text(PROGRAM)
    (directory / "difficult.py").write_text(client_module(difficult(), node="hub"))
    return directory


def check_types(directory: Path, *files: str) -> str:
    """What mypy finds, with alknet as it is installed."""
    package = directory / "installed" / "alknet"
    package.mkdir(parents=True)
    for entry in (*(ROOT / "alknet").iterdir(), *(ROOT / folder for folder in FOLDERS)):
        (package / entry.name).symlink_to(entry)
    (directory / "mypy.ini").write_text(MYPY)
    result = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", "cache", *files],
        cwd=directory,
        env={"MYPYPATH": "installed"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.stderr == ""
    return result.stdout


def test_it_is_right_for_a_strict_type_checker_and_finds_each_wrong_use(directory: Path) -> None:
    (directory / "wrong.py").write_text(WRONG)
    found = check_types(directory, "program.py", "hub_client.py", "difficult.py", "wrong.py")
    mistakes = {
        (int(line), code) for line, code in re.findall(r"^wrong\.py:(\d+): error: .*\[([\w-]+)\]$", found, re.M)
    }
    expected = re.findall(r"  # ([\w-]+)$", WRONG, re.M)
    lines = [number for number, line in enumerate(WRONG.splitlines(), 1) if "  # " in line]
    assert mistakes == set(zip(lines, expected, strict=True)), found
    assert len(found.splitlines()) - found.count(": note:") == len(lines) + 1, found


def test_it_does_what_it_says(node: NodeProcess, directory: Path) -> None:
    command = [sys.executable, "-W", "error", "program.py", str(node.home)]
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.stderr) == (PRINTED, "")


def test_a_linter_and_a_formatter_have_nothing_to_say(directory: Path) -> None:
    ruff = Path(sys.executable).with_name("ruff")
    for words in (["format", "--check"], ["check", "--select", "E,F,W,I,B,UP,SIM,C4"]):
        command = [ruff, *words, "--isolated", "--line-length=120", "--target-version=py311", *MADE]
        result = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stdout + result.stderr


def imported(text: str, path: Path) -> Any:
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("words", "methods"),
    [
        (["shop/stock"], {"stock"}),
        (["--query", "set aside"], {"reserve"}),
        (["--identity", "{keys}/little"], {"stock"}),
    ],
)
def test_it_has_what_was_asked_for_of_what_the_caller_may_call(
    node: NodeProcess, tmp_path: Path, words: list[str], methods: set[str]
) -> None:
    words = [word.format(keys=node.keys) for word in words]
    first, again = (node.alknet("ops", ".", *words, "--python").stdout for _ in range(2))
    assert first == again
    operations = vars(imported(first, tmp_path / "little_client.py").ShopOperations)
    assert {name for name in operations if not name.startswith("_")} == methods


async def test_every_carrier_brings_bytes_as_they_are(node: NodeProcess, directory: Path) -> None:
    made = imported((directory / "hub_client.py").read_text(), directory / "again.py")
    for carrier in ("tls", "quic", "ssh"):
        async with asyncio.timeout(20), alknet.connect(".", home=node.home, carrier=carrier) as peer:
            api = made.Client(peer)
            assert await api.types.look() == b"\x00\xff"
            assert [one["number"] async for one in api.test.count(to=3)] == [0, 1, 2]
            with pytest.raises(made.SoldOut) as caught:
                await api.test.order(item="a", amount=9)
            assert caught.value.details == {"left": 3}


async def test_a_peer_behind_a_hub_has_a_module_of_its_own(tmp_path: Path, launcher: Launcher) -> None:
    with MeshNodes(tmp_path, launcher=launcher) as mesh:
        carol = mesh.machine("carol")
        mesh.hub.alknet("config", "reload")
        made = {}
        for peer, words in (("hub", ["hub", "--query", "w/"]), ("w1", ["-J", "hub", "w1"])):
            text = carol.alknet("ops", *words, "--python").stdout
            made[peer] = imported(text, tmp_path / f"{peer}_client.py")
        assert 'alknet.connect("w1", via="hub")' in made["w1"].__doc__
        assert "`alknet ops -J hub --python w1`" in made["w1"].__doc__
        async with asyncio.timeout(20), alknet.connect("w1", via="hub", home=carol.home) as peer:
            api = made["w1"].Client(peer)
            assert await api.mesh.who() == "w1"
            assert await api.test.blob(size=3) == b"\x00\x00\x00"
            assert [one async for one in api.test.numbers(to=3)] == [0, 1, 2]
            with pytest.raises(made["w1"].SoldOut):
                await api.test.order(item="a", amount=9)
        async with asyncio.timeout(20), alknet.connect("hub", home=carol.home) as peer:
            assert await made["hub"].Client(peer).w.mesh.who() in ("w1", "w2")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--json", "ops", ".", "--python"], 2, "--python writes Python, not JSON"),
        (["ops", ".", "-o", "hub.py"], 2, "-o goes with --python"),
        (["ops", ".", "shop/stok", "--python"], 4, "did you mean shop/stock"),
        (["ops", "127.0.0.1:1", "--python"], 5, "cannot be reached"),
    ],
)
def test_what_makes_no_sense_is_explained(node: NodeProcess, words: list[str], code: int, message: str) -> None:
    result = node.alknet(*words, check=False)
    assert (result.returncode, result.stdout) == (code, "")
    assert message in result.stderr
