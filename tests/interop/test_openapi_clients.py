"""A client that openapi-python-client writes from a node's document: it compiles, and its calls are understood."""

import asyncio
import compileall
import importlib
import os
import re
import ssl
import subprocess
import sys
import warnings
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import pytest

from testkit.as_user import Launcher
from testkit.http_doors import events_of
from testkit.node import DEADLINE_S, NodeProcess
from testkit.service_nodes import service_node

pytestmark = pytest.mark.interop

PACKAGE = "generated_alknet_client"


class Generated:
    """The generated package, as whoever has a token."""

    def __init__(self, node: NodeProcess, token: str) -> None:
        self.node = node
        self.token = token
        self.opened: list[Any] = []
        self.client = self.as_somebody(token)

    @staticmethod
    def part(name: str) -> ModuleType:
        return importlib.import_module(f"{PACKAGE}.{name}")

    def operation(self, name: str) -> Any:
        """The module of an operationId."""
        return self.part(f"api.{name}")

    @property
    def models(self) -> Any:
        return self.part("models")

    def as_somebody(self, token: str | None) -> Any:
        """A client over TLS; nobody in particular uses plaintext."""
        trusted = ssl.create_default_context(cafile=self.node.home / "keys" / "tls.crt")
        if token is None:
            client = self.part("client").Client(base_url=f"http://127.0.0.1:{self.node.port}")
        else:
            url = f"https://localhost:{self.node.port}"
            client = self.part("client").AuthenticatedClient(base_url=url, token=token, verify_ssl=trusted)
        self.opened.append(client)
        return client

    def close(self) -> None:
        for client in self.opened:
            client.get_httpx_client().close()


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Iterator[Generated]:
    modules = ("testkit.typed_services", "testkit.more_services", "testkit.services")
    directory = tmp_path_factory.mktemp("generated")
    with service_node(tmp_path_factory.mktemp("node"), launcher, modules=modules) as node:
        document = directory / "openapi.json"
        node.alknet("openapi", "-o", str(document))
        env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # it runs its formatter
        command = ["openapi-python-client", "generate", "--path", str(document), "--meta", "none"]
        command += ["--output-path", str(directory / PACKAGE)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, cwd=directory)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "WARNING" not in result.stdout + result.stderr, result.stdout
        sys.path.insert(0, str(directory))
        try:
            made = Generated(node, node.json("token", "create", "--scope", "*")["token"])
            yield made
            made.close()
        finally:
            sys.path.remove(str(directory))


def test_every_operation_has_a_module_and_all_of_it_compiles(generated: Generated) -> None:
    (directory,) = generated.part("api").__path__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compileall.compile_dir(Path(directory).parent, quiet=1, force=True)
    made = {path.stem for path in Path(directory).rglob("*.py")} - {"__init__"}
    operations = {re.sub("[/-]", "_", one["name"]) for one in generated.node.json("ops")}
    assert {name for name in made if not name.endswith("get")} == operations
    for path in Path(directory).rglob("*.py"):
        relative = path.relative_to(directory).with_suffix("")
        importlib.import_module(".".join([PACKAGE, "api", *relative.parts]))
    assert len(dir(generated.models)) > 50


def test_a_call_sends_and_receives_types(generated: Generated) -> None:
    models, client = generated.models, generated.client
    stock = generated.operation("shop.shop_stock")
    assert stock.sync(client=client, body=models.ShopStockInput(item="a")) == models.StockOutput("a", 3, None)
    assert generated.operation("shop.shop_stockget").sync(client=client, item="ü &=") == models.StockOutput(
        "ü &=", 3, None
    )
    tree = models.Tree("a", [models.Tree("b", []), models.Tree("c", [models.Tree("d", [])])])
    assert generated.operation("types.types_grow").sync(client=client, body=models.TypesGrowInput(tree)) == tree
    payment = models.PaymentInput(1.5, [models.Cat("cat", 7), models.Dog("dog", False)], models.Colour.GREEN)
    paid = generated.operation("shop.shop_pay").sync(client=client, body=models.ShopPayInput(payment, "1234"))
    assert (paid.amount, paid.colour) == ("1.5", models.Colour.GREEN)
    assert paid.pets == [models.Cat("cat", 7), models.Dog("dog", False)]
    stocks = [models.StockInput("a", 1), models.StockInput("b", 2, "few")]
    restock = generated.operation("shop.shop_restock")
    filled = restock.sync(client=client, body=models.ShopRestockInput(stocks))
    assert filled.additional_properties == {
        "a": models.StockOutput("a", 1, None),
        "b": models.StockOutput("b", 2, "few"),
    }
    booking = models.Booking(models.Room("blue", 4), date(2026, 11, 21), 3)
    booked = generated.operation("more.more_book").sync(client=client, body=models.MoreBookInput(booking))
    assert (booked.room.name, booked.day, booked.guests) == ("blue", date(2026, 11, 21), 3)
    who, when = uuid4(), datetime(2026, 11, 21, 7, 2, 2, tzinfo=UTC)
    moments = generated.operation("more.more_moments").sync(
        client=client, body=models.MoreMomentsInput(date(2026, 1, 2), when, who=who)
    )
    assert moments.additional_properties == {
        "day": "2026-01-02",
        "when": "2026-11-21T07:02:02Z",
        "span": "P1D",
        "who": str(who),
    }
    length = generated.operation("more.more_length")
    assert length.sync(client=client, body=models.MoreLengthInput("YWJj")) == 3


