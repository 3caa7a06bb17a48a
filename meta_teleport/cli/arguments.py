"""What the command line accepts: flags and config files, turned into the config of a run.

Two passes. The first looks only for what decides how the rest is read: which classes, which modules may be imported,
which config files, which run. The second is a jsonargparse parser whose flags are those of the chosen classes.
"""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import expanduser
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from torch import nn

from meta_teleport.cli.agreement import keep_schedule, parse_with_one_horizon, require_agreement
from meta_teleport.cli.class_choice import (
    FAMILIES_AND_RULES,
    choose,
    importable,
    members,
    read_config,
    with_command,
    without_others,
)
from meta_teleport.cli.consent import allows_downloads, require_downloads_inside, require_typed, without_downloads
from meta_teleport.cli.device import chosen
from meta_teleport.cli.parser import (
    BASES,
    evaluate_parser,
    family_parser,
    info_parser,
    symmetries_parser,
    train_parser,
)
from meta_teleport.errors import UserError
from meta_teleport.learned.serialization import NAMED, RENAMED, load, named, trained_config
from meta_teleport.registry import call_factory, import_module
from meta_teleport.runs.run import IMPORTED, Run
from meta_teleport.specs import check, shorten

CONFIG = ("task", "rule", "training", "seed", "dtype")
RESULTS = "runs/evaluation-{name}"


@dataclass(frozen=True)
class TrainArguments:
    """``run`` is the run to go on with, None for a new one; ``config`` is what is asked for; ``notes`` are lines about
    what was not taken over as it was given."""

    out: str
    run: Run | None
    config: dict[str, Any]
    device: str
    overwrite: bool
    notes: tuple[str, ...]


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
    command = ["train", *argv]
    files = [read_config(expanduser(name), given.modules, command) for name in given.config]
    require_typed(files, argv, given.out)
    out = given.out or next((f["out"] for f in reversed(files) if "out" in f), None)
    resume = given.resume or any(f.get("resume") for f in files)
    if out in (*NAMED, *RENAMED):
        raise UserError(f"{out} is the name of a rule that comes with this package: write --out ./{out}, or another")
    run = Run.open(out, lock=True) if resume and out is not None else None
    stored, recorded = ({}, []) if run is None else (run.config, run.config.get(IMPORTED))
    stored = with_command(command, recorded, lambda: check(stored, FAMILIES_AND_RULES, given.modules))
    specs = {key: choose(key, getattr(given, key), files, stored.get(key)) for key in BASES}
    notes: list[str] = []
    for number, (name, content) in enumerate(zip(given.config, files, strict=True)):
        files[number], lines = without_others(content, specs, name)
        notes += lines
    second = [f"--config={json.dumps(importable(content))}" for content in files]
    second += [f"--out={given.out}"] if given.out else []
    second += [f"--{key}={specs[key]['class_path']}" for key in BASES if getattr(given, key)]
    args, lines = parse_with_one_horizon([*second, *rest], specs, stored)
    config = _plain(args)
    from_file = run is not None or any(key.split(".")[0] == "task" for content in files for key in content)
    config = _with_consent(config, argv) if from_file else config
    if run is not None:
        if args.overwrite:
            raise UserError("--resume goes on with a run and --overwrite begins it anew: choose one of them")
        complete = train_parser({key: importable(stored)[key] for key in BASES}, stored).parse([f"--out={out}"])
        require_agreement(_with_consent(_plain(complete), argv), config)
        lines = keep_schedule(config["training"], stored["training"])
    modules = {**dict.fromkeys(recorded if isinstance(recorded, list) else []), **dict.fromkeys(given.modules)}
    config |= {IMPORTED: list(modules)} if modules else {}
    return TrainArguments(expanduser(args.out), run, config, args.device, args.overwrite, (*notes, *lines))


def parse_evaluate(argv: Sequence[str]) -> EvaluateArguments:
    """The arguments of ``evaluate``.

    The default family is that of the training; of several the first, or the first of the class that ``--task`` names.

    Raises ``UserError``.
    """
    taken, rest = _split(argv)
    args = evaluate_parser().parse(rest)
    args.device = chosen(args.device)
    for module in args["import"]:
        import_module(module)
    name = named(args.run) or expanduser(args.run)
    given, flags = _first_pass(_First(add_help=False, allow_abbrev=False), taken)
    config = trained_config(name)

    def checked() -> dict[str, Any]:
        found: dict[str, Any] = check(config, FAMILIES_AND_RULES, args["import"])
        load(name)
        return found

    config = with_command(["evaluate", *argv], config.get(IMPORTED), checked)
    if "task" not in config and given.task is None:
        raise UserError(f"{args.run} does not say what it was trained on: choose what to evaluate it on by --task NAME")
    families = members(config["task"]) if "task" in config else []
    wanted: list[dict[str, Any] | None] = [*families] or [None]
    specs = [choose("task", given.task, [], member) for member in wanted]
    spec = next((spec for spec in specs if "init_args" in spec), specs[0])
    parsed = _plain(family_parser(spec).parse(flags))
    task = (_with_consent(parsed, argv) if "init_args" in spec else parsed)["task"]
    others = dict.fromkeys(member["class_path"].rpartition(".")[2] for member in families[1:] if given.task is None)
    folder = expanduser(args.out) if args.out else _results(name)
    return EvaluateArguments(name, config, task, Path(folder), tuple(others), args)


def parse_info(argv: Sequence[str]) -> Namespace:
    """The arguments of ``info``. Raises ``UserError``."""
    args = info_parser().parse(argv)
    args.run = expanduser(args.run)
    return args


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


def _with_consent(config: dict[str, Any], argv: Sequence[str]) -> dict[str, Any]:
    """The config whose family a file describes, without the downloads that nobody has allowed."""
    if not allows_downloads(argv):
        return {**config, "task": without_downloads(config["task"])}
    if not any(re.match(r"--task\..*folder\b", token) for token in argv):
        require_downloads_inside(config["task"])
    return config


def _plain(args: Namespace) -> dict[str, Any]:
    """What was parsed as plain JSON values, with classes as files name them."""
    content: dict[str, Any] = {key: value for key, value in args.as_dict().items() if key in CONFIG}
    for key in BASES.keys() & content.keys():
        content[key] = {"class_path": content[key]["class_path"], "init_args": content[key].get("init_args", {})}
    plain: dict[str, Any] = shorten(json.loads(json.dumps(content, default=str)))
    return plain


def _results(name: str) -> str:
    """The folder for the results about a rule: the one it is in, or, for files and named rules, one of its own."""
    return name if name not in NAMED and Path(name).is_dir() else RESULTS.format(name=Path(name).stem)


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
