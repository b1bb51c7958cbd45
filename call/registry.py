"""The operations that a node serves, by name, its HTTP routes, and where both are loaded from.

A :class:`Registry` never changes; a reload makes another one and swaps it whole.
"""

import importlib
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from types import FunctionType, MappingProxyType, MethodType
from typing import Any, Final

from alknet.call.declarations import DECLARED, where_defined
from alknet.call.operations import Operation, served_by
from alknet.call.routes import ROUTED, HttpRoute
from alknet.errors import AlknetError, ConfigError, UsageError

__all__ = ["ENTRY_POINTS", "Registry", "load_entry_points", "load_modules"]

ENTRY_POINTS: Final = "alknet.services"
"""The group in which installed distributions name what serves their operations."""


class Registry:
    """Operations by name, in the order of their names, and HTTP routes. `UsageError` if two have the same name, or the
    same path and method."""

    __slots__ = ("get", "operations", "routes")

    def __init__(self, served: Iterable[Operation | HttpRoute] = ()) -> None:
        found: dict[str, Operation] = {}
        routes: dict[tuple[str, str], HttpRoute] = {}
        for one in served:
            if isinstance(one, HttpRoute):
                _add_route(routes, one)
                continue
            other = found.setdefault(one.spec.name, one)
            if other.handler != one.handler:  # a package may pass on what a module below it has
                raise UsageError(
                    f"two operations are named {one.spec.name!r}: {where_defined(other.handler)}"
                    f" and {where_defined(one.handler)}",
                    hint="rename one of them",
                )
        self.operations: Mapping[str, Operation] = MappingProxyType(dict(sorted(found.items())))
        self.get = self.operations.get
        """The operation with this name, or None."""
        self.routes = tuple(sorted(dict.fromkeys(routes.values()), key=lambda route: route.order))
        """Where two fit a path, the one that comes first gets it."""

    def beside(self, more: Mapping[str, Operation]) -> "Registry":
        """Another one with these operations as well; where both have a name, this one's stands."""
        registry = Registry()
        joined = {**more, **self.operations}
        registry.operations = MappingProxyType(dict(sorted(joined.items())))
        registry.get = registry.operations.get
        registry.routes = self.routes
        return registry

    def __iter__(self) -> Iterator[str]:
        return iter(self.operations)

    def __len__(self) -> int:
        return len(self.operations)

    def __contains__(self, name: object) -> bool:
        return name in self.operations


def _add_route(routes: dict[tuple[str, str], HttpRoute], one: HttpRoute) -> None:
    for method in one.methods:
        other = routes.setdefault((one.shape, method), one)
        if other.handler != one.handler:
            raise UsageError(
                f"two routes serve {method} {one.path}: {where_defined(other.handler)} ({other.path})"
                f" and {where_defined(one.handler)}",
                hint="give one of them another path",
            )


def load_modules(names: Sequence[str]) -> tuple[Operation | HttpRoute, ...]:
    """Import these modules and collect their operations and routes; `ConfigError` says which one cannot be, and why.

    A module that was imported before is not read again.
    """
    found: list[Operation | HttpRoute] = []
    for name in names:
        found += _load(f"[services] modules: {name!r}", partial(importlib.import_module, name))
    return tuple(found)


def load_entry_points() -> tuple[Operation | HttpRoute, ...]:
    """The operations and routes of every installed distribution that has an entry point ``alknet.services``.

    It names a module, a decorated function, an object with decorated methods, or what makes one of these when it is
    called. `ConfigError` says which one cannot be loaded, and why.
    """
    found: list[Operation | HttpRoute] = []
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: (point.name, point.value)):
        found += _load(f"entry point {ENTRY_POINTS}: {point.name} = {point.value!r}", partial(_made, point))
    return tuple(found)


def _made(point: EntryPoint) -> Any:
    source = point.load()
    is_declared = hasattr(source, DECLARED) or hasattr(source, ROUTED)
    is_maker = isinstance(source, type | FunctionType | MethodType) and not is_declared
    return source() if is_maker else source


def _load(what: str, source: Callable[[], Any]) -> tuple[Operation | HttpRoute, ...]:
    try:
        found = served_by(source())
    except AlknetError as exc:
        raise ConfigError(f"{what}: {exc}", hint=exc.hint) from exc
    except ModuleNotFoundError as exc:
        raise ConfigError(
            f"{what}: {exc}",
            hint="install it for the Python that runs alknet, have PYTHONPATH name its directory, or correct the name",
        ) from exc
    except (Exception, SystemExit) as exc:  # whatever a foreign module does when it is imported
        at = traceback.extract_tb(exc.__traceback__)[-1]
        raise ConfigError(
            f"{what}: {type(exc).__name__}: {exc} ({at.filename}:{at.lineno})",
            hint="import it with 'python -c' to see the whole traceback",
        ) from exc
    if not found:
        raise ConfigError(
            f"{what}: has no operations", hint="decorate its functions with @operation, or set __operations__"
        )
    return found
