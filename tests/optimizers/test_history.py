"""Records of teleports, and the signs that one did not help."""

import json

import pytest
import torch
from network_cases import HEADS, LINEAR, RELU, Network
from torch import Tensor

from meta_teleport.optimizers.history import (
    ILL_CONDITIONED,
    NO_FASTER,
    WINDOW,
    WORSE_VALIDATION,
    History,
    TeleportRecord,
    describe,
)
from meta_teleport.teleportation.teleport import Teleport


def record(accepted: bool = True, seconds: float = 1.0) -> TeleportRecord:
    return TeleportRecord(0, {}, 1.0, 2.0, 0.0, seconds, accepted)


def run(before: list[float], after: list[float], history: History | None = None) -> History:
    history = History() if history is None else history
    for loss in before:
        history.report(torch.tensor(loss))
    history.add(record())
    for loss in after:
        history.report(torch.tensor(loss))
    return history


def falling(start: float, by: float, count: int = WINDOW + 1) -> list[float]:
    return [start - by * i for i in range(count)]


def test_descent_that_is_no_faster_is_named() -> None:
    assert run(falling(20.0, 1.0, 9), falling(11.0, 1.0)).records[0].signs == (NO_FASTER,)
    assert run(falling(20.0, 1.0, 9), falling(11.0, 0.9)).records[0].signs == (NO_FASTER,)
    assert run(falling(20.0, 1.0, 9), falling(11.0, 1.1)).records[0].signs == ()
    assert run(falling(20.0, 1.0, 9), [11.0, *[float("nan")] * WINDOW]).records[0].signs == (NO_FASTER,)


def test_only_the_losses_near_a_teleport_count() -> None:
    """A fast beginning long before the teleport, a slow end long after it."""
    before = [100.0, 50.0, *falling(20.0, 1.0, WINDOW)]
    after = [*falling(15.0, 1.1), 9.5, 9.5, 9.5]
    assert run(before, after).records[0].signs == ()
    assert run(before, falling(15.0, 0.9)).records[0].signs == (NO_FASTER,)


def test_too_few_losses_give_no_sign_and_the_next_teleport_ends_the_watch() -> None:
    assert run([], falling(5.0, 0.0)).records[0].signs == ()
    assert run([9.0], [8.0]).records[0].signs == ()
    history = run(falling(20.0, 1.0, 3), falling(17.0, 0.5, 2))
    assert history.records[0].signs == ()
    history.add(record())
    assert [r.signs for r in history.records] == [(NO_FASTER,), ()]


def test_a_teleport_that_was_not_accepted_is_not_watched() -> None:
    history = run(falling(20.0, 1.0, 3), falling(17.0, 0.5, 2))
    history.add(record(accepted=False, seconds=2.0))
    for loss in falling(16.0, 0.5):
        history.report(loss)
    assert [r.signs for r in history.records] == [(NO_FASTER,), ()]
    assert history.seconds == 3.0


def test_a_worse_validation_loss_is_named_once() -> None:
    history = History()
    history.validate(1.0)
    history.add(record())
    history.validate(1.5)
    history.validate(2.0)
    assert history.records[0].signs == (WORSE_VALIDATION,)
    history.add(record())
    history.validate(2.0)
    assert history.records[1].signs == ()


def test_a_history_goes_on_where_it_was() -> None:
    def end(history: History) -> list[TeleportRecord]:
        for loss in falling(13.0, 0.5, 4):
            history.report(loss)
        history.validate(2.0)
        history.add(record())
        return history.records

    one = History()
    one.validate(1.0)
    run(falling(20.0, 1.0, 3), [15.0, 14.5], one)
    state = json.loads(json.dumps(one.state_dict()))
    other = History()
    other.load_state_dict(state)
    assert (expected := end(one)) == end(other)
    assert set(expected[0].signs) == {NO_FASTER, WORSE_VALIDATION} and one.seconds == other.seconds == 2.0


def found(elements: tuple[Tensor, ...]) -> Teleport:
    return Teleport({}, elements, 1.0, 2.0, 1e-9, 0.5, accepted=True, reason="")


@pytest.mark.parametrize("network", [RELU, LINEAR, HEADS], ids=str)
def test_a_record_says_how_far_each_site_moved(network: Network, generator: torch.Generator) -> None:
    elements = network.elements(generator)
    made = describe(found(elements), network.symmetry, step=3, seconds=0.7)
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
        return describe(found(tuple(elements)), network.symmetry, 0, 0.0).signs

    uneven = () if network.diagonal else (ILL_CONDITIONED,)
    assert signs(1e4, torch.float32) == signs(1e8, torch.float64) == uneven
    assert signs(0.0, torch.float64) == signs(float("nan"), torch.float64) == (ILL_CONDITIONED,)
    assert signs(1e3, torch.float32) == signs(1e7, torch.float64) == ()
