"""Recurrent layers as one operation: LSTM, GRU and RNN, over layers and directions, and single cells.

Every hidden unit has one row in each block of gates of both weights, and one column in the weight that reads the state.
Gates see the state through sigmoids, so that hidden units can change places, all their rows and columns with them; and
as the state itself passes nothing but tanh they can change signs, the columns and the rows of the gate with tanh alone:

    LSTM   c' = f c + i tanh(g),  h' = o tanh(c')      f, i, o sigmoids;  the rows of g flip
    GRU    h' = (1 - z) tanh(n) + z h                  z, r sigmoids;  the rows of n flip
    RNN    h' = tanh(a) or relu(a)                     with relu, positive scalings instead

With projections the state is ``R o tanh(c')``, new units behind a linear map.
"""

from typing import Any

import torch
from torch import Tensor

from meta_teleport.operations.products import units_along
from meta_teleport.operations.values import Step, Value, as_units, handles, labels_or_fixed, unknown

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
STATE = {"lstm": 2, "gru": 2, "rnn_tanh": 0, "rnn_relu": 0}  # the gate whose units are those of the state


@handles("lstm gru rnn_tanh rnn_relu")
def recur(step: Step, x: Value, state: Any, weights: Any, *options: Any) -> Any:
    """``(weights, has biases, layers, dropout, training, two directions, batch first)``: the states of the last layer
    at all places, and the last states of all layers."""
    states = state if isinstance(state, list) else [state]
    if not isinstance(weights, list) or not all(w.parameter for w in weights):
        return unknown(step, (x, state, weights), {})
    biased, layers, dropout, _, both, _ = options
    directions = 2 if both else 1
    each = len(weights) // (layers * directions)
    last: list[list[Tensor]] = [[] for _ in states]
    below = x
    for layer in range(layers):
        right, heads = units_along(step, below, -1), []
        for direction in range(directions):
            number = layer * directions + direction
            cell = Cell(step, weights[number * each : (number + 1) * each], biased, number)
            ends = cell.run(right, [_row(start, number) for start in states])
            heads.append(ends[0])
            for labels, end in zip(last, ends, strict=True):
                labels.append(end)
        made = torch.cat(heads)
        made = made.expand(*x.shape[:-1], len(made))
        below = Value(made.shape, made)
        if dropout > 0 and layer < layers - 1:
            step.forbid(below, kinds=["mix", "permute"], reason="pass the dropout of", odd=True)
    shapes = [t.shape for t in step.node.meta["val"]]
    ends = [torch.stack(labels).unsqueeze(1) for labels in last]
    return [Value(s, labels.expand(s)) for s, labels in zip(shapes, (made, *ends), strict=True)]


@handles("lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell")
def recur_once(step: Step, x: Value, state: Any, *weights: Value | None) -> Any:
    """One step of a recurrence."""
    states = state if isinstance(state, list) else [state]
    given = [w for w in weights if w is not None]
    if not all(w.parameter for w in given):
        return unknown(step, (x, state, given), {})
    cell = Cell(step, given, len(given) > 2, 0)
    ends = cell.run(units_along(step, x, -1), states)
    values = [Value(s.shape, end.expand(s.shape)) for s, end in zip(states, ends, strict=True)]
    return values if isinstance(state, list) else values[0]


def _row(state: Value, number: int) -> Value:
    """The state of one layer and direction."""
    if state.constant is not None:
        return Value(state.shape[1:], constant=state.constant[number])
    coordinates = tuple(c[number] for c in state.coordinates)
    labels = None if state.labels is None else state.labels[number]
    return Value(state.shape[1:], labels, state.parameter, coordinates)


class Cell:
    """The units of one layer in one direction: of all gates, and of its state."""

    def __init__(self, step: Step, weights: list[Value], biased: bool, number: int) -> None:
        kind = step.operation.removesuffix("_cell")
        self.step, self.weights, self.biased = step, weights, biased
        self.name = f"{step.node.name} {number}"
        self.gates = self._fresh(weights[0].shape[0]).reshape(GATES[kind], -1)
        self.hidden = self.gates[STATE[kind]]
        for i, gate in enumerate(self.gates):
            for unit, state in zip(gate.tolist(), self.hidden.tolist(), strict=True):
                step.units.permuted.join(unit, state, 1)
            if kind == "rnn_relu":
                step.units.forbid_labels(gate, ["mix"], f"pass the relu of {step.place}")
            else:
                reason = f"pass gates that are not positively homogeneous in {step.place}"
                step.units.forbid_labels(gate, ["mix", "scale"], reason, odd=i == STATE[kind])
        projected = kind == "lstm" and len(weights) == (5 if biased else 3)
        self.state = self._fresh(weights[-1].shape[0]) if projected else self.hidden

    def run(self, right: Tensor | None, starts: list[Value]) -> list[Tensor]:
        """Notes what all weights make and read. Returns the units of the states (of h, and of c), whose values at the
        beginning are ``starts``."""
        ends = [self.state, self.hidden][: len(starts)]
        for start, units in zip(starts, ends, strict=True):
            self._begin(start, units)
        made = self.gates.reshape(-1)
        inputs, recurrent = self.weights[:2]
        self._use(inputs, made.unsqueeze(1), None if right is None else right.unsqueeze(0))
        self._use(recurrent, made.unsqueeze(1), self.state.unsqueeze(0))
        for bias in self.weights[2:4] if self.biased else ():
            self._use(bias, made, None)
        if self.state is not self.hidden:
            self._use(self.weights[-1], self.state.unsqueeze(1), self.hidden.unsqueeze(0))
        return ends

    def _begin(self, start: Value, units: Tensor) -> None:
        if not start.is_zero:
            row = labels_or_fixed(as_units(self.step, start))
            self.step.units.join(row, units.expand(row.shape), self.step.place)

    def _use(self, weight: Value, left: Tensor, right: Tensor | None) -> None:
        self.step.units.use(weight.parameter, weight.coordinates, left, right, self.step.place)

    def _fresh(self, count: int) -> Tensor:
        return self.step.units.fresh(count, self.name)
