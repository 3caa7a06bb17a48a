"""A recent input of a model, on which its outputs before and after a teleport are held against each other.

A symmetry holds of the model that it was found in. What is added later (a hook, another module in the place of one, an
attribute that is changed) may break it, and where no loss is known nobody would see. So the model is run twice more, at
the weights before and after, at the first teleport, at every ``EVERY``-th and wherever its modules or hooks are others
than at the last time: 2 forward passes for ``EVERY`` teleports, and the input that the model has seen last, which is
not copied. The outputs may differ by rounding,

    ||f(g.w) - f(w)|| <= max(tolerance, SLACK u cond(g)) ||f(w)||,     u the unit of the arithmetic (TF32 on CUDA).
"""

import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map_only

from meta_teleport.params import Params
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.teleportation.acceptance import condition_number, output_drift
from meta_teleport.teleportation.binding import Randomness
from meta_teleport.teleportation.ranks import Processes, agreed
from meta_teleport.tracing.outputs import tensors_of

EVERY = 10
SLACK = 30.0
TF32 = 2.0**-11
PLAIN = (Tensor, int, float, bool, str, type(None), torch.dtype, torch.device)
"""What an input may hold to be run again: nothing that a model could write into but tensors, which are copied."""


class Witness:
    """What ``model`` has seen last, whoever ran it, in Python (compiled code and tracers show nothing).

    ``due`` says when outputs are to be looked at, ``fault`` looks.
    """

    def __init__(self, model: nn.Module, tolerance: float) -> None:
        self._model, self._tolerance = model, tolerance
        self._seen: tuple[Any, Any] | None = None
        self._form: tuple[Any, ...] = ()
        self._since, self._warned = -1, False
        handle = model.register_forward_pre_hook(_Look(self), with_kwargs=True)
        self.close = weakref.finalize(self, handle.remove)

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self._model, "tolerance": self._tolerance}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def fault(
        self, symmetry: Symmetry, before: Params, after: Params, elements: Sequence[Tensor], group: Processes = None
    ) -> str:
        """Why a teleport of parameters ``(1, *shape)`` by one element per site cannot be right, in one line; empty if
        it can, or if this is not the time to look. Called once for every teleport. Other parameters, and the buffers,
        are the model's. The processes of a ``group`` look together, whatever their modules are."""
        form = () if group else _form(self._model)
        looking = self._since < 0 or self._since >= EVERY - 1 or form != self._form
        if not looking or (self._seen is None and group is None):
            self._since += not looking
            return ""
        fault = "" if self._seen is None else self._looked(symmetry, before, after, elements)
        self._form, self._since = form, -1 if fault else 0
        return agreed(fault, next(iter(before.values())), group)

    def _looked(self, symmetry: Symmetry, before: Params, after: Params, elements: Sequence[Tensor]) -> str:
        drift = self._drift(before, after)
        first = next(iter(after.values()))
        unit = TF32 if first.is_cuda and first.dtype == torch.float32 else torch.finfo(first.dtype).eps
        pairs = zip(symmetry.sites, elements, strict=True)
        condition = max(condition_number(site.group, g) for site, g in pairs)
        bound = max(self._tolerance, SLACK * unit * condition)
        if drift <= bound or not self._drift(before, before) <= bound:  # a model that never says the same twice
            return ""
        fault = (
            f"the model's outputs moved by {drift:.1e}, and rounding explains {bound:.1e}: it has changed since the "
            "symmetry was found (a hook, another module); find that of the model as it is"
        )
        if not self._warned:
            self._warned = True
            warnings.warn(f"a teleport was not carried out: {fault}", stacklevel=6)
        return fault

    @torch.no_grad()
    def _drift(self, before: Params, after: Params) -> float:
        """The largest relative change of an output; 0 where there is nothing to compare."""
        kind = next(iter(after.values())).device.type
        with torch.autocast(kind, enabled=False):
            randomness = Randomness(self._model)
            try:
                pairs = zip(self._outputs(before, randomness), self._outputs(after, randomness), strict=True)
                flat = [[t.double().flatten()[None] for t in pair] for pair in pairs if pair[0].shape == pair[1].shape]
            except RuntimeError:  # one that does not run without gradients, or where memory is full
                return 0.0
        return float(torch.stack([output_drift(b, a) for b, a in flat]).max()) if flat else 0.0

    def _outputs(self, params: Params, randomness: Randomness) -> list[Tensor]:
        """The outputs in floating point, at copies of inputs and buffers."""
        assert self._seen is not None
        args, kwargs = tree_map_only(Tensor, torch.clone, self._seen)
        buffers = {name: b.clone() for name, b in self._model.named_buffers()}
        seen = self._seen
        try:
            with randomness.replayed():
                tensors = {**buffers, **{name: p[0] for name, p in params.items()}}
                outputs = functional_call(self._model, tensors, args, kwargs)
        finally:
            self._seen = seen
        return [t for t in tensors_of(outputs) if t.is_floating_point() and t.numel()]

    def _look(self, args: Any, kwargs: Any) -> None:
        leaves = tree_leaves((args, kwargs))
        if torch.jit.is_tracing() or not all(isinstance(leaf, PLAIN) for leaf in leaves):
            return
        if all(type(leaf) is Tensor and not _wrapped(leaf) for leaf in leaves if isinstance(leaf, Tensor)):
            self._seen = tree_map_only(Tensor, Tensor.detach, (args, kwargs))


def _wrapped(tensor: Tensor) -> bool:
    """Whether it stands for others, under vmap or torch.func.grad."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _form(model: nn.Module) -> tuple[Any, ...]:
    """The modules of a model, what they are and their hooks."""
    return tuple(
        (name, type(module), tuple(module._forward_hooks), tuple(module._forward_pre_hooks))
        for name, module in model.named_modules()
    )


class _Look:
    """A hook on the inputs of a model as long as its ``owner`` lives; compiled code leaves it out, and copies and
    pickles of it do nothing."""

    def __init__(self, owner: Witness | None = None) -> None:
        self.owner = None if owner is None else weakref.ref(owner)

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        owner = None if self.owner is None else self.owner()
        if owner is not None:
            owner._look(args, kwargs)

    def __reduce__(self) -> Any:
        return _Look, ()
