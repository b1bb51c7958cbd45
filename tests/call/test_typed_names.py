"""Which types are one, what they are called, and in what order they stand."""

import pytest

from alknet.call import typed_names
from alknet.call.typed_names import Names, allocate
from alknet.call.typed_types import (
    ANY,
    NONE,
    Alias,
    Choice,
    Declared,
    Field,
    Generic,
    Named,
    Plain,
    Record,
    Type,
    Union,
)

INT, STR = Plain("int"), Plain("str")


def record(**fields: Type) -> Record:
    return Record(tuple(Field(name, type_, True) for name, type_ in fields.items()))


def declared(base: str, body: Record | Alias, operation: str = "FsRead", role: str = "Output") -> Declared:
    return Declared(base, operation, role, body)


def named(*types: Declared, taken: set[str] | None = None) -> Names:
    """All of these, each written somewhere."""
    names = Names(types, [Named(key) for key in range(len(types))])
    names.give(set() if taken is None else taken)
    return names


def test_equal_types_are_one() -> None:
    stock = record(left=INT)
    names = named(declared("Stock", stock), declared("Stock", stock, "FsList", "Input"), declared("Other", stock))
    assert names.names == {0: "Stock", 2: "Other"}
    assert names.text(names.settled(Generic("list", (Named(1),)))) == "list[Stock]"


def test_types_that_refer_to_each_other_are_one_if_nothing_tells_them_apart() -> None:
    trees = [declared("Tree", record(next=Union((Named(other), NONE)))) for other in (1, 0, 2)]
    assert named(*trees).names == {0: "Tree"}
    trees.append(declared("Tree", record(next=Union((Named(4), NONE)))))
    trees.append(declared("Tree", record(next=Union((Named(3), NONE)), more=INT)))
    assert len(named(*trees).names) == 3


def test_a_chain_that_is_too_long_to_compare_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typed_names, "MAX_LOOKS", 0)
    length = typed_names.MIN_ROUNDS + 5
    chain = [declared("Link", record(next=Named(key + 1))) for key in range(length)] + [declared("Link", record())]
    assert len(named(*chain, *chain[:0]).names) == length + 1
    short = [declared("Link", record()), declared("Link", record())]
    assert len(named(*short).names) == 1


def test_different_types_with_one_title_get_the_same_form_of_name() -> None:
    one, two, three = record(a=INT), record(b=INT), record(c=INT)
    assert named(declared("Stock", one), declared("Stock", two, role="Input")).names == {
        0: "StockOutput",
        1: "StockInput",
    }
    assert set(named(declared("Stock", one), declared("Stock", two, "FsList")).names.values()) == {
        "FsReadStock",
        "FsListStock",
    }
    assert list(named(declared("A", one), declared("A", two), declared("A", three)).names.values()) == [
        "FsReadAOutput",
        "FsReadAOutput2",
        "FsReadAOutput3",
    ]


def test_a_name_that_means_something_else_is_not_given() -> None:
    taken = {"int", "Any"}
    assert named(declared("Any", record(a=INT)), taken=taken).names == {0: "AnyOutput"}
    assert taken == {"int", "Any", "AnyOutput"}


def test_what_nothing_refers_to_has_no_name() -> None:
    names = Names([declared("A", record(b=Named(1))), declared("B", record()), declared("C", record())], [Named(0)])
    names.give(set())
    assert list(names.names.values()) == ["A", "B"]


@pytest.mark.parametrize(
    ("aliases", "wanted"),
    [
        ([INT], "int"),
        ([Named(1), Named(2), STR], "str"),
        ([Named(0)], "Any"),
        ([Union((Named(1), STR)), Union((Named(0), INT))], "Any"),
        ([Union((Named(1), STR)), Named(1)], "Any"),
        ([Choice(('"a"',))], "A0"),
        ([Generic("list", (Named(1),)), Union((Named(0), INT))], "A0"),
        ([Generic("list", (Named(0),))], "A0"),
    ],
)
def test_an_alias_has_a_name_only_if_it_says_something(aliases: list[Type], wanted: str) -> None:
    names = named(*(declared(f"A{key}", Alias(type_)) for key, type_ in enumerate(aliases)))
    assert names.text(names.settled(Named(0))) == wanted


def test_types_stand_after_those_that_they_refer_to() -> None:
    names = named(
        declared("A", record(b=Named(1))), declared("B", record(c=Named(2))), declared("C", record(a=Named(2)))
    )
    assert [names.names[key] for key in names.order()] == ["C", "B", "A"]


def test_a_type_that_does_not_stand_yet_is_named_in_a_text() -> None:
    names = named(declared("A", record()), declared("B", Alias(Generic("list", (Named(1),)))))
    assert names.annotation(Named(0)) == '"A"'
    names.written(0)
    names.written(1, is_text=True)
    assert names.annotation(Union((Named(0), NONE))) == "A | None"
    assert names.annotation(Generic("list", (Named(1),))) == '"list[B]"'
    assert names.annotation(Generic("dict", (STR, ANY)), {"str"}) == "dict[builtins.str, Any]"
    assert names.used == {"builtins"}
    assert names.means("A")
    assert not names.means("list")


def test_names_are_given_independently_of_the_order() -> None:
    wanted = [("A", "OneA"), ("A", "TwoA"), ("B", "OneB"), ("C",), ("C",)]
    found = dict(zip(wanted, allocate(wanted[:3], set()), strict=False))
    again = dict(zip(reversed(wanted[:3]), allocate(wanted[2::-1], set()), strict=True))
    assert found == again == {("A", "OneA"): "OneA", ("A", "TwoA"): "TwoA", ("B", "OneB"): "B"}
    assert allocate([("C",), ("C",)], {"C2"}) == ["C", "C3"]
