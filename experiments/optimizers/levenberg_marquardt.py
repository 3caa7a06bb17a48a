"""The Levenberg-Marquardt method for classifiers: a damped generalised Gauss-Newton step per batch.

For outputs f(w, x_i) with c classes, their Jacobians J_i (c, P), softmax probabilities p_i and one-hot labels y_i,

    g = 1/n sum J_i^T (p_i - y_i)                    the gradient of the mean cross entropy
    G = 1/n sum J_i^T (diag(p_i) - p_i p_i^T) J_i    the Gauss-Newton matrix
    d = -(G + damping I)^-1 g                        the step

With S_i = diag(sqrt p_i) - p_i sqrt(p_i)^T, S_i S_i^T is the matrix in the middle: G = A^T A for the rows S_i^T J_i /
sqrt n of A. As g = A^T u with u_i = (p_i - y_i) / sqrt(n p_i), the step is -A^T (A A^T + damping I)^-1 u as well, so
that the smaller of the systems of n c and of P equations is solved.

The step is taken if the loss on the batch falls. By the gain ratio r of the fall and the predicted one, d.(damping d -
g) / 2, the damping is multiplied by max(1/3, 1 - (2 r - 1)^3) if r > 0, else by 2, 4, 8, ...

Without damping the step is the same function of the outputs at every point of the orbit of a symmetry that is linear in
the weights: a teleport can only matter through the damping.

Sources: Schraudolph 2002 (the matrix); Madsen, Nielsen and Tingleff 2004, section 3.2 (the damping).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.nn import functional as F
from torch.optim import Optimizer

LEAST, MOST = 1e-8, 1e8

Batch = tuple[Tensor, Tensor]


class LevenbergMarquardt(Optimizer):
    """Trains a ``model`` that maps ``(n, d)`` to ``(n, classes)``. ``damping`` is the one to begin with; that of the
    present is in ``param_groups``. There is no other state."""

    def __init__(self, model: nn.Module, damping: float = 1.0) -> None:
        super().__init__(model.parameters(), {"damping": damping, "growth": 2.0})
        self.model = model

    @torch.no_grad()
    def step(self, closure: Callable[[], Batch] | None = None) -> Tensor:  # type: ignore[override]
        """One step on the batch, inputs ``(n, d)`` and labels ``(n,)``, that ``closure`` gives; the loss before it."""
        if closure is None:
            raise TypeError("step needs a closure that gives the batch: inputs and labels")
        x, y = closure()
        group, start = self.param_groups[0], [p.clone() for p in self.model.parameters()]
        before = F.cross_entropy(self.model(x), y)
        rows, targets = factors(self.model, x, y)
        step = damped_step(rows, targets, group["damping"])
        predicted = step @ (group["damping"] * step - rows.mT @ targets) / 2
        self._move(step)
        gain = float((before - F.cross_entropy(self.model(x), y)) / predicted)
        if gain > 0:
            factor, group["growth"] = max(1 / 3, 1 - (2 * gain - 1) ** 3), 2.0
        else:
            for p, value in zip(self.model.parameters(), start, strict=True):
                p.copy_(value)
            factor, group["growth"] = group["growth"], 2 * group["growth"]
        group["damping"] = min(max(factor * group["damping"], LEAST), MOST)
        return before

    def _move(self, step: Tensor) -> None:
        parameters = list(self.model.parameters())
        for p, part in zip(parameters, step.split([p.numel() for p in parameters]), strict=True):
            p.add_(part.view_as(p))


def factors(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A ``(n classes, P)`` and u ``(n classes,)``: the Gauss-Newton matrix is A^T A, the gradient A^T u."""
    params = {name: p.detach() for name, p in model.named_parameters()}

    def outputs(params: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional_call(model, params, (row[None],))[0]

    jacobians = vmap(jacrev(outputs), in_dims=(None, 0))(params, x)
    jacobian = torch.cat([j.flatten(2) for j in jacobians.values()], dim=2)
    p = model(x).detach().softmax(-1).clamp(min=torch.finfo(x.dtype).eps)
    root = p.sqrt()
    rows = root.unsqueeze(2) * jacobian - root.unsqueeze(2) * (p.unsqueeze(1) @ jacobian)
    residual = p - F.one_hot(y, p.shape[1]).to(p)
    return rows.flatten(0, 1) / len(x) ** 0.5, (residual / root).flatten() / len(x) ** 0.5


def damped_step(rows: Tensor, targets: Tensor, damping: float) -> Tensor:
    """``-(A^T A + damping I)^-1 A^T u`` by the smaller of its two forms, solved in float64."""
    wide, u = rows.double(), targets.double()
    small = wide if wide.shape[0] <= wide.shape[1] else wide.mT
    gram = small @ small.mT
    gram.diagonal().add_(damping)
    factor = torch.linalg.cholesky(gram)
    if small is wide:
        step = wide.mT @ torch.cholesky_solve(u[:, None], factor)
    else:
        step = torch.cholesky_solve((wide.mT @ u)[:, None], factor)
    return -step[:, 0].to(rows)
