"""Bytes as callers give them: base64 is read strictly, in either alphabet."""

import base64
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from alknet.call.binary import OUTPUT, Bytes, decode_base64

ADAPTER: TypeAdapter[bytes] = TypeAdapter(Bytes)


@given(st.binary(max_size=100))
def test_every_encoding_of_bytes_is_read(data: bytes) -> None:
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = encode(data).decode()
        assert decode_base64(text) == data
        assert decode_base64(text.rstrip("=")) == data


@given(st.text(alphabet="ABab09+/-_= \n\0é", max_size=12))
def test_what_is_read_has_one_spelling_in_each_alphabet(text: str) -> None:
    try:
        data = decode_base64(text)
    except ValueError:
        return
    spellings = [encode(data).decode() for encode in (base64.b64encode, base64.urlsafe_b64encode)]
    assert text in spellings + [spelling.rstrip("=") for spelling in spellings]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("A", "wrong length"),
        ("AAAAA", "wrong length"),
        ("AA=", "wrong"),
        ("AA===", "wrong"),
        ("=", "wrong"),
        ("AA==AA==", "wrong"),
        ("AA AA", "wrong"),
        ("AAAA=", "wrong padding"),
        ("AAAA\n", "wrong"),
        ("é===", "wrong"),
        ("\ud800AAA", "wrong"),
        ("ab+_", "mixes"),
        ("a/-b", "mixes"),
        ("AB==", "bits that mean nothing"),
        ("AAB=", "bits that mean nothing"),
        ("AAB", "bits that mean nothing"),
    ],
)
def test_what_is_no_base64_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decode_base64(text)


def test_bytes_are_taken_as_they_are_and_text_as_base64() -> None:
    for value in (b"\xff\0", bytearray(b"\xff\0"), memoryview(b"\xff\0"), "/wA=", "_wA"):
        found = ADAPTER.validate_python(value)
        assert (type(found), found) == (bytes, b"\xff\0")
    with pytest.raises(ValidationError, match="should be bytes"):
        ADAPTER.validate_python(5)
    with pytest.raises(ValidationError, match="wrong padding"):
        ADAPTER.validate_python("?")


def test_text_in_an_output_is_a_mistake_and_not_base64() -> None:
    assert ADAPTER.validate_python(b"AAAA", context=OUTPUT) == b"AAAA"
    with pytest.raises(ValidationError, match="should be bytes"):
        ADAPTER.validate_python("AAAA", context=OUTPUT)


def test_a_model_shows_them_in_its_own_json_too() -> None:
    class Blob(BaseModel):
        data: Annotated[Bytes, Field(max_length=2, description="what it holds")]

    assert Blob(data=b"\xff").model_dump() == {"data": b"\xff"}
    assert Blob(data=b"\xff").model_dump_json() == '{"data":"/w=="}'
    assert Blob.model_json_schema()["properties"]["data"] == {
        "title": "Data",
        "type": "string",
        "contentEncoding": "base64",
        "description": "what it holds",
    }
    with pytest.raises(ValidationError, match="at most 2"):
        Blob(data=b"abc")
