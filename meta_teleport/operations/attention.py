"""The two products of attention: queries with keys, weights with values."""

import torch
from torch import Tensor

from meta_teleport.operations.labels import squeeze_repeats, varies
from meta_teleport.operations.values import Step, Value, labels_or_fixed


def contract(step: Step, x: Value, y: Value) -> Value:
    """``x y`` of units along the contracted axis: queries and keys, which move by inverse elements."""
    if not (x.moves and y.moves):
        step.forbid(x, y, reason="are multiplied with what does not move in")
        return step.fixed()
    a, b = labels_or_fixed(x), labels_or_fixed(y).mT
    if varies(a)[-2] or varies(b)[-2]:
        step.forbid(x, y, reason="are multiplied place by place in")
        return step.fixed()
    a, b = torch.broadcast_tensors(a.select(-2, 0), b.select(-2, 0))
    step.units.join(a, b, step.place, sign=-1)
    _group(step, b, "key")
    _group(step, a, "key")
    return Value(step.shape)


def look_up(step: Step, queries: Value, keys: Tensor, values: Tensor) -> Value:
    """``q (k^T v)``, linear attention: queries meet keys ``(..., d)``, and values ``(..., e)`` come out."""
    step.refuse(queries)
    contract(step, queries, Value(torch.Size((*keys.shape, 1)), keys.unsqueeze(-1)))
    return weigh(step, Value(torch.Size((*values.shape[:-1], 1, values.shape[-1])), values.unsqueeze(-2)))


def weigh(step: Step, y: Value, transposed: bool = False) -> Value:
    """Weights that do not move, times units along the last axis: the values of attention, place by place."""
    labels = labels_or_fixed(y)
    if varies(labels)[-2]:
        step.forbid(y, reason="are added to one another by")
        return step.fixed()
    row = labels.narrow(-2, 0, 1)
    _group(step, row.squeeze(-2), "value")
    return step.labelled(row.mT if transposed else row)


def _group(step: Step, labels: Tensor, role: str) -> None:
    """Notes which units are treated alike: those along the last axis, for every place in the others."""
    if not labels.numel():
        return
    rows = squeeze_repeats(labels)[0].expand(*[-1] * (labels.ndim - 1), labels.shape[-1]).reshape(-1, labels.shape[-1])
    for row in rows.unique(dim=0).tolist():
        units = [unit for unit in row if unit >= 0]
        if units:
            first = min(step.units.scaled.root(unit)[0] for unit in units)
            step.units.touch(units, (step.node, role, first, min(units)))
