"""The flags of the commands, as jsonargparse parsers: names, types, defaults, help."""

import argparse
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import MappingProxyType
from typing import Any, Literal

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from jsonargparse.typing import restricted_number_type

from meta_teleport.errors import UserError, nearest
from meta_teleport.meta.config import TrainingConfig
from meta_teleport.registry import resolve
from meta_teleport.rules.rule import Rule
from meta_teleport.tasks.family import TaskFamily

PROGRAM = "meta-teleport"
BASES: dict[str, type] = {"task": TaskFamily, "rule": Rule}
Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**63)], docstring="A seed, from 0 to 2^63 - 1")
Dtype = Literal["float32", "float64"]
LONGEST = 400
RUN = "run folder; or factors or classification, rules of this package (a folder of that name: ./factors)"


def shape(text: str | list[int]) -> list[int]:
    """Sizes from ``2,3,64,64``, with or without brackets and blanks. Raises ``ArgumentTypeError`` for
    anything else."""
    if not re.fullmatch(r"-?\d+(,-?\d+)*", sizes := re.sub(r"[\s\[\]()]", "", str(text)).replace("x", ",").rstrip(",")):
        raise argparse.ArgumentTypeError(f"'{text}' is no shape: write sizes with commas, as in 2,3,224,224")
    return [int(size) for size in sizes.split(",")]


class Parser(ArgumentParser):
    """A jsonargparse parser whose help lists the flags of the chosen classes too, and examples."""

    chosen: Mapping[str, type] = MappingProxyType({})
    examples: Sequence[str] = ()

    def parse(self, argv: Sequence[str]) -> Namespace:
        """The parsed flags. Raises ``UserError`` with jsonargparse's message on one line."""
        try:
            return self.parse_args(list(argv))
        except (ArgumentError, argparse.ArgumentError) as error:
            raise UserError(f"{_one_line(str(error))}{self._meant(str(error))} (see: {self.prog} --help)") from None

    def _meant(self, message: str) -> str:
        """The flag or the argument of a class that is most like the one which is not accepted."""
        inner = {f"--{key}.{name}" for key, cls in self.chosen.items() for name in inspect.signature(cls).parameters}
        flags = {flag for flag in self._option_string_actions if flag.startswith("--")} | inner
        if found := re.search(r"[Uu]nrecognized arguments: (--[\w.]+)", message):
            return nearest(found[1], flags)
        if found := re.search(r"'(\w+)' is not accepted", message):
            return nearest(found[1], {flag.rpartition(".")[2] for flag in flags if "." in flag})
        return ""

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """The help, and the flags of the chosen classes."""
        parts = [super().format_help(*args, **kwargs)]
        for key, cls in self.chosen.items():
            inner = ArgumentParser(prog=PROGRAM, add_help=False, usage=argparse.SUPPRESS)
            inner.add_class_arguments(cls, key, skip={"shapes"} if key == "rule" else None, sub_configs=False)
            lines = inner.format_help().strip().splitlines()
            shown = [line for line in lines if not line.startswith(f"  --{key} CONFIG")]
            parts.append("\n".join([f"flags of --{key} {cls.__name__}:", "", *shown, ""]))
        if self.examples:
            parts.append("\n".join(["examples:", *(f"  {PROGRAM} {example}" for example in self.examples), ""]))
        return plain("\n".join(parts))


