"""The place before the last teleport, to which a training goes back that blows up after it."""

from torch import nn

from meta_teleport.params import Writes, write_at_once


class Retreat:
    """Copies of the trainable parameters and the buffers of ``model``, between :meth:`keep` and :meth:`forget`."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._kept: Writes = []

    @property
    def ready(self) -> bool:
        """Whether there is a place to go back to."""
        return bool(self._kept)

    def keep(self) -> None:
        """The model is about to teleport."""
        moving = [p for p in self.model.parameters() if p.requires_grad]
        self._kept = [(t, t.detach().clone()) for t in (*moving, *self.model.buffers())]

    def forget(self) -> None:
        """The teleport did no harm that would be worth going back."""
        self._kept = []

    def take(self) -> None:
        """Goes back."""
        write_at_once(self._kept)
        self.forget()
