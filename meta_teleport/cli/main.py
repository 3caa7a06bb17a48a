"""The program ``meta-teleport``: train, evaluate, symmetries, info, doctor.

What a user got wrong is one line on standard error and exit code 2; a run that was asked to stop ends with 130.
"""

import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from meta_teleport.errors import UserError, nearest, printable

if TYPE_CHECKING:
    from meta_teleport.rules.rule import Shapes
    from meta_teleport.tasks.family import TaskFamily

PROGRAM = "meta-teleport"
FAILED, INTERRUPTED = 2, 130
HELP = f"""usage: {PROGRAM} COMMAND ...

Learned teleportation: optimizers that move along the symmetries of a loss.

  train       meta-train a rule on a family of tasks and keep it in a run folder
  evaluate    compare a trained rule with controls and tuned baselines on held-out tasks
  info        what a run is and where it stands
  symmetries  what a model of your own can be teleported by
  doctor      versions, compute devices, optional packages

{PROGRAM} COMMAND --help lists the flags of a command, {PROGRAM} --version says which version this is."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _say
            return _dispatch(argv)
    except UserError as error:
        print(f"{PROGRAM}: error: {printable(str(error))}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _say(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning in one line."""
    print(f"{PROGRAM}: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _dispatch(argv: list[str]) -> int:
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": _train,
        "evaluate": _evaluate,
        "info": _info,
        "symmetries": _symmetries,
        "doctor": _doctor,
    }
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP)
        return 0 if argv else FAILED
    if argv[0] == "--version":
        from meta_teleport import __version__

        print(f"{PROGRAM} {__version__}")
        return 0
    if argv[0] not in commands:
        raise UserError(f"unknown command '{argv[0]}'{nearest(argv[0], commands)}: choose one of {', '.join(commands)}")
    return commands[argv[0]](argv[1:])


def _train(argv: list[str]) -> int:
    import torch

    from meta_teleport.cli.arguments import parse_train
    from meta_teleport.cli.device import chosen, described
    from meta_teleport.cli.terminal import stopping, training_bar
    from meta_teleport.learned.serialization import build
    from meta_teleport.meta.config import TrainingConfig
    from meta_teleport.meta.loop import train
    from meta_teleport.runs.run import FORMAT, IMPORTED, Run

    asked = parse_train(argv)
    config, device = asked.config, chosen(asked.device)
    training = TrainingConfig(**config["training"])
    family, shapes = _family(config["task"], training.tasks)
    _require_one_shape(config, shapes)
    rule = build(config["rule"], shapes, config["seed"])
    if not any(True for _ in rule.parameters()):
        raise UserError(f"{type(rule).__name__} has no meta-parameters to train: choose another --rule")
    for note in asked.notes:
        print(printable(note), file=sys.stderr)
    run = asked.run
    if run is None:
        run = Run.create(asked.out, config, described(device), asked.overwrite)
    elif run.config["training"] != config["training"] or run.config.get(IMPORTED) != config.get(IMPORTED):
        run.update({"format": FORMAT, **config})
    with stopping() as should_stop, training_bar(training.meta_steps) as report:
        summary = train(
            rule,
            family,
            training,
            seed=config["seed"],
            device=device,
            dtype=getattr(torch, config["dtype"]),
            run=run,
            resume=asked.run is not None,
            report=report,
            should_stop=should_stop,
        )
    failed = f", {summary.failed} tasks failed" if summary.failed else ""
    if not summary.finished:
        done = f"stopped after {summary.meta_step} of {training.meta_steps} meta-steps{failed}"
        print(f"{done}; go on by: {PROGRAM} train --out {asked.out} --resume", file=sys.stderr)
        return INTERRUPTED
    print(f"{run.folder}: {summary.meta_step} meta-steps, {summary.seconds:.1f} s{failed}")
    return 0


def _family(spec: dict[str, Any], count: int) -> "tuple[TaskFamily, Shapes | None]":
    """The family and the shapes of its networks, None where its members have several. Settings that give no task, or
    ``count`` tasks that no memory holds, are the user's to change."""
    import torch

    from meta_teleport.bounds import Bounded, require_memory
    from meta_teleport.registry import construct, is_ours
    from meta_teleport.rules.rule import shapes_of
    from meta_teleport.tasks.family import TaskFamily

    family = construct(spec, TaskFamily)
    ours = all(is_ours(type(member)) for member in family.members)
    try:
        with Bounded(sys.maxsize) if ours else nullcontext():
            drawn = [member.sample(1, torch.Generator().manual_seed(0)) for member in family.members]
    except (RuntimeError, IndexError, OverflowError, TypeError) as error:
        if not ours:
            raise  # what a user's class raises is the user's to see
        raise UserError(f"no task can be drawn with these --task settings ({error}): change them") from error
    each = sum(t.nbytes for tasks in drawn for held in (tasks.params, tasks.data) for t in held.values())
    require_memory(count * each, f"{count} tasks")
    first, *others = (shapes_of(tasks.params, tasks.symmetry) for tasks in drawn)
    return family, first if all(shapes == first for shapes in others) else None


