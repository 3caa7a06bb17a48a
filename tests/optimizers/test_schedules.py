"""When schedules are due."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from meta_teleport.errors import UserError
from meta_teleport.optimizers.schedules import (
    Budget,
    Epochs,
    Every,
    Plateau,
    Schedule,
    Steps,
    as_schedule,
)
from meta_teleport.teleportation.progress import Progress


def due(schedule: Schedule, last: int = 12) -> list[int]:
    return [step for step in range(last + 1) if schedule.due(Progress(step))]


def test_every_k_steps_does_not_count_the_beginning() -> None:
    assert due(Every(4)) == [4, 8, 12]
    assert due(Every(1), 3) == [1, 2, 3]


def test_steps_are_those_given_and_none_is_never() -> None:
    assert due(Steps([0, 3, 3, 7])) == [0, 3, 7]
    assert due(Steps()) == []


def test_an_epoch_is_due_at_its_beginning() -> None:
    assert due(Epochs([0, 2], steps_per_epoch=5)) == [0, 10]


def test_what_the_door_accepts() -> None:
    assert due(as_schedule(5)) == [5, 10]
    assert due(as_schedule([1, 2])) == [1, 2]
    assert due(as_schedule(())) == []
    every = Every(3)
    assert as_schedule(every) is every


def plateaus(schedule: Plateau, losses: list[float]) -> list[int]:
    return [i for i, loss in enumerate(losses) if schedule.due(Progress(i, loss=torch.tensor(loss)))]


def test_a_plateau_is_patience_losses_that_are_no_better() -> None:
    losses = [5.0, 4.0, 4.0, 4.1, 4.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0]
    assert plateaus(Plateau(3), losses) == [4, 8, 11]
    assert plateaus(Plateau(3), [float(i) for i in range(12, 0, -1)]) == []


def test_a_plateau_of_small_gains_nan_and_negative_losses() -> None:
    slow = [1 - 1e-3 * i for i in range(6)]
    assert plateaus(Plateau(2, threshold=1e-2), slow) == [2, 4]
    assert plateaus(Plateau(2, threshold=1e-4), slow) == []
    assert plateaus(Plateau(2), [1.0, float("nan"), float("nan"), 0.5]) == [2]
    assert plateaus(Plateau(2, threshold=0.1), [-1.0, -1.05, -1.05]) == [2]
    assert plateaus(Plateau(2, threshold=0.1), [-1.0, -1.2, -1.4]) == []


def test_a_plateau_counts_losses_not_steps() -> None:
    schedule = Plateau(2)
    told = [5.0, None, None, 5.0, None, 5.0, None]
    assert [i for i, loss in enumerate(told) if schedule.due(Progress(i, loss=loss))] == [5]


def test_a_plateau_without_losses_is_refused_in_time() -> None:
    schedule = Plateau(3)
    assert due(schedule, 3) == []
    with pytest.raises(UserError, match="Plateau has seen no loss for 4 steps: pass a closure to step, or call report"):
        schedule.due(Progress(4))


def test_the_state_of_a_plateau_goes_on_where_it_was() -> None:
    losses = [5.0, 4.0, 4.0, 4.0, 4.0]
    one, other = Plateau(3), Plateau(3)
    assert plateaus(one, losses[:3]) == []
    other.load_state_dict(one.state_dict())
    assert plateaus(other, losses[3:]) == plateaus(one, losses[3:]) == [1]
    assert plateaus(Plateau(3), losses[3:]) == []


def test_a_budget_in_seconds_counts_what_the_next_teleport_will_take() -> None:
    budget = Budget(2, seconds=1.0)
    assert not budget.due(Progress(3))
    assert budget.due(Progress(2, teleports=0))
    assert budget.due(Progress(2, teleports=3, spent=0.75))
    assert not budget.due(Progress(2, teleports=3, spent=0.76))


def test_a_budget_as_a_share_grows_with_time() -> None:
    budget = Budget([5], share=0.1)
    assert not budget.due(Progress(5, teleports=1, spent=1.0, elapsed=19.0))
    assert budget.due(Progress(5, teleports=1, spent=1.0, elapsed=20.0))


def test_a_budget_keeps_the_state_of_what_it_limits() -> None:
    budget, other = Budget(Plateau(2), seconds=1.0), Budget(Plateau(2), seconds=1.0)
    assert not budget.due(Progress(1, loss=1.0)) and not budget.due(Progress(2, loss=1.0))
    other.load_state_dict(budget.state_dict())
    assert other.due(Progress(3, loss=1.0))


def test_schedules_without_memory_have_an_empty_state() -> None:
    schedule = Every(2)
    assert schedule.state_dict() == {}
    schedule.load_state_dict({})
    assert due(schedule, 2) == [2]


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: Every(0), "Every: k is 0: give a whole number, at least 1"),
    (lambda: as_schedule(-3), "Every: k is -3: give a whole number, at least 1"),
    (lambda: as_schedule([1, 2.5]), "Steps: a step is 2.5: give a whole number, at least 0"),
    (lambda: Steps([-1]), "Steps: a step is -1"),
    (lambda: Epochs([-1], 10), "Epochs: an epoch is -1"),
    (lambda: Epochs([1], 0), "Epochs: steps_per_epoch is 0"),
    (lambda: Plateau(0), "Plateau: patience is 0"),
    (lambda: Plateau(3, threshold=1.0), "Plateau: threshold is 1.0: give a share between 0 and 1"),
    (lambda: Budget(3), r"Budget: give either seconds=\.\.\. or share=\.\.\."),
    (lambda: Budget(3, seconds=1.0, share=0.1), "Budget: give either"),
    (lambda: Budget(3, seconds=-1.0), r"Budget: seconds=-1.0, share=None: seconds are positive"),
    (lambda: Budget(3, share=1.5), "a share is between 0 and 1"),
    (lambda: as_schedule("daily"), "'daily' is not a schedule: give a number of steps k"),
    (lambda: as_schedule(True), "True is not a schedule"),
    (lambda: as_schedule(None), "None is not a schedule"),
    (lambda: as_schedule(2.0), "2.0 is not a schedule"),
]


@pytest.mark.parametrize(("make", "text"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_no_schedule_is_refused(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        make()


def test_by_itself_a_plateau_is_where_losses_fall_by_less_than_a_ten_thousandth() -> None:
    for fall, waits in ((1.1e-4, False), (0.9e-4, True)):
        plateau = Plateau(patience=1)
        assert [plateau.due(Progress(i, loss)) for i, loss in enumerate((2.0, 2.0 * (1 - fall)))] == [False, waits]
