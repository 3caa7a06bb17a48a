"""Labels: which unit every entry of a tensor is, in the tensor's shape, mostly expanded and not stored."""

import torch
from torch import Tensor

FIXED, ZERO = -1, -2
"""What does not move, and what is nothing: zero, whatever moves."""


def distinct(*labels: Tensor) -> list[tuple[int, ...]]:
    """The distinct tuples of corresponding entries of label tensors that broadcast against each other.

    Labels are mostly expanded, not stored; axes along which all of them repeat are looked at once.
    """
    squeezed = squeeze_repeats(*torch.broadcast_tensors(*labels))
    if len(squeezed) == 1:
        return [(value,) for value in squeezed[0].reshape(-1).unique().tolist()]
    a, b = (tensor.reshape(-1) + 2 for tensor in squeezed)
    base = int(b.max()) + 1 if b.numel() else 1
    return [(pair // base - 2, pair % base - 2) for pair in (a * base + b).unique().tolist()]


def squeeze_repeats(*labels: Tensor) -> list[Tensor]:
    """Label tensors of one shape without the axes along which all of them repeat (kept with size 1)."""
    result = list(labels)
    for axis in range(labels[0].ndim):
        if all(tensor.stride(axis) == 0 for tensor in labels):
            result = [tensor.narrow(axis, 0, min(1, tensor.shape[axis])) for tensor in result]
    return result


def varies(labels: Tensor) -> list[bool]:
    """Along which axes a label tensor is not constant."""
    return [
        labels.shape[axis] > 1 and labels.stride(axis) != 0 and differ(labels, labels.narrow(axis, 0, 1))
        for axis in range(labels.ndim)
    ]


def has_nothing(labels: Tensor) -> bool:
    """Whether some entries are zero whatever moves."""
    return bool((squeeze_repeats(labels)[0] == ZERO).any())


def nothing_where(nothing: Tensor, labels: Tensor) -> Tensor:
    """The labels of a product with what is zero in some places."""
    return torch.where(nothing == ZERO, ZERO, labels) if has_nothing(nothing) else labels


def still_where_nothing(labels: Tensor) -> Tensor:
    """The labels after a function that makes a number of zero."""
    return torch.where(labels == ZERO, FIXED, labels) if has_nothing(labels) else labels


def differ(a: Tensor, b: Tensor) -> bool:
    """Whether two label tensors, broadcast against each other, differ anywhere."""
    x, y = squeeze_repeats(*torch.broadcast_tensors(a, b))
    return bool((x != y).any())
