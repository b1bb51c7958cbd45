"""What differs between two configurations, and which of it needs a restart."""

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from alknet.config.model import Settings

__all__ = ["Change", "changes", "keep_until_restart"]


@dataclass(frozen=True, slots=True)
class Change:
    """One changed key, dotted, and whether it takes effect live or after a restart."""

    key: str
    needs_restart: bool


def changes(old: Settings, new: Settings) -> list[Change]:
    """The changed keys; peers, roles and dialled peers by name, everything else by its field."""
    found = []
    for section, info in Settings.model_fields.items():
        before, after = getattr(old, section), getattr(new, section)
        if section == "peers":
            found += _named(section, {p.id: p for p in before}, {p.id: p for p in after})
        elif section == "dial":
            found += _named(section, {d.peer: d for d in before}, {d.peer: d for d in after})
        elif section == "roles":
            found += _named(section, before, after)
        elif isinstance(before, BaseModel):
            found += _fields(section, before, after)
        elif before != after:
            found.append(Change(section, _restart(info)))
    return found


def keep_until_restart(running: Settings, new: Settings) -> Settings:
    """`new`, but with the running value of every key that only a restart can change."""
    update = {}
    for section in Settings.model_fields:
        before, after = getattr(running, section), getattr(new, section)
        if isinstance(before, BaseModel):
            kept = {name: getattr(before, name) for name, info in type(before).model_fields.items() if _restart(info)}
            update[section] = after.model_copy(update=kept)
    return new.model_copy(update=update)


def _fields(section: str, before: BaseModel, after: BaseModel) -> list[Change]:
    return [
        Change(f"{section}.{name}", _restart(info))
        for name, info in type(before).model_fields.items()
        if getattr(before, name) != getattr(after, name)
    ]


def _named(section: str, before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    names = sorted(before.keys() | after.keys())
    return [Change(f"{section}.{n}", False) for n in names if before.get(n) != after.get(n)]


def _restart(info: Any) -> bool:
    extra = info.json_schema_extra
    return isinstance(extra, dict) and extra.get("reload") == "restart"
