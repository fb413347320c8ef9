"""What an application's measured settings must have beyond a host's: the gateway it connects to, and its program."""

from __future__ import annotations

import importlib
import ssl
from pathlib import Path
from types import ModuleType

from attestgate.schemas.base import Refusal
from attestgate.schemas.settings import Measured, load_measured


def load_for_application(path: Path) -> Measured:
    """The measured settings. Raises Refusal (`settings.*`).

    Nothing may be left open: without a CA, TLS would trust the system's; without a name, it would accept the address's.
    """
    measured = load_measured(path)
    for key in ("gateway_ca", "gateway_name", "program"):
        if not getattr(measured, key):
            raise _wrong(path, key, "a value, for an application", "no value")
    try:
        ssl.create_default_context(cadata=measured.gateway_ca)
    except (ssl.SSLError, TypeError):
        raise _wrong(path, "gateway_ca", "a certificate in PEM", "not a certificate") from None
    return measured


def program_of(measured: Measured) -> ModuleType:
    """The program, a module with `main`. Raises Refusal `settings.program`."""
    try:
        module = importlib.import_module(measured.program)
        found = "a module without `main`"
    except ImportError as error:
        module, found = None, str(error)
    if module is None or not hasattr(module, "main"):
        raise Refusal.because(
            "settings.program",
            measured.program,
            expected="a module of the measured code with `async def main(application)`",
            found=found,
            action="correct `program` in the measured settings, or measure the package it is in",
        )
    return module


def _wrong(path: Path, key: str, expected: str, found: str) -> Refusal:
    return Refusal.because(
        "settings.key",
        f"{path}: {key}",
        expected=expected,
        found=found,
        action="correct that key, and enrol the application's new measurement",
    )
