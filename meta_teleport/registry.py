"""Classes by name: what a config or a command line calls a family or a rule, made into an instance."""

import importlib
import inspect
import os
import pkgutil
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from math import isfinite
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from meta_teleport.bounds import Bounded
from meta_teleport.errors import UserError, nearest

PACKAGE = "meta_teleport"
ROOMS = ("rules", "learned", "equivariant", "tasks")
"""Where the families and rules of this package are."""


class NotImportedError(UserError):
    """A file names a class of a ``module`` that nobody has imported."""

    def __init__(self, name: str, module: str) -> None:
        super().__init__(f"class '{name}' is not of this package: import {module} first (--import {module})")
        self.module = module


def known(base: type) -> dict[str, type]:
    """The classes below ``base`` that can be built, by name: those of this package and those imported.

    Where two classes share a name it is the one of this package that stands here; :func:`resolve` refuses such a name.
    """
    found = {cls.__name__: cls for cls in _buildable(base) if not is_ours(cls)}
    found |= {cls.__name__: cls for cls in _buildable(base) if is_ours(cls)}
    return dict(sorted(found.items()))


def resolve(name: str, base: type, trusted: bool = False) -> type:
    """The subclass of ``base`` by class name or full path, ``package.module.Class``.

    A path into this package counts by its class name alone, wherever the class stood when the path was written, and a
    bare name in a file is that of a class of this package, if there is one. Other modules are looked into if they are
    imported already, so that reading a file never imports a stranger's code; with ``trusted`` (the user has typed the
    name) the module is imported.

    Raises ``UserError`` for a name that leads nowhere, and for one that several modules define.
    """
    module_name, _, class_name = name.rpartition(".")
    cls: Any
    if not module_name:
        namesakes = [cls for cls in _buildable(base) if cls.__name__ == class_name]
        ours = [cls for cls in namesakes if is_ours(cls)]
        cls = _only(class_name, namesakes if trusted else ours or namesakes)
    elif module_name.split(".")[0] == PACKAGE:
        cls = next((cls for cls in _buildable(base) if cls.__name__ == class_name and is_ours(cls)), None)
    else:
        if trusted:
            import_module(module_name)
        elif module_name not in sys.modules:
            raise NotImportedError(name, module_name)
        cls = getattr(sys.modules[module_name], class_name, None)
    if not (isinstance(cls, type) and issubclass(cls, base) and not inspect.isabstract(cls)):
        near, offered = nearest(class_name, known(base)), ", ".join(_offered(base))
        raise UserError(
            f"there is no {base.__name__} '{name}'{near}: choose one of {offered}, or give the path of a class of your "
            "own as package.module.Class"
        )
    return cls


def _offered(base: type) -> list[str]:
    """The classes of this package that a config can build: their arguments are plain values."""
    return [name for name, cls in known(base).items() if is_ours(cls) and not _takes_objects(cls)]


def _takes_objects(cls: type) -> bool:
    """Whether there is an argument without default that only Python can give, such as another rule."""
    named = (p for p in inspect.signature(cls).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD)
    needed = (p.annotation for p in named if p.default is p.empty and p.name != "shapes")
    return any(isinstance(kind, type) and kind not in (int, float, str, bool) for kind in needed)


def class_path(cls: type) -> str:
    """What files call a class: its bare name if it is of this package, the full path otherwise; :func:`resolve` reads
    both."""
    return cls.__name__ if is_ours(cls) else import_path(cls)


