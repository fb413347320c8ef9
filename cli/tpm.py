"""`attestgate tpm`: a TPM's enrolment, and its quotes for the host's agent."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from secrets import token_bytes
from typing import Annotated

import typer
from pydantic import BaseModel

from attestgate.bus.lifetime import until_told
from attestgate.cli.common import LogFormat, LogOption, say, set_up_logs, wrong
from attestgate.host_agent.tpm import DEVICE, Tpm
from attestgate.host_agent.tpm_service import HOST, run
from attestgate.manager.verification.tpm.enrolment import challenge as challenge_for
from attestgate.manager.verification.tpm.enrolment import read_bundle
from attestgate.schemas.base import Refusal, read_json
from attestgate.schemas.tpm import TpmAnswer, TpmChallenge, TpmDescription

app = typer.Typer(
    no_args_is_help=True,
    help="""Enrol and use a host's TPM. Enrolment exchanges files, in this order:

 1. on the host: attestgate tpm describe -o described.json

 2. operator: attestgate tpm challenge described.json --ek-roots VENDOR.pem -o challenge.json --keep kept.json

 3. on the host: attestgate tpm activate challenge.json -o answer.json

 4. on the host, after a boot known to be good: attestgate tpm quote -o boot

 5. operator: attestgate enrol host ID ... --tpm kept.json --tpm-answer answer.json --golden-from boot.msg
 --tpm-pcrs boot.pcrs

 6. on the host, from then on: attestgate tpm serve; put its address into the agent's settings as `tpm`.

Before a kernel update, boot the new kernel on a machine of the same kind, take its quote (4), and enrol again with
both pairs of --golden-from and --tpm-pcrs.""",
)

Tcti = Annotated[str, typer.Option(help="The TPM, as a TCTI string such as swtpm:host=127.0.0.1,port=2321.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="The file to write.")]


class BankName(StrEnum):
    """A PCR bank."""

    SHA256 = "sha256"
    SHA384 = "sha384"
    SHA1 = "sha1"


BankOption = Annotated[BankName, typer.Option(help="PCR bank; the host policy's `bank`.")]


@app.command()
def describe(output: Output, tcti: Tcti = DEVICE) -> None:
    """On the host: write the EK's certificate and the AK's public area."""
    with Tpm(tcti) as tpm:
        _write(output, tpm.describe())


@app.command()
def challenge(
    described: Annotated[Path, typer.Argument(help="The file that `tpm describe` wrote.")],
    ek_roots: Annotated[
        list[Path], typer.Option("--ek-roots", help="TPM vendors' root and intermediate certificates (PEM).")
    ],
    output: Output,
    keep: Annotated[Path, typer.Option(help="The file to keep until the host has answered; it is not secret.")],
) -> None:
    """Operator: check the EK's certificate and the AK, and create a challenge that only that TPM can answer."""
    roots = read_bundle([path.read_bytes() for path in ek_roots])
    asked, kept = challenge_for(read_json(TpmDescription, described), roots, int(time.time()))
    _write(output, asked)
    _write(keep, kept)


@app.command()
def activate(
    asked: Annotated[Path, typer.Argument(metavar="CHALLENGE", help="The file that `tpm challenge` wrote.")],
    output: Output,
    tcti: Tcti = DEVICE,
) -> None:
    """On the host: answer the challenge."""
    challenge_read = read_json(TpmChallenge, asked)
    with Tpm(tcti) as tpm:
        _write(output, TpmAnswer(credential=tpm.activate(challenge_read).hex()))


@app.command()
def quote(
    output: Annotated[Path, typer.Option("-o", "--output", help="Prefix of the files to write: .msg, .sig and .pcrs.")],
    nonce: Annotated[str | None, typer.Option(help="Qualifying data, hexadecimal; random by default.")] = None,
    bank: BankOption = BankName.SHA256,
    tcti: Tcti = DEVICE,
) -> None:
    """On the host: quote PCR 0-10, for golden values or for `attestgate verify ima`."""
    try:
        asked = token_bytes(32) if nonce is None else bytes.fromhex(nonce)
    except ValueError:
        raise wrong("--nonce", "hexadecimal", nonce) from None
    with Tpm(tcti) as tpm:
        made = tpm.quote(asked, bank.value)
    for ending, data in (("msg", made.message), ("sig", made.signature), ("pcrs", made.pcrs)):
        output.with_name(f"{output.name}.{ending}").write_bytes(data)
    say(f"nonce {asked.hex()}")


@app.command()
def serve(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 picks a free one and prints it.")
    ] = 2330,
    bank: BankOption = BankName.SHA256,
    tcti: Tcti = DEVICE,
    log: LogOption = LogFormat.JSON,
) -> None:
    """On the host: serve quotes to the agent in the enclave until Ctrl-C."""
    set_up_logs(log)
    try:
        until_told(run(tcti, bank.value, port))
    except OSError as error:
        raise Refusal.because(
            "tpm.port",
            f"{HOST}:{port}",
            expected="a free port",
            found=error.strerror,
            action="choose another port, or 0 for a free one",
        ) from None


def _write(path: Path, document: BaseModel) -> None:
    path.write_bytes(document.model_dump_json(indent=1).encode() + b"\n")
    say(f"wrote {path}")
