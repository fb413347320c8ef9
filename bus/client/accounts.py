"""Tell running nats-servers of the accounts' JWTs in a folder of keys: they disconnect whoever is revoked, at once.

Each server is told by itself and confirms by itself; servers of a cluster also tell one another, but one of them may be
down or cut off. The credential that may do so is made for the moment and written nowhere.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, NamedTuple

import nkeys
from jwt import InvalidTokenError
from nats.aio.client import Client, RawCredentials
from nats.aio.msg import Msg
from nats.errors import Error, NoRespondersError

from attestgate.bus.auth.account_claims import LIST, LOOKUP, SYSTEM, SYSTEM_INBOX, UPDATE
from attestgate.bus.auth.credentials import EVERYBODY, Account, Trust, credentials_text, load
from attestgate.bus.auth.nats_jwt import new_seed, public, read_seed, sign
from attestgate.bus.client.nats import addresses
from attestgate.schemas.base import Reason, Refusal

CONNECT_S, ANSWER_S = 5.0, 5.0


class Told(NamedTuple):
    """A server's address, and why it does not have the accounts; None if it has them."""

    address: str
    problem: Reason | None


async def tell(url: str, folder: Path) -> list[Told]:
    """Tell each server that `url` names (several with commas between) of the accounts in `folder`. Raises Refusal."""
    trust, path = load(folder), folder / f"{SYSTEM}.seed"
    if not path.exists():
        raise Refusal.because(
            "bus.accounts.key",
            str(path),
            expected="the key by which servers are told of accounts",
            found="none: an older version made this folder",
            action="attestgate keys upgrade FOLDER; then write nats-server's configuration again and restart it, once",
        )
    seed = read_seed(path)
    return [Told(address, await _problem(address, trust, seed)) for address in addresses([url])]


async def _problem(address: str, trust: Trust, seed: bytes) -> Reason | None:
    client = Client()
    connected = False

    async def problem(error: Exception) -> None:
        if not connected:
            raise error  # the client would try the address again and again

    try:
        async with asyncio.timeout(CONNECT_S):
            await client.connect(
                address,
                user_credentials=RawCredentials(_credential(trust, seed)),
                inbox_prefix=SYSTEM_INBOX,
                allow_reconnect=False,
                error_cb=problem,
            )
        connected = True
        known = (await _ask(client, LIST, b""))["data"]
        for account in trust.accounts:
            if account.key in known:
                await _check_loses_nothing(client, account)
        # An import stays out while the account that it is from has not got its export: the second round adds it.
        for account in [*trust.accounts, *trust.accounts]:
            await _update(client, account)
    except Refusal as refusal:
        return refusal.reasons[0]
    except (Error, OSError, TimeoutError, ValueError, LookupError, TypeError, InvalidTokenError) as error:
        connected = True  # what goes wrong while it closes adds nothing to the reason
        return _untold(address, error)
    finally:
        await client.close()
    return None


def _credential(trust: Trust, seed: bytes) -> str:
    user = new_seed(nkeys.PREFIX_BYTE_USER)
    claims = {"type": "user", "issuer_account": trust.account(SYSTEM).key}
    return credentials_text(sign(seed, SYSTEM, public(user), claims), user)


async def _check_loses_nothing(client: Client, account: Account) -> None:
    """Raises Refusal if the server knows better: this folder is a copy, and lacks what was revoked with another."""
    answer = await client.request(LOOKUP.format(account.key), b"", timeout=ANSWER_S)
    theirs = Account(role=account.role, key=account.key, jwt=answer.data.decode())
    ours = account.revocations()
    lost = [key for key, until in theirs.revocations().items() if max(ours.get(key, 0), ours.get(EVERYBODY, 0)) < until]
    if lost or theirs.claims()["iat"] > account.claims()["iat"]:
        raise Refusal.because(
            "bus.accounts.newer",
            f"the account {account.role}",
            expected="a folder of keys with every revocation",
            found=f"an older copy: the server has a newer JWT, or revocations that are not in it ({len(lost)})",
            action="use the folder in which the last one was made; if it is lost: revoke-credential ROLE --all",
        )


async def _update(client: Client, account: Account) -> None:
    answer = await _ask(client, UPDATE, account.jwt.encode())
    if "error" in answer:
        raise Refusal.because(
            "bus.accounts.refused",
            f"the account {account.role}",
            expected="a server that takes its JWT",
            found=str(answer["error"].get("description")),
            action="give the folder of this bus's keys",
        )


async def _ask(client: Client, subject: str, data: bytes) -> dict[str, Any]:
    """Send a request, and wait for the answer of the server at the other end: others of its cluster answer too."""
    server = client._server_info["server_id"]
    inbox = client.new_inbox()
    answers: asyncio.Queue[Msg] = asyncio.Queue()
    subscription = await client.subscribe(inbox, cb=answers.put)
    try:
        await client.publish(subject, data, reply=inbox)
        async with asyncio.timeout(ANSWER_S):
            while True:
                message = await answers.get()
                if message.headers and message.headers.get("Status") == "503":
                    raise NoRespondersError
                answer: dict[str, Any] = json.loads(message.data)
                if answer["server"]["id"] == server:
                    return answer
    finally:
        await subscription.unsubscribe()


def _untold(address: str, error: Exception) -> Reason:
    text = str(error) or type(error).__name__
    if isinstance(error, NoRespondersError) or "authorization violation" in text.lower():
        return Reason(
            code="bus.accounts.configuration",
            field=address,
            expected="a server that can be told of accounts",
            found="one with an older configuration, or of another bus",
            action="write its configuration again (attestgate keys server) and restart it, once",
        )
    return Reason(
        code="bus.accounts.untold",
        field=address,
        expected="a server that answers",
        found=text,
        action="start it, or correct --bus; then: attestgate keys upgrade FOLDER --bus URL",
    )
