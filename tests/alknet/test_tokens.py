"""Tokens: what a text looks like, what is kept of it, and what a store of them refuses."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet import tokens as module
from alknet.access import DaemonUser, Identity, Peer, Policy, Token, token_digest
from alknet.errors import InvalidInputError, UnavailableError
from alknet.state import SqliteState
from alknet.tokens import (
    ALPHABET,
    MAX_DESCRIPTION_CHARS,
    MAX_SCOPE_CHARS,
    MAX_SCOPES,
    MemoryTokens,
    TokenStore,
    create_token,
    make_token,
)

NOW = 1_700_000_000.0


def kept(prefix: str, *, expires_at: float | None = None, description: str = "") -> Token:
    return Token(prefix, "alice", frozenset({"fs:read", "ssh:*"}), bytes(32), expires_at, description)


# --- making one -----------------------------------------------------------------------------------------------


def test_a_text_is_a_public_prefix_and_a_secret_of_at_least_160_bits() -> None:
    text, token = make_token("alice", ["fs:read"], expires_at=NOW, description="nightly")
    match = re.fullmatch(r"alk_([a-zA-Z0-9]{8})_([a-zA-Z0-9]+)", text)
    assert match is not None
    assert len(match[2]) * math.log2(len(set(ALPHABET))) >= 160
    assert token == Token(match[1], "alice", frozenset({"fs:read"}), token_digest(text), NOW, "nightly")


def test_nothing_of_what_is_kept_shows_the_secret_or_its_digest() -> None:
    text, token = make_token("alice", [], expires_at=None)
    secret = text.rpartition("_")[2]
    shown = repr(token) + str(token)
    for hidden in (secret, token.digest.hex(), repr(token.digest)):
        assert hidden not in shown


def test_every_token_is_another_and_uses_the_whole_alphabet() -> None:
    texts = [make_token("alice", [], expires_at=None)[0] for _ in range(500)]
    assert len({text[4:12] for text in texts}) == len({text[13:] for text in texts}) == 500
    assert {char for text in texts for char in text[13:]} == set(ALPHABET)
    assert {char for text in texts for char in text[4:12]} == set(ALPHABET)


def test_what_was_made_is_found_by_a_policy_that_has_it() -> None:
    text, token = make_token("alice", ["fs:read"], expires_at=NOW)
    policy = Policy({"alice": Peer("alice")}, "r1", b"k" * 32, DaemonUser("root", True), tokens={token.prefix: token})
    assert policy.lookup_token(text) == Identity("alice", frozenset({"fs:read"}), f"token:{token.prefix}", NOW)
    assert policy.lookup_token(make_token("alice", ["fs:read"], expires_at=NOW)[0]) is None


@pytest.mark.parametrize(
    "description", ["x" * (MAX_DESCRIPTION_CHARS + 1), "two\nlines", "a\tb", "\x1b[31m", "\udc80", "\u202etxt"]
)
def test_a_description_is_one_printable_line(description: str) -> None:
    with pytest.raises(InvalidInputError, match="description"):
        make_token("alice", [], expires_at=None, description=description)


def test_there_are_only_so_many_scopes_of_such_a_length() -> None:
    most = [f"a:{n}" for n in range(MAX_SCOPES - 1)] + ["a" * MAX_SCOPE_CHARS]
    assert make_token("alice", most * 2, expires_at=None, description="é" * MAX_DESCRIPTION_CHARS)[1].scopes == {*most}
    for scopes in ([*most, "one:more"], ["a" * (MAX_SCOPE_CHARS + 1)]):
        with pytest.raises(InvalidInputError, match="at most 256 scopes of 256 characters"):
            make_token("alice", scopes, expires_at=None)


@pytest.mark.parametrize("expires_at", [math.nan, math.inf, -math.inf])
def test_an_end_is_a_time(expires_at: float) -> None:
    with pytest.raises(InvalidInputError, match="is a time"):
        make_token("alice", [], expires_at=expires_at)


# --- keeping it -----------------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TokenStore]:
    if request.param == "memory":
        yield MemoryTokens()
        return
    state = SqliteState(tmp_path / "state.db")
    yield state
    state.close()


def test_what_is_added_is_kept_whole_and_in_the_order_of_the_prefixes(store: TokenStore) -> None:
    assert store.all() == ()
    tokens = [kept("bbbbbbbb", expires_at=NOW + 0.5), kept("aaaaaaaa", description="für 'x'; --"), kept("BBBBBBBB")]
    for token in tokens:
        assert store.add(token, now=NOW)
    assert store.all() == (tokens[2], tokens[1], tokens[0])


def test_a_prefix_is_taken_once(store: TokenStore) -> None:
    assert store.add(kept("aaaaaaaa"), now=NOW)
    assert not store.add(kept("aaaaaaaa", description="other"), now=NOW)
    assert store.add(kept("AAAAAAAA"), now=NOW)
    assert [token.description for token in store.all()] == ["", ""]


def test_what_is_removed_is_gone_and_nothing_else(store: TokenStore) -> None:
    first, second = kept("aaaaaaaa", expires_at=NOW), kept("bbbbbbbb")
    for token in (first, second):
        store.add(token, now=NOW - 1)
    for wrong in ("", "aaaaaaa", "AAAAAAAA", "%", "aaaaaaaa "):
        assert store.remove(wrong) is None
    assert store.remove("aaaaaaaa") == first
    assert store.remove("aaaaaaaa") is None
    assert store.all() == (second,)


def test_pruning_takes_what_has_expired_exactly(store: TokenStore) -> None:
    for prefix, at in (("before00", -0.001), ("now00000", 0.0), ("after000", 0.001), ("long0000", 1e9)):
        store.add(kept(prefix, expires_at=NOW + at), now=NOW - 1)
    store.add(kept("never000"), now=NOW - 1)
    assert len(store.all()) == 5
    assert store.prune(NOW) == 2
    assert [token.prefix for token in store.all()] == ["after000", "long0000", "never000"]
    assert store.prune(NOW) == 0


def test_adding_prunes_also_when_the_prefix_is_taken(store: TokenStore) -> None:
    for prefix in ("aaaaaaaa", "bbbbbbbb"):
        store.add(kept(prefix, expires_at=NOW + (5 if prefix == "bbbbbbbb" else 0)), now=NOW - 1)
    assert not store.add(kept("bbbbbbbb"), now=NOW)
    assert [token.prefix for token in store.all()] == ["bbbbbbbb"]
    assert store.add(kept("bbbbbbbb"), now=NOW + 5), "the expired one makes way"


def test_a_full_store_refuses_until_one_has_gone(store: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("alknet.tokens.MAX_TOKENS", "alknet.state.MAX_TOKENS"):
        monkeypatch.setattr(name, 2)
    store.add(kept("aaaaaaaa", expires_at=NOW), now=NOW - 1)
    store.add(kept("bbbbbbbb"), now=NOW - 1)
    with pytest.raises(UnavailableError, match="there are 2 tokens") as caught:
        store.add(kept("cccccccc"), now=NOW - 1)
    assert "revoke" in caught.value.hint
    assert [token.prefix for token in store.all()] == ["aaaaaaaa", "bbbbbbbb"]
    assert store.add(kept("cccccccc"), now=NOW), "an expired one does not count"
    store.remove("bbbbbbbb")
    assert store.add(kept("dddddddd"), now=NOW)


def test_creating_takes_another_prefix_when_the_first_is_taken(
    store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = iter(["aaaaaaaa", "s" * 27, "aaaaaaaa", "t" * 27, "bbbbbbbb", "u" * 27])
    monkeypatch.setattr(module, "_random", lambda count: next(drawn))
    first, _ = create_token(store, "alice", iter(["fs:read"]), now=NOW, expires_at=None)
    second, token = create_token(store, "bob", iter(["fs:read"]), now=NOW, expires_at=NOW + 5, description="b")
    assert (first, second) == ("alk_aaaaaaaa_" + "s" * 27, "alk_bbbbbbbb_" + "u" * 27)
    assert token == Token("bbbbbbbb", "bob", frozenset({"fs:read"}), token_digest(second), NOW + 5, "b")
    assert [(t.prefix, t.peer) for t in store.all()] == [("aaaaaaaa", "alice"), ("bbbbbbbb", "bob")]


def test_creating_does_not_try_for_ever(store: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_random", lambda count: "a" * count)
    create_token(store, "alice", [], now=NOW, expires_at=None)
    with pytest.raises(UnavailableError, match="no prefix"):
        create_token(store, "alice", [], now=NOW, expires_at=None)
    assert len(store.all()) == 1


# --- any sequence ---------------------------------------------------------------------------------------------

PREFIXES = st.sampled_from(["aaaaaaaa", "bbbbbbbb", "AAAAAAAA", "cccccccc"])
STEPS = st.lists(
    st.tuples(st.just("add"), PREFIXES, st.none() | st.integers(0, 9))
    | st.tuples(st.just("remove"), PREFIXES, st.just(0))
    | st.tuples(st.just("prune"), st.just(""), st.integers(0, 9)),
    max_size=12,
)


@given(STEPS)
def test_both_stores_do_the_same_whatever_is_asked(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, int | None]]
) -> None:
    memory, state = MemoryTokens(), SqliteState(tmp_path_factory.mktemp("tokens") / "state.db")
    for number, (what, prefix, at) in enumerate(steps):
        answers: list[object] = []
        for store in (memory, state):
            if what == "add":
                token = kept(prefix, expires_at=None if at is None else NOW + at, description=str(number))
                answers.append(store.add(token, now=NOW + 3))
            elif what == "remove":
                answers.append(store.remove(prefix))
            else:
                answers.append(store.prune(NOW + (at or 0)))
        assert answers[0] == answers[1]
        assert memory.all() == state.all()
    state.close()
