"""A folder of bus keys as an earlier version made it."""

from __future__ import annotations

from pathlib import Path

from attestgate.bus.auth.account_claims import SYSTEM
from attestgate.bus.auth.credentials import OPERATOR_FILE, Trust, load, store
from attestgate.bus.auth.ledger import LEDGER_FILE
from attestgate.bus.auth.nats_jwt import read_seed, sign


def make_older(folder: Path) -> Trust:
    """Take away what came later: the key of the system account, the ledger, and for once a whole role (`viewer`)."""
    trust = load(folder)
    system = trust.account(SYSTEM)
    claims = {name: value for name, value in system.claims()["nats"].items() if name != "signing_keys"}
    plain = system.model_copy(update={"jwt": sign(read_seed(folder / OPERATOR_FILE), SYSTEM, system.key, claims)})
    rest = [account for account in trust.accounts if account.role not in (SYSTEM, "viewer")]
    older = Trust(operator=trust.operator, accounts=[plain, *rest])
    store(folder, older)
    for name in ("system.seed", "viewer.seed", LEDGER_FILE):
        (folder / name).unlink()
    return older
