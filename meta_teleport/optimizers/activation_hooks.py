"""Second moments of the activations at the sites of a module, by forward hooks.

The units of a site are what its consumers read: their inputs, behind whatever activation function lies between. Where
no consumer reads them as its input (the query matrix "consumes" keys), they are what the producers of a matrix group
give. Linear layers and convolutions are read, if the model calls them; units that meet only others are not known.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from operator import mul
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from meta_teleport.symmetry.gathered import Gathered
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.symmetry.views import View
from meta_teleport.teleportation.ranks import Processes, pooled


class Reading(NamedTuple):
    """How to read the units off a tensor of features.

    They lie along the axis ``channels``, of which the ``part`` (start, length) is cut into factors ``shape``; those
    that count blocks and units, in ``order``, make up ``front``, ``(*blocks, k)``.
    """

    channels: int
    part: tuple[int, int] | None
    shape: tuple[int, ...]
    order: tuple[int, ...]
    front: tuple[int, ...]

    def columns(self, features: Tensor) -> Tensor:
        """The units as columns ``(*blocks, k, n)``."""
        x = features if self.channels == -1 else features.movedim(self.channels, -1)
        x = x if self.part is None else x.narrow(-1, *self.part)
        x = x.reshape(-1, *self.shape)
        order = [1 + i for i in self.order]
        rest = [i for i in range(x.ndim) if i not in order]
        return x.permute(*order, *rest).reshape(*self.front, -1)


class GramHooks:
    """The second moments of the last forward pass of ``model``, per site of ``symmetry``.

    A pass counts if the model is in training mode and gradients are on, or inside :meth:`reading`. Nothing else is
    kept. The hooks do not keep this object alive, do nothing without it, and are gone after :meth:`close`. Copies of
    the model are not read, copies of both are.
    """

    def __init__(self, model: nn.Module, symmetry: Symmetry) -> None:
        self._model, self._symmetry = model, symmetry
        self._sums: dict[int, tuple[Tensor, int]] = {}
        self._mode: bool | None = None
        self._unseen: set[int] = set()
        self._handles = [model.register_forward_pre_hook(_Hook(self))]
        modules = dict(model.named_modules())
        for index, site in enumerate(symmetry.sites):
            handles = _attach(self, index, site, modules)
            self._handles += handles
            self._unseen |= {index} if handles else set()

    def __getstate__(self) -> tuple[nn.Module, Symmetry]:
        return self._model, self._symmetry

    def __setstate__(self, state: tuple[nn.Module, Symmetry]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def grams(self, group: Processes = None) -> tuple[Tensor | None, ...]:
        """``h h^T / n`` per site, ``(1, *blocks, k, k)`` (or its diagonal ``(1, *blocks, k)``); None where no hook has
        read any. Over all units that the processes of ``group`` have read, each of which must ask."""
        self._unseen -= self._sums.keys()
        like = next(self._model.parameters())
        blanks = [torch.zeros_like(site.group.identity()).to(like) for site in self._symmetry.sites]
        found = pooled([self._sums.get(index) for index in range(len(blanks))], blanks, group)
        return tuple(None if pair is None else (pair[0] / pair[1]).unsqueeze(0) for pair in found)

    @contextmanager
    def reading(self, on: bool = True) -> Iterator[None]:
        """Inside, every forward pass counts, or none."""
        self._mode, before = on, self._mode
        try:
            yield
        finally:
            self._mode = before

    def clear(self) -> None:
        """Forgets the last pass."""
        self._sums = {}

    def unseen(self) -> list[Site]:
        """The sites that have hooks which have never read anything when :meth:`grams` was asked."""
        return [site for index, site in enumerate(self._symmetry.sites) if index in self._unseen]

    def close(self) -> None:
        """Removes the hooks from the model."""
        for handle in self._handles:
            handle.remove()
        self._unseen = set()

    def _counts(self, module: nn.Module) -> bool:
        return (module.training and torch.is_grad_enabled()) if self._mode is None else self._mode

    def _clear(self, module: nn.Module) -> None:
        if self._counts(module):
            self._sums = {}

    def _read(self, index: int, reading: Reading, module: nn.Module, features: Any) -> None:
        features = features[0] if isinstance(features, tuple) and features else features
        if not self._counts(module) or not isinstance(features, Tensor):
            return
        weight = next(module.parameters())
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            columns = reading.columns(features.detach().to(weight.dtype))
            gram, n = self._symmetry.sites[index].group.gram(columns), columns.shape[-1]
            before = self._sums.get(index)
            self._sums[index] = (gram, n) if before is None else (before[0] + gram, before[1] + n)


class _Hook:
    """A hook that reads units, or without a ``reading`` begins a pass, as long as ``hooks`` live; copies and pickles of
    it do nothing. The compiler can trace it."""

    def __init__(
        self, hooks: GramHooks | None = None, index: int = 0, reading: Reading | None = None, output: bool = False
    ) -> None:
        self.hooks = None if hooks is None else ref(hooks)
        self.index, self.reading, self.output = index, reading, output

    def __call__(self, module: nn.Module, inputs: Any, output: Any = None) -> None:
        hooks = None if self.hooks is None else self.hooks()
        if hooks is not None and self.reading is not None:
            hooks._read(self.index, self.reading, module, output if self.output else inputs)
        elif hooks is not None:
            hooks._clear(module)

    def __reduce__(self) -> Any:
        return _Hook, ()


def _attach(hooks: GramHooks, index: int, site: Site, modules: dict[str, nn.Module]) -> list[RemovableHandle]:
    """Hooks on the consumers' inputs or, failing those, on the producers' outputs."""
    handles = []
    for view in site.consumers:
        module = _owner(view, modules)
        reading = _input_reading(view, module)
        if reading is not None:
            handles.append(module.register_forward_pre_hook(_Hook(hooks, index, reading)))
    if handles or site.group.is_diagonal or not site.group.has_algebra:  # an activation lies between
        return handles
    for view in site.producers:
        module = _owner(view, modules)
        reading = _linear_reading(view, 0, module) if isinstance(module, nn.Linear) else None
        if reading is not None:
            hook = _Hook(hooks, index, reading, output=True)
            handles.append(module.register_forward_hook(hook))
    return handles


def _owner(view: View, modules: dict[str, nn.Module]) -> nn.Module:
    return modules[view.name.rpartition(".")[0]]


def _input_reading(view: View, module: nn.Module) -> Reading | None:
    """How a consumer reads the units from its input; None where it does not."""
    if isinstance(module, nn.Linear):
        return _linear_reading(view, 1, module)
    if (
        isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        and view.front == (module.in_channels,)
        and view.part is None
        and not isinstance(view, Gathered)
    ):
        k = view.front[0]
        return Reading(1 - view.ndim, None, (k,), (0,), (k,))
    return None


def _linear_reading(view: View, axis: int, module: nn.Linear) -> Reading | None:
    """The units along one axis of a linear weight ``(m, d)``: its outputs (0) or inputs (1); None if they are not, or
    in an order that has to be spelled out."""
    if view.ndim != 2 or isinstance(view, Gathered):
        return None
    rows = view.part[2] if view.part is not None and view.part[0] == 0 else module.out_features
    borders = [i for i, size in enumerate(accumulate(view.shape, mul), 1) if size == rows]
    chosen = range(borders[-1]) if axis == 0 else range(borders[0], len(view.shape))
    front = (*view.blocks, *view.units)
    if not set(front) <= set(chosen):
        return None
    part = view.part[1:] if view.part is not None and view.part[0] == axis else None
    shape, order = tuple(view.shape[i] for i in chosen), tuple(i - chosen[0] for i in front)
    return Reading(-1, part, shape, order, view.front)
