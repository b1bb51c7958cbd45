"""Making a home: keys, configuration, and the peer ``owner``."""

import json
import os
import pwd
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from alknet.config.addresses import ListenAddress
from alknet.config.certificate import complete_tls
from alknet.config.home import Home, write_atomically
from alknet.config.load import load
from alknet.config.model import Settings, Tls
from alknet.errors import AlknetError, StartupError
from alknet.keys import PublicKey, write_key_pair

__all__ = ["OWNER", "config_text", "make_home", "peer_text", "user_keys"]

OWNER: Final = "owner"
_OWNER_FORWARDS: Final = (
    ("local", "0.0.0.0/0:*"),
    ("local", "[::/0]:*"),
    ("local", "self"),
    ("remote", "localhost:*"),
    ("unix", "/**"),
)


def make_home(home: Home, *, listen: tuple[ListenAddress, ...], own_keys: tuple[PublicKey, ...]) -> None:
    """Make what is missing of a home; what is there stays. The configuration comes last, so that a home that was
    begun and not finished is finished by the next try, with the same keys."""
    try:
        home.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for directory in (home.keys, home.peers):
            directory.mkdir(mode=0o700, exist_ok=True)
        name = os.uname().nodename
        for path in (home.node_key, home.host_key, home.owner_key):
            if not path.exists():
                write_key_pair(path, f"alknet-{path.name}@{name}")
        if not home.peer(OWNER).exists():
            owner_key = PublicKey.parse(_public(home.owner_key).read_text(encoding="ascii"))
            write_atomically(home.peer(OWNER), _owner_text((owner_key, *own_keys)))
        if not (home.tls_key.exists() and home.tls_certificate.exists()):
            complete_tls(home, load(home).tls if home.exists else Tls())
        host_key = _public(home.host_key).read_text(encoding="ascii").rsplit(" ", 1)[0]
        write_atomically(home.known_hosts, f"* {host_key}\n")
        if not home.exists:
            write_atomically(home.config, config_text(listen))
    except OSError as exc:
        where = exc.filename or home.path
        raise StartupError(
            f"{where}: a home cannot be made here: {exc.strerror}",
            hint="give a directory that you can write with --home DIR",
        ) from exc


def user_keys() -> tuple[list[tuple[Path, PublicKey]], list[tuple[Path, str]]]:
    """The user's own SSH public keys whose private half lies beside them, and those that cannot be used, with why."""
    directory = Path(pwd.getpwuid(os.getuid()).pw_dir, ".ssh")
    usable, unusable = [], []
    for path in sorted(directory.glob("*.pub")) if directory.is_dir() else ():
        if not path.with_suffix("").exists():
            continue
        try:
            usable.append((path, PublicKey.parse(path.read_text(encoding="utf-8"))))
        except (OSError, UnicodeDecodeError, AlknetError) as exc:
            unusable.append((path, str(exc)))
    return usable, unusable


def config_text(listen: tuple[ListenAddress, ...]) -> str:
    """A whole ``alknet.toml`` with every key of this version at its default."""
    lines = [
        "# The configuration of this alknet node. `alknet config check` checks it, `alknet config schema` lists",
        "# every key with its meaning. Keys marked (restart) need one; all others take effect at once.",
    ]
    for section, info in Settings.model_fields.items():
        default = info.get_default(call_default_factory=True)
        if section in ("peers", "dial"):
            continue  # peers live in peers.d; [[peers]] and [[dial]] tables may be appended
        lines += ["", f"[{section}]"]
        if isinstance(default, BaseModel):
            for name, field in type(default).model_fields.items():
                if _is_tables(field):  # an empty list here would rule out the tables, which may be appended
                    lines += [f"# {_comment(field)}"]
                    continue
                value = [str(address) for address in listen] if name == "listen" else getattr(default, name)
                lines += [f"# {_comment(field)}", f"{name} = {_toml(value)}"]
        else:
            lines += ["# [roles.NAME] with scopes = [...] names a set of scopes that peers can be given."]
    return "\n".join(lines) + "\n"


def peer_text(values: dict[str, Any]) -> str:
    """A new file of ``peers.d``; `values` in the model's own names."""
    import tomlkit

    return tomlkit.dumps(values)


def _owner_text(keys: tuple[PublicKey, ...]) -> str:
    lines = ",\n".join(f"    {_toml(key)}" for key in keys)
    return (
        "# You. The scope * and as_daemon make this peer equal to whoever runs the node.\n"
        f'keys = [\n{lines},\n]\nscopes = ["*"]\n\n[ssh]\n'
        f"user = {_toml(pwd.getpwuid(os.geteuid()).pw_name)}\nas_daemon = true\n"
        'sftp_root = "/"\n'
        "\n# What you may forward; it is no more than your shell can reach. -R listens on loopback only.\n"
        + "".join(
            f'[[forward]]\naction = "allow"\ndirection = "{direction}"\ntarget = "{target}"\n'
            for direction, target in _OWNER_FORWARDS
        )
    )


def _public(path: Path) -> Path:
    return path.with_name(path.name + ".pub")


def _is_tables(field: FieldInfo) -> bool:
    """Whether a list is written as [[…]] tables."""
    items = get_args(field.annotation)
    return bool(items) and isinstance(items[0], type) and issubclass(items[0], BaseModel)


def _comment(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    restart = isinstance(extra, dict) and extra.get("reload") == "restart"
    return f"{field.description}{' (restart)' if restart else ''}"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f'"{value:g}s"'
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    # A JSON string is a basic string of TOML, but for DEL; a key's comment may hold anything.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
