"""Settings that belong together: the two horizons, and those of a run with what is asked of it."""

from collections.abc import Sequence
from typing import Any

from jsonargparse import Namespace

from meta_teleport.cli.parser import train_parser
from meta_teleport.errors import UserError
from meta_teleport.meta.config import TrainingConfig


def parse_with_one_horizon(
    argv: Sequence[str], specs: dict[str, dict[str, Any]], stored: dict[str, Any]
) -> tuple[Namespace, list[str]]:
    """The parsed arguments of ``train``. The horizon of a rule and that of its training are one where only one of them
    is given; a line if both are, and differ. Those of a run are what they are."""
    args = train_parser(specs, stored).parse(argv)
    if stored:
        return args, []
    own = args.rule.get("init_args", Namespace()).get("horizon")
    if args.training.horizon is None:
        args.training.horizon = own if isinstance(own, int) else TrainingConfig.horizon
    elif isinstance(own, int):
        preset = {"horizon": args.training.horizon, **specs["rule"].get("init_args", {})}
        args = train_parser({**specs, "rule": {**specs["rule"], "init_args": preset}}, stored).parse(argv)
        own, whole = args.rule.init_args.horizon, args.training.horizon
        if own != whole:
            line = f"the rule is made for {own} steps (rule.horizon) and trained for {whole} (training.horizon)"
            return args, [line]
    return args, []


def require_agreement(stored: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raises ``UserError`` if what is asked of a run differs from what it is, but for more meta-steps and for where its
    data come from."""
    old, new = _flat(stored), _flat(asked)
    for name in sorted(old.keys() | new.keys(), key=lambda n: (not n.endswith("class_path"), n)):
        longer = name == "training.meta_steps" and new[name] > old[name]
        if old.get(name) != new.get(name) and not longer and name not in ("task.download", "task.folder"):
            raise UserError(
                f"the run in --out has {name} {old.get(name)} and {new.get(name)} was given: leave that flag out, or "
                "choose another --out (only training.meta_steps may change on --resume, and only grow)"
            )


def keep_schedule(asked: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    """Where a run is to go on for longer, its learning rates fall as they would have, and stay: a line says so."""
    before = stored.get("meta_steps", asked["meta_steps"])
    if asked["decay"] == "constant" or asked["meta_steps"] == before:
        return []
    asked["decay_steps"] = asked["decay_steps"] or before
    return [
        f"learning rates fall for {asked['decay_steps']} meta-steps, as the run began, and stay at their last values "
        f"up to meta-step {asked['meta_steps']}"
    ]


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}".replace(".init_args", "")
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat
