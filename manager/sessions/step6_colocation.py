"""Step 6: the host's enclave writes the application's key to the data volume; the application proves that it read it.

deliver -> (host) deliver-key -> key-delivered -> (application) grant with n2 -> proof: HMAC-SHA512 with K_app. Only
an enclave on the host's own machine can unseal the volume's key, and only the quoted instance can decrypt K_app.
"""

from __future__ import annotations

from attestgate.bus.crypto.channel import Channel
from attestgate.manager.sessions.draft import Context, Draft
from attestgate.manager.sessions.handshake import grant, open_channel
from attestgate.manager.sessions.inter_session import Deliver, Delivered, Issue
from attestgate.manager.sessions.key_proof import WRONG_PROOF, prove_application
from attestgate.manager.sessions.record import AppRecord, HostRecord
from attestgate.manager.sessions.states import Input, InvalidTransition
from attestgate.manager.sessions.step5_attest_application import step_deadline
from attestgate.manager.sessions.termination import terminate
from attestgate.manager.sessions.trusted_host import TrustedHost
from attestgate.schemas import audit
from attestgate.schemas.base import Secret
from attestgate.schemas.messages import AppGrant, DeliverKey, KeyDelivered

MAX_APPS = 256
"""Application sessions that one host session keeps track of."""


def order_delivery(record: HostRecord, context: Context, request: Deliver) -> HostRecord:
    """The host session after an application session asked for its key. Raises InvalidTransition."""
    draft = Draft(record, context)
    draft.move(Input.DELIVER)
    if request.app_session in record.apps:
        return record
    # The oldest, once forgotten, only misses the notice `host-lost`: nginx checks the host's lease on every request, so
    # the host's withdrawal cuts it off all the same. If its key is not delivered yet, that session expires.
    if len(record.apps) >= MAX_APPS:
        draft.set(apps=dict(list(record.apps.items())[1:]))
    draft.set(apps={**draft.record.apps, request.app_session: request.app})
    order = DeliverKey(
        app=request.app,
        app_session=request.app_session,
        enclave_key=request.enclave_key,
        suite=request.suite,
        t2=request.t2,
        volume=request.volume,
    )
    draft.say("deliver_key", order)
    draft.event("delivering-key", app=request.app, app_session=request.app_session, volume=request.volume)
    return draft.finish()


def take_delivered(record: HostRecord, context: Context, channel: Channel, answer: KeyDelivered) -> HostRecord:
    """The host session after its agent's answer, opened on `channel`. Raises InvalidTransition."""
    draft = Draft(record, context)
    draft.move(Input.DELIVERED if answer.problem is None else Input.NOT_DELIVERED)
    draft.acknowledge(channel)
    app = record.apps.get(answer.app_session)
    if app is not None:
        delivered = Delivered(host_session=record.session, problem=answer.problem)
        draft.work("app", answer.app_session, "delivered", delivered)
        problem = answer.problem.model_dump() if answer.problem else None
        draft.event("key-delivered", app=app, app_session=answer.app_session, problem=problem)
    return draft.finish()


def grant_application(record: AppRecord, context: Context, delivered: Delivered) -> AppRecord:
    """The application session once its key was delivered, or could not be. Raises InvalidTransition."""
    given = Input.DELIVERED if delivered.problem is None else Input.NOT_DELIVERED
    # The bus can put this record back to before its evidence, and repeat what an earlier host session said of its key.
    if delivered.host_session != record.host_session:
        raise InvalidTransition(record.state, given)
    draft = Draft(record, context)
    if delivered.problem is not None:
        terminate(draft, given, "deliver_key", [delivered.problem])
        return draft.finish()
    draft.move(given)
    n2, channel = context.token(32), Secret(context.token(32))
    grant(draft, AppGrant(n2=n2, channel=channel), channel, n2)
    draft.set(deadline=step_deadline(draft))
    draft.event("granted")
    return draft.finish()


def take_colocation_proof(record: AppRecord, context: Context, data: bytes, host: TrustedHost) -> AppRecord:
    """The application session after its proof that it is on the host's machine.

    Raises InvalidTransition, or Refusal for bytes that do not open.
    """
    draft, proven = Draft(record, context), prove_application(record, host, data)
    if proven is None:
        terminate(draft, Input.PROOF_BAD, "colocation_proof", [WRONG_PROOF])
        return draft.finish()
    draft.move(Input.PROOF_GOOD)
    open_channel(draft, data)
    draft.set(deadline=step_deadline(draft))
    draft.work("app", record.session, "issue", Issue())
    draft.enter(audit.AcceptedFact(outcome=proven.outcome, host_session=record.host_session))
    draft.event("proven", host_session=record.host_session)
    return draft.finish()
