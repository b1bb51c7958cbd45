"""From the files of a home to one frozen :class:`~alknet.config.model.Settings`.

Everything is read, then everything is checked; the first pass that finds errors reports all of its own,
each with file, line, key, what was found and what is allowed.
"""

import difflib
import json
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar

import pydantic
from blake3 import blake3
from pydantic import BaseModel

from alknet.config.fields import PEER_ID
from alknet.config.home import Home, check_not_writable_by_others, read_config_file
from alknet.config.model import Settings
from alknet.config.peers import PeerEntry
from alknet.config.positions import KeyPath, line_of, positions
from alknet.errors import ConfigError
from alknet.keys import PublicKey

__all__ = ["load", "revision"]

MAX_FILE_BYTES: Final = 1024 * 1024
MAX_SHOWN_ERRORS: Final = 20
HINT: Final = "correct it; 'alknet config check' tells whether it is right, 'alknet config schema' what is allowed"

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class _Source:
    """One file: its values and where they stand."""

    path: Path
    values: dict[str, Any]
    text: str

    @cached_property
    def lines(self) -> dict[KeyPath, int]:
        """Computed when the first error needs it."""
        return positions(self.text)

    def at(self, key: KeyPath) -> str:
        line = line_of(key, self.lines)
        return f"{self.path}:{line}" if line is not None else str(self.path)


def load(home: Home) -> Settings:
    """Read and check the whole configuration; raises `ConfigError` that names everything wrong with it."""
    if not home.exists:
        raise ConfigError(
            f"{home.path}: there is no node here (no alknet.toml)",
            hint="'alknet up' makes one, 'alknet init' makes one without starting it; --home names another place",
        )
    check_not_writable_by_others(home.path)
    main = _read(home.config)
    peer_files = [_read(path) for path in sorted(home.peers.glob("[!.]*.toml"))]
    if home.peers.exists():
        check_not_writable_by_others(home.peers)
    problems: list[str] = []
    settings = _validate(Settings, main, problems)
    inline = settings.peers if settings is not None else ()
    peers: list[tuple[_Source, KeyPath, PeerEntry]] = [
        (main, ("peers", index), peer) for index, peer in enumerate(inline)
    ]
    for source in peer_files:
        entry = _peer_from_file(source, problems)
        if entry is not None:
            peers.append((source, (), entry))
    if settings is not None:
        problems += _cross_check(settings, peers) + _check_authorities(main, settings)
        problems += _check_dialled(main, settings, [peer for _, _, peer in peers])
        problems += _check_forwarding(main, settings, {peer.id for _, _, peer in peers})
    if problems or settings is None:
        raise _error(problems)
    return settings.model_copy(update={"peers": tuple(peer for _, _, peer in peers)})


