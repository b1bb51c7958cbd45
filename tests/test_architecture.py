"""Who may import whom, and what no module may do: read from the syntax trees, each ban with its reason."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "alknet": "alknet",
    "alpn": "alknet.alpn",
    "call": "alknet.call",
    "config": "alknet.config",
    "ssh": "alknet.ssh",
    "vault": "alknet.vault",
}


@dataclass(frozen=True)
class Part:
    """Some modules (each with what is below it), the parts that they may import, and why no others."""

    modules: tuple[str, ...]
    may_import: tuple[str, ...]
    reason: str


PARTS = {
    "root": Part(
        ("alknet", "alknet._version"),
        (),
        "it runs before every other module, so an import here would load (or break) all of them",
    ),
    "leaves": Part(
        tuple(
            f"alknet.{name}"
            for name in (  # noqa: SIM905
                "access actions audit audit_reader backoff become certificates child clock descriptors errors gate "
                "globs guard hosts identity keyring keys known_nodes lock logs nofile notify plan replies resolver "
                "runas sshsig state target_patterns targets tasks tokens verification"
            ).split()
        ),
        (),
        "everything stands on the leaves, so they stand on nothing of ours",
    ),
    "alpn": Part(("alknet.alpn",), ("leaves",), "the port carries bytes and does not know what is served or set"),
    "config": Part(
        ("alknet.config",), ("leaves",), "settings are a value; the parts are given theirs, they ask nobody"
    ),
    "vault": Part(("alknet.vault",), ("leaves",), "the vault is usable on its own and knows no network"),
    "ssh": Part(
        ("alknet.ssh",),
        ("alpn", "leaves"),
        "doors meet the rest through the gate and the subsystems that they are given",
    ),
    "call": Part(
        ("alknet.call",),
        ("alpn", "leaves"),
        "doors meet the rest through the gate and the handlers that they are given",
    ),
    "gateway": Part(
        ("alknet.gateway",),
        ("call", "alpn", "leaves"),
        "it reaches operations through the dispatch alone, and knows no other door and no settings model",
    ),
    "services": Part(
        ("alknet.services",),
        ("call", "config", "alpn", "leaves"),
        "a service gets what it needs of the node, and knows no other door",
    ),
    "assembly": Part(
        (
            "alknet.client",
            "alknet.destination",
            "alknet.dialer",
            "alknet.doors",
            "alknet.node",
            "alknet.offer",
            "alknet.reload",
            "alknet.status",
            "alknet.through",
        ),
        ("gateway", "services", "ssh", "call", "vault", "config", "alpn", "leaves"),
        "the node must run without a command line",
    ),
    "cli": Part(
        ("alknet.cli", "alknet.__main__"),
        ("assembly", "gateway", "services", "ssh", "call", "vault", "config", "alpn", "leaves"),
        "the command line is on top",
    ),
}

LIBRARIES = {
    # library: (where it may be imported, why nowhere else)
    "aioquic": (
        ("alknet.alpn.quic", "alknet.alpn.quic_library"),
        "its private hooks are dealt with in one place, so that another QUIC library can be put there",
    ),
    "asyncssh": (("alknet.ssh",), "its errors and its private hooks are dealt with in one folder"),
    "click": (("alknet.cli",), "only the command line parses arguments"),
    "cryptography": (
        # aioquic hands out its objects
        ("alknet.certificates", "alknet.keys", "alknet.sshsig", "alknet.verification", "alknet.alpn.quic"),
        "only keys and certificates need it, and it is slow to import",
    ),
    "httptools": ((), "uvicorn's protocol class parses with it; nobody else reads HTTP"),
    "jsonschema_rs": (("alknet.call.remote_specs",), "only what other nodes say of their operations is mistrusted"),
    "mcp": (
        ("alknet.gateway.mcp", "alknet.cli.mcp"),
        "the protocol's messages and revisions are dealt with in one folder",
    ),
    "msgpack": (("alknet.call.codecs",), "one module knows how values are written, and what must not be read"),
    "platformdirs": (("alknet.config.home",), "one module knows where a home is"),
    "pydantic": (
        ("alknet.config", "alknet.services", "alknet.call.binary", "alknet.call.schema", "alknet.call.codecs"),
        "a policy or a session must not depend on how settings and values are checked",
    ),
    "pydantic_core": (
        ("alknet.call.binary", "alknet.call.schema", "alknet.call.codecs"),
        "a session must not depend on how values are checked and written",
    ),
    "prometheus_client": (("alknet.services.metrics",), "figures are put into its format when somebody asks"),
    "rich": (("alknet.cli.output",), "one module knows how results look"),
    "starlette": (("alknet.gateway",), "HTTP is one door's business"),
    "tomlkit": (("alknet.config", "alknet.cli"), "a running node reads files and never edits them"),
    "uvicorn": (("alknet.gateway",), "its protocol classes are dealt with in one folder"),
    "uvloop": (("alknet.cli.daemon",), "the parts run on any event loop; whoever starts one chooses it"),
    "websockets": (("alknet.gateway.protocol",), "uvicorn's protocol class frames with it"),
    "watchfiles": (("alknet.config.watch",), "one module knows how changes of files are noticed"),
}

PURE = (
    "alknet.access",
    "alknet.actions",
    "alknet.alpn.admission",
    "alknet.alpn.congestion",
    "alknet.alpn.first_byte",
    "alknet.alpn.quic_events",
    "alknet.alpn.windows",
    "alknet.backoff",
    "alknet.call.breaker",
    "alknet.call.channel_states",
    "alknet.call.codecs",
    "alknet.call.envelopes",
    "alknet.call.frames",
    "alknet.call.hello",
    "alknet.call.machine",
    "alknet.call.overlays",
    "alknet.call.pacing",
    "alknet.call.remote_specs",
    "alknet.call.routing",
    "alknet.cli.escape",
    "alknet.config.addresses",
    "alknet.config.diff",
    "alknet.config.positions",
    "alknet.globs",
    "alknet.hosts",
    "alknet.identity",
    "alknet.plan",
    "alknet.ssh.files.failures",
    "alknet.ssh.files.packets",
    "alknet.ssh.files.scp_command",
    "alknet.ssh.client_socks",
    "alknet.ssh.forward_specs",
    "alknet.target_patterns",
    "alknet.targets",
)
IMPURE = frozenset({"asyncio", "asyncssh", "selectors", "socket", "ssl", "subprocess", "threading", "time"})
PURE_REASON = "a core takes bytes, values and the time as arguments, so that a test needs neither sockets nor sleep"


# --- the checker ------------------------------------------------------------------------------------------------


def modules(root: Path) -> dict[str, Path]:
    """Every source file under `root`, by the name that it is imported under."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