def import_path(cls: type) -> str:
    """The full path of a class, as Python imports it today."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _buildable(base: type) -> list[type]:
    """All classes below ``base`` that can be built and are part of an imported module, those of this package first
    imported."""
    for room in ROOMS:
        for module in pkgutil.iter_modules(importlib.import_module(f"{PACKAGE}.{room}").__path__):
            importlib.import_module(f"{PACKAGE}.{room}.{module.name}")
    found, queue = [], [base]
    while queue:
        below: list[type] = queue.pop().__subclasses__()
        queue += below
        found += [cls for cls in below if not inspect.isabstract(cls) and cls not in found]
    return [cls for cls in found if getattr(sys.modules.get(cls.__module__), cls.__name__, None) is cls]


def _only(name: str, found: list[type]) -> type | None:
    """The one class of that name. A module that was imported anew counts once, by its path."""
    paths = {import_path(cls): cls for cls in found}
    if len(paths) > 1:
        own = {path: f"{PACKAGE}.{name}" if is_ours(cls) else path for path, cls in paths.items()}
        raise UserError(f"several modules define a class '{name}': write {' or '.join(sorted(own.values()))}")
    return next(iter(paths.values()), None)


def is_ours(cls: type) -> bool:
    """Whether a class is of this package."""
    return cls.__module__.split(".")[0] == PACKAGE


def is_module_name(name: Any) -> bool:
    """Whether ``name`` is the name of a module as one types it."""
    return isinstance(name, str) and all(part.isidentifier() for part in name.split("."))


def import_module(name: str) -> None:
    """Imports a module that the user has named. What lies in the working directory can be imported from then on, where
    no library has that name.

    Raises ``UserError`` if that fails.
    """
    try:
        if not {"", os.getcwd()} & set(sys.path):
            sys.path.append(os.getcwd())
        importlib.import_module(name)
    except Exception as error:
        raise UserError(f"module '{name}' cannot be imported ({_described(error)})") from error


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
        near = nearest(name, [other for other, value in vars(sys.modules[module]).items() if callable(value)])
        raise UserError(f"module '{module}' has no callable '{name}'{near}: check the name after the colon")
    try:
        return factory()
    except Exception as error:
        raise UserError(f"{path} failed ({_described(error)})") from error


def _described(error: Exception) -> str:
    """An error in somebody's program in one line, with the place where it was raised."""
    *_, last = traceback.extract_tb(error.__traceback__)
    file, line = (error.filename, error.lineno) if isinstance(error, SyntaxError) else (last.filename, last.lineno)
    place = "" if file is None or file.startswith("<") else f", {os.path.basename(file)} line {line}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"


def construct(spec: dict[str, Any], base: type, *args: Any, **extra: Any) -> Any:
    """An instance of the class that ``spec = {"class_path": ..., "init_args": {...}}`` names, a subclass of ``base``.

    ``args`` come first, ``extra`` goes beside the ``init_args``. See :func:`resolve` for what is imported.

    Raises ``UserError`` for unknown classes and arguments, and for sizes above the bounds of :mod:`bounds`.
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
    if not is_ours(cls):
        return cls(*args, **arguments)
    for name, kind in get_type_hints(cls.__init__).items():
        if name in arguments and not is_of(arguments[name], kind):
            raise UserError(f"{cls.__name__}: {name} is {arguments[name]!r:.50}, and that is no {_told(kind)}")
    with Bounded():
        return cls(*args, **arguments)


def is_of(value: Any, kind: Any) -> bool:
    """Whether plain data fit an annotation; numbers must be finite, and an integer is a float too."""
    if kind is Any:
        return True
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(is_of(value, other) for other in inner)
    if origin is Literal:
        return any(value == other and type(value) is type(other) for other in inner)
    if kind is float:
        return type(value) in (int, float) and isfinite(value)
    if kind in (int, bool):
        return type(value) is kind
    if origin in (list, Sequence):
        return isinstance(value, list | tuple) and all(is_of(other, inner[0]) for other in value)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(is_of(k, inner[0]) and is_of(v, inner[1]) for k, v in value.items())
    return isinstance(value, origin or kind)


def _told(kind: Any) -> str:
    """An annotation as people write it."""
    return kind.__name__ if isinstance(kind, type) else re.sub(r"(\w+\.)+", "", str(kind))
