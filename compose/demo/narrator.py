"""The demo's output: scenes, checks that can fail, and a summary that counts them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from attestgate.schemas.base import Reason
from attestgate.schemas.events import Event

QUIET = frozenset({"rechecking", "rechecked", "delivering-key", "key-delivered", "late-answer"})
"""Events that the demo does not print."""


@dataclass
class Narrator:
    """Prints the demo's progress and counts its checks."""

    say: Callable[[str], None]
    started: float = field(default_factory=time.monotonic)
    checks: list[tuple[str, bool]] = field(default_factory=list)
    figures: list[tuple[str, str]] = field(default_factory=list)

    def scene(self, title: str) -> None:
        """Start a new scene."""
        self.say(f"\n[{time.monotonic() - self.started:5.1f} s] {title}")

    def line(self, text: str) -> None:
        """Print one line within a scene."""
        self.say(f"    {text}")

    def event(self, event: Event) -> None:
        """Print an event as it arrives on the bus."""
        if event.what in QUIET or event.kind == "op":
            return
        move = f"{event.before} -> {event.state}" if event.before else (event.state or "")
        mark = " [simulated]" if event.simulated else ""
        self.say(f"      · {event.kind} {event.subject} {event.what} {move}{mark}")

    def check(self, what: str, held: bool, *, found: object = "") -> None:
        """Record a check: what must hold, and whether it does."""
        self.checks.append((what, held))
        self.say(f"    {'ok  ' if held else 'FAIL'} {what}" + (f" (found: {found})" if not held else ""))

    def refused(self, what: str, reasons: list[Reason], code: str) -> None:
        """Check that something was refused for the right reason, and print the reason."""
        fitting = [reason for reason in reasons if reason.code.startswith(code)]
        self.check(f"{what}: refused", bool(fitting), found=[reason.code for reason in reasons])
        for reason in fitting[:1]:
            self.line(f"       why: {reason.field}: expected {reason.expected},")
            self.line(f"            found {reason.found}; {reason.action}")

    def figure(self, what: str, seconds: float) -> None:
        """Record a duration for the summary."""
        self.figures.append((what, f"{seconds * 1000:.0f} ms" if seconds < 2 else f"{seconds:.1f} s"))

    def summary(self) -> bool:
        """Print it; True if every check held."""
        failed = [what for what, held in self.checks if not held]
        self.scene("Summary")
        for what, taken in self.figures:
            self.line(f"{what}: {taken}")
        self.line(f"{len(self.checks) - len(failed)} of {len(self.checks)} checks held.")
        for what in failed:
            self.line(f"FAILED: {what}")
        self.line("The SGX platform and its attestation service were simulated; everything else was real.")
        return not failed and bool(self.checks)
