"""Random programs: small models of random lines of Python, and which of their sites move what they return.

A program is drawn from a seed, line by line, and printed as the source of a model. One whose symmetry is false is made
shorter, line by line, as long as it is.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random
from types import CodeType
from typing import Any

import torch
import torch.nn.functional as F
from detection.vocabulary import KINDS, Draw
from torch import Tensor, nn

from meta_teleport.symmetry.groups import Permutation, PositiveScaling, SignFlips
from meta_teleport.symmetry.site import Site

LARGEST, TRIES, BOUND = 600, 40, 1e3
NAME = re.compile(r"\b[xhv]\d+\b")
PART = re.compile(r"self\.(p\d+)")


@dataclass(frozen=True)
class Program:
    """The sources of its parts, the shapes of its inputs (integers below 7 for names that begin with h), its lines, and
    the expressions that it returns."""

    parts: dict[str, str]
    inputs: dict[str, tuple[int, ...]]
    lines: tuple[tuple[str, str], ...]
    outputs: tuple[str, ...]

    def __str__(self) -> str:
        parts = "".join(f"        self.{name} = {source}\n" for name, source in self.parts.items())
        body = "".join(f"        {name} = {source}\n" for name, source in self.lines)
        shapes = ", ".join(f"{name}: {shape}" for name, shape in self.inputs.items())
        head = f"    def forward(self, {', '.join(self.inputs)}):  # {shapes}\n"
        return f"parts:\n{parts}{head}{body}        return [{', '.join(self.outputs)}]"

    def model(self, seed: int = 0) -> nn.Module:
        """The model, with weights drawn anew."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Model(self)

    def examples(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Inputs drawn anew."""
        return tuple(_drawn(name, shape, generator) for name, shape in self.inputs.items())

    def shorter(self) -> Iterator["Program"]:
        """The programs without one line, whose place an earlier value takes, or without one output."""
        for i in range(len(self.outputs) if len(self.outputs) > 1 else 0):
            yield replace(self, outputs=self.outputs[:i] + self.outputs[i + 1 :])
        for i in reversed(range(len(self.lines))):
            name, source = self.lines[i]
            rest = self.lines[:i] + self.lines[i + 1 :]
            for other in dict.fromkeys([*NAME.findall(source), *self.inputs]):
                swap = re.compile(rf"\b{name}\b")
                lines = tuple((n, swap.sub(other, s)) for n, s in rest)
                yield replace(self, lines=lines, outputs=tuple(swap.sub(other, s) for s in self.outputs)).used()

    def used(self) -> "Program":
        """The program without the parts that nothing names."""
        text = " ".join([source for _, source in self.lines] + list(self.outputs))
        return replace(self, parts={name: self.parts[name] for name in self.parts if name in PART.findall(text)})


class Model(nn.Module):
    """A program as a module."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        for name, source in program.parts.items():
            part = eval(source, {"torch": torch, "nn": nn})
            if isinstance(part, (nn.Module, nn.Parameter)):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        known: dict[str, Any] = {"self": self, "torch": torch, "F": F}
        known |= {name: x.clone() for name, x in zip(self.program.inputs, inputs, strict=True)}
        for name, source in self.program.lines:
            known[name] = eval(_compiled(source), known)
        return [eval(_compiled(source), known) for source in self.program.outputs]


def draw(seed: int, length: int = 9) -> Program:
    """The program of a seed, of at most ``length`` lines and a layer that reads the last one."""
    random = Random(seed)
    generator = torch.Generator().manual_seed(seed)
    batch, places, units = random.choice((2, 3)), random.choice((3, 4, 5)), random.choice((2, 3, 4))
    shape = random.choice(((batch, places, units), (batch, places, units), (batch, units), (batch, units, 4, 4)))
    inputs = {"x0": shape}
    if random.random() < 0.3:
        inputs |= random.choice(({"x1": shape}, {"h1": (batch, places)}))
    values = {name: _drawn(name, size, generator) for name, size in inputs.items()}
    program = Program({}, inputs, (), ())
    if "h1" in values:
        program = _longer(program, values, lambda d: f"{d.part(f'nn.Embedding(7, {units})')}(h1)", random, "h1")
        values.pop("h1")
    for _ in range(random.randint(2, length)):
        program = _one_more(program, values, random)
    program = _one_more(program, values, random, last=True)
    last = list(values)[-1]
    outputs = [last]
    if random.random() < 0.15:
        outputs.append(random.choice(list(values)))
    if random.random() < 0.1 and program.parts:
        name = random.choice(list(program.parts))
        kind = program.parts[name]
        end = random.choice(("", ".sum()", " * 2")) if "Parameter" in kind else ".weight" if "Linear" in kind else ""
        outputs += [f"self.{name}{end}"] if end or "Parameter" in kind or "randn" in kind else []
    return replace(program, outputs=tuple(outputs)).used()


def _one_more(program: Program, values: dict[str, Tensor], random: Random, last: bool = False) -> Program:
    """One line more, of a kind and of values drawn at random, that runs."""
    for _ in range(TRIES):
        entries = random.choices(list(KINDS), list(KINDS.values()))[0]
        entry = entries[0] if last else random.choice(entries)
        if last and random.random() > 0.03:
            from detection.vocabulary import linear as entry
        names = list(values)
        h = names[-1] if last or random.random() < 0.7 else random.choice(names)
        try:
            return _longer(program, values, entry, random, h)
        except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError, AttributeError, AssertionError):
            continue
    return program


