"""Types as values: unions are as short as they can be, and parts are found and replaced."""

from alknet.call.typed_types import (
    ANY,
    MAX_OPTIONS,
    NONE,
    Choice,
    Generic,
    Named,
    Plain,
    Type,
    Union,
    parts_of,
    union,
    without,
)

INT, STR = Plain("int"), Plain("str")


def test_a_union_is_flat_has_each_type_once_and_none_last() -> None:
    assert union([NONE, INT, Union((STR, INT))]) == Union((INT, STR, NONE))
    assert union([INT, INT]) == INT
    assert union([]) == ANY
    assert union([INT, ANY]) == ANY
    assert union([Choice(('"a"',)), INT, Choice(('"b"', '"a"'))]) == Union((Choice(('"a"', '"b"')), INT))
    assert union([Named(one) for one in range(MAX_OPTIONS + 1)]) == ANY


def test_parts_are_found_and_replaced_at_any_depth() -> None:
    deep: Type = Generic("dict", (STR, Union((Named(3), Generic("list", (Named(4),))))))
    assert [one for one in parts_of(deep) if isinstance(one, Named)] == [Named(3), Named(4)]
    assert without(deep, {Named(4): INT}) == Generic("dict", (STR, Union((Named(3), Generic("list", (INT,))))))
    assert without(deep, {Named(3): ANY}) == Generic("dict", (STR, ANY))
