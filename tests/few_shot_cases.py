"""Images and few-shot tasks that tell what they are made of."""

from typing import Any

import torch

from meta_teleport.tasks.few_shot import FewShot
from meta_teleport.tasks.images import Images
from meta_teleport.tasks.tasksets import tasksets_of

CLASSES, EACH = 7, 12


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def telling_images() -> Images:
    """Images whose two pixels are their class and their number within the class."""
    y = torch.arange(CLASSES).repeat_interleave(EACH)
    x = torch.stack([y, torch.arange(EACH).repeat(CLASSES)], 1).float()
    order = torch.randperm(len(y), generator=seeded())
    parts = order.split([60, 12, len(y) - 72])
    return Images("telling", *(tensor for part in parts for tensor in (x[part], y[part])))


def telling(ways: int = 3, shots: int = 2, queries: int = 4, **options: Any) -> FewShot:
    tasksets = tasksets_of(telling_images(), ways, shots + queries, (1, 4, 6))
    return FewShot(tasksets, ways=ways, shots=shots, queries=queries, hidden=(5, 4), **options)
