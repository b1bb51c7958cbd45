"""The servers of `gateway.py`: each run is one process that prints its port and serves until it is ended.

``python gateway_servers.py node HOME few|many`` is a node as ``alknet serve`` runs it, and ``… fastapi``, ``…
starlette`` and ``… fastmcp few|many`` do the same operations without one. All run on uvloop with uvicorn's protocol
on httptools, on one processor, and with the garbage collector set as the node sets it.
"""

import gc
import os
import socket
import sys
from pathlib import Path
from typing import Any

import gateway_operations
import uvicorn
import uvloop
from gateway_operations import INPUT, PLACE, Customer, Item, Note, Number, Placed, Tags, catalogue, place
from pydantic import BaseModel

from alknet.cli.daemon import GC_THRESHOLDS
from alknet.gateway.settings import KEEP_ALIVE_S
from alknet.node import Node
from alknet.nofile import raise_limit

__all__ = ["PATH", "SERVER_CPU"]

PATH = f"/ops/{PLACE}"
SERVER_CPU = 0
"""The client's is another, where there is one."""


class Order(BaseModel):
    """The input as FastAPI takes it."""

    customer: Customer
    item: Item
    count: Number
    tags: Tags
    note: Note = ""


def fastapi() -> Any:
    from fastapi import FastAPI

    app = FastAPI()

    @app.post(PATH)
    async def placed(order: Order) -> Placed:
        return await place(order.customer, order.item, order.count, order.tags, order.note)

    return app


def starlette() -> Any:
    """The limit: JSON is read and written, and nothing is looked at."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def placed(request: Request) -> JSONResponse:
        order = await request.json()
        answer = {"number": 1, "customer": order["customer"], "items": [order["item"]] * order["count"]}
        return JSONResponse(answer | {"tags": order["tags"], "is_gift": "gift" in order["tags"]})

    return Starlette(routes=[Route(PATH, placed, methods=["POST"])])


def fastmcp(how: str) -> Any:
    """With few tools or many; with ``-json`` it answers with JSON instead of an event, where its client takes both."""
    from fastmcp import FastMCP

    server: Any = FastMCP("bench")
    if how.startswith("many"):
        for one in catalogue():
            server.tool(one)
    else:
        server.tool(place)
    return server.http_app(path="/mcp", json_response=how.endswith("json"))


async def serve_node(home: Path, how: str) -> None:
    operations = catalogue() if how == "many" else [gateway_operations]
    async with Node(home, operations=operations) as node:
        _settle()
        print(node.addresses[0].rpartition(":")[2], flush=True)
        await node.run()


async def serve_app(app: Any) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    config = uvicorn.Config(
        app, http="httptools", access_log=False, log_level="warning", timeout_keep_alive=KEEP_ALIVE_S
    )
    _settle()
    print(listener.getsockname()[1], flush=True)
    await uvicorn.Server(config).serve([listener])


def _settle() -> None:
    gc.freeze()  # as the daemon does
    gc.set_threshold(*GC_THRESHOLDS)


def main() -> None:
    what, *rest = sys.argv[1:]
    os.sched_setaffinity(0, {SERVER_CPU})
    raise_limit()
    if what == "node":
        uvloop.run(serve_node(Path(rest[0]), rest[1]))
    else:
        app = {"fastapi": fastapi, "starlette": starlette, "fastmcp": fastmcp}[what](*rest)
        uvloop.run(serve_app(app))


if __name__ == "__main__":
    assert INPUT
    main()
