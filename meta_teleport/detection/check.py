"""The numeric check of a symmetry: moved by random elements, the model must return what it returned."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from meta_teleport.errors import UserError
from meta_teleport.params import Params
from meta_teleport.symmetry.requirements import described, require_movable
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.tracing.outputs import Outputs
from meta_teleport.tracing.settings import Setting, fresh, grown, run
from meta_teleport.tracing.trace import Examples, given, shortened

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-1, torch.bfloat16: 1e-1}
DRAWS = 16
ELEMENTS = 2


def verify(
    model: nn.Module,
    symmetry: Symmetry,
    example_inputs: Examples,
    *,
    also: Sequence[Examples] = (),
    trials: int = 1,
    generator: torch.Generator | None = None,
) -> float:
    """The largest relative change ``||f(g.w) - f(w)|| / ||f(w)||`` of the outputs over ``trials`` random elements of
    all sites at once, at random weights near the model's, in float64, in training and in evaluation, on the example
    inputs (those in ``also`` are further ones) and on random ones, of other sizes where the model takes these; rounding
    alone gives about 1e-14.

    Raises ``UserError`` if the model cannot move, the inputs do not run, or the outputs are not numbers.
    """
    require_movable(model)
    if not isinstance(symmetry, Symmetry):
        raise UserError(f"the symmetry is {described(symmetry)}: give what find_symmetries(model, inputs) returns")
    symmetry.require_fit(model)
    generator = generator or torch.Generator().manual_seed(0)
    examples = [given(model, example) for example in (example_inputs, *also)]
    check = Check(model, tried(examples, [grown(model, setting) for setting in examples]), symmetry.sites)
    draws = ([check.random_element(site, generator) for site in symmetry.sites] for _ in range(trials))
    return max(check.drift(symmetry.act(check.params, elements)) for elements in draws)


def tried(examples: Sequence[Setting], others: Sequence[Setting]) -> list[Setting]:
    """The settings of a check: the inputs given, in both modes, and random ones of the sizes of ``others``."""
    generator = torch.Generator().manual_seed(0)
    settings = [*examples, *(fresh(setting, generator) for setting in others)]
    return settings + [replace(setting, training=not setting.training) for setting in settings]


class Check:
    """A model in float64 (in its own precision where its code insists on it) with weights near its own, and what it
    returns in some settings: the first, and those of the others in which it runs. What it returns on the inputs of the
    first, in any mode, must be numbers; other settings in which it is not are left out. ``params`` are its parameters,
    and the buffers that some of ``sites`` move.

    Raises ``UserError`` if it does not run in the first, or if what it returns is not numbers, which nothing can be
    compared to.
    """

    def __init__(self, model: nn.Module, settings: Sequence[Setting], sites: Sequence[Site] = ()) -> None:
        self.model, self.settings = Outputs(model), settings
        buffers, moved = dict(model.named_buffers()), {name for site in sites for name in site.parameters}
        own = {name: p.detach() for name, p in model.named_parameters()}
        own |= {name: buffer for name, buffer in buffers.items() if name in moved}
        try:
            try:
                self._prepare(own, _cast(buffers, torch.float64), torch.float64)
            except (RuntimeError, TypeError, AssertionError):
                self._prepare(own, buffers, None)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"the model does not run on the example inputs: {shortened(error)}") from None
        self.like = next(p for p in self.params.values() if p.is_floating_point())

    def _prepare(self, own: Params, buffers: Params, dtype: torch.dtype | None) -> None:
        self.buffers, self.dtype = buffers, dtype
        for params in self._weights(own):
            self.params = params
            self.before: list[tuple[Setting, list[Tensor]]] = []
            self.lowest = next(p.dtype for p in own.values() if p.dtype in TOLERANCE)
            blank: list[bool] = []
            for setting in self.settings:
                try:
                    with Precisions() as seen:
                        outputs = self._outputs(self.params, setting)
                except Exception:
                    if setting is self.settings[0]:
                        raise
                    continue  # batch norm does not train on one example, for one
                if not any(bool(t.isnan().any()) for t in outputs):
                    self.before.append((setting, outputs))
                    self.lowest = min(self.lowest, *seen.dtypes, key=lambda dtype: torch.finfo(dtype).bits)
                elif setting.args is self.settings[0].args and setting.kwargs is self.settings[0].kwargs:
                    blank.append(setting.training)
            if not blank:
                return
        raise UserError(
            f"the model's outputs are not numbers on the example inputs (in {'training' if blank[0] else 'evaluation'})"
            ": give inputs on which they are, and look for nan among inputs and parameters"
        )

    def _weights(self, own: Params) -> Iterator[Params]:
        """Weights near those of the model, then these; one copy at a time, as they may be large."""
        generator = torch.Generator().manual_seed(0)

        def cast(tensor: Tensor) -> Tensor:
            return tensor if self.dtype is None else _cast(tensor, self.dtype)

        yield {name: _near(cast(p), generator, name in self.buffers) for name, p in own.items()}
        yield {name: cast(p) for name, p in own.items()}

    def random_element(self, site: Site, generator: torch.Generator) -> Tensor:
        """A random element of a site's group that is not near the identity: scalings by factors between e^(1/4) and e
        or their inverses, matrices exp(T), T of norm 1, and of several permutations the one that moves the most."""
        group, device = site.group, self.like.device
        if not group.has_algebra:
            draws = group.sample(DRAWS, generator=generator, dtype=self.like.dtype, device=device)
            moved = (draws != group.identity(DRAWS, dtype=self.like.dtype, device=device)).sum(-1)  # (DRAWS, *blocks)
            best = moved.argmax(0, keepdim=True).unsqueeze(-1)
            return draws.gather(0, best.expand(1, *draws.shape[1:])).squeeze(0)
        drawn = torch.randn(group.algebra_shape, generator=generator, dtype=torch.float64)
        if group.is_diagonal:
            drawn = drawn.sign() * (0.25 + 0.75 * torch.rand(drawn.shape, generator=generator, dtype=torch.float64))
        else:
            drawn = drawn / drawn.norm(dim=(-2, -1), keepdim=True)
        return group.exp(drawn).to(self.like)

    def drift(self, moved: Mapping[str, Tensor]) -> float:
        """The largest ``||f(g.w) - f(w)|| / ||f(w)||`` over outputs and settings; nan if one is not a number."""
        changes = [
            _change(before, after)
            for setting, outputs in self.before
            for before, after in zip(outputs, self._outputs(moved, setting), strict=True)
        ]
        return float(torch.stack(changes).max()) if changes else 0.0

    def false_sites(self, sites: Sequence[Site], generator: torch.Generator) -> dict[int, float]:
        """Which sites move the outputs, by index, and by how much. All are tried at once, and halved while they do."""
        false: dict[int, float] = {}
        for _ in range(ELEMENTS):
            elements = [self.random_element(site, generator) for site in sites]
            left = [i for i in range(len(sites)) if i not in false]
            false |= self._search(sites, elements, left) if left else {}
        return false

    def _search(self, sites: Sequence[Site], elements: Sequence[Tensor], indices: list[int]) -> dict[int, float]:
        moved = self.params
        for i in indices:
            moved = sites[i].act(moved, elements[i])
        drift = self.drift(moved)
        if drift <= TOLERANCE[self.lowest]:
            return {}
        if len(indices) == 1:
            return {indices[0]: drift}
        middle = len(indices) // 2
        halves = (indices[:middle], indices[middle:])
        return {i: drift for half in halves for i, drift in self._search(sites, elements, half).items()}

    def _outputs(self, params: Mapping[str, Tensor], setting: Setting) -> list[Tensor]:
        state = {f"model.{name}": tensor for name, tensor in {**self.buffers, **params}.items()}
        args, kwargs = setting.args, setting.kwargs
        if self.dtype is not None:
            args, kwargs = _cast((args, kwargs), self.dtype)
        with Doubles() if self.dtype is not None else nullcontext():
            outputs = run(self.model, replace(setting, args=(args, kwargs), kwargs={}), state)
        return [t for t in outputs if t.is_floating_point()]


class Doubles(TorchFunctionMode):
    """Inside, code that asks for a lower precision by name gets float64, so that rounding stays out of the way."""

    def __enter__(self) -> "Doubles":
        self.default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.set_default_dtype(self.default)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        to_double = {Tensor.float: Tensor.double, Tensor.half: Tensor.double, Tensor.bfloat16: Tensor.double}
        args, kwargs = tree_map_only(
            torch.dtype, lambda named: torch.float64 if named in TOLERANCE else named, (args, kwargs or {})
        )
        return to_double.get(function, function)(*args, **kwargs)


class Precisions(TorchDispatchMode):
    """Notes the floating point types of all tensors that are computed inside."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes = {torch.float64}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = function(*args, **(kwargs or {}))
        self.dtypes |= {t.dtype for t in tree_leaves(outputs) if isinstance(t, Tensor) and t.dtype in TOLERANCE}
        return outputs


def _change(before: Tensor, after: Tensor) -> Tensor:
    """``||after - before|| / ||before||`` of the entries that are finite or differ (logits may be masked by -inf)."""
    same = after == before
    size = torch.where(before.isfinite(), before, 0.0).norm().clamp(min=torch.finfo(before.dtype).tiny)
    return (torch.where(same, 0.0, after - before).norm() / size).double()


def _near(parameter: Tensor, generator: torch.Generator, is_buffer: bool = False) -> Tensor:
    """Random weights near those of the model: at zeros and ones, where layers begin, much looks like a symmetry.
    Buffers that are positive (variances) stay so."""
    noise = torch.randn(parameter.shape, generator=generator)
    if is_buffer and bool((parameter > 0).all()):
        return parameter * torch.exp(0.1 * noise.to(parameter))
    size = 0.1 * (parameter.square().mean().sqrt() + 0.1) if parameter.is_floating_point() else 0
    return parameter + size * noise.to(parameter)


def _cast(inputs: Any, dtype: torch.dtype) -> Any:
    return tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, inputs)
