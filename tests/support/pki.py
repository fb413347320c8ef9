"""What every CA of a test is made with."""

from __future__ import annotations

from attestgate.schemas.base import Secret

AT = 1_790_000_000
"""The Unix second at which a CA is made, where a test does not need the real one."""
PASSPHRASE = Secret(b"correct horse battery staple")
