"""The platform an agent runs on: selected by name, never guessed, and never simulated in production."""

from __future__ import annotations

from typing import Literal

from attestgate.enclave.api import Enclave
from attestgate.enclave.providers.gramine import GramineEnclave
from attestgate.enclave.simulated.client import SimulatedEnclave
from attestgate.schemas.base import Refusal

PlatformKind = Literal["simulated", "gramine"]
Profile = Literal["production", "development"]


def open_enclave(platform: PlatformKind, profile: Profile) -> Enclave:
    """The enclave of this process. Raises Refusal (`enclave.*`) if there is none of that kind."""
    if platform == "gramine":
        return GramineEnclave()
    if profile == "production":
        raise Refusal.because(
            "enclave.profile",
            "platform",
            expected="a hardware platform under the production profile",
            found=platform,
            action="set platform = gramine, or profile = development to try it out",
        )
    return SimulatedEnclave.inherited()
