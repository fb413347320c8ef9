"""A small SDN controller: switches and their flows over REST, in memory. The gateway protects it in demo and tests.

It listens on a unix socket only its own user can open, so that nothing but nginx reaches it, and logs who did what by
the identity that nginx passes on. It makes no access decisions: the gateway has made them.

    GET    /switches
    GET    /switches/{id}/flows
    POST   /switches/{id}/flows           a flow; answers it with its id
    DELETE /switches/{id}/flows/{flow}
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from pathlib import Path
from typing import Annotated, Protocol

import structlog
import uvicorn
from pydantic import Field, StringConstraints
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from attestgate.app_agent.proxy import unix_socket
from attestgate.schemas.base import Model, Refusal, parse_json

MAX_FLOWS = 10_000
"""Most flows per switch."""
MAX_BODY = 64 * 1024
"""Largest flow in bytes of JSON."""
_Text = Annotated[str, StringConstraints(min_length=1, max_length=64)]
_log = structlog.get_logger()


class Flow(Model):
    """A flow entry, in OpenFlow's terms: match, actions, priority."""

    priority: Annotated[int, Field(ge=0, le=65535)] = 32768
    match: Annotated[dict[_Text, _Text], Field(max_length=32)]
    actions: Annotated[list[_Text], Field(max_length=32)]


class Northbound(Protocol):
    """The handlers of the four requests."""

    async def list_switches(self, request: Request) -> Response: ...
    async def list_flows(self, request: Request) -> Response: ...
    async def add_flow(self, request: Request) -> Response: ...
    async def delete_flow(self, request: Request) -> Response: ...


def application(northbound: Northbound) -> Starlette:
    """The REST application."""
    flows = "/switches/{switch}/flows"
    return Starlette(
        routes=[
            Route("/switches", northbound.list_switches, methods=["GET"]),
            Route(flows, northbound.list_flows, methods=["GET"]),
            Route(flows, northbound.add_flow, methods=["POST"]),
            Route(flows + "/{flow:int}", northbound.delete_flow, methods=["DELETE"]),
        ]
    )


async def read_flow(request: Request) -> Flow:
    """The flow in a request's body. Raises HTTPException (422) for anything else."""
    try:
        return parse_json(Flow, await request.body(), source="flow", limit=MAX_BODY)
    except Refusal as refusal:
        reason = refusal.reasons[0]
        raise HTTPException(422, f"{reason.field}: {reason.found}") from None


class Controller:
    """The switches and their flows. Flow ids are small integers that are never used twice."""

    def __init__(self, switches: tuple[str, ...] = ("s1", "s2")) -> None:
        self._flows: dict[str, dict[int, Flow]] = {switch: {} for switch in switches}
        self._ids = count(1)

    async def list_switches(self, request: Request) -> Response:
        told(request)
        return JSONResponse([{"id": switch, "flows": len(flows)} for switch, flows in self._flows.items()])

    async def list_flows(self, request: Request) -> Response:
        told(request)
        return JSONResponse([_shown(number, flow) for number, flow in self._of(request).items()])

    async def add_flow(self, request: Request) -> Response:
        flows = self._of(request)
        flow = await read_flow(request)
        if len(flows) >= MAX_FLOWS:
            raise HTTPException(507, "the flow table is full")
        number = next(self._ids)
        flows[number] = flow
        told(request, flow=number)
        return JSONResponse(_shown(number, flow), status_code=201)

    async def delete_flow(self, request: Request) -> Response:
        number = request.path_params["flow"]
        if self._of(request).pop(number, None) is None:
            raise HTTPException(404)
        told(request, flow=number)
        return Response(status_code=204)

    def _of(self, request: Request) -> dict[int, Flow]:
        try:
            return self._flows[request.path_params["switch"]]
        except KeyError:
            raise HTTPException(404) from None


def _shown(number: int, flow: Flow) -> dict[str, object]:
    return {"id": number, **flow.model_dump()}


def told(request: Request, **more: object) -> None:
    """Log who did what, by the identity that nginx passes on."""
    identity = request.headers.get("x-attestgate-identity", "")
    _log.info("northbound", identity=identity, method=request.method, path=request.url.path, **more)


class _Server(uvicorn.Server):
    """Leaves signal handling to the process that runs it."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()


async def serve(path: Path, rest: ASGIApp | None = None, ready: Callable[[], None] = lambda: None) -> None:
    """Serve on a unix socket (0600) until cancelled; a stale socket of an earlier run is replaced, no other file.

    Calls `ready` when the socket listens.
    """
    with unix_socket(path) as listener:
        listener.listen()
        ready()
        rest = rest or application(Controller())
        server = _Server(uvicorn.Config(rest, log_config=None, access_log=False, lifespan="off", ws="none"))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await asyncio.shield(serving)
        finally:
            server.should_exit = True
            await serving
            path.unlink(missing_ok=True)
