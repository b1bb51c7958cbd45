"""[gateway] and [mcp]: what may be set, and how it is written down."""

from typing import Any

import pytest
from pydantic import ValidationError

from alknet.config.base import Model
from alknet.config.gateway import Gateway, Mcp


def test_what_is_set_without_a_word_is_safe() -> None:
    gateway = Gateway()
    assert (gateway.hosts, gateway.origins, gateway.https_host) == ((), (), "")
    assert gateway.enabled
    assert gateway.plaintext_loopback
    assert Mcp().max_tools == 100


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("node.example", "node.example"), ("NODE.example.", "node.example"), ("node.example:8443", "node.example:8443"),
        ("192.0.2.1:80", "192.0.2.1:80"), ("[2001:DB8::1]:80", "[2001:db8::1]:80"), ("2001:db8::1", "2001:db8::1"),
        ("[::1]", "::1"), ("*", "*"), ("*.example.org", "*.example.org"),
    ],
)  # fmt: skip
def test_a_host_is_a_name_with_a_port_or_without(text: str, kept: str) -> None:
    assert Gateway(hosts=(text,)).hosts == (kept,)


@pytest.mark.parametrize(
    "text",
    ["", " ", "a b", "http://node", "node:0", "node:65536", "node:x", "user@node", "node/x", "é.example", "*x", "[::1"],
)
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        Gateway(hosts=(text,))


@pytest.mark.parametrize("text", ["https://node.example", "https://node.example/x", "node.example:99999"])
def test_a_host_that_was_copied_from_a_url_is_refused_with_what_it_should_be(text: str) -> None:
    for field, value in (("hosts", (text,)), ("https_host", text)):
        with pytest.raises(ValidationError, match=r"must be NAME or NAME:PORT, without \"https://\""):
            Gateway(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["https://app.example", "http://localhost:3000", "null", "*"])
def test_an_origin_is_one_as_browsers_write_it(text: str) -> None:
    assert Gateway(origins=(text,)).origins == (text,)


@pytest.mark.parametrize(
    "text", ["", "app.example", "https://App.example", "https://app.example/", "https://app.example/x", "https://*.example",
             "https://u@app.example", "https://app.example:x", "https://app.example:443", "http://app.example:80",
             "NULL", "https://"],
)  # fmt: skip
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        Gateway(origins=(text,))


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_body", 1023), ("max_body", 64 * 1024 * 1024 + 1), ("header_timeout", 0), ("header_timeout", "301s"),
     ("body_timeout", -1), ("body_timeout", "2h"), ("hosts", ("a",) * 257), ("origins", ("null",) * 257), ("more", 1)],
)  # fmt: skip
def test_limits_have_limits(field: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        Gateway(**{field: value})


def test_durations_are_written_with_units() -> None:
    gateway = Gateway(header_timeout="1500ms", body_timeout="2m")  # type: ignore[arg-type]
    assert (gateway.header_timeout, gateway.body_timeout) == (1.5, 120.0)


@pytest.mark.parametrize("value", [-1, 10_001, "x"])
def test_tools_are_so_many(value: Any) -> None:
    with pytest.raises(ValidationError):
        Mcp(max_tools=value)


def test_a_model_cannot_be_changed_and_knows_its_keys() -> None:
    class One(Model):
        value: int = 1

    with pytest.raises(ValidationError):
        One().value = 2  # type: ignore[misc]
    with pytest.raises(ValidationError):
        One(other=1)  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        Gateway(enabled="maybe")
