"""Lightning drives both optimizers: by closures, by hand, and through Fabric."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import laws
import lightning
import pytest
import torch
import trainer_cases
from network_cases import parameters
from torch import Tensor
from trainer_cases import ACCUMULATED, CLIPPED, OPTIMIZERS, build

import meta_teleport as mt

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # the libraries warn of each other


class Automatic(lightning.LightningModule):
    """Lightning calls backward, clips, and steps."""

    def __init__(self, make: Callable[..., Any], seed: int = 0) -> None:
        super().__init__()
        self.net, self.make = build(seed), make

    def configure_optimizers(self) -> Any:
        optimizer = self.make(self.net)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": trainer_cases.scheduler(optimizer), "interval": "step"},
        }

    def training_step(self, batch: Any, index: int) -> Tensor:
        return self.net(*batch)["loss"]


class ByHand(Automatic):
    """Everything is called here; the loss is reported to what Lightning hands out."""

    def __init__(self, make: Callable[..., Any], seed: int = 0) -> None:
        super().__init__(make, seed)
        self.automatic_optimization = False

    def training_step(self, batch: Any, index: int) -> None:
        optimizer: Any = self.optimizers()
        x, labels = batch
        loss = (torch.nn.Sequential.forward(self.net, x) - labels).square().mean()
        self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=CLIPPED, gradient_clip_algorithm="norm")
        optimizer.report(loss=loss)
        optimizer.step()
        self.lr_schedulers().step()  # type: ignore[union-attr]
        optimizer.zero_grad()


def fit(
    module: lightning.LightningModule, folder: Path, epochs: int, resume: Path | None = None, **settings: Any
) -> Any:
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        **settings,
    )
    trainer.fit(module, trainer_cases.batches(), ckpt_path=resume)
    trainer.save_checkpoint(folder / f"{epochs}.ckpt")
    return trainer.optimizers[0]


def check(optimizer: Any, alone: Any, steps: int) -> None:
    if isinstance(alone, mt.TeleportedOptimizer):
        assert [r.step for r in optimizer.teleports] == [r.step for r in alone.teleports] == [1, 3]
        assert float(optimizer._progress.latest) == float(alone._progress.latest)
    else:
        assert optimizer.step_count == alone.step_count == steps


CASES = {
    "automatic": (Automatic, {"limit_train_batches": 2, "gradient_clip_val": CLIPPED}),
    "by hand": (ByHand, {"limit_train_batches": 2}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_it_is_the_plain_loop_and_resumes_bitwise(make: Callable[..., Any], case: str, tmp_path: Path) -> None:
    kind, settings = CASES[case]  # epochs of two steps, as Lightning resumes at the end of one
    module = kind(make)
    optimizer = fit(module, tmp_path, 2, **settings)
    plain = build()
    alone = make(plain)
    trainer_cases.by_hand(plain, alone, trainer_cases.micro_batches(plain, 4, 1, epoch=2), 1)
    laws.same_bits(parameters(module.net), parameters(plain))
    check(optimizer, alone, 4)

    fit(kind(make), tmp_path, 1, **settings)
    later = kind(make, seed=1)
    fit(later, tmp_path, 2, tmp_path / "1.ckpt", **settings)
    laws.same_bits(parameters(later.net), parameters(plain))


def test_teleports_go_on_where_gradients_accumulate(tmp_path: Path) -> None:
    module = Automatic(trainer_cases.teleported)
    settings = {"gradient_clip_val": CLIPPED, "accumulate_grad_batches": ACCUMULATED}
    fit(module, tmp_path, 1, **settings)
    plain = build()
    trainer_cases.by_hand(plain, trainer_cases.teleported(plain), trainer_cases.micro_batches(plain, 4))
    laws.same_bits(parameters(module.net), parameters(plain))


def test_a_rule_reads_the_loss_that_is_reported_where_gradients_accumulate(tmp_path: Path) -> None:
    class Reporting(Automatic):
        def training_step(self, batch: Any, index: int) -> Tensor:
            loss = super().training_step(batch, index)
            self.seen = {**getattr(self, "seen", {}), index: loss.item() / ACCUMULATED}
            last = range(index // ACCUMULATED * ACCUMULATED, index + 1)
            self.optimizers().report(loss=sum(self.seen[i] for i in last))  # type: ignore[union-attr]
            return loss

    module = Reporting(trainer_cases.learned)
    fit(module, tmp_path, 1, gradient_clip_val=CLIPPED, accumulate_grad_batches=ACCUMULATED)
    plain = build()
    trainer_cases.by_hand(plain, trainer_cases.learned(plain), trainer_cases.micro_batches(plain, 4))
    laws.same_bits(parameters(module.net), parameters(plain))


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_fabric_is_the_plain_loop_and_resumes_bitwise(make: Callable[..., Any], tmp_path: Path) -> None:
    def train(steps: range, seed: int = 0, resume: bool = False) -> tuple[Any, Any]:
        fabric = lightning.Fabric(accelerator="cpu", devices=1)
        own = build(seed)
        original = make(own)
        model, optimizer = fabric.setup(own, original)
        schedule = trainer_cases.scheduler(optimizer)
        state = {"model": model, "optimizer": optimizer, "schedule": schedule}
        if resume:
            fabric.load(tmp_path / "2.ckpt", state)
        for index, (x, labels) in enumerate(trainer_cases.batches()):
            if index not in steps:
                continue
            loss = model(x, labels)["loss"]
            fabric.backward(loss)
            fabric.clip_gradients(model, optimizer, max_norm=CLIPPED)
            optimizer.report(loss=loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if index == 1:
                fabric.save(tmp_path / "2.ckpt", state)
        return own, original

    model, optimizer = train(range(4))
    plain = build()
    alone = make(plain)
    trainer_cases.by_hand(plain, alone, trainer_cases.micro_batches(plain, 4, 1), 1)
    laws.same_bits(parameters(model), parameters(plain))
    check(optimizer, alone, 4)
    later, _ = train(range(2, 4), seed=1, resume=True)
    laws.same_bits(parameters(later), parameters(plain))
