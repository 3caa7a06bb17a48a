"""Bounds on what is made while something is built from a file: absurd sizes are refused before they are allocated."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from meta_teleport.errors import UserError

MEGABYTE = 2**20
TENSOR, TOTAL, COUNT = 128 * MEGABYTE, 512 * MEGABYTE, 20_000
"""The largest tensor, all of them together, and how many: far above what any rule or task of this package needs."""
FACTORIES = {
    getattr(torch, name)
    for name in ("arange", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "randperm", "zeros")
}


class Bounded(TorchFunctionMode):
    """Inside, a tensor that is made anew is measured first, and at most ``count`` are made.

    Raises ``UserError`` for what is above the bounds.
    """

    def __init__(self, count: int = COUNT) -> None:
        super().__init__()
        self.bytes, self.left = 0, count

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in FACTORIES:
            self._measure(func, args, kwargs)
        return func(*args, **kwargs)

    def _measure(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> None:
        plain = {name: value for name, value in kwargs.items() if name not in ("device", "generator", "out")}
        try:
            made = func(*args, **plain, device="meta")
            size = made.numel() * made.itemsize
        except (RuntimeError, OverflowError, TypeError) as error:
            raise UserError(
                f"a tensor of these sizes cannot be made ({' '.join(str(error).split())}): change them"
            ) from None
        self.bytes, self.left = self.bytes + size, self.left - 1
        if size > TENSOR or self.bytes > TOTAL:
            needed = max(size, self.bytes) / MEGABYTE
            raise UserError(f"these settings make tensors of {needed:,.0f} MB and more: choose smaller sizes")
        if self.left < 0:
            raise UserError("these settings make too many tensors: choose fewer layers or steps")


def require_memory(needed: int, what: str) -> None:
    """Raises ``UserError`` if so many bytes are more than this machine has."""
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise UserError(
            f"{what} need {needed / MEGABYTE:,.0f} MB, and this machine has {there / MEGABYTE:,.0f} MB: choose fewer "
            "or smaller ones"
        )