def imports(path: Path, module: str) -> Iterator[tuple[int, str]]:
    """(line, full name) of everything that a file imports, inside functions and for type checkers too."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if module == "alknet":  # names its lazy exports for type checkers; what it loads is tested by running it
        tree.body = [
            node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in _names(node.test))
        ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def is_within(name: str, prefixes: Iterable[str]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def part_of(name: str) -> str | None:
    """The part with the longest prefix of `name`; None for what is not ours."""
    best = max((m for part in PARTS.values() for m in part.modules if is_within(name, [m])), key=len, default=None)
    return next((key for key, part in PARTS.items() if best in part.modules), None)


def forbidden_imports(root: Path) -> list[str]:
    """Every import that breaks a rule: where it stands, what it imports, why not."""
    problems = []
    for module, path in modules(root).items():
        mine = part_of(module)
        if mine is None or (mine == "root" and module not in PARTS["root"].modules):
            problems.append(f"{module}: has no part in the architecture; give it one in PARTS")
            continue
        for line, name in imports(path, module):
            where = f"{path.relative_to(root)}:{line}: {module} imports {name}"
            theirs = part_of(name)
            if theirs is not None and theirs not in (mine, "root", *PARTS[mine].may_import):
                problems.append(f"{where}: {PARTS[mine].reason}")
            users, reason = LIBRARIES.get(name.partition(".")[0], (("alknet",), ""))
            if not is_within(module, users):
                problems.append(f"{where}: {reason}")
            if module in PURE and name.partition(".")[0] in IMPURE:
                problems.append(f"{where}: {PURE_REASON}")
    return problems


def swallowed_errors(root: Path) -> list[str]:
    """Handlers that hide every error: a caught `Exception` with nothing done about it."""
    broad = {"Exception", "BaseException"}
    problems = []
    for path in modules(root).values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            hides = False
            if isinstance(node, ast.ExceptHandler):
                empty = all(isinstance(s, ast.Pass | ast.Continue) or _is_ellipsis(s) for s in node.body)
                hides = empty and (node.type is None or bool(broad & _names(node.type)))
            elif isinstance(node, ast.Call) and "suppress" in _names(node.func):
                hides = any(broad & _names(argument) for argument in node.args)
            if hides:
                assert isinstance(node, ast.ExceptHandler | ast.Call)
                problems.append(
                    f"{path.relative_to(root)}:{node.lineno}: hides every error; name the one that is meant"
                )
    return problems


def _names(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} | {
        n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)
    }


def _is_ellipsis(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.value.value is ...


# --- the project ------------------------------------------------------------------------------------------------


def test_imports_point_downward_only() -> None:
    assert forbidden_imports(ROOT) == []


def test_no_error_is_swallowed() -> None:
    assert swallowed_errors(ROOT) == []


def test_every_module_named_here_exists() -> None:
    named = {module for part in PARTS.values() for module in part.modules} | set(PURE)
    named |= {module for users, _ in LIBRARIES.values() for module in users}
    assert named - modules(ROOT).keys() == set()


def test_parts_have_no_cycle() -> None:
    done: set[str] = {"root"}
    while rest := [key for key in PARTS if key not in done]:
        free = [key for key in rest if set(PARTS[key].may_import) <= done]
        assert free, f"these parts import each other: {rest}"
        done.update(free)


def test_the_root_package_imports_only_the_version() -> None:
    code = "import sys, alknet; print(*sorted(m for m in sys.modules if m.split('.')[0] == 'alknet'))"
    assert _python(code).split() == ["alknet", "alknet._version"]


def test_help_is_shown_without_the_heavy_libraries() -> None:
    heavy = [
        "aioquic",
        "asyncio",
        "asyncssh",
        "cryptography",
        "pydantic",
        "rich",
        "ssl",
        "tomlkit",
        "uvloop",
        "watchfiles",
    ]
    code = (
        "import sys\nfrom alknet.cli import main\nassert main(['--help']) == 0\n"
        f"print('LOADED', *(name for name in {heavy} if name in sys.modules))"
    )
    assert _python(code).splitlines()[-1].split() == ["LOADED"]


def test_setuptools_installs_every_package_of_the_tree() -> None:
    """A package that is missing in the list is missing from the wheel in silence."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    tree = {name for name, path in modules(ROOT).items() if path.name == "__init__.py"}
    assert set(settings["packages"]) == tree
    assert len(settings["packages"]) == len(tree)
    assert settings["package-dir"] == {package: folder for folder, package in FOLDERS.items()}


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for path in modules(ROOT).values()}
    assert {folder for folder in folders if not (folder / "__init__.py").exists()} == set()


