"""Records of teleports, and the signs that one did not help."""

import json

import pytest
import torch
from network_cases import HEADS, LINEAR, RELU, Network
from torch import Tensor

from meta_teleport.optimizers.history import (
    ILL_CONDITIONED,
    NO_FASTER,
    WORSE_VALIDATION,
    History,
    TeleportRecord,
    describe,
)
from meta_teleport.teleportation.progress import WINDOW, Progress
from meta_teleport.teleportation.teleport import Teleport


def record(accepted: bool = True, seconds: float = 1.0) -> TeleportRecord:
    return TeleportRecord(0, {}, 1.0, 2.0, 0.0, seconds, accepted)


class Watched:
    """A history, and the progress that it goes by."""

    def __init__(self) -> None:
        self.history, self.progress = History(), Progress()

    @property
    def signs(self) -> list[tuple[str, ...]]:
        return [record.signs for record in self.history.records]

    def report(self, losses: list[float]) -> None:
        for loss in losses:
            self.progress.report(torch.tensor(loss))
            self.history.watch(self.progress)

    def add(self, accepted: bool = True, seconds: float = 1.0) -> None:
        self.history.add(record(accepted, seconds), self.progress)


def run(before: list[float], after: list[float], watched: Watched | None = None) -> Watched:
    watched = Watched() if watched is None else watched
    watched.report(before)
    watched.add()
    watched.report(after)
    return watched


def falling(start: float, by: float, count: int = WINDOW + 1) -> list[float]:
    return [start - by * i for i in range(count)]


def test_descent_that_is_no_faster_is_named() -> None:
    assert run(falling(20.0, 1.0, 9), falling(11.0, 1.0)).signs[0] == (NO_FASTER,)
    assert run(falling(20.0, 1.0, 9), falling(11.0, 0.9)).signs[0] == (NO_FASTER,)
    assert run(falling(20.0, 1.0, 9), falling(11.0, 1.1)).signs[0] == ()
    assert run(falling(20.0, 1.0, 9), [11.0, *[float("nan")] * WINDOW]).signs[0] == (NO_FASTER,)


def test_only_the_losses_near_a_teleport_count() -> None:
    """A fast beginning long before the teleport, a slow end long after it."""
    before = [100.0, 50.0, *falling(20.0, 1.0, WINDOW)]
    after = [*falling(15.0, 1.1), 9.5, 9.5, 9.5]
    assert run(before, after).signs[0] == ()
    assert run(before, falling(15.0, 0.9)).signs[0] == (NO_FASTER,)


def test_too_few_losses_give_no_sign_and_the_next_teleport_ends_the_watch() -> None:
    assert run([], falling(5.0, 0.0)).signs[0] == ()
    assert run([9.0], [8.0]).signs[0] == ()
    watched = run(falling(20.0, 1.0, 3), falling(17.0, 0.5, 2))
    assert watched.signs == [()]
    watched.add()
    assert watched.signs == [(NO_FASTER,), ()]


def test_a_teleport_that_was_not_accepted_is_not_watched() -> None:
    watched = run(falling(20.0, 1.0, 3), falling(17.0, 0.5, 2))
    watched.add(accepted=False, seconds=2.0)
    watched.report(falling(16.0, 0.5))
    assert watched.signs == [(NO_FASTER,), ()]
    assert (watched.progress.teleports, watched.progress.spent) == (2, 3.0)


def test_losses_before_the_last_teleport_but_one_do_not_count() -> None:
    """Steep, a teleport, flat, a teleport, less flat: held against the steep part it would be no faster."""
    watched = run(falling(90.0, 10.0, 3), falling(60.0, 1.0, 3))
    watched.add()
    watched.report(falling(57.0, 2.0))
    assert watched.signs == [(NO_FASTER,), ()]


def test_a_worse_validation_loss_is_named_once() -> None:
    watched = Watched()
    watched.history.validate(1.0)
    watched.add()
    watched.history.validate(1.5)
    watched.history.validate(2.0)
    assert watched.signs == [(WORSE_VALIDATION,)]
    watched.add()
    watched.history.validate(2.0)
    assert watched.signs[1] == ()


def test_a_history_goes_on_where_it_was() -> None:
    def end(watched: Watched) -> list[TeleportRecord]:
        watched.report(falling(13.0, 0.5, 4))
        watched.history.validate(2.0)
        watched.add()
        return watched.history.records

    one = Watched()
    one.history.validate(1.0)
    run(falling(20.0, 1.0, 3), [15.0, 14.5], one)
    history, progress = json.loads(json.dumps([one.history.state_dict(), one.progress.state_dict()]))
    other = Watched()
    other.history.load_state_dict(history)
    other.progress = Progress(**progress)
    assert (expected := end(one)) == end(other) and one.progress == other.progress
    assert set(expected[0].signs) == {NO_FASTER, WORSE_VALIDATION} and one.progress.spent == 2.0


def found(elements: tuple[Tensor, ...]) -> Teleport:
    return Teleport({}, elements, 1.0, 2.0, 1e-9, 0.5, accepted=True, reason="")


@pytest.mark.parametrize("network", [RELU, LINEAR, HEADS], ids=str)
def test_a_record_says_how_far_each_site_moved(network: Network, generator: torch.Generator) -> None:
    elements = network.elements(generator)
    made = describe(found(elements), network.symmetry, step=3, seconds=0.7, imbalance=0.0)
    dense = [torch.diag_embed(g) if network.diagonal else g for g in elements]
    expected = [float((g - torch.eye(g.shape[-1]).double()).square().sum().sqrt()) for g in dense]
    assert list(made.sizes) == [site.name for site in network.symmetry.sites]
    assert list(made.sizes.values()) == pytest.approx(expected)
    assert (made.step, made.seconds, made.before, made.after, made.signs) == (3, 0.7, 1.0, 2.0, ())


@pytest.mark.parametrize("network", [RELU, LINEAR, HEADS], ids=str)
def test_an_ill_conditioned_element_is_named(network: Network) -> None:
    def signs(spread: float, dtype: torch.dtype) -> tuple[str, ...]:
        elements = [site.group.identity(dtype=dtype).clone() for site in network.symmetry.sites]
        elements[-1][(0,) * elements[-1].ndim] = spread
        return describe(found(tuple(elements)), network.symmetry, 0, 0.0, 0.0).signs

    uneven = () if network.diagonal else (ILL_CONDITIONED,)
    assert signs(1e4, torch.float32) == signs(1e8, torch.float64) == uneven
    assert signs(0.0, torch.float64) == signs(float("nan"), torch.float64) == (ILL_CONDITIONED,)
    assert signs(1e3, torch.float32) == signs(1e7, torch.float64) == ()
