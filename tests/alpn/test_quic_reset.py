"""Stateless resets: what they look like, who can make them, and how many."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.alpn.quic_reset import MAX_RESETS_PER_S, TOKEN_BYTES, ResetTokens, is_reset

SECRET = b"s" * 32
CID = b"12345678"


@given(size=st.integers(0, 2000), cid=st.binary(min_size=1, max_size=20))
def test_an_answer_is_shorter_than_what_it_answers_and_is_known_by_its_token(size: int, cid: bytes) -> None:
    tokens = ResetTokens(SECRET)
    answer = tokens.answer(bytes(size), cid, now=1.0)
    if size < 22:
        assert answer is None
        return
    assert answer is not None
    assert 21 <= len(answer) < size
    assert answer[0] & 0xC0 == 0x40, "it looks like a packet with a short header"
    assert is_reset(answer, [b"x" * TOKEN_BYTES, tokens.token(cid)])
    assert not is_reset(answer, [ResetTokens(b"t" * 32).token(cid), tokens.token(cid + b"y")])


@given(datagram=st.binary(max_size=100))
def test_nothing_else_is_a_reset(datagram: bytes) -> None:
    assert not is_reset(datagram, [ResetTokens(SECRET).token(CID)])


@pytest.mark.parametrize("tokens", [[], [b""], [b"short"]])
def test_without_a_token_nothing_is_a_reset(tokens: list[bytes]) -> None:
    assert not is_reset(b"\x40" + bytes(40), tokens)


def test_two_starts_with_one_secret_make_the_same_tokens() -> None:
    assert ResetTokens(SECRET).token(CID) == ResetTokens(SECRET).token(CID)


def test_no_more_are_made_in_a_second_than_allowed() -> None:
    tokens = ResetTokens(SECRET)
    made = [tokens.answer(bytes(100), CID, now=5 + i / 1000) for i in range(2 * MAX_RESETS_PER_S)]
    assert sum(answer is not None for answer in made) == MAX_RESETS_PER_S
    assert tokens.answer(bytes(100), CID, now=6.5) is not None
