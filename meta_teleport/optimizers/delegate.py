"""An optimizer that is another one, but for what a subclass changes."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch.optim import Optimizer


def _attribute(name: str) -> Any:
    return property(lambda self: getattr(self.base, name), lambda self, value: setattr(self.base, name, value))


def _method(name: str) -> Any:
    @wraps(getattr(Optimizer, name))  # trainers look at signatures
    def method(self: "Delegate", *args: Any, **kwargs: Any) -> Any:
        return getattr(self.base, name)(*args, **kwargs)

    return method


class Delegate(Optimizer):
    """A ``torch.optim.Optimizer`` whose groups, state, defaults, hooks and steps are those of ``base``.

    Nothing is copied: what changes here changes there, also after ``load_state_dict``, which gives an optimizer new
    dictionaries. Hooks run once, in the base optimizer, which they are given. ``Optimizer.__init__`` is not called: it
    makes groups and state.

    What the base optimizer has beyond torch's interface (``train`` and ``eval`` of schedule-free ones) is had here too,
    to be read and called.

    It can be copied and pickled with what it holds, base optimizer included; hooks stay behind, as with any optimizer.
    """

    param_groups = _attribute("param_groups")
    state = _attribute("state")
    defaults = _attribute("defaults")
    zero_grad = _method("zero_grad")
    add_param_group = _method("add_param_group")
    state_dict = _method("state_dict")
    load_state_dict = _method("load_state_dict")
    register_step_pre_hook = _method("register_step_pre_hook")
    register_step_post_hook = _method("register_step_post_hook")
    register_state_dict_pre_hook = _method("register_state_dict_pre_hook")
    register_state_dict_post_hook = _method("register_state_dict_post_hook")
    register_load_state_dict_pre_hook = _method("register_load_state_dict_pre_hook")
    register_load_state_dict_post_hook = _method("register_load_state_dict_post_hook")

    def __init__(self, base: Optimizer) -> None:
        self.base = base

    def __getattr__(self, name: str) -> Any:
        # nothing private: a gradient scaler that finds ``_step_supports_amp_scaling`` writes what only the base reads
        if name.startswith("_") or "base" not in self.__dict__:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        return getattr(self.base, name)

    def __getstate__(self) -> dict[str, Any]:
        # learning rate schedulers put a step into an optimizer that is bound to this very one
        return {name: value for name, value in self.__dict__.items() if name != "step"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the base optimizer, whose result it returns."""
        return self.base.step() if closure is None else self.base.step(closure)
