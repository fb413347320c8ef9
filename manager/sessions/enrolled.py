"""A subject as an operator has enrolled it, and a manager put it in force: what evidence is judged by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from attestgate.schemas.enrolment import AppEnrolment, GatewayEnrolment, HostEnrolment

E = TypeVar("E", HostEnrolment, AppEnrolment, GatewayEnrolment)


@dataclass(frozen=True)
class Enrolled(Generic[E]):
    """An enrolment in force, and the order of the Enrol that says so. Made by manager/policy/enrolments.py alone, once
    all signatures are checked."""

    subject: E
    order: int