def train_parser(specs: dict[str, dict[str, Any]], stored: dict[str, Any]) -> Parser:
    """Everything ``train`` accepts, for classes and presets ``specs`` and, on resuming, the ``stored`` config."""
    parser = _parser(
        "train",
        "Meta-train a rule on a family of tasks. Ctrl-C saves and stops, --resume goes on bit for bit.",
    )
    parser.add_argument("--out", type=str, required=True, help="run folder to make (or, with --resume, to go on with)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, by its own config")
    parser.add_argument(
        "--overwrite", action="store_true", help="begin anew in --out: removes what a run wrote there, nothing else"
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these settings; flags win over it")
    _add_common(parser)
    parser.add_argument("--seed", type=Seed, default=stored.get("seed", 0), help="seed of the rule and of the tasks")
    parser.add_argument("--dtype", type=Dtype, default=stored.get("dtype", "float32"), help="floating point type")
    parser.add_subclass_arguments(TaskFamily, "task", default=specs["task"], required=False)
    parser.add_subclass_arguments(Rule, "rule", skip={"shapes"}, default=specs["rule"], required=False)
    parser.add_class_arguments(TrainingConfig, "training", sub_configs=False)
    unknown = stored.get("training", {}).keys() - {field.name for field in fields(TrainingConfig)}
    if unknown:
        raise UserError(
            f"the run in --out sets training.{min(unknown)}, which this version does not have: go on with the version "
            "that began it, or train anew in another folder"
        )
    if not stored:
        parser.set_defaults({"training.horizon": None})  # see parse_with_one_horizon
    parser.set_defaults({f"training.{key}": value for key, value in stored.get("training", {}).items()})
    parser.chosen = {key: resolve(spec["class_path"], BASES[key]) for key, spec in specs.items()}
    parser.examples = (
        "train --out runs/small --task.width 8 --training.meta_steps 200",
        "train --out runs/any --rule Equivariant --rule.update adam --task Factorization",
        "train --out runs/small --resume --training.meta_steps 400",
        "train --rule Equivariant --task Functions --help    (the flags of these two)",
    )
    return parser


def evaluate_parser() -> Parser:
    """What ``evaluate`` accepts, but for the flags of the family."""
    parser = _parser(
        "evaluate",
        "Compare a trained rule with controls and tuned baselines on held-out tasks. Further flags "
        "--task NAME and --task.NAME VALUE, those of train, choose another member of the family; a "
        "rule that was trained on several is evaluated on the first if none is named.",
    )
    parser.examples = (
        "evaluate runs/small",
        "evaluate runs/small --tasks 64 --steps 300 --seed 1 --json",
        "evaluate factors --task Regression --task.width 20",
    )
    parser.add_argument("run", type=str, help=RUN)
    parser.add_argument(
        "--out", type=str | None, help="folder for the results (default: the run folder; runs/evaluation-NAME)"
    )
    parser.add_argument("--tasks", type=int, default=256, help="number of held-out tasks")
    parser.add_argument("--steps", type=int | None, help="steps per task (default: 10 times the trained horizon)")
    parser.add_argument(
        "--horizon", type=int | None, help="steps the baselines are tuned for (default: those the rule was trained for)"
    )
    parser.add_argument("--seed", type=Seed, default=0, help="seed of the held-out tasks")
    parser.add_argument("--dtype", type=Dtype | None, help="floating point type (default: that of the training)")
    parser.add_argument("--json", action="store_true", help="print the JSON of the results and nothing else")
    _add_common(parser)
    return parser


def family_parser(spec: dict[str, Any]) -> Parser:
    """The flags ``--task...`` alone, with the class and presets of ``spec``."""
    parser = _parser("evaluate")
    parser.add_subclass_arguments(TaskFamily, "task", default=spec)
    parser.chosen = {"task": resolve(spec["class_path"], TaskFamily)}
    return parser


def info_parser() -> Parser:
    """What ``info`` accepts."""
    parser = _parser("info", "What a run is and where it stands.")
    parser.examples = ("info runs/small", "info factors --json")
    parser.add_argument("run", type=str, help=RUN)
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    return parser


def symmetries_parser() -> Parser:
    """What ``symmetries`` accepts."""
    parser = _parser(
        "symmetries",
        "Find the symmetries of a model: where which group acts, on which parameters, what is refused and why.",
    )
    parser.examples = ("symmetries torchvision.models:resnet18 --shape 2,3,64,64 --eval", "symmetries own:model --json")
    parser.add_argument(
        "factory", type=str, help="package.module:name of a callable that returns a model, or (model, example_inputs)"
    )
    parser.add_argument("--shape", type=shape, help="shape of a random example input: 2,3,224,224")
    parser.add_argument("--eval", action="store_true", help="put the model into evaluation mode first")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    return parser


def _parser(command: str, description: str = "") -> Parser:
    return Parser(prog=f"{PROGRAM} {command}", description=description, exit_on_error=False, allow_abbrev=False)


def _add_common(parser: ArgumentParser) -> None:
    where = "where to compute: auto (CUDA where there is one), cpu, cuda, cuda:1 (by its number) or mps"
    parser.add_argument("--device", type=str, default="auto", help=where)
    parser.add_argument("--download", action="store_true", help="download the data sets that a file or a run asks for")
    parser.add_argument("--import", nargs="*", type=str, default=[], help="modules of your own to import first")


def plain(text: str) -> str:
    """The text without the marks of docstrings: no pointer to another one, names without roles and quotes."""
    text = re.sub(r"[,;]?\s+see\s+:\w+:`[^`]*`", "", text)
    text = re.sub(r":\w+:`~?([^`]*)`", lambda found: "".join(found[1].split()).rpartition(".")[2], text)
    return re.sub(r"<class\s+'(\w+)'>", r"\1", text.replace("`", ""))


def _one_line(message: str) -> str:
    """jsonargparse's message without its layers."""
    message = re.sub(r"Problem with given class_path '(?:\w+\.)*(\w+)':", r"\1:", " ".join(message.split()))
    message = re.sub(r'Parser key "([\w.]+)":', r"'\1':", message)
    message = re.sub(r"Expected a <class '(\w+)'>", r"expected \1", message)
    message = re.sub(r"Expected a typing.Literal\[(.*?)\]", r"expected one of \1", message)
    return message if len(message) <= LONGEST else message[:LONGEST] + " ..."