def _require_one_shape(config: dict[str, Any], shapes: "Shapes | None") -> None:
    """Raises ``UserError`` if there are several shapes and the rule is built for one."""
    from meta_teleport.learned.serialization import takes_shapes
    from meta_teleport.registry import resolve
    from meta_teleport.rules.rule import Rule

    cls = resolve(config["rule"]["class_path"], Rule)
    if shapes is None and takes_shapes(cls):
        raise UserError(
            f"{cls.__name__} is built for networks of one shape and the members of --task have several: choose members "
            "of one shape, or a --rule of any size"
        )


def _evaluate(argv: list[str]) -> int:
    import torch

    from meta_teleport.cli.arguments import parse_evaluate
    from meta_teleport.cli.device import described
    from meta_teleport.cli.terminal import evaluation_bar, show
    from meta_teleport.evaluation.evaluation import evaluate
    from meta_teleport.evaluation.results import keep
    from meta_teleport.evaluation.tables import tables
    from meta_teleport.learned.serialization import load, require_fit
    from meta_teleport.runs.run import require_writable

    asked = parse_evaluate(argv)
    args, folder = asked.flags, asked.folder
    device, dtype = args.device, getattr(torch, args.dtype or asked.config.get("dtype", "float32"))
    rule, (family, shapes) = load(asked.rule), _family(asked.task, args.tasks)
    if shapes is not None:
        require_fit(rule, shapes)
    require_writable(folder)
    if asked.others:
        others = ", ".join(asked.others)
        print(f"{asked.rule}: evaluated on the first of its families; the others by --task: {others}", file=sys.stderr)
    horizon = args.horizon or asked.config.get("training", {}).get("horizon") or rule.horizon
    if horizon is None:
        raise UserError(f"{asked.rule} does not say for how many steps it was trained: give --horizon")
    with evaluation_bar() as report:
        evaluation = evaluate(
            rule.to(device, dtype),
            family,
            horizon=horizon,
            tasks=args.tasks,
            steps=args.steps,
            seed=args.seed,
            dtype=dtype,
            device=device,
            folder=folder,
            report=report,
        )
    content, _, figure, note = keep(evaluation, folder, rule=asked.rule, task=asked.task, device=described(device))
    if note:
        print(printable(note), file=sys.stderr)
    if args.json:
        print(json.dumps(content, indent=2))
    else:
        show(*tables(evaluation))
        print(figure)
    return 0


def _info(argv: list[str]) -> int:
    from meta_teleport.cli.arguments import parse_info
    from meta_teleport.cli.info import inspect_run, pairs
    from meta_teleport.cli.terminal import show_pairs

    args = parse_info(argv)
    content = inspect_run(args.run)
    if args.json:
        print(json.dumps(content, indent=2))
        return 0
    saved, steps, folder = content["meta_step"], content["config"]["training"]["meta_steps"], content["folder"]
    state = "no checkpoint yet" if saved is None else f"{saved} of {steps} meta-steps saved"
    unfinished = folder is not None and (saved is None or saved < steps)
    goes_on = f"; go on by: {PROGRAM} train --out {folder} --resume" if unfinished else ""
    print(f"{folder or args.run}: {state}{goes_on}")
    show_pairs(pairs(content))
    return 0


def _symmetries(argv: list[str]) -> int:
    from meta_teleport.cli.arguments import parse_symmetries
    from meta_teleport.cli.terminal import show, width
    from meta_teleport.detection.report import report, tables

    args, model, example_inputs = parse_symmetries(argv)
    found = report(model.eval() if args.eval else model, example_inputs)
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    show(*tables(found, width()))
    return 0


def _doctor(argv: list[str]) -> int:
    from meta_teleport.cli.doctor import diagnose
    from meta_teleport.cli.terminal import show_pairs

    if argv in (["-h"], ["--help"]):
        print(f"usage: {PROGRAM} doctor\n\nPrints versions, compute devices and optional packages.")
        return 0
    if argv:
        raise UserError(f"doctor takes no arguments, and got {' '.join(argv)}: leave them out")
    show_pairs(diagnose())
    return 0
