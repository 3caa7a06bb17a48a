"""The loop that all image experiments share: what it measures, stopping and resuming."""

import signal
from functools import partial
from pathlib import Path
from typing import Any

import laws
import pytest
import torch
from torch.optim import SGD, Adam, AdamW

from experiments.lab import image_training
from experiments.lab.image_training import Curves, Plan, train
from experiments.lab.progress import Stopped
from meta_teleport.errors import UserError
from meta_teleport.models import MLP
from meta_teleport.optimizers.ensemble import Ensemble
from meta_teleport.tasks.images import Images, load_images, order

SETTINGS = [partial(SGD, lr=0.1, momentum=0.9), partial(Adam, lr=1e-2)]


@pytest.fixture(scope="module")
def images() -> Images:
    return load_images("digits").flat.head(60, 20)


def some_copies(seeds: Any = (0, 1), settings: Any = SETTINGS, width: int = 6) -> Ensemble:
    return Ensemble(lambda: MLP((64, width, 10)), seeds, settings)


def state(copies: Ensemble) -> list[tuple[str, torch.Tensor]]:
    return sorted(copies.state().items())


def measured(curves: Curves) -> list[torch.Tensor]:
    """What does not depend on the clock."""
    return [curves.train, curves.test, curves.accuracy]


@pytest.mark.parametrize("kind", ["sequential", "shared", "own"])
def test_it_trains_as_the_formula_says(images: Images, kind: Any) -> None:
    plan = Plan(2, 20, kind, first=3)
    copies, by_hand = some_copies(), some_copies()
    curves = train(copies, images, plan)
    assert [part.shape for part in curves] == [(3, 4), (3, 4), (3, 4), (3,)]
    laws.same_bits(curves.train[0], by_hand.evaluate(images.x_train[:20], images.y_train[:20])[0])
    for row, epoch in enumerate((3, 4), 1):
        batches = order(kind, 60, 20, epoch, (0, 1))
        losses = torch.stack([by_hand.step(images.x_train[index], images.y_train[index]) for index in batches])
        assert torch.allclose(curves.train[row], losses.mean(0), rtol=1e-6)
        laws.same_bits([curves.test[row], curves.accuracy[row]], list(by_hand.evaluate(images.x_test, images.y_test)))
    laws.same_bits(state(copies), state(by_hand))
    assert curves.seconds[0] == 0 and bool((curves.seconds[1:] > 0).all())


def test_it_can_look_at_the_validation_images(images: Images) -> None:
    copies = some_copies()
    curves = train(copies, images, Plan(1, 20), validation=True)
    loss, accuracy = copies.evaluate(images.x_validation, images.y_validation)
    laws.same_bits([curves.test[1], curves.accuracy[1]], [loss, accuracy])
    other = train(some_copies(), images, Plan(1, 20))
    laws.must_fail(laws.same_bits, curves.test, other.test)
    laws.same_bits(curves.train[1], other.train[1])


def test_before_every_step(images: Images) -> None:
    seen: list[tuple[int, int]] = []
    train(some_copies(), images, Plan(2, 20, first=5), before_step=lambda epoch, step: seen.append((epoch, step)))
    assert seen == [(epoch, step) for epoch in (5, 6) for step in range(3)]


