"""`attestgate gateway certificate`: a server certificate that the agents' settings accept."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.verification import PolicyBuilder, Store

from attestgate.compose.local.plan import GATEWAY_NAME, Plan
from tests.support.cli.fixtures import Run


def test_it_chains_to_the_deployments_root_for_the_names_given(attestgate: Run, deployed: Plan, tmp_path: Path) -> None:
    out = tmp_path / "gateway"
    names = ("--name", GATEWAY_NAME, "--name", "127.0.0.1")
    ran = attestgate("gateway", "certificate", "-s", deployed.settings("manager"), *names, "--out", out, "--days", "7")
    assert ran.status == 0, ran.err
    leaf, *issuers = x509.load_pem_x509_certificates((out / "server.pem").read_bytes())
    root = x509.load_pem_x509_certificate((deployed.keys / "manager" / "pki" / "root-ca.pem").read_bytes())
    verifier = PolicyBuilder().store(Store([root])).build_server_verifier(x509.DNSName(GATEWAY_NAME))
    assert verifier.verify(leaf, issuers)[0] == leaf
    assert leaf.not_valid_after_utc - datetime.now(UTC) <= timedelta(days=7)
    key = load_pem_private_key((out / "server.key").read_bytes(), None)
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert key.public_key().public_bytes(*form) == leaf.public_key().public_bytes(*form)
    assert stat.S_IMODE((out / "server.key").stat().st_mode) == 0o600


def test_a_key_that_is_there_is_not_overwritten(attestgate: Run, deployed: Plan, tmp_path: Path) -> None:
    (tmp_path / "server.key").write_text("in use", encoding="ascii")
    settings = deployed.settings("manager")
    ran = attestgate("gateway", "certificate", "-s", settings, "--name", GATEWAY_NAME, "--out", tmp_path)
    assert ran.status != 0 and "keys.exists" in ran.line
    assert (tmp_path / "server.key").read_text(encoding="ascii") == "in use"
    assert not (tmp_path / "server.pem").exists()


@pytest.mark.parametrize("name", ["", "not a name", "münchen.example", "-x", "a..b"])
def test_what_is_no_name_is_refused(attestgate: Run, deployed: Plan, tmp_path: Path, name: str) -> None:
    ran = attestgate("gateway", "certificate", "-s", deployed.settings("manager"), "--name", name, "--out", tmp_path)
    assert ran.status == 2 and "pki.names" in ran.line
