"""Plain modules that tasks, experiments and tests train."""

from meta_teleport.models.decoder import Decoder as Decoder
from meta_teleport.models.mlp import DEEPEST as DEEPEST
from meta_teleport.models.mlp import MLP as MLP
