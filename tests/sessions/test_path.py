"""The whole path on a bus in memory: attest, prove, admit, renew, and every way in which it ends."""

from __future__ import annotations

from tests.sessions.harness import LISTS, Deployment


async def test_host_and_application_are_admitted(site: Deployment) -> None:
    await site.admitted()
    assert site.what("host", "h1") == ["challenged", "granted", "trusted", "delivering-key", "key-delivered"]
    assert site.what("app", "a1") == [
        "challenged",
        "waiting-for-key",
        "granted",
        "proven",
        "certified",
        "admitted",
    ]
    assert site.gateway.passes("a1")
    assert site.codes() == []
