"""Learned teleportation for PyTorch: optimizers that move along the symmetries of a network's loss.

Public names are loaded when they are first used, so that importing the package costs little more than nothing.

Letters in shapes, everywhere in this package:

    *tasks   leading task dimensions: many problems side by side
    n        data points
    d        fan-in: inputs of a layer
    k        width: units of a hidden layer, the size of the group
    m        fan-out: outputs of a layer
    s        steps
"""

import warnings
from importlib import import_module

TYPE_CHECKING = False  # typing itself would be looked for in the working directory by ``python -m meta_teleport``
if TYPE_CHECKING:
    from typing import Any

    from meta_teleport.detection.check import verify as verify
    from meta_teleport.detection.detect import find_symmetries as find_symmetries
    from meta_teleport.equivariant.equivariant import Equivariant as Equivariant
    from meta_teleport.errors import UserError as UserError
    from meta_teleport.evaluation.evaluation import Evaluation as Evaluation
    from meta_teleport.evaluation.evaluation import evaluate as evaluate
    from meta_teleport.learned.coordinatewise import Coordinatewise as Coordinatewise
    from meta_teleport.learned.layerwise import Layerwise as Layerwise
    from meta_teleport.learned.learned_rule import LearnedRule as LearnedRule
    from meta_teleport.learned.lstm import LSTMLrTele as LSTMLrTele
    from meta_teleport.learned.lstm import LSTMUpdate as LSTMUpdate
    from meta_teleport.learned.lstm import LSTMUpdateTele as LSTMUpdateTele
    from meta_teleport.learned.serialization import load as load
    from meta_teleport.learned.serialization import save as save
    from meta_teleport.meta.config import TrainingConfig as TrainingConfig
    from meta_teleport.meta.loop import train as train
    from meta_teleport.optimizers.ensemble import Ensemble as Ensemble
    from meta_teleport.optimizers.schedules import Budget as Budget
    from meta_teleport.optimizers.schedules import Epochs as Epochs
    from meta_teleport.optimizers.schedules import Every as Every
    from meta_teleport.optimizers.schedules import Plateau as Plateau
    from meta_teleport.optimizers.schedules import Steps as Steps
    from meta_teleport.optimizers.stacked import per_copy as per_copy
    from meta_teleport.optimizers.teleported import TeleportedOptimizer as TeleportedOptimizer
    from meta_teleport.rules.rule import Rule as Rule
    from meta_teleport.rules.rule import shapes_of as shapes_of
    from meta_teleport.runs.run import Run as Run
    from meta_teleport.symmetry.symmetry import Symmetry as Symmetry
    from meta_teleport.symmetry.views import View as View
    from meta_teleport.tasks.adaptation import Adapters as Adapters
    from meta_teleport.tasks.adaptation import AttentionPairs as AttentionPairs
    from meta_teleport.tasks.classification import Classification as Classification
    from meta_teleport.tasks.factorization import Factorization as Factorization
    from meta_teleport.tasks.family import TaskFamily as TaskFamily
    from meta_teleport.tasks.few_shot import FewShot as FewShot
    from meta_teleport.tasks.functions import Functions as Functions
    from meta_teleport.tasks.images import Images as Images
    from meta_teleport.tasks.images import load_images as load_images
    from meta_teleport.tasks.linear import DeepLinear as DeepLinear
    from meta_teleport.tasks.mixture import Mixture as Mixture
    from meta_teleport.tasks.regression import Regression as Regression
    from meta_teleport.tasks.text import Text as Text
    from meta_teleport.tasks.text import load_text as load_text
    from meta_teleport.teleportation.gauges import Gauge as Gauge
    from meta_teleport.teleportation.gradient_axes import GradientAxes as GradientAxes
    from meta_teleport.teleportation.objectives import Curvature as Curvature
    from meta_teleport.teleportation.objectives import Sharpness as Sharpness
    from meta_teleport.teleportation.teleport import Teleport as Teleport
    from meta_teleport.teleportation.teleport import teleport as teleport

_HOMES = {
    "find_symmetries": "detection.detect",
    "verify": "detection.check",
    "UserError": "errors",
    "Evaluation": "evaluation.evaluation",
    "evaluate": "evaluation.evaluation",
    "Coordinatewise": "learned.coordinatewise",
    "Equivariant": "equivariant.equivariant",
    "Layerwise": "learned.layerwise",
    "load": "learned.serialization",
    "save": "learned.serialization",
    "LearnedRule": "learned.learned_rule",
    "LSTMLrTele": "learned.lstm",
    "LSTMUpdate": "learned.lstm",
    "LSTMUpdateTele": "learned.lstm",
    "Rule": "rules.rule",
    "shapes_of": "rules.rule",
    "TrainingConfig": "meta.config",
    "train": "meta.loop",
    "Run": "runs.run",
    "Symmetry": "symmetry.symmetry",
    "View": "symmetry.views",
    "TaskFamily": "tasks.family",
    "Adapters": "tasks.adaptation",
    "AttentionPairs": "tasks.adaptation",
    "Classification": "tasks.classification",
    "Factorization": "tasks.factorization",
    "FewShot": "tasks.few_shot",
    "Functions": "tasks.functions",
    "Images": "tasks.images",
    "load_images": "tasks.images",
    "DeepLinear": "tasks.linear",
    "Mixture": "tasks.mixture",
    "Regression": "tasks.regression",
    "Text": "tasks.text",
    "load_text": "tasks.text",
    "Gauge": "teleportation.gauges",
    "GradientAxes": "teleportation.gradient_axes",
    "Curvature": "teleportation.objectives",
    "Sharpness": "teleportation.objectives",
    "Teleport": "teleportation.teleport",
    "teleport": "teleportation.teleport",
    "TeleportedOptimizer": "optimizers.teleported",
    "Ensemble": "optimizers.ensemble",
    "per_copy": "optimizers.stacked",
    "Budget": "optimizers.schedules",
    "Epochs": "optimizers.schedules",
    "Every": "optimizers.schedules",
    "Plateau": "optimizers.schedules",
    "Steps": "optimizers.schedules",
}
_RENAMED = {"Copies": "Ensemble", "Training": "TrainingConfig", "each": "per_copy"}
__all__ = list(_HOMES)


def __getattr__(name: str) -> "Any":
    if name == "__version__":
        from importlib.metadata import version

        return version("meta-teleport")
    if name in _RENAMED:
        new = _RENAMED[name]
        warnings.warn(f"mt.{name} is called mt.{new}: use that name", DeprecationWarning, stacklevel=2)
        name = new
    if name not in _HOMES:
        raise AttributeError(f"module 'meta_teleport' has no attribute '{name}'")
    return getattr(import_module(f"meta_teleport.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
