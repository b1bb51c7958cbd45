"""What a module exports is what it says in `__all__`, no more and no less."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("alknet", "alpn", "call", "config", "ssh", "vault")
FILES = [str(path.relative_to(ROOT)) for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
EXEMPT = {
    "alknet/__main__.py": "is run, never imported",
    "alknet/_version.py": "is read by the build; its one name is exported by the package",
}


def defined(tree: ast.Module) -> tuple[set[str], set[str]]:
    """(every name bound at the top of a module, the public functions and classes among them).

    A function that is registered where it stands, as a subcommand is with its group, is reached through that.
    """
    bound: set[str] = set()
    made: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            made.add(node.name)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":  # what is loaded when it is used
            bound |= {alias.name for child in node.body if isinstance(child, ast.ImportFrom) for alias in child.names}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        else:
            bound |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    registered = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and _is_subcommand(node)}
    return bound | made, {name for name in made - registered if not name.startswith("_")}


def _is_subcommand(node: ast.FunctionDef) -> bool:
    texts = [ast.unparse(decorator) for decorator in node.decorator_list]
    return any(re.match(r"(?!click\.)\w+\.(command|group)\(", text) for text in texts)


def exported(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["__all__"]:
            return [str(name) for name in ast.literal_eval(node.value)]
    return None


@pytest.mark.parametrize("file", sorted(set(FILES) - set(EXEMPT)))
def test_all_names_every_public_function_and_class_and_nothing_that_is_not_there(file: str) -> None:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    names = exported(tree)
    bound, public = defined(tree)
    if names is None:
        assert not bound, "defines something and has no __all__"
        return
    assert sorted(set(names) - bound) == [], "__all__ names what is not there"
    assert sorted(public - set(names)) == [], "public, but not in __all__: export it or give it an underscore"
    assert len(names) == len(set(names))


@pytest.mark.parametrize("file", FILES)
def test_a_module_opens_with_its_purpose(file: str) -> None:
    assert ast.get_docstring(ast.parse((ROOT / file).read_text(encoding="utf-8")))


def test_exempt_files_exist() -> None:
    assert set(EXEMPT) <= set(FILES)
