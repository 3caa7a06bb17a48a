"""R copies of one network, trained side by side as one batched program.

Copies differ in their seed, in their optimizer and its settings, and in how they are teleported. Their parameters are
stacked, ``(R, *shape)``, so that one forward and one backward pass serve all of them; the optimizer of each setting
then moves its own rows. Where all see the same batch, the first layer of an MLP is one matrix product for all.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from meta_teleport.errors import UserError, is_of_user
from meta_teleport.optimizers.requirements import require_state
from meta_teleport.optimizers.stacked import Factory, StackedOptimizer, gradients_of, require_whole
from meta_teleport.params import Params, run_side_by_side, where
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.teleportation.acceptance import is_finite, only
from meta_teleport.teleportation.objectives import Loss

CHUNK = 1000


class Moved(NamedTuple):
    """Where a search ended: parameters ``(copies, *shape)``, how far that is in the Lie algebra ``(copies,)``, and,
    where all sites are exact, one element per site."""

    params: Params
    size: Tensor
    elements: Sequence[Tensor] | None = None


Search = Callable[[Symmetry, Params, Loss, Tensor], Moved]
"""From a symmetry, parameters ``(copies, *shape)``, their loss and the inputs ``(n, ...)`` of its batch."""


class Jump(NamedTuple):
    """What one teleport did to the copies of one setting: the loss on its batch before and after, how far it went in
    the Lie algebra, and whether it was kept (undone where a parameter or the loss is not finite), each ``(seeds,)``."""

    before: Tensor
    after: Tensor
    size: Tensor
    kept: Tensor


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """The mean cross entropy of every copy, ``(copies,)``, from outputs ``(copies, n, classes)`` and labels
    ``(copies, n)``."""
    losses = F.cross_entropy(outputs.flatten(0, 1), labels.flatten(), reduction="none")
    return losses.reshape(labels.shape).mean(1)


class Ensemble:
    """``len(settings) * len(seeds)`` copies of the network that ``build()`` makes.

    Copy ``i * len(seeds) + j`` has setting i and seed j. Its initial weights are those of ``build()`` after
    ``torch.manual_seed(seeds[j])``, and what it becomes is what a separate run would give, up to rounding: every copy
    has its own loss, gradient, optimizer state and buffers; parameters that require no gradient are kept with the
    buffers. A copy that diverges harms no other.

    ``settings`` are functions from a list of parameters to an optimizer, such as ``partial(torch.optim.Adam,
    lr=1e-3)``; what is not known to work entry by entry is made for every copy (see :func:`meta_teleport.per_copy`).
    ``loss`` maps outputs and labels, each ``(copies, n, ...)``, to ``(copies,)``. Batches have one more dimension:
    inputs ``(1, n, ...)`` are seen by all copies, ``(seeds, n, ...)`` by the copies of their seed; labels alike.

    Raises ``UserError`` without seeds or settings, for L-BFGS, for models that vmap does not allow, and where inputs or
    labels do not fit the model; an error in a module of one's own is raised as it is.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        seeds: Sequence[int],
        settings: Sequence[Factory],
        loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
        device: str | torch.device = "cpu",
    ) -> None:
        if not seeds or not settings:
            raise UserError("copies need at least one seed and one setting")
        models = [_initialized(build, seed).to(device) for seed in seeds]
        self.model, self.seeds, self.loss = models[0], tuple(seeds), loss
        drawn = [{n: t.detach() for n, t in (*m.named_parameters(), *m.named_buffers())} for m in models]
        stacked = {
            name: torch.stack([own[name] for own in drawn]).repeat(len(settings), *(1,) * tensor.ndim)
            for name, tensor in drawn[0].items()
        }
        self.params: Params = {n: stacked.pop(n) for n, p in self.model.named_parameters() if p.requires_grad}
        self.buffers: Params = stacked
        starts = range(0, len(seeds) * len(settings), len(seeds))
        rows = [slice(start, start + len(seeds)) for start in starts]
        self.settings = [
            StackedOptimizer.of(self.params, own, factory) for own, factory in zip(rows, settings, strict=True)
        ]
        for p in self.params.values():
            p.requires_grad_()
        require_whole(self.model, self.settings, self.params, self.buffers)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for setting in self.settings:
            setting.join(self.params)

    @property
    def count(self) -> int:
        """How many copies there are."""
        return len(self.seeds) * len(self.settings)

    def outputs(self, inputs: Tensor, params: Params | None = None, buffers: Params | None = None) -> Tensor:
        """The outputs ``(copies, n, ...)`` on inputs ``(1 or seeds, n, ...)``; with the parameters and buffers of some
        of the copies, theirs. In training mode, buffers such as running means are updated in place."""
        params = self.params if params is None else params
        buffers = self.buffers if buffers is None else buffers
        shared = len(inputs) == 1
        x = inputs[0] if shared else self._repeated(inputs, len(next(iter(params.values()))))

        def single(params: Params, buffers: Params, x: Tensor) -> Tensor:
            return functional_call(self.model, (params, buffers), (x,))

        def run() -> Tensor:
            mapped = vmap(single, (0, 0, None if shared else 0), randomness="different")
            return (single if getattr(self.model, "broadcasts", False) else mapped)(params, buffers, x)

        def alone() -> Tensor:
            weights, others = ({name: t[0].clone() for name, t in held.items()} for held in (params, buffers))
            try:
                return single(weights, others, x if shared else x[0])
            except RuntimeError as error:
                if is_of_user(error):
                    raise
                reason = str(error).splitlines()[0]
                raise UserError(f"inputs of shape {tuple(x.shape)} do not fit the model: {reason}") from error

        return run_side_by_side(self.model, run, alone)

    def losses(
        self, inputs: Tensor, labels: Tensor, params: Params | None = None, buffers: Params | None = None
    ) -> Tensor:
        """The loss of every copy, ``(copies,)``; arguments as for :meth:`outputs`."""
        outputs = self.outputs(inputs, params, buffers)
        return self._compared(outputs, self._repeated(labels, len(outputs)))

    def step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """One step of every optimizer; gives the losses before it, ``(copies,)``."""
        require_whole(self.model, self.settings, self.params, self.buffers)
        losses = self.losses(inputs, labels)
        gradients = gradients_of(losses, self.params)
        for setting in self.settings:
            setting.step(gradients)
        return losses.detach()

    @torch.no_grad()
    def evaluate(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss and accuracy of every copy in evaluation mode, each ``(copies,)``, on inputs ``(n, ...)``."""
        if not len(inputs) or len(inputs) != len(labels):
            raise UserError(f"{len(inputs)} inputs and {len(labels)} labels to evaluate on: give one label per input")
        loss = accuracy = torch.zeros(self.count, device=inputs.device)
        with self._evaluating():
            for x, y in zip(inputs.split(CHUNK), labels.split(CHUNK), strict=True):
                outputs, expected = self.outputs(x[None]), y.expand(self.count, *y.shape)
                loss = loss + len(y) / len(labels) * self._compared(outputs, expected)
                accuracy = accuracy + (outputs.argmax(-1) == expected).float().sum(1) / len(labels)
        return loss, accuracy

    def teleport(
        self, number: int, symmetry: Symmetry, search: Search, inputs: Tensor, labels: Tensor, state: str = "transport"
    ) -> Jump:
        """Moves the copies of one setting to where ``search`` ends, on a batch ``(n, ...)`` that all of them see. The
        parameters that it searches in hold the buffers that a site moves, too.

        ``state`` says what becomes of the optimizer's: *transport* moves it along (which needs the elements), *reset*
        begins it anew (for all copies of the setting), *keep* leaves it.

        Raises ``UserError`` for another word, and for *transport* of a state that has no law; nothing has moved then.
        """
        require_whole(self.model, self.settings, self.params, self.buffers)
        setting = self.settings[number]
        require_state(state, setting.optimizer)
        moved = {name for site in symmetry.sites for name in site.parameters}
        own = {**self.params, **{name: b for name, b in self.buffers.items() if name in moved}}
        start = {name: tensor.detach()[setting.rows] for name, tensor in own.items()}

        def loss(params: Params) -> Tensor:
            buffers = {name: params.get(name, b[setting.rows]).clone() for name, b in self.buffers.items()}
            return self.losses(inputs[None], labels[None], {name: params[name] for name in self.params}, buffers)

        found = search(symmetry, start, loss, inputs)
        with torch.no_grad():
            before, after = loss(start), loss(found.params)
            kept = after.isfinite() & is_finite(found.params)
            elements = _elements(symmetry, found, kept) if state == "transport" else ()
            for name, p in where(kept, found.params, start).items():
                own[name].data[setting.rows] = p
        if state == "reset":
            setting.reset(symmetry)
        elif state == "transport":
            setting.transport(symmetry, elements)
        return Jump(before, torch.where(kept, after, before), torch.where(kept, found.size, 0.0), kept)

    def state(self) -> dict[str, Tensor]:
        """A copy of everything that changes during training, by name; :meth:`restore` of it goes on bit for bit."""
        tensors = {f"params.{name}": p.detach() for name, p in self.params.items()}
        tensors |= {f"buffers.{name}": b for name, b in self.buffers.items()}
        for number, setting in enumerate(self.settings):
            tensors |= {f"settings.{number}.{name}": tensor for name, tensor in setting.state().items()}
        return {name: tensor.clone() for name, tensor in tensors.items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Takes over what :meth:`state` gave. Raises ``UserError`` for the state of another network."""
        own = {f"params.{name}": p for name, p in self.params.items()}
        own |= {f"buffers.{name}": b for name, b in self.buffers.items()}
        for name, tensor in own.items():
            if name not in tensors or tensors[name].shape != tensor.shape:
                raise UserError(f"this is no state of {self.count} copies of this network: its '{name}' does not fit")
        for name, tensor in own.items():
            tensor.data.copy_(tensors[name])
        for number, setting in enumerate(self.settings):
            lead = f"settings.{number}."
            setting.restore({name.removeprefix(lead): t for name, t in tensors.items() if name.startswith(lead)})

    def _repeated(self, batch: Tensor, copies: int) -> Tensor:
        """What the copies of some settings see, ``(copies, n, ...)``."""
        if len(batch) not in (1, len(self.seeds)):
            raise UserError(
                f"a batch of shape {tuple(batch.shape)} does not fit {len(self.seeds)} seeds: its first dimension is "
                "1, for all copies, or the number of seeds"
            )
        return batch.repeat(copies // len(batch), *(1,) * (batch.ndim - 1))

    def _compared(self, outputs: Tensor, labels: Tensor) -> Tensor:
        try:
            return self.loss(outputs, labels)
        except (IndexError, RuntimeError, ValueError) as error:
            shapes = f"labels of shape {tuple(labels.shape)} do not fit outputs of shape {tuple(outputs.shape)}"
            raise UserError(f"{shapes}: {str(error).splitlines()[0]}") from error

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)


def _initialized(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def _elements(symmetry: Symmetry, found: Moved, kept: Tensor) -> tuple[Tensor, ...]:
    if found.elements is None:
        raise UserError("the state cannot be transported: sites that depend on data have no law; use reset or keep")
    return tuple(only(site.group, g, kept) for site, g in zip(symmetry.sites, found.elements, strict=True))
