"""What an entry of a peer and a [[dial]] table may say, and what no single one of them can know."""

from pathlib import Path
from typing import Any

import pydantic
import pytest

from alknet.config.home import Home
from alknet.config.load import load, revision
from alknet.config.model import Settings
from alknet.config.peers import Dial, Expose, PeerEntry
from alknet.doors import mesh_settings
from alknet.errors import ConfigError


def settings_of(directory: Path, text: str, **peers: str) -> Settings:
    directory.chmod(0o700)
    home = Home(directory)
    home.config.write_text(text)
    home.config.chmod(0o600)
    home.peers.mkdir(mode=0o700, exist_ok=True)
    for name, entry in peers.items():
        home.peer(name).write_text(entry)
        home.peer(name).chmod(0o600)
    return load(home)


def problems(directory: Path, text: str, **peers: str) -> str:
    with pytest.raises(ConfigError) as caught:
        settings_of(directory, text, **peers)
    return str(caught.value)


HUB = 'addresses = ["192.0.2.1"]'

# --- one table ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("glob", ["*", "fs/*", "fs/read", "a?c/*", "*/read", "a_b-c/D"])
def test_operations_are_offered_by_name_or_glob(glob: str) -> None:
    assert PeerEntry(id="w", offers=(glob,)).offers == (glob,)


@pytest.mark.parametrize("glob", ["", "fs read", "fs:read", "a\x1b", "ä/b", "[a-z]/x", "x" * 1000, 7, None])
def test_what_no_name_can_match_is_refused(glob: Any) -> None:
    with pytest.raises(pydantic.ValidationError):
        PeerEntry.model_validate({"id": "w", "offers": [glob]})


@pytest.mark.parametrize(
    ("value", "expose"),
    [
        ("lab", Expose(prefix="lab")),
        ({"prefix": "lab"}, Expose(prefix="lab")),
        ({"prefix": "lab", "scope": "lab:use"}, Expose(prefix="lab", scope="lab:use")),
    ],
)
def test_to_expose_is_a_prefix_or_a_table_that_says_more(value: Any, expose: Expose) -> None:
    assert PeerEntry.model_validate({"id": "w", "expose": value}).expose == expose


@pytest.mark.parametrize("value", ["", "a/b", "a b", "*", "ä", 7, {}, {"prefix": "a", "scope": ""}, {"scope": "a:b"}])
def test_a_prefix_is_one_segment_of_a_name(value: Any) -> None:
    with pytest.raises(pydantic.ValidationError):
        PeerEntry.model_validate({"id": "w", "expose": value})


@pytest.mark.parametrize("table", [{}, {"peer": "Hub"}, {"peer": "hub", "carrier": "ssh"}, {"peer": "h", "imports": 1}])
def test_a_dial_that_makes_no_sense_is_refused(table: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        Dial.model_validate(table)


def test_a_dial_takes_what_the_peer_brings_unless_it_says_otherwise() -> None:
    assert Dial(peer="hub").imports
    shown = Dial.model_validate({"peer": "hub", "import": False}).model_dump()
    assert shown == {"peer": "hub", "address": None, "import": False, "carrier": "auto"}
    assert not Dial.model_validate(shown).imports
    assert "import" in Dial.model_json_schema()["properties"]


# --- all together -------------------------------------------------------------------------------------------------


def test_what_is_dialled_is_known_and_has_an_address(tmp_path: Path) -> None:
    text = '[[dial]]\npeer = "hub"\n[[dial]]\npeer = "lab"\naddress = "192.0.2.2:7000"\nimport = false\n'
    settings = settings_of(tmp_path, text, hub=HUB, lab='offers = ["*"]')
    assert [(one.peer, one.imports) for one in settings.dial] == [("hub", True), ("lab", False)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[dial]]\npeer = "gone"\n', ":2: dial: there is no peer 'gone'; 'alknet peer add gone …' makes one"),
        ('[[dial]]\npeer = "lab"\n', ":2: dial: nothing says where 'lab' is; give address here, or addresses there"),
        ('[[dial]]\npeer = "hub"\n[[dial]]\npeer = "hub"\n', ":4: dial: 'hub' stands in it twice"),
        ('[[dial]]\npeer = "hub"\nimports = false\n', "is not a known key; did you mean 'import'?"),
    ],
)
def test_what_is_wrong_with_a_dial_is_said_where_it_stands(tmp_path: Path, text: str, words: str) -> None:
    assert words in problems(tmp_path, text, hub=HUB, lab="scopes = []")


def test_peers_with_one_prefix_ask_for_one_scope(tmp_path: Path) -> None:
    plain, other = 'expose = "w"', 'expose = { prefix = "w", scope = "w:use" }'
    settings_of(tmp_path, "", a=plain, b=plain, c='expose = { prefix = "x", scope = "w:use" }')
    said = problems(tmp_path, "", a=plain, b=other)
    assert (
        "peer 'b' asks for the scope 'w:use', and another peer with the prefix 'w' for no scope in particular" in said
    )
    assert "a.toml:1" in said
    assert "a prefix has one scope" in said


def test_another_dial_or_offer_is_another_revision(tmp_path: Path) -> None:
    texts = ["", '[[dial]]\npeer = "hub"\n', '[[dial]]\npeer = "hub"\nimport = false\n']
    entries = [HUB, HUB + '\noffers = ["a/*"]', HUB + '\nexpose = "w"']
    revisions = {revision(settings_of(tmp_path, text, hub=entry)) for text in texts for entry in entries}
    assert len(revisions) == len(texts) * len(entries)


def test_a_dial_that_imports_nothing_takes_nothing_whatever_is_offered(tmp_path: Path) -> None:
    text = '[[dial]]\npeer = "hub"\nimport = false\n'
    terms = mesh_settings(
        settings_of(tmp_path, text, hub=HUB + '\noffers = ["*"]', w='offers = ["a/*"]\nexpose = "w"')
    ).terms
    assert (terms["hub"].offers, terms["w"].offers) == ((), ("a/*",))
    assert terms["w"].expose is not None
    assert (terms["w"].expose.prefix, terms["w"].expose.scope_of("w/a/b")) == ("w", "w:a:b")