def revision(settings: Settings) -> str:
    """A short BLAKE3 digest of the whole value: equal settings have equal revisions."""
    canonical = json.dumps(settings.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return blake3(canonical.encode()).hexdigest(length=8)


def _read(path: Path) -> _Source:
    raw = read_config_file(path, max_bytes=MAX_FILE_BYTES)
    try:
        text = raw.decode("utf-8")
        values = tomllib.loads(text)
    except UnicodeDecodeError as exc:
        line = raw.count(b"\n", 0, exc.start) + 1
        raise ConfigError(f"{path}:{line}: is not UTF-8 text", hint=HINT) from exc
    except tomllib.TOMLDecodeError as exc:
        message, _, where = str(exc).partition(" (at ")
        line_text = where.removeprefix("line ").split(",")[0] if where.startswith("line") else ""
        place = f"{path}:{line_text}" if line_text.isdigit() else f"{path}:{text.count(chr(10)) + 1}"
        raise ConfigError(f"{place}: is not valid TOML: {message}", hint=HINT) from exc
    except RecursionError as exc:
        raise ConfigError(f"{path}: is nested too deeply", hint=HINT) from exc
    except ValueError as exc:  # a number with thousands of digits
        raise ConfigError(f"{path}: is not valid TOML: {exc}", hint=HINT) from exc
    return _Source(path, values, text)


def _peer_from_file(source: _Source, problems: list[str]) -> PeerEntry | None:
    name = source.path.stem
    if not PEER_ID.match(name):
        problems.append(f"{source.path}: the file's name is the peer's id and must be 1 to 63 of a-z, 0-9 and -")
        return None
    if source.values.get("id", name) != name:
        problems.append(
            f"{source.at(('id',))}: id: found {source.values['id']!r}, but the file's name makes it {name!r}"
        )
        return None
    named = _Source(source.path, {"id": name} | source.values, source.text)
    return _validate(PeerEntry, named, problems)


def _validate(model: type[M], source: _Source, problems: list[str]) -> M | None:
    try:
        return model.model_validate(source.values)
    except pydantic.ValidationError as exc:
        errors = exc.errors(include_url=False)
        for error in errors:
            below = [e for e in errors if e["loc"][:-1] == error["loc"]]
            if error["type"] == "too_short" and below:
                continue  # too short only because its elements are wrong, which is said for each of them
            problems.append(_describe(model, source, error))  # type: ignore[arg-type]
        return None


def _describe(model: type[BaseModel], source: _Source, error: dict[str, Any]) -> str:
    """One line: file, line, key, what was found and what is allowed."""
    path: KeyPath = tuple(error["loc"])
    is_key = path[-1:] == ("[key]",)  # the name of a table's entry is wrong, not its value
    path = path[:-1] if is_key else path
    key = _dotted(path)
    place = source.at(path)
    if error["type"] == "extra_forbidden":
        names = _known_names(model, path[:-1])
        near = difflib.get_close_matches(str(path[-1]), names, n=1, cutoff=0.5)
        known = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(names)}"
        return f"{place}: {key}: is not a known key; {known}"
    if error["type"] == "missing":
        return f"{place}: {key}: is missing"
    message = str(error["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    message = message.replace("a valid tuple", "a list")
    found = path[-1] if is_key else _written(source.values, path, error.get("input"))
    shown = "" if isinstance(found, dict) else f"found {_shorten(found)}: "
    return f"{place}: {key}: {shown}{message}"


def _written(values: Any, path: KeyPath, otherwise: Any) -> Any:
    """The value at `path` as it stands in the file, such as "2h" where a check has already made 7200.0 of it."""
    try:
        for step in path:
            values = values[step]
    except (KeyError, IndexError, TypeError):
        return otherwise
    return values


def _known_names(model: type[BaseModel], path: KeyPath) -> list[str]:
    """The keys that the table at `path` may have."""
    schema = model.model_json_schema()
    node: dict[str, Any] = schema
    for step in path:
        node = _deref(schema, node)
        if isinstance(step, int):
            node = node.get("items", {})
        else:
            extra = node.get("additionalProperties")
            node = node.get("properties", {}).get(step) or (extra if isinstance(extra, dict) else {})
    return sorted(_deref(schema, node).get("properties", {}))


def _deref(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    for choice in node.get("anyOf", ()):
        if choice.get("type") != "null":
            node = choice
    name = str(node.get("$ref", "")).rpartition("/")[2]
    return schema["$defs"][name] if name else node


def _cross_check(settings: Settings, peers: list[tuple[_Source, KeyPath, PeerEntry]]) -> list[str]:
    """What no single value can know: doubled ids and keys, roles that do not exist."""
    problems = []
    ids: dict[str, str] = {}
    keys: dict[bytes, str] = {}
    principals: dict[str, str] = {}
    known = {peer.id for _, _, peer in peers}
    for source, base, peer in peers:
        place = source.at((*base, "id"))
        if peer.id in ids:
            problems.append(f"{place}: peer {peer.id!r} stands a second time; the first is at {ids[peer.id]}")
        ids.setdefault(peer.id, place)
        proofs: list[tuple[KeyPath, PublicKey]] = [(("keys", index), key) for index, key in enumerate(peer.keys)]
        if peer.node_key is not None:
            proofs.append((("node_key",), peer.node_key))
        for path, key in proofs:
            owner = keys.setdefault(key.blob, peer.id)
            if owner != peer.id:
                problems.append(
                    f"{source.at((*base, *path))}: {path[0]}: {key.fingerprint} belongs to two peers,"
                    f" {owner!r} and {peer.id!r}; a key proves one identity"
                )
        for index, principal in enumerate(peer.principals):
            owner = principals.setdefault(principal, peer.id)
            if owner != peer.id:
                problems.append(
                    f"{source.at((*base, 'principals', index))}: principals: {principal!r} belongs to two peers,"
                    f" {owner!r} and {peer.id!r}; a certificate proves one identity"
                )
        if peer.via is not None and (peer.via == peer.id or peer.via not in known):
            why = "itself" if peer.via == peer.id else "no peer"
            problems.append(f"{source.at((*base, 'via'))}: via: {peer.via!r} is {why}; it names another peer")
        for index, role in enumerate(peer.roles):
            if role not in settings.roles:
                roles = ", ".join(sorted(settings.roles)) or "none are defined"
                problems.append(
                    f"{source.at((*base, 'roles', index))}: roles: found {role!r}, which is not in [roles] ({roles})"
                )
    return problems + _check_exposed(peers)


def _check_authorities(source: _Source, settings: Settings) -> list[str]:
    """One table for each authority: two could say different things of it."""
    problems = []
    seen: set[bytes] = set()
    for index, authority in enumerate(settings.ssh.user_ca):
        if authority.key.blob in seen:
            problems.append(
                f"{source.at(('ssh', 'user_ca', index, 'key'))}: ssh.user_ca: {authority.key.fingerprint} stands in it"
                " twice; put all its principals into one table"
            )
        seen.add(authority.key.blob)
    return problems


def _check_exposed(peers: list[tuple[_Source, KeyPath, PeerEntry]]) -> list[str]:
    """Peers that expose under one prefix serve the same operations here, so that these must ask for the same scope."""
    problems = []
    first: dict[str, tuple[str | None, str]] = {}
    for source, base, peer in peers:
        if peer.expose is None:
            continue
        scope, place = peer.expose.scope, source.at((*base, "expose"))
        known = first.setdefault(peer.expose.prefix, (scope, place))
        if known[0] != scope:
            ours, theirs = (f"the scope {one!r}" if one else "no scope in particular" for one in (scope, known[0]))
            problems.append(
                f"{place}: expose: peer {peer.id!r} asks for {ours}, and another peer with the prefix"
                f" {peer.expose.prefix!r} for {theirs} ({known[1]}); a prefix has one scope"
            )
    return problems


def _check_dialled(source: _Source, settings: Settings, known: list[PeerEntry]) -> list[str]:
    """Whom the node dials it must know, and where."""
    problems = []
    peers = {peer.id: peer for peer in known}
    seen: set[str] = set()
    for index, dial in enumerate(settings.dial):
        place = source.at(("dial", index, "peer"))
        peer = peers.get(dial.peer)
        if peer is None:
            problems.append(f"{place}: dial: there is no peer {dial.peer!r}; 'alknet peer add {dial.peer} …' makes one")
        elif dial.address is None and not peer.addresses:
            problems.append(
                f"{place}: dial: nothing says where {dial.peer!r} is; give address here, or addresses there"
            )
        if dial.peer in seen:
            problems.append(f"{place}: dial: {dial.peer!r} stands in it twice")
        seen.add(dial.peer)
    return problems


def _check_forwarding(source: _Source, settings: Settings, known: set[str]) -> list[str]:
    """A rule for somebody who does not exist is a mistake, and where it denies, one that lets others through."""
    problems = []
    for index, rule in enumerate(settings.forwarding.rules):
        for number, name in enumerate(rule.peers or ()):
            place = f"{source.at(('forwarding', 'rules', index, 'peers', number))}: forwarding.rules[{index}].peers"
            if name.startswith("@"):
                if name[1:] not in settings.roles:
                    roles = ", ".join(sorted(settings.roles)) or "none are defined"
                    problems.append(f"{place}: found {name!r}, but there is no such role in [roles] ({roles})")
            elif name not in known:
                problems.append(f"{place}: there is no peer {name!r}")
    return problems


def _error(problems: list[str]) -> ConfigError:
    shown = problems[:MAX_SHOWN_ERRORS]
    if len(problems) > len(shown):
        shown.append(f"(and {len(problems) - len(shown)} more)")
    return ConfigError("\n".join(shown), hint=HINT)


def _dotted(path: KeyPath) -> str:
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else ("." if text else "") + step
    return text


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
