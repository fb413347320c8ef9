"""The northbound API of the os-ken controller: the REST of compose/sdn/controller.py, with real switches behind it.

It listens on a unix socket that only its own user can open, so that nothing but nginx reaches it; OpenFlow listens
where only switches are: on loopback, or on a network of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from os_ken import cfg
from os_ken.base.app_manager import AppManager
from os_ken.controller import controller as _  # noqa: F401  registers the options for listening
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from attestgate.compose.sdn.controller import application, read_flow, serve, told
from attestgate.compose.sdn.switches import NoAnswer, Switches


class SwitchNorthbound:
    """Switches by name; one without a name is listed by its datapath id, 16 hexadecimal digits."""

    def __init__(self, switches: Switches, names: dict[str, int]) -> None:
        self._switches = switches
        self._names = names

    async def list_switches(self, request: Request) -> Response:
        told(request)
        named = {number: name for name, number in self._names.items()}
        return JSONResponse([{"id": named.get(number, f"{number:016x}")} for number in self._switches.datapaths()])

    async def list_flows(self, request: Request) -> Response:
        told(request)
        return JSONResponse(await asyncio.to_thread(self._switches.flows, self._of(request)))

    async def add_flow(self, request: Request) -> Response:
        flow = await read_flow(request)
        try:
            number = await asyncio.to_thread(
                self._switches.add, self._of(request), flow.priority, flow.match, flow.actions
            )
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        told(request, flow=number)
        return JSONResponse({"id": number, **flow.model_dump()}, status_code=201)

    async def delete_flow(self, request: Request) -> Response:
        number = request.path_params["flow"]
        if not await asyncio.to_thread(self._switches.delete, self._of(request), number):
            raise HTTPException(404)
        told(request, flow=number)
        return Response(status_code=204)

    def _of(self, request: Request) -> int:
        name = request.path_params["switch"]
        try:
            return self._names[name] if name in self._names else int(name, 16)
        except ValueError:
            raise HTTPException(404) from None


async def run(socket: Path, openflow: tuple[str, int], names: dict[str, int], ready: Callable[[], None]) -> None:
    """Serve until cancelled, switches at the address and port `openflow`.

    os-ken's threads go on then: whoever calls this has to end the process.
    """
    cfg.CONF(args=[], project="os_ken")
    address, port = openflow
    cfg.CONF.set_override("ofp_listen_host", address)
    cfg.CONF.set_override("ofp_tcp_listen_port", port)
    manager = AppManager.get_instance()
    manager.load_apps(["attestgate.compose.sdn.switches", "os_ken.controller.ofp_handler"])
    manager.instantiate_apps(**manager.create_contexts())
    switches = next(app for app in manager.applications.values() if isinstance(app, Switches))
    rest = application(SwitchNorthbound(switches, names))
    rest.add_exception_handler(NoAnswer, _no_answer)
    await serve(socket, rest, ready)


async def _no_answer(request: Request, error: Exception) -> Response:
    return JSONResponse({"problem": str(error)}, status_code=502)
