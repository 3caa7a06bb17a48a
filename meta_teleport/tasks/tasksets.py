"""Few-shot tasks as learn2learn draws them: loaders, training and held-out classes, seeds.

A ``learn2learn.data.Taskset`` draws N of its classes, K images of each, and new labels 0 to N - 1 in random order. It
does so with Python's own generator (its transforms may use those of numpy and torch), which is set here for the length
of one draw and put back afterwards. learn2learn is imported where it is used: nothing else needs it.
"""

import contextlib
import io
import pickle
import random
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from meta_teleport.errors import UserError
from meta_teleport.runs.files import require_plain_pickle
from meta_teleport.tasks.images import Images, load_images

OMNIGLOT, MINI_IMAGENET = "omniglot", "mini_imagenet"
OMNIGLOT_CLASSES, OMNIGLOT_TRAIN, OMNIGLOT_HELD_OUT = 1623, 1100, 423
OMNIGLOT_SEED = 0
HELD_OUT_PART = 2 / 5


def learn2learn() -> Any:
    """The library. Importing it warns about old dependencies of its own and prints about gym, which is kept quiet.

    Raises ``UserError`` if it is not installed.
    """
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            import learn2learn as found
        except ImportError as error:
            raise UserError(
                f"few-shot tasks need learn2learn ({error}): install it as the README's section 'Tests' says"
            ) from None
    return found


def load_tasksets(
    data: str, folder: str | Path, download: bool, ways: int, samples: int, held_out: Sequence[int] | None = None
) -> tuple[Any, Any]:
    """Tasksets to train on and to evaluate on, without a class in common, of ``ways`` classes and ``samples`` images.

    ``data``: omniglot (1100 and 423 of its classes, as many as in learn2learn's benchmark), mini_imagenet (its 64
    training and 20 test classes), both through learn2learn's loaders; or what :func:`load_images` takes, with the
    classes ``held_out`` (the last two fifths of them if not given) set apart. learn2learn's own
    ``omniglot_tasksets`` draws training and test tasks from the same 1623 classes, so it is not used.

    Raises ``UserError`` for data that cannot be loaded, for pickles of more than plain data and arrays, and for more
    ways or samples than there are.
    """
    if data not in (OMNIGLOT, MINI_IMAGENET):
        return tasksets_of(load_images(data, folder, download), ways, samples, held_out)
    if held_out is not None:
        raise UserError(f"{data} comes with classes to hold out: leave held_out away")
    load = _omniglot if data == OMNIGLOT else _mini_imagenet
    try:
        if not download and not Path(folder).expanduser().is_dir():
            raise FileNotFoundError("there is no such folder")  # which learn2learn would make
        for path in sorted(Path(folder).expanduser().glob("*.pkl")):
            require_plain_pickle(path)
        with contextlib.redirect_stdout(sys.stderr):
            parts = load(learn2learn(), str(folder), download)
    except (RuntimeError, OSError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        if isinstance(error, UserError):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{data} in {folder} is missing or damaged ({reason}): delete it there and let it be downloaded again "
            "(--download), or name the folder that has it"
        ) from None
    return _taskset(parts[0], "to train on", ways, samples), _taskset(parts[1], "held out", ways, samples)


def tasksets_of(images: Images, ways: int, samples: int, held_out: Sequence[int] | None = None) -> tuple[Any, Any]:
    """The same from all images of a data set: training, validation and test images together, as its classes are what
    is held out."""
    data = learn2learn().data
    x = torch.cat([images.x_train, images.x_validation, images.x_test])
    y = torch.cat([images.y_train, images.y_validation, images.y_test])
    labels = y.tolist()
    classes = sorted(set(labels))
    held = classes[len(classes) - int(HELD_OUT_PART * len(classes)) :] if held_out is None else list(held_out)
    unknown = [c for c in held if c not in classes]
    if unknown or len(set(held)) < len(held):
        raise UserError(f"held_out {held}: give classes of {images.name} ({classes[0]} to {classes[-1]}), each once")
    every = data.MetaDataset(TensorDataset(x, y), indices_to_labels=dict(enumerate(labels)))
    kept = data.FilteredMetaDataset(every, [c for c in classes if c not in held])
    return (
        _taskset(kept, "to train on", ways, samples),
        _taskset(data.FilteredMetaDataset(every, held), "held out", ways, samples),
    )