class Asked:
    """``before_step`` that asks for a stop in the middle of one epoch, as Ctrl-C does."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def __call__(self, epoch: int, step: int) -> None:
        if (epoch, step) == (self.epoch, 1):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("kind", ["sequential", "shared", "own"])
def test_resumed_is_uninterrupted(images: Images, tmp_path: Path, kind: Any) -> None:
    plan, keep = Plan(5, 20, kind), tmp_path / "deep" / "run.safetensors"
    through = some_copies()
    expected = train(through, images, plan)
    for epoch in (1, 3):
        with pytest.raises(Stopped) as stopped:
            train(some_copies(), images, plan, label="adam", keep=keep, before_step=Asked(epoch))
        said = f"adam: stopped after epoch {epoch + 1}; the same command goes on from there"
        assert str(stopped.value) == said and keep.exists()
    seen: list[int] = []
    resumed = some_copies()
    curves = train(resumed, images, plan, keep=keep, before_step=lambda epoch, step: seen.append(epoch))
    assert sorted(set(seen)) == [4]
    laws.same_bits(measured(curves), measured(expected))
    laws.same_bits(state(resumed), state(through))
    again = some_copies()
    laws.same_bits(list(train(again, images, plan, keep=keep, before_step=Asked(4))), list(curves))
    laws.same_bits(state(again), state(through))
    laws.must_fail(laws.same_bits, state(some_copies()), state(through))


def test_a_stop_in_the_last_epoch_finishes_it(images: Images, tmp_path: Path) -> None:
    curves = train(some_copies(), images, Plan(2, 20), keep=tmp_path / "run.safetensors", before_step=Asked(1))
    laws.same_bits(measured(curves), measured(train(some_copies(), images, Plan(2, 20))))


def test_progress_is_saved_now_and_then(images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_training, "SAVE_EVERY_S", 0.0)
    plan, keep = Plan(3, 20), tmp_path / "run.safetensors"

    def crash(epoch: int, step: int) -> None:
        if (epoch, step) == (2, 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(some_copies(), images, plan, keep=keep, before_step=crash)
    seen: list[int] = []
    curves = train(some_copies(), images, plan, keep=keep, before_step=lambda epoch, step: seen.append(epoch))
    assert set(seen) == {2}
    laws.same_bits(measured(curves), measured(train(some_copies(), images, plan)))


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"plan": Plan(3, 20)}, "plan"),
        ({"plan": Plan(2, 15)}, "plan"),
        ({"plan": Plan(2, 20, "own")}, "plan"),
        ({"seeds": (0, 2)}, "seeds"),
        ({"seeds": (0, 1, 2)}, "seeds"),
        ({"width": 7}, "network"),
        ({"settings": SETTINGS[:1]}, "settings"),
        ({"settings": [SETTINGS[0], partial(Adam, lr=2e-2)]}, "settings"),
        ({"settings": [SETTINGS[0], partial(AdamW, lr=1e-2)]}, "settings"),
        ({"validation": True}, "data"),
        ({"head": 59, "seeds": (5, 6)}, "data, seeds"),
    ],
)
def test_a_file_of_another_run(images: Images, tmp_path: Path, changed: dict[str, Any], what: str) -> None:
    keep = tmp_path / "run.safetensors"
    train(some_copies(), images, Plan(2, 20), keep=keep)
    written = keep.read_bytes()
    options = dict(changed)
    plan, validation = options.pop("plan", Plan(2, 20)), options.pop("validation", False)
    seen = images.head(options.pop("head", 60), 20)
    with pytest.raises(UserError) as error:
        train(some_copies(**options), seen, plan, keep=keep, validation=validation)
    assert str(error.value) == f"{keep} belongs to a run with other {what}: delete it, or choose another --out"
    assert keep.read_bytes() == written


def test_a_damaged_file(images: Images, tmp_path: Path) -> None:
    keep = tmp_path / "run.safetensors"
    train(some_copies(), images, Plan(1, 20), keep=keep)
    keep.write_bytes(keep.read_bytes()[:-10])
    with pytest.raises(UserError, match="is cut off"):
        train(some_copies(), images, Plan(1, 20), keep=keep)


def test_a_batch_larger_than_the_data(images: Images) -> None:
    with pytest.raises(UserError) as error:
        train(some_copies(), images, Plan(1, 61))
    assert str(error.value) == "batches of 61 do not fit 60 examples: choose 1 to 60"


def test_images_that_do_not_fit_the_network(images: Images) -> None:
    copies = Ensemble(lambda: MLP((63, 6, 10)), (0, 1), SETTINGS)
    with pytest.raises(UserError, match=r"inputs of shape \(20, 64\) do not fit the model: "):
        train(copies, images, Plan(1, 20))