def test_every_kind_of_parameter_fits_into_a_url(generated: Generated) -> None:
    models = generated.models
    found = generated.operation("types.types_findget").sync(
        client=generated.client,
        text="a b&c=d/ü",
        colour=models.Colour.GREEN,
        level=models.Level.VALUE_2,
        sizes=[1, -2],
        words=["x", "y,z", ""],
        exact=True,
        ratio=1e-3,
        either="7",
        data="AP8=",
    )
    assert found.additional_properties == {
        "text": "a b&c=d/ü",
        "colour": "green",
        "level": 2,
        "sizes": [1, -2],
        "words": ["x", "y,z", ""],
        "exact": True,
        "ratio": 0.001,
        "either": "7",
        "fixed": 7,
        "data": "AP8=",
    }
    plain = generated.operation("types.types_findget").sync(client=generated.client)
    assert plain.additional_properties["sizes"] is None


def test_errors_have_types_by_their_codes(generated: Generated) -> None:
    models, client = generated.models, generated.client
    reserve = generated.operation("shop.shop_reserve")
    answer = reserve.sync_detailed(client=client, body=models.ShopReserveInput("a", 5))
    assert (answer.status_code, type(answer.parsed)) == (409, models.OutOfStock)
    assert (answer.parsed.code, answer.parsed.details) == ("OUT_OF_STOCK", models.StockOutput("a", 3, None))
    stock = generated.operation("shop.shop_stock")
    missing = stock.sync(client=client, body=models.ShopStockInput("none"))
    assert (type(missing), missing.code) == (models.NoSuchItem, "NO_SUCH_ITEM")
    assert missing.details.additional_properties == {"item": "none"}
    answer = reserve.sync_detailed(client=client, body=models.ShopReserveInput("a", 11))
    assert (answer.status_code, type(answer.parsed), answer.parsed.code) == (422, models.Problem, "INVALID_INPUT")
    assert answer.parsed.details[0]["path"] == ["count"]
    full = models.Booking(models.Room("blue", 400), date(2026, 11, 21))
    answer = generated.operation("more.more_book").sync_detailed(client=client, body=models.MoreBookInput(full))
    assert (answer.status_code, type(answer.parsed)) == (423, models.Full)
    assert answer.parsed.details.additional_properties == {"until": date(2026, 11, 21)}


def test_refusals_are_problems_with_a_denial_id(generated: Generated) -> None:
    stock, body = generated.operation("shop.shop_stock"), generated.models.ShopStockInput("a")
    narrow = generated.node.json("token", "create", "--scope", "types:*")["token"]
    for token, status in ((narrow, 403), ("alk_nothing0_" + "x" * 27, 401)):
        answer = stock.sync_detailed(client=generated.as_somebody(token), body=body)
        assert (answer.status_code, type(answer.parsed)) == (status, generated.models.Problem)
        assert (answer.parsed.code, answer.parsed.denial_id[:4]) == ("FORBIDDEN", "den_")
    anybody = generated.as_somebody(None)
    found = generated.operation("types.types_find").sync(client=anybody, body=generated.models.TypesFindInput())
    assert found.additional_properties["level"] == 1  # it is public
    assert stock.sync(client=anybody, body=body).message == "authentication required"


def test_a_key_makes_a_call_safe_to_repeat(generated: Generated) -> None:
    book = generated.operation("more.more_nothing")
    for replayed in (None, "true"):
        answer = book.sync_detailed(
            client=generated.client, body=generated.models.MoreNothingBody(), idempotency_key="generated 1"
        )
        assert (answer.status_code, answer.content, answer.headers.get("idempotent-replayed")) == (
            200,
            b"null",
            replayed,
        )


async def test_calls_at_the_same_time(generated: Generated) -> None:
    grow, models = generated.operation("types.types_grow"), generated.models
    client = generated.as_somebody(generated.token)
    bodies = [models.TypesGrowInput(models.Tree(str(number), [])) for number in range(20)]
    async with client, asyncio.timeout(DEADLINE_S):
        found = await asyncio.gather(*(grow.asyncio(client=client, body=body) for body in bodies))
    assert [tree.name for tree in found] == [str(number) for number in range(20)]


def test_a_subscription_is_text_with_events(generated: Generated) -> None:
    watch, body = generated.operation("shop.shop_watch"), generated.models.ShopWatchInput("a")
    *items, last = events_of(watch.sync(client=generated.client, body=body, last_event_id="7"))
    assert [(one["id"], one["data"]["left"]) for one in items] == [("8", 0), ("9", 1), ("10", 2)]
    assert last["event"] == "completed"
