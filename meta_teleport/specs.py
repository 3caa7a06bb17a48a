"""Class specs as plain data, ``{"class_path": ..., "init_args": {...}}``, as configs and rule files hold them.

A file may say which class to build, never which program to run: it can name the classes of this package (by bare
class name; the full paths that older files hold mean the same) and classes that the user has imported. Parsers that
would import whatever they read, or call whatever they find, are given content that has passed :func:`check`.
"""

import importlib.util
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import yaml

from meta_teleport.errors import UserError
from meta_teleport.registry import PACKAGE, NotImportedError, class_path, resolve

CLASS_PATH, INIT_ARGS = "class_path", "init_args"
RENAMED: Mapping[str, Mapping[str, str]] = {
    "Equivariant": {
        "lead": "warmup_teleports",
        "apart": "teleport_only_steps",
        "first": "init_coefficients",
        "crest": "steepest",
        "falling_adam": "decaying_adam",
    },
}
"""By class of this package: arguments, and names among their values, that files of version 0.1 call otherwise."""
DROPPED: Mapping[str, Any] = {"random_horizons": False, "growing_horizon": False, "curriculum": False}
"""Options of a training that files of version 0.1 hold, and the values at which they change nothing."""
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
DEEPEST, MOST, LONGEST, MOST_BRACKETS, LARGEST = 40, 10_000, 2_000, 50, 2**63
"""Bounds on a configuration: levels, values (what an alias repeats counts again), characters of a text and opening
brackets in it, and the size of an integer."""


class Described:
    """A base of classes that files can name: instances remember what they were made with.

    ``init_args`` are the arguments by name, defaults included, as plain data; None where there is none for one of them
    (a tensor, a generator). ``shapes`` of a network are left out: they are kept apart.
    """

    init_args: dict[str, Any] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            cls.__init__ = _remembering(cls.__dict__["__init__"])  # type: ignore[method-assign]


def spec_of(instance: Described) -> dict[str, Any] | None:
    """The spec from which such an instance is built again; None if it cannot be said as plain data."""
    arguments = instance.init_args
    if arguments is None and not (getattr(type(instance).__init__, "__module__", "") or "").startswith("torch."):
        return None
    return {CLASS_PATH: class_path(type(instance)), INIT_ARGS: arguments or {}}


def _remembering(init: Callable[..., None]) -> Callable[..., None]:
    """The same ``__init__``, which notes the arguments of the outermost call first."""

    @wraps(init)
    def remember(self: Any, *args: Any, **kwargs: Any) -> None:
        if "init_args" not in vars(self):
            vars(self)["init_args"] = _plain_arguments(init, self, args, kwargs)
        init(self, *args, **kwargs)

    return remember


def _plain_arguments(init: Callable[..., None], instance: Any, args: Any, kwargs: Any) -> dict[str, Any] | None:
    try:
        bound = inspect.signature(init).bind(instance, *args, **kwargs)
    except TypeError:
        return None  # which the call itself will say
    bound.apply_defaults()
    named = {name: value for name, value in list(bound.arguments.items())[1:] if name != "shapes"}
    try:
        return {name: _plain(value) for name, value in named.items()}
    except TypeError:
        return None


