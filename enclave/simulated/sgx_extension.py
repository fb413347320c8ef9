"""The Intel SGX extension of a PCK certificate, in DER.

Source: Intel, "SGX PCK Certificate and Certificate Revocation List Profile Specification", 1.5, section 1.3.5.
"""

from __future__ import annotations

from cryptography.hazmat import asn1
from cryptography.x509 import ObjectIdentifier, UnrecognizedExtension
from pydantic import Field

from attestgate.schemas.base import Model

OID = "1.2.840.113741.1.13.1"
_DYNAMIC_PLATFORM, _CACHED_KEYS, _SMT_ENABLED = 1, 2, 3


class PlatformInstance(Model):
    """Fields that only a PCK of the Platform CA has."""

    id: bytes = Field(min_length=16, max_length=16)
    dynamic_platform: bool = False
    cached_keys: bool = False
    smt_enabled: bool = False


class PckFacts(Model):
    """What a PCK certificate states about its platform."""

    ppid: bytes = Field(min_length=16, max_length=16)
    cpusvn: bytes = Field(min_length=16, max_length=16)
    """Also read as the sixteen TCB component SVNs."""
    pcesvn: int = Field(ge=0, le=0xFFFF)
    pceid: bytes = Field(min_length=2, max_length=2)
    fmspc: bytes = Field(min_length=6, max_length=6)
    sgx_type: int = Field(ge=0, le=2)
    """0 Standard, 1 Scalable, 2 Scalable with integrity."""
    instance: PlatformInstance | None
    """None under the Processor CA."""


@asn1.sequence
class _Pair:
    id: ObjectIdentifier
    value: int | bytes | bool | asn1.TLV


@asn1.sequence
class _Pairs:
    id: ObjectIdentifier
    value: list[_Pair]


@asn1.sequence
class _SgxExtension:
    ppid: _Pair
    tcb: _Pairs
    pceid: _Pair
    fmspc: _Pair
    sgx_type: _Pair
    instance_id: _Pair | None
    configuration: _Pairs | None


def sgx_extension(facts: PckFacts) -> UnrecognizedExtension:
    """The extension (not critical) for a certificate builder."""
    tcb: list[_Pair] = [_pair(f"2.{number}", svn) for number, svn in enumerate(facts.cpusvn, start=1)]
    tcb += [_pair("2.17", facts.pcesvn), _pair("2.18", facts.cpusvn)]
    extension = _SgxExtension(
        ppid=_pair("1", facts.ppid),
        tcb=_Pairs(id=_oid("2"), value=tcb),
        pceid=_pair("3", facts.pceid),
        fmspc=_pair("4", facts.fmspc),
        sgx_type=_pair("5", asn1.decode_der(asn1.TLV, bytes((0x0A, 1, facts.sgx_type)))),
        instance_id=_pair("6", facts.instance.id) if facts.instance else None,
        configuration=_configuration(facts.instance) if facts.instance else None,
    )
    return UnrecognizedExtension(ObjectIdentifier(OID), asn1.encode_der(extension))


def _configuration(instance: PlatformInstance) -> _Pairs:
    flags = {
        _DYNAMIC_PLATFORM: instance.dynamic_platform,
        _CACHED_KEYS: instance.cached_keys,
        _SMT_ENABLED: instance.smt_enabled,
    }
    return _Pairs(id=_oid("7"), value=[_pair(f"7.{number}", flag) for number, flag in flags.items()])


def _pair(arc: str, value: int | bytes | bool | asn1.TLV) -> _Pair:
    return _Pair(id=_oid(arc), value=value)


def _oid(arc: str) -> ObjectIdentifier:
    return ObjectIdentifier(f"{OID}.{arc}")
