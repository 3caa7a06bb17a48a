"""What the command line accepts: flags and config files, turned into the config of a run.

Two passes. The first looks only for what decides how the rest is read: which classes, which modules may be imported,
which config files, which run. The second is a jsonargparse parser whose flags are those of the chosen classes.
"""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from torch import nn

from meta_teleport.cli.parser import (
    BASES,
    evaluate_parser,
    family_parser,
    info_parser,
    symmetries_parser,
    train_parser,
)
from meta_teleport.errors import UserError, nearest
from meta_teleport.learned.serialization import NAMED, load
from meta_teleport.registry import PACKAGE, call_factory, import_module, import_path, resolve
from meta_teleport.runs.checkpoint import names_beside
from meta_teleport.runs.run import Run
from meta_teleport.specs import check, shorten
from meta_teleport.tasks.mixture import Mixture

DEFAULTS = {"task": f"{PACKAGE}.Regression", "rule": f"{PACKAGE}.LSTMUpdateTele"}
FAMILIES_AND_RULES = tuple(BASES.values())
CONFIG = ("task", "rule", "training", "seed", "dtype")
RESULTS = "runs/evaluation-{name}"


@dataclass(frozen=True)
class TrainArguments:
    """``run`` is the run to go on with, None for a new one; ``config`` is what is asked for."""

    out: str
    run: Run | None
    config: dict[str, Any]
    device: str


@dataclass(frozen=True)
class EvaluateArguments:
    """``rule`` is a run folder or the name of a rule of this package, ``config`` how it was trained, ``task`` the spec
    of the family to evaluate on, ``folder`` where the results go. ``others`` are the classes of the further families
    that it was trained on, if none was chosen."""

    rule: str
    config: dict[str, Any]
    task: dict[str, Any]
    folder: Path
    others: tuple[str, ...]
    flags: Namespace


