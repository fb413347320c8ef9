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
from nats.aio.client import Client, RawCredentials
from nats.aio.msg import Msg
from nats.errors import Error, NoRespondersError

from attestgate.bus.auth.account_claims import LOOKUP, SYSTEM, SYSTEM_INBOX, UPDATE
from attestgate.bus.auth.credentials import Account, Trust, credentials_text, load
from attestgate.bus.auth.nats_jwt import new_seed, payload_of, public, read_seed, sign
from attestgate.bus.client.nats import addresses
from attestgate.schemas.base import Reason, Refusal

CONNECT_S, ANSWER_S, LOOKUP_S = 5.0, 5.0, 1.0


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
        for account in trust.accounts:
            await _check_not_newer(client, account)
        # An import stays out while the account that it is from has not got its export: the second round adds it.
        for account in [*trust.accounts, *trust.accounts]:
            await _update(client, account)
    except Refusal as refusal:
        return refusal.reasons[0]
    except (Error, OSError, TimeoutError) as error:
        connected = True  # what goes wrong while it closes adds nothing to the reason
        return _untold(address, error).reasons[0]
    finally:
        await client.close()
    return None


def _credential(trust: Trust, seed: bytes) -> str:
    user = new_seed(nkeys.PREFIX_BYTE_USER)
    claims = {"type": "user", "issuer_account": trust.account(SYSTEM).key}
    return credentials_text(sign(seed, SYSTEM, public(user), claims), user)


async def _check_not_newer(client: Client, account: Account) -> None:
    """Raises Refusal if the server has a newer JWT: this folder is a copy, and lacks what was revoked elsewhere."""
    try:
        answer = await client.request(LOOKUP.format(account.key), b"", timeout=LOOKUP_S)
    except TimeoutError:  # it knows no such account yet
        return
    if payload_of(answer.data.decode())["iat"] > account.claims()["iat"]:
        raise Refusal.because(
            "bus.accounts.newer",
            f"the account {account.role}",
            expected="a folder of keys with the newest JWTs",
            found="a newer JWT at the server: this folder is an older copy",
            action="use the folder in which the last revocation or upgrade was made",
        )


async def _update(client: Client, account: Account) -> None:
    """Send one JWT, and wait until the server at the other end has it (others of its cluster answer too)."""
    server = client._server_info["server_id"]
    inbox = client.new_inbox()
    answers: asyncio.Queue[Msg] = asyncio.Queue()
    subscription = await client.subscribe(inbox, cb=answers.put)
    try:
        await client.publish(UPDATE, account.jwt.encode(), reply=inbox)
        async with asyncio.timeout(ANSWER_S):
            while True:
                message = await answers.get()
                if message.headers and message.headers.get("Status") == "503":
                    raise NoRespondersError
                answer: dict[str, Any] = json.loads(message.data)
                if answer["server"]["id"] == server:
                    break
    finally:
        await subscription.unsubscribe()
    if "error" in answer:
        raise Refusal.because(
            "bus.accounts.refused",
            f"the account {account.role}",
            expected="a server that takes its JWT",
            found=str(answer["error"].get("description")),
            action="give the folder of this bus's keys",
        )


def _untold(address: str, error: Exception) -> Refusal:
    text = str(error) or type(error).__name__
    if isinstance(error, NoRespondersError) or "authorization violation" in text.lower():
        return Refusal.because(
            "bus.accounts.configuration",
            address,
            expected="a server that can be told of accounts",
            found="one with an older configuration, or of another bus",
            action="write its configuration again (attestgate keys server) and restart it, once",
        )
    return Refusal.because(
        "bus.accounts.untold",
        address,
        expected="a server that answers",
        found=text,
        action="start it, or correct --bus; then: attestgate keys upgrade FOLDER --bus URL",
    )
