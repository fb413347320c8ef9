"""`attestgate policy diff --against hosts`: try a new set of policies at every host that is trusted now."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import aclosing
from pathlib import Path

import structlog
from pydantic import ValidationError

from attestgate.bus import subjects
from attestgate.bus.api import Bus, Message
from attestgate.bus.client.nats import join
from attestgate.bus.forward import event_of
from attestgate.bus.operator import OperatorKey, order
from attestgate.cli.common import operator_file, wrong
from attestgate.cli.policy_set import read_bundle
from attestgate.manager.local.keyfiles import read_identity
from attestgate.manager.policy.policies import manifest_name
from attestgate.manager.policy.policy_trial import Trial
from attestgate.schemas.base import unpack, where
from attestgate.schemas.enrolment import PolicyManifest, PutPolicy, RecheckNow, TryPolicy
from attestgate.schemas.event_data import PolicyTried
from attestgate.schemas.events import Event
from attestgate.schemas.settings import OperatorFile
from attestgate.schemas.summary import summary_of

log = structlog.get_logger(__name__)
TRUSTED = ("TRUSTED", "RECHECKING")
SILENT = "no answer in time: see `attestgate hosts`"


def on_hosts(bundle: Path, operator: Path | None) -> list[Trial]:
    """Put a signed bundle on trial, have every trusted host rechecked, and return each one's result.

    Raises Refusal, BusError, OSError.
    """
    if operator is None:
        raise wrong("--operator", "your operator file, for --against hosts", "no operator file")
    return asyncio.run(_try(read_bundle(bundle), operator_file(operator)))


async def _try(put: PutPolicy, settings: OperatorFile) -> list[Trial]:
    key = OperatorKey.of(settings, read_identity(settings.identity))
    async with await join(settings.bus) as bus:

        async def ask(action: TryPolicy | RecheckNow) -> None:
            await order(bus, key, action, settings.answer_s)

        answers = Answers(manifest_name(unpack(PolicyManifest, put.manifest.payload)))
        await bus.listen(f"{subjects.EVENTS}.>", answers.hear)
        await bus.flush()
        hosts = await _trusted(bus)
        await ask(TryPolicy(manifest=put.manifest, documents=put.documents))
        for host in hosts:
            await ask(RecheckNow(kind="host", id=host))
        return await answers.of(hosts, settings.answer_s)


class Answers:
    """The results of one trial, host by host, from the events."""

    def __init__(self, manifest: str) -> None:
        self._manifest = manifest
        self._found: dict[str, Trial] = {}
        self._news = asyncio.Event()

    async def hear(self, message: Message) -> None:
        """Take an event; most are about something else."""
        event = event_of(message.subject, message.data)
        data = event.data.get("trial") if event is not None else None
        if event is None or event.kind != "host" or data is None:
            return
        try:
            tried = PolicyTried.model_validate(data)
        except ValidationError as error:
            log.warning("ignored: not the result of a trial", host=event.subject, field=where(error))
            return
        if tried.manifest == self._manifest:
            self._found[event.subject] = _told(event, tried)
            self._news.set()

    async def of(self, hosts: Iterable[str], within_s: float) -> list[Trial]:
        """One result for each host; a host without a result in time has failed."""
        wanted = set(hosts)
        try:
            async with asyncio.timeout(within_s):
                while not self._found.keys() >= wanted:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            missing = wanted - self._found.keys()
            self._found |= {host: Trial(name=host, entries=0, unknown=[], problem=SILENT) for host in missing}
        return sorted(self._found.values(), key=lambda trial: trial.name)


def _told(event: Event, tried: PolicyTried) -> Trial:
    others = [reason.sentence() for reason in tried.reasons if reason.code != "ima.unknown"]
    entries = event.data.get("entries")
    return Trial(
        name=event.subject,
        entries=entries if isinstance(entries, int) else 0,
        unknown=[] if tried.admitted else tried.unknown,
        problem=others[0] if others and not tried.admitted else "",
    )


async def _trusted(bus: Bus) -> list[str]:
    """The hosts that are trusted now, by their summaries."""
    hosts = set()
    async with aclosing(bus.bucket("summaries").watch("host.>")) as changes:  # type: ignore[type-var]
        async for entry in changes:
            if entry is None:
                break
            if entry.value is not None:
                summary = summary_of(entry.key, entry.value)
                hosts |= {summary.id} if summary is not None and summary.state in TRUSTED else set()
    return sorted(hosts)
