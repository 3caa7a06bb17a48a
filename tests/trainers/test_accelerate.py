"""Loops with accelerate drive both optimizers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import laws
import pytest
import trainer_cases
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from network_cases import parameters
from trainer_cases import ACCUMULATED, CLIPPED, OPTIMIZERS, Net, build

import meta_teleport as mt

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # the libraries warn of each other


def prepared(make: Callable[..., Any], seed: int = 0) -> tuple[Accelerator, Net, Any, Any, Any, Any]:
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATED)
    model = build(seed)
    own = make(model)
    model, optimizer, loader, schedule = accelerator.prepare(
        model, own, trainer_cases.batches(), trainer_cases.scheduler(own)
    )
    return accelerator, model, own, optimizer, loader, schedule


def train(parts: tuple[Accelerator, Net, Any, Any, Any, Any], steps: range) -> None:
    accelerator, model, _, optimizer, loader, schedule = parts
    for index, batch in enumerate(loader):
        if index // ACCUMULATED not in steps:
            continue
        with accelerator.accumulate(model):
            accelerator.backward(model(*batch)["loss"])
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), CLIPPED)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_it_is_the_plain_loop_and_resumes_bitwise(make: Callable[..., Any], tmp_path: Path) -> None:
    whole = prepared(make)
    train(whole, range(2))
    whole[0].save_state(str(tmp_path))
    train(whole, range(2, 4))

    plain = build()
    alone = make(plain)
    trainer_cases.by_hand(plain, alone, trainer_cases.micro_batches(plain, 4))
    laws.same_bits(parameters(whole[1]), parameters(plain))
    if isinstance(alone, mt.TeleportedOptimizer):
        assert [record.step for record in whole[2].teleports] == [record.step for record in alone.teleports] == [1, 3]
    else:
        assert whole[2].step_count == alone.step_count == 4

    later = prepared(make, seed=1)
    later[0].load_state(str(tmp_path))
    train(later, range(2, 4))
    laws.same_bits(parameters(later[1]), parameters(plain))


def test_the_loss_may_be_handed_to_step() -> None:
    accelerator, model, own, optimizer, loader, _ = prepared(trainer_cases.learned)
    for batch in loader:
        with accelerator.accumulate(model):
            loss = model(*batch)["loss"]
            accelerator.backward(loss)
            optimizer.step(loss)
            optimizer.zero_grad()
    assert own.step_count == len(loader) // ACCUMULATED
