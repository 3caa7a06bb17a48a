"""A trained rule on disk: its meta-parameters, its config and the shapes it was built for, in one safetensors file.

The header of ``rule.safetensors`` holds ``{"format", "config", "shapes", "meta_step"}``, so that the file alone is
enough to build the rule again. Two such files come with this package, by name: ``pretrained``, trained on low-rank
factors and some networks, and ``classification``, trained on classifiers of small images.
"""

import inspect
from pathlib import Path
from typing import Any, cast

import torch

from meta_teleport.errors import UserError, nearest
from meta_teleport.learned.learned_rule import LearnedRule
from meta_teleport.registry import construct, resolve
from meta_teleport.rules.rule import Rule, Shapes, SiteShape, describe, initialized
from meta_teleport.runs.checkpoint import load_tensors, make_folder, names_beside, save_tensors
from meta_teleport.runs.run import FORMAT, Run, check_format
from meta_teleport.specs import shorten

FILE = "rule.safetensors"
NAMED = {name: Path(__file__).with_name(f"{name}.safetensors") for name in ("pretrained", "classification")}


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
    training has set on the rule.

    Raises ``UserError`` if there is no config or the file cannot be written.
    """
    config = config if config is not None else rule.config
    if config is None:
        raise UserError(f"this {type(rule).__name__} has no config: give save one, with its class path and arguments")
    path = Path(path)
    if path.suffix != ".safetensors":
        make_folder(path)
        path = path / FILE
    meta = {
        "format": FORMAT,
        "config": shorten(config),
        "shapes": None if rule.shapes is None else shapes_to_json(rule.shapes),
        "meta_step": meta_step if meta_step is not None else rule.meta_step,
    }
    save_tensors(path, rule.state_dict(), meta)


def load(path: str | Path, device: str | torch.device = "cpu") -> LearnedRule:
    """The rule in a run folder, in a folder that :func:`save` has made, or in such a file, in its saved dtype.

    The strings ``pretrained`` and ``classification`` are the rules that come with this package, whatever lies in the
    working directory; a folder of that name is ``./pretrained`` or ``Path("pretrained")``.

    Its ``config`` (what it is and how it was trained) and ``meta_step`` are set. A rule of a class outside this
    package needs that class imported first: a file never decides what is imported, and nothing is unpickled.

    Raises ``UserError`` for what is missing, cut off, of another format, or does not fit together.
    """
    path = NAMED[path] if isinstance(path, str) and path in NAMED else _file(Path(path))
    tensors, meta = load_tensors(path, device)
    check_format(meta, path)
    try:
        config, shapes = shorten(meta["config"]), shapes_from_json(meta["shapes"])
        spec = {"class_path": config["rule"]["class_path"], "init_args": config["rule"].get("init_args", {})}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path} is damaged (its header does not describe a rule): copy it again") from None
    try:
        rule = build(spec, shapes)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is damaged (no rule can be built as its header says): copy it again") from None
    _require_same(rule.state_dict(), tensors, path)
    rule.load_state_dict(tensors, assign=True)
    rule.config, rule.meta_step = config, meta.get("meta_step")
    return cast(LearnedRule, rule)  # a hand-written rule that somebody saved lacks what LearnedRule adds


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
    """The inverse of :func:`shapes_to_json`; None stays None."""
    if content is None:
        return None
    return Shapes(
        {name: tuple(shape) for name, shape in content["params"]},
        tuple(SiteShape(tuple(site["parameters"]), tuple(site["algebra"])) for site in content["sites"]),
    )


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


def _require_same(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor], path: Path) -> None:
    for name in sorted(expected.keys() ^ found.keys()):
        where = "is missing" if name in expected else "is not part of the rule"
        raise UserError(f"{path} does not fit its own config: tensor '{name}' {where}; copy the file again")
    for name, tensor in expected.items():
        if tensor.shape != found[name].shape:
            raise UserError(
                f"{path} does not fit its own config: tensor '{name}' is {tuple(found[name].shape)} and the rule "
                f"wants {tuple(tensor.shape)}; copy the file again"
            )