def test_the_distribution_says_that_it_is_typed() -> None:
    assert (ROOT / "alknet" / "py.typed").exists()


def test_every_setting_has_a_reader() -> None:
    """A key that can be set and changes nothing is a promise that is not kept."""
    from pydantic import BaseModel

    from alknet.config import model

    tables = [
        c for c in vars(model).values() if isinstance(c, type) and issubclass(c, BaseModel) and c is not BaseModel
    ]
    fields = {name for table in tables if table.__module__ == model.__name__ for name in table.model_fields}
    read = set()
    for name, path in modules(ROOT).items():
        if name != model.__name__:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert fields - read == set()


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/").stdout


# --- the checker finds what it is for -----------------------------------------------------------------------------


def _plant(root: Path, path: str, text: str) -> Path:
    for folder in FOLDERS:
        (root / folder).mkdir(exist_ok=True)
        (root / folder / "__init__.py").touch()
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("path", "text", "reason"),
    [
        ("ssh/x.py", "from alknet.call import frames\n", PARTS["ssh"].reason),
        ("call/x.py", "def f():\n    import alknet.ssh.handler\n", PARTS["call"].reason),
        ("vault/x.py", "from alknet.alpn.streams import Stream\n", PARTS["vault"].reason),
        ("config/x.py", "import alknet.node\n", PARTS["config"].reason),
        ("alpn/x.py", "from ..config import model\n", PARTS["alpn"].reason),
        ("alknet/gate.py", "from alknet import reload\n", PARTS["leaves"].reason),
        ("alknet/node.py", "from alknet.cli.app import run\n", PARTS["assembly"].reason),
        ("alknet/__init__.py", "from alknet.errors import AlknetError\n", PARTS["root"].reason),
        ("alknet/access.py", "import time\n", PURE_REASON),
        ("config/x.py", "from asyncssh import connect\n", LIBRARIES["asyncssh"][1]),
        ("alpn/dial.py", "from aioquic.quic.events import QuicEvent\n", LIBRARIES["aioquic"][1]),
        ("alpn/windows.py", "import time\n", PURE_REASON),
        ("alknet/newcomer.py", "", "give it one in PARTS"),
    ],
)
def test_a_planted_import_is_caught_with_its_reason(path: str, text: str, reason: str, tmp_path: Path) -> None:
    (problem,) = forbidden_imports(_plant(tmp_path, path, text))
    assert reason in problem


def test_what_is_allowed_is_not_reported(tmp_path: Path) -> None:
    text = "import asyncssh\nfrom alknet.alpn import streams\nfrom alknet.errors import AlknetError\n"
    assert forbidden_imports(_plant(tmp_path, "ssh/x.py", text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "try:\n    f()\nexcept Exception:\n    pass\n",
        "for x in y:\n    try:\n        f()\n    except (OSError, BaseException):\n        continue\n",
        "try:\n    f()\nexcept:\n    ...\n",
        "import contextlib\nwith contextlib.suppress(Exception):\n    f()\n",
    ],
)
def test_a_planted_swallowed_error_is_caught(text: str, tmp_path: Path) -> None:
    assert len(swallowed_errors(_plant(tmp_path, "alpn/x.py", text))) == 1


def test_a_narrow_or_a_handled_error_is_fine(tmp_path: Path) -> None:
    text = "try:\n    f()\nexcept OSError:\n    pass\ntry:\n    f()\nexcept Exception:\n    log()\n"
    assert swallowed_errors(_plant(tmp_path, "alpn/x.py", text)) == []
