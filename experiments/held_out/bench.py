"""One member of a family of held_out.py: its held-out tasks, how long its methods run, where the results are kept."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from experiments.held_out.families import FAMILIES
from experiments.held_out.members import Member, Setting
from experiments.held_out.statistics import GOALS
from experiments.lab.progress import slug
from meta_teleport.tasks.family import Split, TaskFamily, Tasks

SEED, SMOKE_TASKS = 0, 3


@dataclass(frozen=True)
class Bench:
    """One member of a family, its results in ``folder``."""

    family: str
    member: Member
    folder: Path
    smoke: bool

    @property
    def label(self) -> str:
        """What a reader calls it."""
        return f"{self.family}, {self.member.name}"

    @property
    def setting(self) -> Setting:
        """Of the family; with --smoke a short one."""
        setting = FAMILIES[self.family]
        return replace(setting, horizon=max(4, setting.horizon // 50), measured=2) if self.smoke else setting

    def tasks(self) -> Tasks:
        """The held-out tasks."""
        count = min(SMOKE_TASKS, self.member.count) if self.smoke else self.member.count
        return self.sample(count, SEED, "held_out")

    def sample(self, count: int, seed: int, split: Split) -> Tasks:
        """Fresh tasks."""
        return made(self.member).sample(count, torch.Generator().manual_seed(seed), split, self.member.dtype)

    def path(self, method: str, version: str = "") -> Path:
        """The file of one method; a ``version`` is a meta-seed, a multiple of the horizon, or both."""
        return self.folder / f"{slug(method)}{version}.safetensors"

    @property
    def clock(self) -> Path:
        """The file of the seconds that its methods take."""
        return self.folder / "clock.json"

    def steps(self, multiple: int) -> int:
        """How long a rule runs: so many horizons, and where the loss is measured 30 steps at least."""
        return max(multiple * self.setting.horizon, 0 if self.setting.stochastic else max(GOALS))

    @property
    def multiples(self) -> tuple[int, ...]:
        """How many horizons the separate runs of one method last: where step sizes fall, each length is its own run."""
        return self.member.multiples if self.setting.stochastic else (max(self.member.multiples),)


@cache
def made(member: Member) -> TaskFamily:
    """The family of a member, made once: some are pre-trained."""
    return member.make()


def bench_of(out: Path, family: str, member: Member, smoke: bool) -> Bench:
    """The bench of one member."""
    return Bench(family, member, out / family / slug(member.name), smoke)
