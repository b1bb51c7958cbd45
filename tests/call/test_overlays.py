"""What connected peers bring: who has it now, whatever comes first and ends last."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alknet.access import Access
from alknet.call import overlays as module
from alknet.call.errors import CallError
from alknet.call.from_call import Catalog
from alknet.call.overlays import CHANNEL_PLACES, MAX_SHARE, Attachment, Overlays
from alknet.call.specs import Kind, OperationSpec

PEERS = ("a", "b", "c")
NAMES = ("x/1", "x/2", "x/3")


def spec(name: str, version: str = "1") -> OperationSpec:
    return OperationSpec(name=name, kind=Kind.QUERY, access=Access(), version=version)


def catalog(*names: str, version: str = "1") -> Catalog:
    return Catalog({name: spec(name, version) for name in names})


# --- one after the other ------------------------------------------------------------------------------------------


def test_who_is_attached_offers_nothing_until_it_is_known() -> None:
    overlays = Overlays()
    one = overlays.attach("a", "session")
    assert (overlays.peers, overlays.operations("a"), one.is_filled) == (["a"], {}, False)
    assert overlays.fill(one, catalog("x/2", "x/1"))
    assert (list(overlays.operations("a")), one.is_filled) == (["x/1", "x/2"], True)
    assert overlays.find("a", "x/1") is one
    assert overlays.find("a", "x/3") is None
    assert overlays.find("b", "x/1") is None


def test_while_the_newer_one_is_asked_the_older_one_serves() -> None:
    overlays = Overlays()
    old = overlays.attach("a", "old")
    overlays.fill(old, catalog("x/1", "x/2"))
    new = overlays.attach("a", "new")
    assert overlays.find("a", "x/1") is old
    overlays.fill(new, catalog("x/1", version="2"))
    assert overlays.find("a", "x/1") is new
    assert overlays.find("a", "x/2") is old
    assert overlays.operations("a") == {"x/1": spec("x/1", "2"), "x/2": spec("x/2")}
    assert overlays.of("a") == (new, old)


def test_the_late_end_of_an_old_connection_changes_nothing_of_the_new_one() -> None:
    overlays = Overlays()
    old = overlays.attach("a", "old")
    overlays.fill(old, catalog("x/1"))
    new = overlays.attach("a", "new")
    overlays.fill(new, catalog("x/1"))
    assert overlays.detach(old)
    assert overlays.find("a", "x/1") is new
    assert not overlays.detach(old)
    assert not overlays.fill(old, catalog("x/3"))
    assert (overlays.find("a", "x/3"), old.catalog) == (None, catalog("x/1"))
    assert overlays.detach(new)
    assert (overlays.peers, overlays.of("a")) == ([], ())


def test_who_comes_again_has_its_old_place() -> None:
    overlays = Overlays()
    first = overlays.attach("b", "")
    overlays.attach("a", "")
    overlays.detach(first)
    assert overlays.peers == ["a"]
    overlays.attach("b", "")
    assert overlays.peers == ["b", "a"]


def test_places_are_remembered_for_so_many_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SLOTS", 3)
    overlays = Overlays()
    stays = overlays.attach("stays", "")
    for name in ("a", "b", "c", "d"):
        overlays.detach(overlays.attach(name, ""))
    assert len(overlays._slots) <= 3
    assert overlays.peers == [stays.peer]


def test_generations_only_grow() -> None:
    overlays = Overlays()
    generations = []
    for peer in "abab":
        one = overlays.attach(peer, "")
        overlays.detach(one)
        generations.append(one.generation)
    assert generations == sorted(set(generations))


# --- in any order -------------------------------------------------------------------------------------------------


@dataclass
class Model:
    """What is attached, newest first; all that was ever attached; and who came first."""

    attached: dict[str, list[tuple[Attachment, dict[str, str]]]] = field(default_factory=dict)
    ever: list[Attachment] = field(default_factory=list)
    order: list[str] = field(default_factory=list)

    def find(self, peer: str, name: str) -> Attachment | None:
        return next((one for one, has in self.attached.get(peer, []) if name in has), None)

    def operations(self, peer: str) -> dict[str, OperationSpec]:
        has: dict[str, str] = {}
        for _, names in reversed(self.attached.get(peer, [])):
            has |= names
        return {name: spec(name, has[name]) for name in sorted(has)}

    def entry(self, one: Attachment) -> tuple[Attachment, dict[str, str]] | None:
        return next((entry for entry in self.attached.get(one.peer, []) if entry[0] is one), None)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("attach"), st.sampled_from(PEERS)),
        st.tuples(st.just("fill"), st.integers(0, 30), st.sets(st.sampled_from(NAMES))),
        st.tuples(st.just("detach"), st.integers(0, 30)),
    ),
    max_size=40,
)


@settings(max_examples=150)
@given(STEPS)
def test_in_any_order_there_is_what_the_live_connections_brought_and_nothing_else(steps: list[tuple]) -> None:  # type: ignore[type-arg]
    overlays, model = Overlays(), Model()
    for number, (what, *how) in enumerate(steps):
        if what == "attach":
            one = overlays.attach(how[0], number)
            assert all(one.generation > other.generation for other in model.ever)
            model.attached.setdefault(how[0], []).insert(0, (one, {}))
            model.ever.append(one)
            if how[0] not in model.order:
                model.order.append(how[0])
        elif model.ever:
            one = model.ever[how[0] % len(model.ever)]
            entry = model.entry(one)
            if what == "fill":
                assert overlays.fill(one, catalog(*how[1], version=str(number))) is (entry is not None)
                if entry is not None:
                    entry[1].clear()
                    entry[1].update(dict.fromkeys(how[1], str(number)))
            else:
                assert overlays.detach(one) is (entry is not None)
                if entry is not None:
                    model.attached[one.peer].remove(entry)
        here = [peer for peer in model.order if model.attached.get(peer)]
        assert overlays.peers == here
        assert list(overlays) == [one for peer in here for one, _ in model.attached[peer]]
        for peer in PEERS:
            assert overlays.of(peer) == tuple(one for one, _ in model.attached.get(peer, []))
            assert overlays.operations(peer) == model.operations(peer)
            for name in NAMES:
                assert overlays.find(peer, name) is model.find(peer, name)
        for name in NAMES:
            assert overlays.offering(name) == [peer for peer in here if model.find(peer, name) is not None]
        for one in model.ever:
            assert overlays.is_attached(one) is (model.entry(one) is not None)


def test_nobody_takes_all_the_places_on_a_connection() -> None:
    attachment = Overlays().attach("w1", object())
    for _ in range(MAX_SHARE // CHANNEL_PLACES - 1):
        attachment.take("mallory", CHANNEL_PLACES)
    for _ in range(CHANNEL_PLACES):
        attachment.take("mallory")
    for places in (1, CHANNEL_PLACES):
        with pytest.raises(CallError, match="mallory has as many calls and channels to peer 'w1'") as refused:
            attachment.take("mallory", places)
        assert refused.value.code == "RESOURCE_EXHAUSTED"
    assert attachment.take("alice", CHANNEL_PLACES) == "alice"
    attachment.leave("mallory", CHANNEL_PLACES)
    assert attachment.take("mallory") == "mallory"


def test_places_are_forgotten_when_they_are_given_back() -> None:
    attachment = Overlays().attach("w1", object())
    who = attachment.take(None, CHANNEL_PLACES)
    attachment.take(None)
    attachment.leave(who, CHANNEL_PLACES)
    attachment.leave(who)
    assert attachment.running == {}
