"""Operations of peers as operations of this node: their names, what they ask for, and who serves them."""

import random
from dataclasses import replace
from typing import Any

import pytest

from alknet.access import Access
from alknet.call.exposed import Exposed, Exposure, Terms
from alknet.call.from_call import Catalog
from alknet.call.overlays import Attachment, Overlays
from alknet.call.routing import Routes, Routing
from alknet.call.specs import Kind, OperationSpec

LAB = Terms(("*",), Exposure("lab"))


def spec(name: str, kind: Kind = Kind.QUERY, **fields: Any) -> OperationSpec:
    return OperationSpec(name=name, kind=kind, access=fields.pop("access", Access()), **fields)


class Place:
    def __init__(self, **terms: Terms) -> None:
        self.overlays = Overlays()
        self.exposed = Exposed(self.overlays, Routes(Routing.FIRST, rng=random.Random(0)))
        self.terms = terms

    def bring(self, peer: str, *specs: OperationSpec) -> Attachment:
        attachment = self.overlays.attach(peer, "session")
        self.overlays.fill(attachment, Catalog({one.name: one for one in specs}))
        return attachment

    def rebuild(self) -> bool:
        return self.exposed.rebuild(self.terms)


@pytest.mark.parametrize(
    ("name", "globs", "wanted"),
    [
        ("fs/read", ("fs/*",), True),
        ("fs/read", ("fs/read",), True),
        ("fs/read", ("db/*", "*/read"), True),
        ("fs/read", ("FS/*",), False),
        ("fs/read", (), False),
        ("services/list", ("*",), False),
        ("services/x", ("services/x",), False),
        ("servicesx/list", ("*",), True),
    ],
)
def test_what_a_peer_may_bring(name: str, globs: tuple[str, ...], wanted: bool) -> None:
    assert Terms(globs).wants(name) is wanted


def test_only_what_is_exposed_is_there_under_its_prefix() -> None:
    place = Place(a=LAB, b=Terms(("*",)))
    place.bring("a", spec("fs/read"))
    place.bring("b", spec("fs/write"))
    place.bring("unknown", spec("fs/other"))
    assert place.rebuild()
    assert list(place.exposed.operations) == ["lab/fs/read"]
    assert place.exposed.peers("lab/fs/read") == ("a",)
    assert place.exposed.peers("fs/read") == ()


@pytest.mark.parametrize(("scope", "asked"), [(None, "lab:fs:read"), ("lab:use", "lab:use")])
def test_it_asks_for_a_scope_of_this_node_and_for_what_the_other_node_asks_for(scope: str | None, asked: str) -> None:
    place = Place(a=Terms(("*",), Exposure("lab", scope)))
    theirs = Access(
        required_scopes=("fs:read",), required_scopes_any=("x", "y"), resource_type="file", resource_action="read"
    )
    place.bring("a", spec("fs/read", access=theirs, resource_id_path="$.path"))
    place.rebuild()
    found = place.exposed.operations["lab/fs/read"].spec
    assert found.access == replace(theirs, required_scopes=(asked, "fs:read"))
    assert (found.name, found.resource_id_path) == ("lab/fs/read", "$.path")


def test_what_is_public_there_is_not_public_here() -> None:
    place = Place(a=LAB)
    place.bring("a", spec("fs/read", access=Access(public=True)))
    place.rebuild()
    assert place.exposed.operations["lab/fs/read"].spec.access == Access(required_scopes=("lab:fs:read",))


def test_peers_that_expose_one_name_share_it_in_the_order_in_which_they_came() -> None:
    place = Place(a=LAB, b=LAB, c=Terms(("*",), Exposure("other")))
    place.bring("b", spec("fs/read", version="of b"))
    one = place.bring("a", spec("fs/read", version="of a"), spec("fs/only"))
    place.bring("c", spec("fs/read"))
    place.rebuild()
    assert place.exposed.peers("lab/fs/read") == ("b", "a")
    assert place.exposed.peers("lab/fs/only") == ("a",)
    assert place.exposed.peers("other/fs/read") == ("c",)
    assert place.exposed.operations["lab/fs/read"].spec.version == "of b", "as the first one describes it"
    place.overlays.detach(one)
    place.exposed.withdraw("a")
    assert (place.exposed.peers("lab/fs/read"), place.exposed.peers("lab/fs/only")) == (("b",), ())
    assert "lab/fs/only" in place.exposed.operations, "until it is rebuilt"
    assert place.rebuild()
    assert "lab/fs/only" not in place.exposed.operations


def test_one_of_another_kind_does_not_serve_the_name() -> None:
    place = Place(a=LAB, b=LAB)
    place.bring("a", spec("fs/read", Kind.QUERY))
    place.bring("b", spec("fs/read", Kind.SUBSCRIPTION))
    place.rebuild()
    assert place.exposed.peers("lab/fs/read") == ("a",)


def test_what_stays_as_it_was_stays_the_same_object() -> None:
    place = Place(a=LAB, b=LAB)
    place.bring("a", spec("fs/read"), spec("fs/write"))
    assert place.rebuild()
    before = dict(place.exposed.operations)
    assert not place.rebuild()
    place.bring("b", spec("fs/read"))
    assert not place.rebuild(), "who serves it is nobody's business"
    assert place.exposed.peers("lab/fs/read") == ("a", "b")
    place.bring("a", spec("fs/read", summary="new"), spec("fs/write"))
    assert place.rebuild()
    now = place.exposed.operations
    assert now["lab/fs/write"] is before["lab/fs/write"]
    assert now["lab/fs/read"] is not before["lab/fs/read"]


def test_another_scope_is_another_operation() -> None:
    place = Place(a=LAB)
    place.bring("a", spec("fs/read"))
    place.rebuild()
    place.terms = {"a": Terms(("*",), Exposure("lab", "lab:use"))}
    assert place.rebuild()
    assert place.exposed.operations["lab/fs/read"].spec.access.required_scopes == ("lab:use",)


def test_a_name_that_gets_too_long_is_left_out() -> None:
    place = Place(a=Terms(("*",), Exposure("p" * 60)))
    place.bring("a", spec("fs/" + "x" * 100), spec("fs/read"))
    place.rebuild()
    assert list(place.exposed.operations) == ["p" * 60 + "/fs/read"]


def test_it_calls_nothing_and_has_no_rights_of_its_own() -> None:
    place = Place(a=LAB)
    place.bring("a", spec("fs/read"))
    place.rebuild()
    operation = place.exposed.operations["lab/fs/read"]
    assert (operation.calls, operation.authority.scopes) == ((), frozenset())
