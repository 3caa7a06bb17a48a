"""The paper's learned optimizers with the settings of the authors' code, and how they are meta-trained there.

One problem at a time, raw gradients, elements of Frobenius norm 0.01 in first order, sum of the losses before each
step. The authors run every problem for 100 steps (300 for LSTM(lr, tele)) and update their networks after steps 10,
20, ..., 90; what comes later trains nothing, so a problem ends here after 90 steps (290) and 9 updates (29). Two things
are not theirs: LSTM(update) is meta-trained on 700 problems instead of 600, so that it has the same budget as
LSTM(update, tele); and windows are steps 0 to 9, 10 to 19 ..., where theirs are cut inside of steps 10, 20, ...: the
first sums eleven losses, and the element of the step at the cut, which gets no credit here, gets it from the window
that follows.
"""

from dataclasses import replace
from typing import Any

from meta_teleport.meta.config import TrainingConfig

ACTION: dict[str, Any] = {"group": "first_order", "displacement": False}
"""Arguments of the families of tasks."""

_RULE: dict[str, Any] = {"features": "raw", "gradient_term": False, "safeguard": False}
_ELEMENT: dict[str, Any] = {"element_size": "fixed", "size": 0.01}
RULES: dict[str, dict[str, Any]] = {
    "LSTMUpdateTele": {"hidden_size": 300, **_RULE, **_ELEMENT},
    "LSTMUpdate": {"hidden_size": 300, **_RULE},
    "LSTMLrTele": {"hidden_size": 20, **_RULE, **_ELEMENT},
}
"""Arguments of the rules, by their class."""

PROBLEMS, LR_PROBLEMS = 700, 30
_TRAINING = TrainingConfig(
    meta_steps=PROBLEMS * 9,
    horizon=90,
    tasks=1,
    window=10,
    lr_update=1e-3,
    lr_element=1e-4,
    objective="sum",
    clip=0.0,
    decay="constant",
    losses_before=True,
    staggered=False,
    save_every=500,
    log_every=50,
)
TRAINING: dict[str, TrainingConfig] = {
    "LSTMUpdateTele": _TRAINING,
    "LSTMUpdate": _TRAINING,
    "LSTMLrTele": replace(_TRAINING, meta_steps=LR_PROBLEMS * 29, horizon=290),
}


def shortened(training: TrainingConfig) -> TrainingConfig:
    """A few meta-steps, to try a script."""
    return replace(training, meta_steps=3, save_every=1, log_every=1)
