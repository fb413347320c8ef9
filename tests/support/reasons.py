"""What was refused, by the codes of its reasons: those of a refusal, of a verdict, of an event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pytest

from attestgate.schemas.base import Reason, Refusal
from attestgate.schemas.events import Event


class Verdict(Protocol):
    """A verdict of any appraisal."""

    @property
    def accepted(self) -> bool: ...

    @property
    def reasons(self) -> Sequence[Reason]: ...


def codes(verdict: Verdict) -> list[str]:
    """The reason codes of a verdict, which accepts if and only if it has none."""
    assert verdict.accepted is (not verdict.reasons)
    return [reason.code for reason in verdict.reasons]


def refusal_codes(caught: pytest.ExceptionInfo[Refusal]) -> list[str]:
    """The reason codes of a refusal."""
    return [reason.code for reason in caught.value.reasons]


def refusal_code(caught: pytest.ExceptionInfo[Refusal]) -> str:
    """The first reason code of a refusal."""
    return refusal_codes(caught)[0]


def event_code(event: Event) -> str:
    """The first reason code of an event."""
    reasons = event.data.get("reasons")
    assert isinstance(reasons, list)
    reason = reasons[0]
    assert isinstance(reason, dict)
    return str(reason["code"])
