"""What followed the last teleports, and what that says about the next."""

import math

import pytest
import torch

from meta_teleport.errors import UserError
from meta_teleport.safeguards.habit import LEAST, PATIENCE, WINDOW, Habit, Verdict


def noisy(level: float, count: int = WINDOW, seed: int = 0) -> list[float]:
    drawn = torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (level + 0.1 * drawn).tolist()


def told(habit: Habit, losses: list[float]) -> list[Verdict]:
    return [habit.report(loss) for loss in losses]


def after(losses: list[float], before: list[float] | None = None) -> tuple[Habit, list[Verdict]]:
    habit = Habit()
    told(habit, noisy(1.0) if before is None else before)
    habit.teleported()
    return habit, told(habit, losses)


def test_losses_that_stay_or_fall_are_no_harm() -> None:
    for level in (1.0, 0.9, 0.0):
        habit, verdicts = after(noisy(level, seed=1))
        assert verdicts == [""] * WINDOW and habit.length == 1 and habit.allows()


def test_a_slower_descent_is_no_harm() -> None:
    habit, verdicts = after([0.5 - 0.001 * t for t in range(WINDOW)], [1 - 0.02 * t for t in range(WINDOW)])
    assert set(verdicts) == {""} and not habit.harms


def test_losses_that_rise_leave_the_next_teleport_out_and_halve_those_after_it() -> None:
    habit, verdicts = after(noisy(1.4, seed=1))
    assert verdicts == [""] * (WINDOW - 1) + ["harm"]
    assert habit.length == 0.5
    assert [habit.allows() for _ in range(3)] == [False, True, True]


def test_harm_is_forgiven() -> None:
    habit, _ = after(noisy(1.4, seed=1))
    habit.teleported()
    assert set(told(habit, noisy(1.4, seed=2))) == {""}
    assert habit.length == 1 and habit.allows()


def test_harm_again_and_again_ends_the_habit() -> None:
    habit = Habit()
    told(habit, noisy(1.0))
    for number in range(PATIENCE):
        habit.teleported()
        told(habit, noisy(1.4 + 0.4 * number, seed=number))
    assert habit.ended and not any(habit.allows() for _ in range(10))


@pytest.mark.parametrize("loss", [math.nan, math.inf, 1e4, 3.0])
def test_a_blow_up_is_said_at_once(loss: float) -> None:
    habit, verdicts = after([1.0, loss])
    assert verdicts == ["", "blow-up"] and habit.harms == 1 and not habit.watching


def test_a_high_loss_among_noisy_ones_is_no_blow_up() -> None:
    _, verdicts = after([1.0, 1.8], [0.2, 1.5, 0.3, 1.2, 0.4, 1.4, 0.1, 0.2, 1.0, 0.6])
    assert verdicts == ["", ""]


def test_losses_below_zero_blow_up_by_their_size_too() -> None:
    habit, verdicts = after([-5.0, -4.9, 0.5], [-5.0, -5.01, -5.02, -5.01, -5.0])
    assert verdicts == ["", "", "blow-up"] and habit.harms == 1


def test_chance_alone_is_hardly_ever_called_harm() -> None:
    generator = torch.Generator().manual_seed(0)
    harms = 0
    for _ in range(1000):
        losses = (torch.randn(2 * WINDOW, generator=generator, dtype=torch.float64) / 2).exp().tolist()
        _, verdicts = after(losses[WINDOW:], losses[:WINDOW])
        harms += any(verdicts)
    assert harms <= 20  # a normal variable is above 4 with probability 3e-5; these losses have heavy tails


def test_few_losses_say_nothing_and_teleports_that_follow_closely_are_judged_by_what_there_is() -> None:
    habit, _ = after(noisy(9.0, LEAST - 1))
    assert habit.harms == 1  # a blow-up needs no more
    for count, harm in ((LEAST - 1, ""), (LEAST, "harm")):
        habit, verdicts = after(noisy(1.4, count, seed=1))
        assert set(verdicts) == {""} and habit.judge() == harm


def test_without_an_end_nothing_is_watched() -> None:
    habit = Habit(math.inf)
    told(habit, noisy(1.0))
    habit.teleported()
    assert told(habit, [math.nan, 1e9]) == ["", ""] and habit.allows()


def test_a_habit_that_is_read_back_goes_on_as_it_would_have() -> None:
    habit, _ = after(noisy(1.4, 7, seed=1))
    other = Habit()
    other.load_state_dict(habit.state_dict())
    rest = noisy(1.4, WINDOW - 7, seed=2)
    assert told(habit, rest) == told(other, rest) == [""] * (WINDOW - 8) + ["harm"]
    assert habit.state_dict() == other.state_dict()


@pytest.mark.parametrize("patience", [0, -1, 1.5, True, math.nan, "3"])
def test_a_patience_that_is_none_is_refused(patience: object) -> None:
    with pytest.raises(UserError, match="give a whole number, at least 1, or float"):
        Habit(patience)  # type: ignore[arg-type]
