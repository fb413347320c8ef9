"""The OpenFlow side: an os-ken application that keeps the switches and their flows (OpenFlow 1.3).

Every flow that it adds carries a cookie of its own, by which it is listed and deleted; other flows are left alone.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping
from typing import Any

from os_ken.base import app_manager
from os_ken.controller import ofp_event
from os_ken.controller.handler import DEAD_DISPATCHER, MAIN_DISPATCHER, set_ev_cls
from os_ken.lib import ofctl_v1_3
from os_ken.ofproto import ofproto_v1_3

ANSWER_S = 5.0
EVERY_BIT = 0xFFFF_FFFF_FFFF_FFFF
OWN = 0x6174_7465_0000_0000
OWN_BITS = 0xFFFF_FFFF_0000_0000
"""The upper half of every cookie given here, to distinguish them from other controllers'."""


class NoAnswer(Exception):
    """A switch did not answer, or has disconnected."""


class Switches(app_manager.OSKenApp):  # type: ignore[misc]
    """Called from threads other than os-ken's own."""

    OFP_VERSIONS = [ofproto_v1_3.OFP_VERSION]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._datapaths: dict[int, Any] = {}
        self._answers: dict[int, list[Any]] = {}
        self._complete: dict[int, threading.Event] = {}

    @set_ev_cls(ofp_event.EventOFPStateChange, [MAIN_DISPATCHER, DEAD_DISPATCHER])  # type: ignore[untyped-decorator]
    def _state(self, event: Any) -> None:
        datapath: Any = event.datapath
        if event.state == MAIN_DISPATCHER:
            self._datapaths[datapath.id] = datapath
        else:
            self._datapaths = {number: known for number, known in self._datapaths.items() if known is not datapath}

    @set_ev_cls(ofp_event.EventOFPFlowStatsReply, MAIN_DISPATCHER)  # type: ignore[untyped-decorator]
    def _flow_stats(self, event: Any) -> None:
        self._take(event.msg.xid, event.msg.body, more=bool(event.msg.flags & ofproto_v1_3.OFPMPF_REPLY_MORE))

    @set_ev_cls(ofp_event.EventOFPBarrierReply, MAIN_DISPATCHER)  # type: ignore[untyped-decorator]
    def _barrier(self, event: Any) -> None:
        self._take(event.msg.xid, [], more=False)

    def datapaths(self) -> list[int]:
        """The datapath ids of the switches that are connected."""
        return sorted(self._datapaths)

    def flows(self, datapath_id: int) -> list[dict[str, Any]]:
        """The flows added here. Raises NoAnswer."""
        datapath = self._datapath(datapath_id)
        request = datapath.ofproto_parser.OFPFlowStatsRequest(datapath, cookie=OWN, cookie_mask=OWN_BITS)
        return [
            {
                "id": entry.cookie & ~OWN_BITS,
                "priority": entry.priority,
                "match": {key: str(value) for key, value in entry.match.items()},
                "actions": _told(entry.instructions),
            }
            for entry in self._ask(datapath, request)
        ]

    def add(self, datapath_id: int, priority: int, match: Mapping[str, str], actions: list[str]) -> int:
        """Add a flow; its id, once the switch has it. Raises NoAnswer, ValueError for an invalid match or action."""
        datapath = self._datapath(datapath_id)
        parser, ofproto = datapath.ofproto_parser, datapath.ofproto
        number = secrets.randbelow(2**31 - 1) + 1
        outputs = [parser.OFPActionOutput(_port(action)) for action in actions]
        instructions = [parser.OFPInstructionActions(ofproto.OFPIT_APPLY_ACTIONS, outputs)] if outputs else []
        added = parser.OFPFlowMod(
            datapath,
            cookie=OWN | number,
            priority=priority,
            match=ofctl_v1_3.to_match(datapath, dict(match)),
            instructions=instructions,
        )
        datapath.send_msg(added)
        self._ask(datapath, parser.OFPBarrierRequest(datapath))
        return number

    def delete(self, datapath_id: int, number: int) -> bool:
        """Delete a flow added here; whether it was there. Raises NoAnswer."""
        if number not in [flow["id"] for flow in self.flows(datapath_id)]:
            return False
        datapath = self._datapath(datapath_id)
        parser, ofproto = datapath.ofproto_parser, datapath.ofproto
        datapath.send_msg(
            parser.OFPFlowMod(
                datapath,
                cookie=OWN | number,
                cookie_mask=EVERY_BIT,
                command=ofproto.OFPFC_DELETE,
                table_id=ofproto.OFPTT_ALL,
                out_port=ofproto.OFPP_ANY,
                out_group=ofproto.OFPG_ANY,
            )
        )
        self._ask(datapath, parser.OFPBarrierRequest(datapath))
        return True

    def _datapath(self, datapath_id: int) -> Any:
        try:
            return self._datapaths[datapath_id]
        except KeyError:
            raise NoAnswer(f"switch {datapath_id:016x} is not connected") from None

    def _ask(self, datapath: Any, request: Any) -> list[Any]:
        datapath.set_xid(request)
        complete = self._complete[request.xid] = threading.Event()
        self._answers[request.xid] = []
        try:
            datapath.send_msg(request)
            if not complete.wait(ANSWER_S):
                raise NoAnswer(f"switch {datapath.id:016x} does not answer")
            return self._answers[request.xid]
        finally:
            del self._complete[request.xid], self._answers[request.xid]

    def _take(self, xid: int, body: list[Any], *, more: bool) -> None:
        if xid in self._answers:
            self._answers[xid].extend(body)
            if not more:
                self._complete[xid].set()


def _port(action: str) -> int:
    kind, _, port = action.partition(":")
    if kind != "output" or not port.isdecimal():
        raise ValueError(f"an action is output:PORT, not {action}")
    return int(port)


def _told(instructions: list[Any]) -> list[str]:
    return [f"output:{action.port}" for instruction in instructions for action in getattr(instruction, "actions", [])]
