"""A trained rule on disk: its meta-parameters, its config and the shapes it was built for, in one safetensors file.

The header of ``rule.safetensors`` holds ``{"format", "config", "shapes", "meta_step", "experience", "time_scale"}``, so
that the file alone is enough to build the rule again. Two such files come with this package, by name: ``factors``,
trained on low-rank factors and some small networks, and ``classification``, trained on classifiers of small images.
"""

import inspect
import os
import warnings
from math import inf
from pathlib import Path
from typing import Any, cast

import torch

from meta_teleport.errors import UserError, nearest
from meta_teleport.learned.learned_rule import LearnedRule
from meta_teleport.registry import construct, is_ours, resolve
from meta_teleport.rules.experience import Experience
from meta_teleport.rules.rule import Rule, Shapes, SiteShape, describe, initialized
from meta_teleport.runs.checkpoint import load_tensors, read_header, save_tensors
from meta_teleport.runs.files import names_beside
from meta_teleport.runs.run import FORMAT, Run, check_config, check_format
from meta_teleport.runs.writing import make_folder
from meta_teleport.specs import shorten, spec_of

FILE = "rule.safetensors"
NAMED = {name: Path(__file__).with_name(f"{name}.safetensors") for name in ("factors", "classification")}
RENAMED = {"pretrained": "factors"}


def build(spec: dict[str, Any], shapes: Shapes | None, seed: int = 0) -> Rule:
    """The rule that ``spec = {"class_path", "init_args"}`` names, freshly initialised from ``seed``.

    ``shapes`` go to rules that take them. torch's global generator is left as it was.

    Raises ``UserError`` for unknown classes and arguments.
    """
    arguments: tuple[Shapes, ...] = ()
    if takes_shapes(resolve(str(spec.get("class_path")), Rule)):
        if shapes is None:
            raise UserError(f"{spec['class_path']} is built for one network: give its shapes (see shapes_of)")
        arguments = (shapes,)
    with initialized(seed):
        return construct(spec, Rule, *arguments)


def takes_shapes(cls: type) -> bool:
    """Whether a rule's sizes depend on the network."""
    return "shapes" in inspect.signature(cls).parameters


def save(rule: Rule, path: str | Path, config: dict[str, Any] | None = None, meta_step: int | None = None) -> None:
    """Writes a rule into a file ``*.safetensors``, or as ``rule.safetensors`` into a folder, which is made.

    ``config`` (with the entry ``rule``: class path and arguments) and ``meta_step`` default to what :func:`load` or
    training has set on the rule, or to what it was made with.

    Raises ``UserError`` if there is no config, as it was made with more than plain data, or the file cannot be written.
    """
    if config is None and rule.config is None and (spec := spec_of(rule)) is not None:
        config = {"rule": spec}
    config = config if config is not None else rule.config
    if config is None:
        raise UserError(f"this {type(rule).__name__} has no config: give save one, with its class path and arguments")
    path = Path(os.path.expanduser(path))
    if path.suffix != ".safetensors":
        make_folder(path)
        path = path / FILE
    meta = {
        "format": FORMAT,
        "config": shorten(config),
        "shapes": None if rule.shapes is None else shapes_to_json(rule.shapes),
        "meta_step": meta_step if meta_step is not None else rule.meta_step,
        "experience": None if rule.experience is None else rule.experience._asdict(),
        "time_scale": rule.time_scale,
    }
    save_tensors(path, rule.state_dict(), meta)


def load(path: str | Path, device: str | torch.device = "cpu") -> LearnedRule:
    """The rule in a run folder, in a folder that :func:`save` has made, or in such a file, in its saved dtype.

    The strings ``factors`` and ``classification`` are the rules that come with this package, whatever lies in the
    working directory; a folder of that name is ``./factors`` or ``Path("factors")``.

    Its ``config`` (what it is and how it was trained), ``meta_step`` and ``experience`` are set. A rule of a class
    outside this package needs that class imported first: a file never decides what is imported, and nothing is
    unpickled.

    Raises ``UserError`` for what is missing, cut off, of another format, or does not fit together.
    """
    path = _file(_place(path))
    header = read_header(path)
    meta = header.meta
    check_format(meta, path)
    try:
        config, shapes = shorten(meta["config"]), shapes_from_json(meta["shapes"])
        met = meta.get("experience")  # files of version 0.1 have none
        experience = None if met is None else Experience(**{kind: tuple(names) for kind, names in met.items()})
        spec = {"class_path": config["rule"]["class_path"], "init_args": config["rule"].get("init_args", {})}
        meta_step = None if meta.get("meta_step") is None else _count(meta["meta_step"])
        time_scale = float(meta.get("time_scale", 1.0))
        if not 0 < time_scale < inf:
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path} is damaged (its header does not describe a rule): copy it again") from None
    with torch.device("meta"):  # sizes first: a rule that is not what the file holds could be of any size
        expected = _built(spec, shapes, path).state_dict()
    _require_same({name: tuple(tensor.shape) for name, tensor in expected.items()}, header.shapes, path)
    _require_dtypes(expected, header.dtypes, path)
    rule = _built(spec, shapes, path)
    rule.scale_time(time_scale)
    rule.load_state_dict(load_tensors(path, device)[0], assign=True)
    rule.config, rule.meta_step, rule.experience = config, meta_step, experience
    return cast(LearnedRule, rule)  # a hand-written rule that somebody saved lacks what LearnedRule adds


