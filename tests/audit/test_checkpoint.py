"""Signed heads as C2SP has them, and what a host makes of them."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from attestgate.host_agent.witness import Witness
from attestgate.schemas.base import Refusal
from attestgate.schemas.checkpoint import MAX_NOTE, Checkpoint, key_id, open_checkpoint, origin_of, sign_checkpoint
from tests.support.audit.keeper import KEY, SIGNERS
from tests.support.threats import rows, threat

HEAD = Checkpoint(origin=origin_of("test.example"), size=5, root=b"\x01" * 32, cursor=7, at=1_800_000_000)
OTHER = Ed25519PrivateKey.from_private_bytes(b"\x08" * 32)


def test_a_key_is_named_as_in_the_note_package() -> None:
    """The key, id and signature of the example in Go's golang.org/x/mod/sumdb/note."""
    raw = base64.b64decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    signature = base64.b64decode(
        "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
    )
    text = b"If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
    assert raw[:1] == b"\x01"
    assert key_id("PeterNeumann", raw[1:]) == signature[:4] == bytes.fromhex("c74f20a3")
    Ed25519PublicKey.from_public_bytes(raw[1:]).verify(signature[4:], text)


def test_what_was_signed_is_read() -> None:
    assert open_checkpoint(sign_checkpoint(KEY.key, HEAD), SIGNERS) == HEAD


def test_signatures_of_witnesses_are_passed_over() -> None:
    note = sign_checkpoint(KEY.key, HEAD)
    cosigned = f"{note}— witness.example/w {base64.b64encode(bytes(68)).decode()}\n"
    assert open_checkpoint(cosigned, SIGNERS) == HEAD


@pytest.mark.parametrize(
    "note",
    [
        "",
        "\n\n",
        HEAD.text(),
        sign_checkpoint(OTHER, HEAD),
        sign_checkpoint(KEY.key, HEAD).replace("\n5\n", "\n6\n"),
        sign_checkpoint(KEY.key, HEAD).replace("\n5\n", "\n05\n"),
        sign_checkpoint(KEY.key, HEAD).replace("cursor 7", "cursor 8"),
        sign_checkpoint(KEY.key, HEAD).replace("— test.example", "— test.example/other"),
        sign_checkpoint(KEY.key, HEAD) + "x" * MAX_NOTE,
    ],
)
def test_what_is_no_head_of_the_managers_is_refused(note: str) -> None:
    with pytest.raises(Refusal):
        open_checkpoint(note, SIGNERS)


@given(st.integers(0, 2000), st.integers(1, 0x10FFFF).map(chr))
def test_no_character_can_be_changed(place: int, other: str) -> None:
    note = sign_checkpoint(KEY.key, HEAD)
    place %= len(note) - 1
    if note[place] == other:
        return
    try:
        assert open_checkpoint(note[:place] + other + note[place + 1 :], SIGNERS) == HEAD
    except Refusal:
        return
    # Only what stands for the same bytes may differ: the unused bits of base64, and what ends a line.
    assert place >= note.index("— ")


@given(st.text(max_size=300))
def test_any_text_is_refused_and_nothing_else_happens(text: str) -> None:
    with pytest.raises(Refusal):
        open_checkpoint(text, SIGNERS)


def heads(*sizes_and_roots: tuple[int, int]) -> list[str]:
    made = [HEAD.model_copy(update={"size": size, "root": bytes([root]) * 32}) for size, root in sizes_and_roots]
    return [sign_checkpoint(KEY.key, head) for head in made]


@threat(rows.LOG_EDITED, rows.KEY_MANAGER_LOG)
def test_a_host_notices_two_stories(capsys: pytest.CaptureFixture[str]) -> None:
    witness = Witness(SIGNERS)
    for note in ("", *heads((3, 1), (5, 2), (4, 9))):  # the last comes from a worker that is a batch behind
        witness.hear(note)
    assert witness.seen is not None and witness.seen.size == 5
    assert "two heads of one size" not in capsys.readouterr().out
    witness.hear(heads((5, 3))[0])
    assert "two heads of one size" in capsys.readouterr().out


def test_a_host_hears_of_the_next_tree(capsys: pytest.CaptureFixture[str]) -> None:
    """Which begins with one entry: that is no older head, and no other story; but two of it are."""
    witness = Witness(SIGNERS)
    first, last, begun, other = heads((1, 7), (5, 1), (1, 2), (1, 3))
    begun, other = (
        sign_checkpoint(
            KEY.key, open_checkpoint(note, SIGNERS).model_copy(update={"origin": origin_of("test.example", 2)})
        )
        for note in (begun, other)
    )
    for note in (last, begun, first, last):
        witness.hear(note)
    assert witness.seen is not None and (witness.seen.tree, witness.seen.size) == (2, 1)
    assert "two heads of one size" not in capsys.readouterr().out
    witness.hear(other)
    assert "two heads of one size" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("origin", "log", "tree"),
    [
        (origin_of("test.example"), "test.example/attestgate/decisions", 1),
        (origin_of("test.example", 2), "test.example/attestgate/decisions", 2),
        (origin_of("test.example", 19), "test.example/attestgate/decisions", 19),
        ("test.example/attestgate/decisions/1", "test.example/attestgate/decisions/1", 1),
        ("test.example/attestgate/decisions/02", "test.example/attestgate/decisions/02", 1),
        ("test.example/attestgate/decisions/2/3", "test.example/attestgate/decisions/2/3", 1),
        ("decisions/2", "decisions/2", 1),
    ],
)
def test_a_tree_is_named_in_one_way(origin: str, log: str, tree: int) -> None:
    head = HEAD.model_copy(update={"origin": origin})
    assert (head.log, head.tree) == (log, tree)
    assert open_checkpoint(sign_checkpoint(KEY.key, head), SIGNERS) == head


def test_a_host_believes_its_managers_only(capsys: pytest.CaptureFixture[str]) -> None:
    witness = Witness(SIGNERS)
    witness.hear(sign_checkpoint(OTHER, HEAD))
    assert witness.seen is None
    assert "head refused" in capsys.readouterr().out
