"""Classes by name: what a config or a command line calls a family or a rule, made into an instance."""

import importlib
import inspect
import pkgutil
import sys
from typing import Any

from meta_teleport.errors import UserError

PACKAGE = "meta_teleport"


def known(base: type) -> dict[str, type]:
    """The classes below ``base`` that can be built, by name: those of base's own package and those imported."""
    folder = base.__module__.rpartition(".")[0]
    for module in pkgutil.iter_modules(importlib.import_module(folder).__path__):
        importlib.import_module(f"{folder}.{module.name}")
    found: dict[str, type] = {}
    queue = [base]
    while queue:
        below: list[type] = queue.pop().__subclasses__()
        queue += below
        found |= {cls.__name__: cls for cls in below if not inspect.isabstract(cls)}
    return dict(sorted(found.items()))


def resolve(name: str, base: type, trusted: bool = False) -> type:
    """The subclass of ``base`` by class name or full path, ``package.module.Class``.

    Only modules of this package and modules that are imported already are looked into, so that reading a file never
    imports a stranger's code; with ``trusted`` (the user has typed the name) the module is imported.

    Raises ``UserError`` for a name that leads nowhere.
    """
    module_name, _, class_name = name.rpartition(".")
    if not module_name:
        cls = known(base).get(class_name)
    else:
        if trusted or module_name.split(".")[0] == PACKAGE:
            import_module(module_name)
        elif module_name not in sys.modules:
            raise UserError(
                f"class '{name}' is not of this package: import {module_name} first (--import {module_name})"
            )
        cls = getattr(sys.modules[module_name], class_name, None)
    if not (isinstance(cls, type) and issubclass(cls, base) and not inspect.isabstract(cls)):
        raise UserError(
            f"there is no {base.__name__} '{name}': choose one of {', '.join(known(base))}, or give the path of a "
            "class of your own as package.module.Class"
        )
    return cls


def class_path(cls: type) -> str:
    """The full path of a class, as :func:`resolve` reads it."""
    return f"{cls.__module__}.{cls.__qualname__}"


def import_module(name: str) -> None:
    """Imports a module that the user has named. Raises ``UserError`` if that fails."""
    try:
        importlib.import_module(name)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(f"module '{name}' cannot be imported ({type(error).__name__}: {reason})") from None


def call_factory(path: str) -> Any:
    """What the callable ``package.module:name`` returns, called without arguments.

    Raises ``UserError`` if it cannot be found or fails.
    """
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise UserError(f"'{path}' names no factory: write package.module:name")
    import_module(module)
    factory = getattr(sys.modules[module], name, None)
    if not callable(factory):
        raise UserError(f"module '{module}' has no callable '{name}': check the name after the colon")
    try:
        return factory()
    except Exception as error:
        raise UserError(f"{path} failed ({type(error).__name__}: {' '.join(str(error).split())})") from None


def construct(spec: dict[str, Any], base: type, *args: Any, **extra: Any) -> Any:
    """An instance of the class that ``spec = {"class_path": ..., "init_args": {...}}`` names, a subclass of ``base``.

    ``args`` come first, ``extra`` goes beside the ``init_args``. See :func:`resolve` for what is imported.

    Raises ``UserError`` for unknown classes and arguments.
    """
    try:
        cls, arguments = resolve(spec["class_path"], base), {**spec.get("init_args", {}), **extra}
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{spec!r} names no {base.__name__}: give class_path and init_args") from None
    signature = inspect.signature(cls)
    try:
        signature.bind(*args, **arguments)
    except TypeError as error:
        names = ", ".join(list(signature.parameters)[len(args) :]) or "nothing"
        raise UserError(f"{cls.__name__}: {error}; its arguments are {names}") from None
    return cls(*args, **arguments)