def draw(taskset: Any, count: int, seed: int, ways: int, samples: int) -> Tensor:
    """``count`` tasks of any taskset: images ``(count, ways, samples, ...)``, those of label 0 first.

    Within a class they are in the order in which learn2learn gives them. The same seed gives the same tasks.

    Raises ``UserError`` where a task does not have ``ways`` labels from 0 on with ``samples`` images each.
    """
    with _seeded(seed):
        drawn = [taskset.sample() for _ in range(count)]
    x, y = (torch.stack(column) for column in zip(*((x, y) for x, y, *_ in drawn), strict=True))
    order = y.argsort(dim=1, stable=True)
    expected = torch.arange(ways).repeat_interleave(samples)
    if y.shape[1] != len(expected) or not torch.equal(y.gather(1, order), expected.expand_as(y)):
        found = ", ".join(f"{n} of {label}" for label, n in sorted(Counter(y[0].tolist()).items()))
        raise UserError(
            f"a task of this taskset has the labels {found}: it must have {samples} (shots and queries) of each of 0 "
            f"to {ways - 1}; end its transforms with LoadData and RemapLabels"
        )
    return x[torch.arange(count).unsqueeze(1), order].unflatten(1, (ways, samples))


def fixed(taskset: Any) -> Any:
    """A taskset of finitely many tasks with all of them drawn, so that they do not depend on which is asked for first;
    one that draws ever new ones as it is."""
    with _seeded(0):
        for i in range(max(taskset.num_tasks, 0)):
            taskset.sampled_descriptions.setdefault(i, taskset.sample_task_description())
    return taskset


def _omniglot(l2l: Any, folder: str, download: bool) -> tuple[Any, Any]:
    from torchvision.transforms import Compose, ToTensor

    ink = Compose([ToTensor(), lambda paper: 1 - paper])
    every = l2l.data.MetaDataset(l2l.vision.datasets.FullOmniglot(folder, transform=ink, download=download))
    classes = list(range(OMNIGLOT_CLASSES))
    random.Random(OMNIGLOT_SEED).shuffle(classes)
    parts = classes[:OMNIGLOT_TRAIN], classes[-OMNIGLOT_HELD_OUT:]
    return tuple(l2l.data.FilteredMetaDataset(every, part) for part in parts)


def _mini_imagenet(l2l: Any, folder: str, download: bool) -> tuple[Any, Any]:
    def part(mode: str) -> Any:
        loaded = l2l.vision.datasets.MiniImagenet(folder, mode, transform=lambda x: x / 255, download=download)
        return l2l.data.MetaDataset(loaded)

    return part("train"), part("test")


def _taskset(dataset: Any, part: str, ways: int, samples: int) -> Any:
    """Ever new tasks from the classes of one ``learn2learn.data.MetaDataset``."""
    data = learn2learn().data
    if ways > len(dataset.labels):
        raise UserError(f"there are {len(dataset.labels)} classes {part}, too few for {ways} ways: choose fewer ways")
    fewest = min(len(indices) for indices in dataset.labels_to_indices.values())
    if samples > fewest:
        raise UserError(
            f"a class {part} has {fewest} images, too few for {samples} shots and queries: choose fewer of them"
        )
    transforms = [
        data.transforms.FusedNWaysKShots(dataset, n=ways, k=samples),
        data.transforms.LoadData(dataset),
        data.transforms.RemapLabels(dataset),
        data.transforms.ConsecutiveLabels(dataset),
    ]
    return data.Taskset(dataset, transforms)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Inside, the global generators are those of ``seed``; afterwards they are where they were."""
    state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)
