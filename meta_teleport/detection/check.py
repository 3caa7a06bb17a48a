"""The numeric check of a symmetry: moved by random elements, the model must return what it returned."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from meta_teleport.detection.leaves import run
from meta_teleport.detection.trace import Examples, Outputs, arguments, shortened
from meta_teleport.errors import UserError
from meta_teleport.params import Params
from meta_teleport.symmetry.requirements import described, require_movable
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.symmetry import Symmetry

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def verify(
    model: nn.Module,
    symmetry: Symmetry,
    example_inputs: Examples,
    *,
    trials: int = 1,
    generator: torch.Generator | None = None,
) -> float:
    """The largest relative change ``||f(g.w) - f(w)|| / ||f(w)||`` of the outputs over ``trials`` random elements of
    all sites at once, at random weights near the model's, in float64, in training and in evaluation; rounding alone
    gives about 1e-14.

    Raises ``UserError`` if the model cannot move, the inputs do not run, or the outputs are not numbers.
    """
    require_movable(model)
    if not isinstance(symmetry, Symmetry):
        raise UserError(f"the symmetry is {described(symmetry)}: give what find_symmetries(model, inputs) returns")
    symmetry.require_fit(model)
    generator = generator or torch.Generator().manual_seed(0)
    check = Check(model, *arguments(example_inputs))
    draws = ([check.random_element(site, generator) for site in symmetry.sites] for _ in range(trials))
    return max(check.drift(symmetry.act(check.params, elements)) for elements in draws)


class Check:
    """A model in float64 (float32 where its code insists on it) with weights near its own, its example inputs, and what
    it returns on them.

    Raises ``UserError`` if the inputs do not run, or if the outputs are not numbers, which nothing can be compared to.
    """

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.modes = (model.training, not model.training) if _depends_on_mode(model) else (model.training,)
        try:
            try:
                self._prepare(copy.deepcopy(model).double(), *_cast((args, kwargs), torch.float64))
            except (RuntimeError, TypeError):
                self._prepare(copy.deepcopy(model), args, kwargs)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"the model does not run on the example inputs: {shortened(error)}") from None
        self.like = next(iter(self.params.values()))

    def _prepare(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.model, self.args, self.kwargs = Outputs(model), args, kwargs
        own: Params = {name: p.detach() for name, p in model.named_parameters()}
        generator = torch.Generator().manual_seed(0)
        for params in ({name: _near(p, generator) for name, p in own.items()}, own):
            self.params = params
            self.before = {self.modes[0]: self._outputs(params, self.modes[0])}
            for other in self.modes[1:]:
                with suppress(ValueError):  # batch norm does not train on one example
                    self.before[other] = self._outputs(params, other)
            blank = [mode for mode, outputs in self.before.items() if any(bool(t.isnan().any()) for t in outputs)]
            if not blank:
                return
        raise UserError(
            f"the model's outputs are not numbers on the example inputs (in {'training' if blank[0] else 'evaluation'})"
            ": give inputs on which they are, and look for nan among inputs and parameters"
        )

    def random_element(self, site: Site, generator: torch.Generator) -> Tensor:
        """A random element of a site's group: scalings by factors around e^(1/2), matrices exp(T), T of norm 1."""
        group, device = site.group, self.like.device
        if not group.has_algebra:
            return group.sample(generator=generator, dtype=self.like.dtype, device=device)
        drawn = torch.randn(group.algebra_shape, generator=generator, dtype=torch.float64)
        size = 0.5 if group.is_diagonal else 1 / drawn.norm(dim=(-2, -1), keepdim=True)
        return group.exp(size * drawn).to(self.like)

    def drift(self, moved: Mapping[str, Tensor]) -> float:
        """The largest ``||f(g.w) - f(w)|| / ||f(w)||`` over the outputs and the modes; nan if one is not a number."""
        changes = [
            _change(before, after)
            for training, outputs in self.before.items()
            for before, after in zip(outputs, self._outputs(moved, training), strict=True)
        ]
        return float(torch.stack(changes).max()) if changes else 0.0

    def false_sites(self, sites: Sequence[Site], generator: torch.Generator) -> dict[int, float]:
        """Which sites move the outputs, by index, and by how much. All are tried at once, and halved while they do."""
        elements = [self.random_element(site, generator) for site in sites]

        def search(indices: list[int]) -> dict[int, float]:
            moved = self.params
            for i in indices:
                moved = sites[i].act(moved, elements[i])
            drift = self.drift(moved)
            if drift <= TOLERANCE[self.like.dtype]:
                return {}
            if len(indices) == 1:
                return {indices[0]: drift}
            middle = len(indices) // 2
            return search(indices[:middle]) | search(indices[middle:])

        return search(list(range(len(sites)))) if sites else {}

    def _outputs(self, params: Mapping[str, Tensor], training: bool) -> list[Tensor]:
        self.model.train(training)
        inner = {f"model.{name}": tensor for name, tensor in params.items()}
        outputs = run(self.model, (self.args, self.kwargs), {}, inner)
        return [t for t in outputs if t.is_floating_point()]


def _change(before: Tensor, after: Tensor) -> Tensor:
    """``||after - before|| / ||before||`` of the entries that are finite or differ (logits may be masked by -inf)."""
    same = after == before
    size = torch.where(before.isfinite(), before, 0.0).norm().clamp(min=torch.finfo(before.dtype).tiny)
    return (torch.where(same, 0.0, after - before).norm() / size).double()


def _near(parameter: Tensor, generator: torch.Generator) -> Tensor:
    """Random weights near those of the model: at zeros and ones, where layers begin, much looks like a symmetry."""
    noise = torch.randn(parameter.shape, generator=generator)
    size = 0.1 * (parameter.square().mean().sqrt() + 0.1) if parameter.is_floating_point() else 0
    return parameter + size * noise.to(parameter)


def _depends_on_mode(model: nn.Module) -> bool:
    """Whether training differs from evaluation: dropout of any name, or statistics of batches."""
    return any(
        getattr(module, "track_running_stats", False)
        or any(value > 0 for name, value in vars(module).items() if _is_dropout(name, value))
        for module in model.modules()
    )


def _is_dropout(name: str, value: object) -> bool:
    return isinstance(value, float) and (name == "p" or "drop" in name)


def _cast(inputs: Any, dtype: torch.dtype) -> Any:
    return tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, inputs)