def trained_config(path: str | Path) -> dict[str, Any]:
    """The config of a rule where :func:`load` finds it, without building anything: what it is, how it was trained.

    Raises ``UserError`` for what is missing, cut off, of another format, or no rule.
    """
    place = _place(path)
    if (place / "config.json").exists():
        return Run.open(place).config
    file = _file(place)
    meta = read_header(file).meta
    check_format(meta, file)
    if not (isinstance(meta.get("config"), dict) and isinstance(meta["config"].get("rule"), dict)):
        raise UserError(f"{file} is damaged (its header does not describe a rule): copy it again")
    check_config(meta["config"], file)
    return dict(meta["config"])


def named(name: str | Path) -> str | None:
    """The rule of this package that ``name`` stands for, by its name or its old one; None if it is a path."""
    if isinstance(name, str) and name in RENAMED:
        new = RENAMED[name]
        warnings.warn(f"the rule '{name}' is called '{new}': use that name", DeprecationWarning, stacklevel=3)
        return new
    return name if isinstance(name, str) and name in NAMED else None


def require_fit(rule: Rule, shapes: Shapes) -> None:
    """Raises ``UserError`` naming both if a rule is built for one network and ``shapes`` are those of another."""
    if rule.shapes is not None and rule.shapes != shapes:
        raise UserError(
            f"this {type(rule).__name__} fits networks of {describe(rule.shapes)} and the tasks have "
            f"{describe(shapes)}: choose tasks of the same shapes, or train a rule on these"
        )


def shapes_to_json(shapes: Shapes) -> dict[str, Any]:
    """Shapes as lists and dicts."""
    return {
        "params": [[name, list(shape)] for name, shape in shapes.params.items()],
        "sites": [{"parameters": list(site.parameters), "algebra": list(site.algebra)} for site in shapes.sites],
    }


def shapes_from_json(content: dict[str, Any] | None) -> Shapes | None:
    """The inverse of :func:`shapes_to_json`; None stays None.

    Raises ``KeyError``, ``TypeError`` or ``ValueError`` for what holds no shapes.
    """
    if content is None:
        return None
    return Shapes(
        {str(name): tuple(map(_count, shape)) for name, shape in content["params"]},
        tuple(SiteShape(tuple(site["parameters"]), tuple(map(_count, site["algebra"]))) for site in content["sites"]),
    )


def _count(value: Any) -> int:
    """An integer from 0 on that fits a tensor. Raises ``ValueError`` for anything else."""
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError(f"{value!r:.50} is no count")
    return value


def _place(path: str | Path) -> Path:
    """A rule of this package by its name, or a path, with the home folder for ``~``."""
    name = named(path)
    return NAMED[name] if name else Path(os.path.expanduser(path))


def _file(path: Path) -> Path:
    if not path.exists() and len(path.parts) == 1:
        names, near = ", ".join(NAMED), nearest(path.name, [*NAMED, *names_beside(path)])
        raise UserError(
            f"there is no rule '{path}'{near}: give a run folder, a saved rule, or one of this package's: {names}"
        )
    if not path.is_dir():
        return path
    if (path / "config.json").exists():
        Run.open(path)
    if not (path / FILE).exists():
        raise UserError(
            f"there is no {FILE} in {path}: the run was stopped before its first checkpoint, go on with it by "
            f"train --out {path} --resume"
            if (path / "config.json").exists()
            else f"{path} is neither a run folder nor a saved rule (no {FILE} in it): check the path"
        )
    return path / FILE


def _built(spec: dict[str, Any], shapes: Shapes | None, path: Path) -> Rule:
    """The rule that a file names, freshly made. Raises ``UserError`` that names the file."""
    try:
        return build(spec, shapes)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception:
        if not is_ours(resolve(str(spec["class_path"]), Rule)):
            raise  # what a user's class raises is the user's to see
        raise UserError(f"{path} is damaged (no rule can be built as its header says): copy it again") from None


def _require_same(expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]], path: Path) -> None:
    for name in sorted(expected.keys() ^ found.keys()):
        where = "is missing" if name in expected else "is not part of the rule"
        raise UserError(f"{path} does not fit its own config: tensor '{name}' {where}; copy the file again")
    for name, shape in expected.items():
        if shape != found[name]:
            raise UserError(
                f"{path} does not fit its own config: tensor '{name}' is {found[name]} and the rule wants {shape}; "
                "copy the file again"
            )


def _require_dtypes(expected: dict[str, torch.Tensor], found: dict[str, torch.dtype], path: Path) -> None:
    """Raises ``UserError`` unless all meta-parameters are of one floating type, and what counts is of its own."""
    floats = {found[name] for name, tensor in expected.items() if tensor.is_floating_point()}
    for name, tensor in expected.items():
        fits = (
            found[name].is_floating_point and len(floats) == 1
            if tensor.is_floating_point()
            else found[name] == tensor.dtype
        )
        if not fits:
            raise UserError(
                f"{path} does not fit its own config: tensor '{name}' is of {found[name]}, others of another dtype; "
                "copy the file again"
            )
