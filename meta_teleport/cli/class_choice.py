"""Which classes a command is about, and their arguments: what was typed, what config files say, what a run holds."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from meta_teleport.cli.parser import BASES, PROGRAM
from meta_teleport.errors import UserError
from meta_teleport.registry import PACKAGE, NotImportedError, import_path, is_module_name, resolve
from meta_teleport.runs.files import CONFIG, read_text
from meta_teleport.runs.run import IMPORTED, check_format
from meta_teleport.specs import check
from meta_teleport.tasks.mixture import Mixture

T = TypeVar("T")
Content = dict[str, Any]
DEFAULTS = {"task": f"{PACKAGE}.Regression", "rule": f"{PACKAGE}.LSTMUpdateTele"}
FAMILIES_AND_RULES = tuple(BASES.values())


def read_config(name: str, modules: Sequence[str], command: Sequence[str]) -> Content:
    """A config file, or the config of a run, checked: it may name classes, but nothing is imported because of it.
    ``command`` is what was typed.

    Raises ``UserError``.
    """
    try:
        content = yaml.safe_load(read_text(Path(name), CONFIG))
    except RecursionError:
        raise UserError(f"config file {name} is nested too deep to be read: write settings side by side") from None
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"config file {name} is not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict) or "config" in content:
        raise UserError(f"config file {name} must hold settings as 'name: value', and no other config file")
    if "format" in content:
        check_format(content, Path(name))
    checked = with_command(command, content.get(IMPORTED), lambda: check(content, FAMILIES_AND_RULES, modules))
    return {key: value for key, value in checked.items() if key not in ("format", IMPORTED)}


def with_command(command: Sequence[str], recorded: Any, use: Callable[[], T]) -> T:
    """What ``use`` gives. A class that is not imported is refused with the command that imports its module, and the
    ``recorded`` ones: nothing is imported because a file says so."""
    try:
        return use()
    except NotImportedError as error:
        named = [name for name in recorded if is_module_name(name)] if isinstance(recorded, list) else []
        modules = dict.fromkeys([*named, error.module] if error.module.split(".")[0] not in named else named)
        again = shlex.join([PROGRAM, *command, "--import", *modules])
        raise UserError(f"{error}, if you trust its author, by: {again}") from None


def importable(content: Content) -> Content:
    """The content with the classes of task and rule by paths that a parser can import."""
    paths: Content = {}
    for key, base in BASES.items():
        spec = content.get(key)
        if isinstance(name := class_name(spec), str):
            path = import_path(resolve(name, base))
            paths[key] = {**spec, "class_path": path} if isinstance(spec, dict) else path
    return {**content, **paths}


def choose(key: str, given: str | None, files: Sequence[Content], stored: Content | None) -> Content:
    """Class path and preset arguments: what was typed, else what a config file says, else the stored or the default."""
    base, spec = BASES[key], stored or {"class_path": DEFAULTS[key]}
    spec = {**spec, "class_path": import_path(resolve(spec["class_path"], base))}
    for name in (class_name(f.get(key)) for f in files):
        if name is not None:
            spec = _switch(spec, resolve(str(name), base))
    if given is None:
        return spec
    typed = yaml.safe_load(given) if given.lstrip().startswith("{") else {"class_path": given}
    spec = _switch(spec, resolve(str(class_name(typed)), base, trusted=True))
    return {**spec, "init_args": typed["init_args"]} if "init_args" in typed else spec


def without_others(content: Content, specs: dict[str, Content], file: str) -> tuple[Content, list[str]]:
    """The content of a ``file`` without what it says of other classes than those of ``specs``, and a line for each
    class whose arguments are left out."""
    kept, notes = dict(content), []
    for key, base in BASES.items():
        name = class_name(content.get(key))
        if name is None or import_path(cls := resolve(str(name), base)) == specs[key]["class_path"]:
            continue
        del kept[key]
        arguments = content[key].get("init_args") if isinstance(content[key], dict) else None
        if arguments:
            chosen = specs[key]["class_path"].rpartition(".")[2]
            notes.append(
                f"{file} sets {', '.join(arguments)} of {cls.__name__}, and --{key} is {chosen}: these are left out"
            )
    return kept, notes


def members(spec: Content) -> list[Content]:
    """The specs of the families in a mixture, one by one, with full class paths; a single family's own."""
    cls = resolve(spec["class_path"], BASES["task"])
    arguments = spec.get("init_args", {})
    if issubclass(cls, Mixture):
        return [member for family in arguments["families"] for member in members(family)]
    return [{"class_path": import_path(cls), "init_args": arguments}]


def class_name(value: Any) -> Any:
    """What a spec, or a bare name, calls its class."""
    return value.get("class_path") if isinstance(value, dict) else value


def _switch(spec: Content, cls: type) -> Content:
    """The spec with its arguments if it is of that class, the bare class otherwise."""
    path = import_path(cls)
    return spec if spec["class_path"] == path else {"class_path": path}