class _First(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(message)


def parse_train(argv: Sequence[str]) -> TrainArguments:
    """The arguments of ``train``. With ``--resume`` the stored config is the default and all else must agree; settings
    that are not stored, because the run was made before there were any, have their defaults.

    Raises ``UserError``.
    """
    first = _First(add_help=False, allow_abbrev=False)
    first.add_argument("--out")
    first.add_argument("--resume", action="store_true")
    given, rest = _first_pass(first, argv)
    files = [_read_config(name, given.modules) for name in given.config]
    out = given.out or next((f["out"] for f in reversed(files) if "out" in f), None)
    resume = given.resume or any(f.get("resume") for f in files)
    if out in NAMED:
        raise UserError(f"{out} is the name of a rule that comes with this package: write --out ./{out}, or another")
    run = Run.open(out) if resume and out is not None else None
    stored = {} if run is None else check(run.config, FAMILIES_AND_RULES, given.modules)
    specs = {key: _choose(key, getattr(given, key), files, stored.get(key)) for key in BASES}
    second = [f"--config={json.dumps(_importable(content))}" for content in files]
    second += [f"--out={given.out}"] if given.out else []
    second += [f"--{key}={specs[key]['class_path']}" for key in BASES if getattr(given, key)]
    args = train_parser(specs, stored).parse([*second, *rest])
    config = _plain(args)
    if run is not None:
        complete = train_parser({key: _importable(stored)[key] for key in BASES}, stored).parse([f"--out={out}"])
        _require_agreement(_plain(complete), config)
    return TrainArguments(args.out, run, config, args.device)


def parse_evaluate(argv: Sequence[str]) -> EvaluateArguments:
    """The arguments of ``evaluate``.

    The default family is that of the training; of several the first, or the first of the class that ``--task`` names.

    Raises ``UserError``.
    """
    taken, rest = _split(argv)
    args = evaluate_parser().parse(rest)
    for module in args["import"]:
        import_module(module)
    config = (load(args.run).config if args.run in NAMED else Run.open(args.run).config) or {}
    config = check(config, FAMILIES_AND_RULES, args["import"])
    given, flags = _first_pass(_First(add_help=False, allow_abbrev=False), taken)
    members = _members(config["task"])
    specs = [_choose("task", given.task, [], member) for member in members]
    spec = next((spec for spec in specs if "init_args" in spec), specs[0])
    task = _plain(family_parser(spec).parse(flags))["task"]
    folder = args.out or (RESULTS.format(name=args.run) if args.run in NAMED else args.run)
    others = dict.fromkeys(member["class_path"].rpartition(".")[2] for member in members[1:] if given.task is None)
    return EvaluateArguments(args.run, config, task, Path(folder), tuple(others), args)


def parse_info(argv: Sequence[str]) -> Namespace:
    """The arguments of ``info``. Raises ``UserError``."""
    return info_parser().parse(argv)


def parse_symmetries(argv: Sequence[str]) -> tuple[Namespace, nn.Module, Any]:
    """The arguments of ``symmetries``, the model that the factory makes, and its example inputs.

    Raises ``UserError``.
    """
    args = symmetries_parser().parse(argv)
    made = call_factory(args.factory)
    model, example_inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise UserError(f"{args.factory} returned a {type(model).__name__}: return a torch module, or (module, inputs)")
    if args.shape is not None:
        if any(size < 0 for size in args.shape):
            raise UserError(f"--shape {args.shape} has a negative size: give that of one batch, as in [2,3,224,224]")
        example_inputs = torch.randn(args.shape, generator=torch.Generator().manual_seed(0))
    if example_inputs is None:
        raise UserError(
            f"{args.factory} gives no example inputs: return (model, inputs), or pass --shape [2,3,224,224]"
        )
    return args, model, example_inputs


def _first_pass(parser: _First, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Classes, config files and modules (which are imported), and the flags that are left."""
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--import", nargs="*", default=[], dest="modules", action="extend")
    for key in BASES:
        parser.add_argument(f"--{key}", f"--{key}.class_path")
    given, rest = parser.parse_known_args(argv)
    for module in given.modules:
        import_module(module)
    return given, [*rest, *(["--resume"] if getattr(given, "resume", False) else [])]


def _read_config(name: str, modules: Sequence[str]) -> dict[str, Any]:
    """A config file, checked: it may name classes, but nothing is imported because of it."""
    try:
        content = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        near = nearest(Path(name).name, names_beside(Path(name)))
        raise UserError(f"config file {name}{near} cannot be read ({error.strerror}): check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config file {name} is not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict) or "config" in content:
        raise UserError(f"config file {name} must hold settings as 'name: value', and no other config file")
    checked: dict[str, Any] = check(content, FAMILIES_AND_RULES, modules)
    return checked


def _importable(content: dict[str, Any]) -> dict[str, Any]:
    """The content with the classes of task and rule by paths that a parser can import."""
    paths: dict[str, Any] = {}
    for key, base in BASES.items():
        spec = content.get(key)
        if isinstance(name := _class_name(spec), str):
            path = import_path(resolve(name, base))
            paths[key] = {**spec, "class_path": path} if isinstance(spec, dict) else path
    return {**content, **paths}


def _choose(key: str, given: str | None, files: list[dict[str, Any]], stored: dict[str, Any] | None) -> dict[str, Any]:
    """Class path and preset arguments: what was typed, else what a config file says, else the stored or the default."""
    base, spec = BASES[key], stored or {"class_path": DEFAULTS[key]}
    spec = {**spec, "class_path": import_path(resolve(spec["class_path"], base))}
    for name in (_class_name(f.get(key)) for f in files):
        if name is not None:
            spec = _switch(spec, resolve(str(name), base))
    if given is None:
        return spec
    typed = yaml.safe_load(given) if given.lstrip().startswith("{") else {"class_path": given}
    spec = _switch(spec, resolve(str(_class_name(typed)), base, trusted=True))
    return {**spec, "init_args": typed["init_args"]} if "init_args" in typed else spec


def _members(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The specs of the families in a mixture, one by one, with full class paths; a single family's own."""
    cls = resolve(spec["class_path"], BASES["task"])
    arguments = spec.get("init_args", {})
    if issubclass(cls, Mixture):
        return [member for family in arguments["families"] for member in _members(family)]
    return [{"class_path": import_path(cls), "init_args": arguments}]


def _switch(spec: dict[str, Any], cls: type) -> dict[str, Any]:
    """The spec with its arguments if it is of that class, the bare class otherwise."""
    path = import_path(cls)
    return spec if spec["class_path"] == path else {"class_path": path}


def _plain(args: Namespace) -> dict[str, Any]:
    """What was parsed as plain JSON values, with classes as files name them."""
    content: dict[str, Any] = {key: value for key, value in args.as_dict().items() if key in CONFIG}
    for key in BASES.keys() & content.keys():
        content[key] = {"class_path": content[key]["class_path"], "init_args": content[key].get("init_args", {})}
    plain: dict[str, Any] = shorten(json.loads(json.dumps(content, default=str)))
    return plain


def _class_name(value: Any) -> Any:
    return value.get("class_path") if isinstance(value, dict) else value


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The tokens of ``--task`` and ``--task.…`` with their values, and the others."""
    taken, rest, tokens = [], [], iter(argv)
    for token in tokens:
        if not re.match(r"--task(\.|=|$)", token):
            rest.append(token)
            continue
        taken.append(token)
        if "=" not in token:
            taken += [value for value in [next(tokens, None)] if value is not None]
    return taken, rest


def _require_agreement(stored: dict[str, Any], asked: dict[str, Any]) -> None:
    old, new = _flat(stored), _flat(asked)
    for name in sorted(old.keys() | new.keys(), key=lambda n: (not n.endswith("class_path"), n)):
        longer = name == "training.meta_steps" and new[name] > old[name]
        if old.get(name) != new.get(name) and not longer:
            raise UserError(
                f"the run in --out has {name} {old.get(name)} and {new.get(name)} was given: leave that flag out, or "
                "choose another --out (only training.meta_steps may change on --resume, and only grow)"
            )


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}".replace(".init_args", "")
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat
