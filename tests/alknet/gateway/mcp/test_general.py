"""The four tools that reach every operation."""

import asyncio
import json
from typing import Any

import jsonschema
import pytest

from alknet.call.errors import CallError
from alknet.gateway.mcp import general
from alknet.gateway.mcp.general import MAX_BATCH, MAX_CONCURRENT, TOOLS, batch, call_of
from alknet.gateway.mcp.results import MAX_RESULT_BYTES


class Run:
    """A call that answers with its operation, its input, or as the test says."""

    is_stream = False
    request_id = "req_1"

    def __init__(self, backend: "Backend", operation: str, value: Any) -> None:
        self.backend = backend
        self.operation = operation
        self.value = value

    async def call(self) -> Any:
        self.backend.running += 1
        self.backend.most = max(self.backend.most, self.backend.running)
        try:
            if self.backend.gate is not None:
                await self.backend.gate.wait()
            await asyncio.sleep(0)
            if self.operation == "a/fail":
                raise CallError("SOLD_OUT", "none left", details={"left": self.value.get("left", 0)})
            return [self.operation, self.value]
        finally:
            self.backend.running -= 1


class Backend:
    """Runs every operation."""

    def __init__(self) -> None:
        self.running = 0
        self.most = 0
        self.begun: list[tuple[str, Any, bool | None]] = []
        self.peers: list[str | None] = []
        self.gate: asyncio.Event | None = None

    async def begin(self, operation: str, value: Any, *, peer: str | None = None, streaming: bool | None = None) -> Run:
        self.begun.append((operation, value, streaming))
        self.peers.append(peer)
        if operation == "a/denied":
            raise CallError("FORBIDDEN", "no", denial_id="den_1")
        return Run(self, operation, value)


async def results(backend: Any, calls: Any) -> Any:
    wire = (await batch(backend, {"calls": calls})).wire()
    assert not wire["isError"]
    jsonschema.validate(wire["structuredContent"], TOOLS[0]["outputSchema"])
    return wire["structuredContent"]["results"]


async def test_results_are_in_the_order_of_the_calls_and_each_stands_alone() -> None:
    backend = Backend()
    found = await results(
        backend,
        [
            {"operation": "/a/one", "input": {"x": 1}},
            {"operation": "a/denied"},
            {"operation": "a/fail", "input": {"left": 2}},
            {"operation": "a/fail", "input": {"left": float("inf")}},
            {"operation": 3},
            {"operation": "a/two", "extra": 1},
            "a/three",
            {"operation": "a/four"},
        ],
    )
    assert found[0] == {"isError": False, "output": ["a/one", {"x": 1}]}
    assert found[1]["error"] == {"code": "FORBIDDEN", "message": "no", "retryable": False, "denial_id": "den_1"}
    assert found[2]["error"]["details"] == {"left": 2}
    assert found[2]["error"]["request_id"] == "req_1"
    assert "details" not in found[3]["error"]
    for index in (4, 5, 6):
        assert found[index]["error"]["code"] == "INVALID_INPUT"
        assert found[index]["error"]["message"].startswith(f"input.calls.{index}: ")
    assert found[7]["output"] == ["a/four", {}]
    assert {streaming for _, _, streaming in backend.begun} == {False}  # a batch has no subscriptions


async def test_so_many_run_at_the_same_time() -> None:
    backend = Backend()
    assert len(await results(backend, [{"operation": "a/one"}] * MAX_BATCH)) == MAX_BATCH
    assert backend.most == MAX_CONCURRENT
    assert await results(backend, []) == []


async def test_cancelling_a_batch_cancels_its_calls() -> None:
    backend = Backend()
    backend.gate = asyncio.Event()
    running = asyncio.create_task(batch(backend, {"calls": [{"operation": "a/one"}] * 10}))  # type: ignore[arg-type]  # noqa: TID251
    while backend.running < MAX_CONCURRENT:
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert backend.running == 0
    assert len(backend.begun) == MAX_CONCURRENT


async def test_what_does_not_fit_into_the_answer_is_said() -> None:
    third = {"text": "x" * (MAX_RESULT_BYTES // 3)}
    found = await results(Backend(), [{"operation": "a/one", "input": third}] * 4)
    assert [one["isError"] for one in found] == [False, False, True, True]
    assert found[2]["error"]["code"] == "RESOURCE_EXHAUSTED"
    assert not found[2]["error"]["retryable"]


@pytest.mark.parametrize("arguments", [{}, {"calls": {}}, {"calls": [], "more": 1}, {"calls": [{}] * (MAX_BATCH + 1)}])
async def test_what_is_no_batch_is_refused(arguments: Any) -> None:
    result = await batch(Backend(), arguments)  # type: ignore[arg-type]
    assert result.is_error
    assert json.loads(result.body)["code"] == "INVALID_INPUT"


async def test_each_call_of_a_batch_says_at_which_peer() -> None:
    backend = Backend()
    calls: list[Any] = [
        {"operation": "a/one", "peer": "w1"},
        {"operation": "a/two"},
        {"operation": "a/three", "peer": None},
        {"operation": "a/four", "peer": ""},
        {"operation": "a/five", "peer": 5},
    ]
    found = await results(backend, calls)
    assert backend.peers == ["w1", None, None]
    assert [one.get("error", {}).get("message") for one in found[3:]] == [
        f"input.calls.{number}.peer: should be the name of a connected peer" for number in (3, 4)
    ]


def test_what_search_schema_and_call_ask_for() -> None:
    assert call_of("search", {"query": "x"}) == ("services/list", {"query": "x"}, None)
    assert call_of("schema", {"name": "x", "peer": "p"}) == ("services/schema", {"name": "x", "peer": "p"}, None)
    assert call_of("call", {"operation": "/a/b"}) == ("a/b", {}, None)
    assert call_of("call", {"operation": "a/b", "input": None}) == ("a/b", None, None)
    assert call_of("call", {"operation": "a/b", "peer": "w1"}) == ("a/b", {}, "w1")
    for arguments in ({}, {"operation": None}, {"operation": "a/b", "args": {}}):
        with pytest.raises(CallError):
            call_of("call", arguments)


def test_the_tools_are_well_formed_and_in_order() -> None:
    assert [tool["name"] for tool in TOOLS] == sorted(general.NAMES)
    for tool in TOOLS:
        for key in ("inputSchema", "outputSchema"):
            if key in tool:
                assert tool[key]["type"] == "object"
                jsonschema.Draft202012Validator.check_schema(tool[key])
