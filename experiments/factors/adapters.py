"""LoRA adapters as a batch of tasks: each adapts its own pre-trained transformer to its own language."""

import torch
from torch import Tensor

from meta_teleport.tasks.language import LanguageTasks
from meta_teleport.tasks.pretraining import pretrained, shifted
from meta_teleport.tasks.transformer import Sizes, is_adapter


def adaptation(sizes: Sizes, count: int, seed: int) -> tuple[LanguageTasks, Tensor]:
    """``count`` models, each pre-trained on its own language, as tasks that adapt them to the shifted ones; and the
    excess of the pre-trained models over their own languages ``(tasks,)``."""
    generator = torch.Generator().manual_seed(seed)
    models = pretrained(sizes, count, generator)
    return shifted(sizes, models, is_adapter, generator), models.excess