def _plain(value: Any) -> Any:
    """A value as JSON holds it. Raises ``TypeError`` if there is none."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(inner) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return [_plain(inner) for inner in value]
    raise TypeError(f"{type(value).__name__} is not plain data")


def check(content: Any, bases: Sequence[type], modules: Sequence[str] = ()) -> Any:
    """The content as :func:`shorten` writes it, without a class path that leads to a stranger's class.

    Looked at is everything: class paths at any depth and under dotted keys, structures written as strings, and strings
    that name something in a module, as parsers read them. Each must be a subclass of one of ``bases`` that is of this
    package or imported already, or lie in one of the ``modules`` that the user has named.

    Raises ``UserError`` for any other, and where :func:`require_plain` does.
    """
    require_plain(content)

    def named(name: str) -> str:
        return name if any(name.startswith(f"{module}.") for module in modules) else class_path(_resolved(name, bases))

    return _without_dropped(
        _walk(content, named, lambda text: named(text) if _names_something(text) else _checked(text, bases, modules))
    )


def shorten(content: Any) -> Any:
    """The content as files hold it: bare names for the classes of this package, and the names of RENAMED.

    Raises ``UserError`` where :func:`require_plain` does.
    """
    require_plain(content)
    return _without_dropped(_walk(content, _short, lambda text: text))


def require_plain(content: Any) -> None:
    """Raises ``UserError`` unless this is plain data as JSON holds it, within the bounds of a configuration."""
    queue, count = [(content, 0)], 0
    while queue:
        value, depth = queue.pop()
        inner: Sequence[Any] = ()
        if isinstance(value, Mapping):
            if not all(isinstance(key, str) for key in value):
                raise UserError(f"a configuration has the key {_some(value)}: write names of settings")
            inner = (*value, *value.values())
        elif isinstance(value, list | tuple):
            inner = value
        elif not (value is None or isinstance(value, bool | int | float | str)):
            raise UserError(f"a configuration holds {value!r:.50}, a {type(value).__name__}: write numbers and texts")
        elif isinstance(value, str) and len(value) > LONGEST:
            raise UserError(f"a configuration holds a text of {len(value)} characters: give {LONGEST} at most")
        elif isinstance(value, int) and abs(value) >= LARGEST:
            raise UserError("a configuration holds an integer of 2^63 or more: give a smaller one")
        count += len(inner)
        if count > MOST:
            raise UserError(f"a configuration holds more than {MOST} values: split it")
        if depth > DEEPEST:
            raise UserError(f"a configuration is nested deeper than {DEEPEST} levels: write families side by side")
        queue += [(other, depth + 1) for other in inner]


def _some(content: Mapping[Any, Any]) -> str:
    return f"{next(key for key in content if not isinstance(key, str))!r:.50}"


def _walk(content: Any, on_path: Callable[[str], str], on_text: Callable[[str], str]) -> Any:
    if isinstance(content, Mapping):
        walked = {
            key: on_path(value)
            if str(key).split(".")[-1] == CLASS_PATH and isinstance(value, str)
            else _walk(value, on_path, on_text)
            for key, value in content.items()
        }
        names = RENAMED.get(str(walked.get(CLASS_PATH)))
        return {**walked, INIT_ARGS: _renamed(walked[INIT_ARGS], names)} if names and INIT_ARGS in walked else walked
    if isinstance(content, list | tuple):
        return [_walk(value, on_path, on_text) for value in content]
    return on_text(content) if isinstance(content, str) else content


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Arguments with their new names, among keys, in lists and as values."""
    if isinstance(value, Mapping):
        return {names.get(key, key): _renamed(inner, names) for key, inner in value.items()}
    if isinstance(value, list):
        return [_renamed(inner, names) for inner in value]
    return names.get(value, value) if isinstance(value, str) else value


def _without_dropped(content: Any) -> Any:
    """The content without those options of a training that change nothing and are no longer there."""
    if not (isinstance(content, Mapping) and isinstance(content.get("training"), Mapping)):
        return content
    kept = {k: v for k, v in content["training"].items() if not (k in DROPPED and v == DROPPED[k])}
    return {**content, "training": kept}


def _short(name: str) -> str:
    return name.rpartition(".")[2] if name.split(".")[0] == PACKAGE else name


def _checked(text: str, bases: Sequence[type], modules: Sequence[str]) -> str:
    """The text, in which no structure may hide a class, nor quotes or blanks around its name."""
    if sum(map(text.count, "[{")) > MOST_BRACKETS:
        raise UserError(f"a configuration holds a text with more than {MOST_BRACKETS} brackets: write it as YAML")
    try:
        inside = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text
    if inside != text and isinstance(inside, dict | list | str):
        check(inside, bases, modules)
    return text


def _resolved(name: str, bases: Sequence[type]) -> type:
    for base in bases[:-1]:
        try:
            return resolve(name, base)
        except NotImportedError:
            raise
        except UserError:
            continue
    return resolve(name, bases[-1])


def _names_something(text: str) -> bool:
    """Whether a parser could import a module because of this text; nothing is imported to find out."""
    if not DOTTED.fullmatch(text):
        return False
    try:
        return importlib.util.find_spec(text.split(".")[0]) is not None
    except (ImportError, ValueError):
        return True
