"""What a learned rule is for its user: an optimizer of one's own model, or teleports between the steps of another."""

from typing import Any

from torch import nn

from meta_teleport.detection.detect import find_symmetries
from meta_teleport.errors import UserError
from meta_teleport.optimizers.learned_optimizer import LearnedOptimizer
from meta_teleport.optimizers.rule_proposer import RuleProposer
from meta_teleport.rules.rule import Rule
from meta_teleport.symmetry.symmetry import Symmetry


class LearnedRule(Rule):
    """A :class:`Rule` that binds itself to a model: the base of the learned rules, and of a rule of one's own."""

    def optimizer(
        self,
        model: nn.Module,
        example_inputs: Any = None,
        *,
        symmetry: Symmetry | None = None,
        steps: int | None = None,
        **settings: Any,
    ) -> LearnedOptimizer:
        """This rule as a ``torch.optim.Optimizer`` for a model of one's own.

        It teleports at the exact sites that ``find_symmetries(model, example_inputs)`` finds, or at those of
        ``symmetry``. ``steps``: how many you will take, see :meth:`for_horizon`; by default as many as it was trained
        for. ``settings`` are those of :class:`LearnedOptimizer`: params, lr, weight_decay, tolerance, checked.

        Raises ``UserError`` if neither inputs nor a symmetry are given, and where those two functions do.
        """
        if symmetry is None:
            if example_inputs is None:
                raise UserError("give example_inputs on which the model runs, to find its symmetry, or symmetry=...")
            symmetry = find_symmetries(model, example_inputs)
        rule = self if steps is None else self.for_horizon(steps)
        return LearnedOptimizer(rule, model, symmetry, **settings)

    def proposer(self, model: nn.Module, symmetry: Symmetry) -> RuleProposer:
        """What proposes the elements of this rule, and no updates, for :class:`meta_teleport.TeleportedOptimizer`."""
        return RuleProposer(self, model, symmetry)
