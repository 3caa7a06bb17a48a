"""The Trainer of transformers drives both optimizers, which it is only handed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import laws
import pytest
import torch
import trainer_cases
from network_cases import parameters
from torch import Tensor, nn
from trainer_cases import ACCUMULATED, CLIPPED, OPTIMIZERS
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import meta_teleport as mt

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # the libraries warn of each other


def gpt2(seed: int = 0) -> nn.Module:
    config = GPT2Config(
        vocab_size=11, n_positions=6, n_embd=8, n_layer=1, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config)


def texts() -> list[dict[str, Tensor]]:
    rows = torch.randint(11, (16, 6), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in rows]


def trainer(model: nn.Module, optimizer: Any, folder: Path, **settings: Any) -> Trainer:
    arguments = TrainingArguments(
        str(folder),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        max_steps=4,
        save_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=ACCUMULATED,
        max_grad_norm=CLIPPED,
        **settings,
    )
    return Trainer(model, arguments, train_dataset=texts(), optimizers=(optimizer, trainer_cases.scheduler(optimizer)))


@pytest.fixture(scope="module")
def symmetry() -> mt.Symmetry:
    return mt.find_symmetries(gpt2(), texts()[0]["input_ids"][None])


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_it_is_the_plain_loop_and_resumes_bitwise(
    make: Callable[..., Any], symmetry: mt.Symmetry, tmp_path: Path
) -> None:
    model, calls = gpt2(), []

    def see(_: Any, args: Any, kwargs: Any) -> None:
        if torch.is_grad_enabled():  # not when a teleport is looked at
            calls.append(kwargs)

    handle = model.register_forward_pre_hook(see, with_kwargs=True)
    optimizer = make(model, symmetry)
    trainer(model, optimizer, tmp_path).train()
    handle.remove()
    assert len(calls) == 4 * ACCUMULATED

    plain = gpt2()
    alone = make(plain, symmetry)
    trainer_cases.by_hand(plain, alone, [lambda kwargs=kwargs: plain(**kwargs).loss for kwargs in calls])
    laws.same_bits(parameters(model), parameters(plain))
    if isinstance(optimizer, mt.TeleportedOptimizer):
        assert [record.step for record in optimizer.teleports] == [1, 3]
        assert all(record.accepted for record in optimizer.teleports)
    else:
        assert optimizer.step_count == 4

    later = gpt2(1)
    resumed = make(later, symmetry)
    trainer(later, resumed, tmp_path / "again").train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    laws.same_bits(parameters(later), parameters(model))
    laws.same_bits(resumed.state_dict()["state"] or [0], optimizer.state_dict()["state"] or [0])


def test_a_loss_of_ones_own_is_reported(symmetry: mt.Symmetry, tmp_path: Path) -> None:
    model = gpt2()
    optimizer = trainer_cases.learned(model, symmetry)

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        value = nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())
        optimizer.report(loss=value)  # type: ignore[attr-defined]
        return value

    made = trainer(model, optimizer, tmp_path)
    made.compute_loss_func = loss
    made.train()
    assert optimizer.step_count == 4  # type: ignore[attr-defined]
    silent = trainer(model, optimizer, tmp_path)
    silent.compute_loss_func = lambda outputs, labels, **_: outputs.logits.square().mean()
    with pytest.raises(mt.UserError, match=r"report\(loss=...\) before step\(\)"):
        silent.train()


def test_schedule_free_is_switched_between_its_modes(symmetry: mt.Symmetry, tmp_path: Path) -> None:
    from schedulefree import AdamWScheduleFree

    model = gpt2()
    base = AdamWScheduleFree(model.parameters(), lr=1e-2)
    optimizer = mt.TeleportedOptimizer(base, model, symmetry, "balanced", [2], state="reset")
    made = trainer(model, optimizer, tmp_path)
    made.train()
    assert base.param_groups[0]["train_mode"] and [record.step for record in optimizer.teleports] == [2]
    made.evaluate(texts())
    assert not base.param_groups[0]["train_mode"]