def _longer(
    program: Program, values: dict[str, Tensor], entry: Callable[[Draw], str], random: Random, h: str
) -> Program:
    drawn = Draw(random, values, program.parts, h)
    source = entry(drawn)
    name = f"v{len(program.lines)}"
    longer = replace(program, parts=drawn.parts, lines=(*program.lines, (name, source)), outputs=(name,))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = Model(longer)(*(_drawn(n, s, torch.Generator().manual_seed(1)) for n, s in longer.inputs.items()))[0]
    if not made.is_floating_point() or made.numel() > LARGEST or not made.numel() or not made.ndim:
        raise ValueError("too large, or no numbers")
    if not bool(made.isfinite().all()) or float(made.detach().abs().max()) > BOUND:
        raise ValueError("no numbers to compare")
    values[name] = made
    return longer


def moved_by(model: nn.Module, program: Program, site: Site, trials: int = 3) -> float:
    """The largest ``||f(g.w) - f(w)|| / ||f(w)||`` in float64, at weights, inputs and elements drawn anew, in training
    and in evaluation; the elements are far from the identity."""
    model, worst = model.double(), 0.0
    for seed in range(trials):
        generator = torch.Generator().manual_seed(seed)
        params = {
            name: torch.randn(p.shape, generator=generator, dtype=torch.float64) for name, p in model.named_parameters()
        }
        held = {name: buffer for name, buffer in model.named_buffers() if name in site.parameters}
        params |= {
            name: torch.rand(b.shape, generator=generator, dtype=torch.float64) + 0.5 for name, b in held.items()
        }
        examples = program.examples(generator)
        inputs = tuple(x.double() if x.is_floating_point() else x for x in examples)
        moved = site.act(params, element(site, generator))
        for training in (False, True):
            before, after = (outputs(model.train(training), p, inputs) for p in (params, moved))
            for a, b in zip(before, after, strict=True):
                if bool(a.isfinite().all()) and float(a.norm()) > 0:
                    worst = max(worst, float((a - b).norm() / a.norm()))
    return worst


def outputs(model: nn.Module, params: dict[str, Tensor], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """What the model returns at these parameters, with the same random numbers every time."""
    state = {**dict(model.named_buffers()), **params}
    buffers = {name: state[name].clone() for name, _ in model.named_buffers()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        made: list[Tensor] = torch.func.functional_call(model, {**params, **buffers}, inputs)
    return made


def element(site: Site, generator: torch.Generator) -> Tensor:
    """Factors of 1/3 to 3, none near 1; a permutation that moves all; signs, the first negative; a matrix of condition
    number below 100."""
    group, shape = site.group, (*site.group.blocks, site.group.k)
    if isinstance(group, Permutation):
        order = torch.rand(shape, generator=generator).argsort(-1)
        return order.gather(-1, order.argsort(-1).add(1).remainder(group.k))
    if isinstance(group, SignFlips):
        signs = torch.randint(2, shape, generator=generator).double() * 2 - 1
        signs[..., 0] = -1
        return signs
    if isinstance(group, PositiveScaling):
        power = 0.3 + 0.7 * torch.rand(shape, generator=generator, dtype=torch.float64)
        return 3.0 ** (power * (torch.randint(2, shape, generator=generator) * 2 - 1))
    drawn = torch.randn((*shape, group.k), generator=generator, dtype=torch.float64)
    left, _, right = torch.linalg.svd(drawn)
    return left @ torch.diag(torch.linspace(0.3, 3.0, group.k, dtype=torch.float64)) @ right


def shrink(program: Program, is_false: Callable[[Program], bool]) -> Program:
    """A program that is still false, and none of whose shorter ones is."""
    while True:
        for shorter in program.shorter():
            try:
                if is_false(shorter):
                    program = shorter
                    break
            except Exception:  # it does not run, or means nothing
                continue
        else:
            return program


def _drawn(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(7, shape, generator=generator) if name[0] == "h" else torch.randn(shape, generator=generator)


_CODES: dict[str, CodeType] = {}


def _compiled(source: str) -> CodeType:
    if source not in _CODES:
        _CODES[source] = compile(source, f"<{source}>", "eval")
    return _CODES[source]
