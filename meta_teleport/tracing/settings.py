"""The settings in which a model may be run: in training or evaluation, on inputs of other sizes, with other numbers.

What a model computes can depend on all of these, and a symmetry must hold in every one. A run leaves the model and its
inputs as they are, and begins with the same random numbers every time.
"""

import copy
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_map_only, tree_unflatten

SEED = 0
RATE = 0.5
SMALL = 1 << 12


@dataclass(frozen=True)
class Setting:
    """One way to run a model. With ``raised``, rates that its modules have set to zero are ``RATE``."""

    training: bool
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    raised: bool = False

    def __str__(self) -> str:
        sizes = [tuple(t.shape) for t in tree_leaves((self.args, self.kwargs)) if isinstance(t, Tensor)]
        return f"in {'training' if self.training else 'evaluation'}, with inputs {', '.join(map(str, sizes))}"


def is_settled(model: nn.Module) -> bool:
    """Whether the graph of a model says all: every module is one of torch.nn, without hooks or a forward of its own.
    None of these takes a part of a parameter by the size of its input, or another path by its size; and in the other
    mode they run the same operations, whose masks and statistics are barred in either."""
    return all(
        type(module).__module__.startswith("torch.nn.modules.")
        and "forward" not in vars(module)
        and not (module._forward_pre_hooks or module._forward_hooks)
        for module in model.modules()
    )


def run(model: nn.Module, setting: Setting, params: Mapping[str, Tensor] | None = None) -> Any:
    """The outputs of the model in a setting, at other ``params`` (and buffers) if given, without gradients and always
    with the same random numbers; model, inputs and all generators stay as they are."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers()), **(params or {})}
    state |= {name: state[name].clone() for name, _ in model.named_buffers()}
    with prepared(model, setting) as (args, kwargs), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is only tried, at other sizes and weights, is nobody's to read of
        return torch.func.functional_call(model, state, args, kwargs)


@contextmanager
def prepared(model: nn.Module, setting: Setting) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Inside, the model is in the setting, all random numbers begin anew, and the arguments are copies; after, the
    model's attributes and all generators are what they were."""
    with _untouched(model), _seeded():
        for module in model.modules():
            module.training = setting.training
            for name in _rates(module) if setting.raised else ():
                setattr(module, name, RATE)
        yield tree_map(_copied, (setting.args, setting.kwargs))


def has_rates(model: nn.Module) -> bool:
    """Whether a module of the user's own has a number that is zero and may be raised."""
    return any(_rates(module) for module in model.modules())


def grown(model: nn.Module, setting: Setting) -> Setting:
    """The setting with inputs of other sizes, along all axes along which the model takes them: those of one size
    together, as a batch of inputs and masks, then one by one. About twice as large where inputs are small, else
    by one; on an accelerator smaller, as an index out of range would end the process there."""
    for places in _axes(setting):
        for size in _others(setting, places, smaller=any(p.is_cuda for p in model.parameters())):
            trial = _resized(setting, places, size)
            if runs(model, trial):
                setting = trial
                break
    return setting


def runs(model: nn.Module, setting: Setting) -> bool:
    """Whether the model runs in a setting."""
    try:
        run(model, setting)
    except Exception:
        return False
    return True


def fresh(setting: Setting, generator: torch.Generator) -> Setting:
    """The setting with random numbers, of the mean and the spread of those given, in place of floating point inputs."""

    def drawn(given: Tensor) -> Tensor:
        if not given.is_floating_point():
            return given
        numbers = given.double()
        spread = numbers.std(correction=0)
        noise = torch.randn(given.shape, generator=generator, dtype=torch.float64).to(given.device)
        return (numbers.mean() + torch.where(spread > 0, spread, 1.0) * noise).to(given.dtype)

    args, kwargs = tree_map_only(Tensor, drawn, (setting.args, setting.kwargs))
    return replace(setting, args=args, kwargs=kwargs)


Places = list[tuple[int, int]]  # which tensor, which axis


def _axes(setting: Setting) -> list[Places]:
    """Axes that may change together: all of one size; where these are of several ranks, also those of one rank."""
    by_size: dict[tuple[int, ...], Places] = {}
    for i, tensor in enumerate(tree_leaves((setting.args, setting.kwargs))):
        for axis, size in enumerate(tensor.shape) if isinstance(tensor, Tensor) else ():
            by_size.setdefault((size,), []).append((i, axis))
            by_size.setdefault((size, axis), []).append((i, axis))
    return [places for key, places in by_size.items() if len(key) == 1 or places != by_size[key[:1]]]


def _others(setting: Setting, places: Places, smaller: bool) -> list[int]:
    leaves = tree_leaves((setting.args, setting.kwargs))
    i, axis = places[0]
    n = leaves[i].shape[axis]
    small = sum(t.numel() for t in leaves if isinstance(t, Tensor)) <= SMALL
    if smaller and n > 1:
        return list(dict.fromkeys((n - 1, n // 2)))
    return list(dict.fromkeys(m for m in (2 * n + 1 if small else n + 1, n + 1, n - 1, 2 * n, n // 2) if m))


def _resized(setting: Setting, places: Places, size: int) -> Setting:
    """The setting with the entries along some axes over and over again, or cut off."""
    leaves, spec = tree_flatten((setting.args, setting.kwargs))
    for i, axis in places:
        tensor = leaves[i]
        leaves[i] = tensor.index_select(axis, torch.arange(size, device=tensor.device) % tensor.shape[axis])
    args, kwargs = tree_unflatten(leaves, spec)
    return replace(setting, args=args, kwargs=kwargs)


def _rates(module: nn.Module) -> list[str]:
    if type(module).__module__.startswith("torch.nn.modules."):
        return []
    return [name for name, value in vars(module).items() if type(value) is float and value == 0 and name[0] != "_"]


def _copied(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.detach().clone()
    try:
        return copy.deepcopy(argument)
    except (TypeError, RuntimeError):
        return argument


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Afterwards the modules have the attributes that they have now, with what their lists, dicts and sets hold now,
    and their generators of random numbers go on from where they are now."""
    modules = [(vars(module), dict(vars(module))) for module in model.modules()]
    values = [value for _, attributes in modules for value in attributes.values()]
    held = [(value, copy.copy(value)) for value in values if isinstance(value, (list, dict, set))]
    generators = [(value, copy.deepcopy(_state(value))) for value in values if _state(value) is not None]
    try:
        yield
    finally:
        for attributes, before in modules:
            attributes.clear()
            attributes.update(before)
        for value, contents in held:
            value.clear()
            (value.extend if isinstance(value, list) else value.update)(contents)
        for value, state in generators:
            _resume(value, state)


def _state(value: object) -> Any:
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, random.Random):
        return value.getstate()
    return value.get_state() if isinstance(value, np.random.RandomState) else None


def _resume(value: Any, state: Any) -> None:
    if isinstance(value, np.random.Generator):
        value.bit_generator.state = state
    elif isinstance(value, random.Random):
        value.setstate(state)
    else:
        value.set_state(state)


@contextmanager
def _seeded() -> Iterator[None]:
    python, legacy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            random.seed(SEED)
            np.random.seed(SEED)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
