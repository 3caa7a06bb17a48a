"""What ``torch.compile`` may not touch."""

import torch
from torch.optim import Optimizer

REASON = "steps that teleport change what a graph cannot show: compile the model and its loss, and call step outside"


def run_as_written(optimizer: Optimizer, *methods: str) -> None:
    """Keeps these methods of the optimizer's class out of compiled graphs: a compiled function that calls one has a
    graph break there, and with ``fullgraph=True`` fails with the ``REASON``.

    Called once there is an optimizer, as loading the compiler takes a second; every torch optimizer has it loaded.
    """
    cls = type(optimizer)
    for name in methods:
        method = getattr(cls, name)
        if not getattr(method, "as_written", False):
            written = torch.compiler.disable(method, reason=REASON)
            written.as_written = True
            setattr(cls, name, written)
