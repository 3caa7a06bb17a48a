"""The first part of generalization.py: many variants go on from the weights of the same runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from experiments.generalization.probes import probe
from experiments.generalization.runs import BATCH, TELEPORT_BATCH, Epochs, copies_of, place, setting_of, teleport_batch
from experiments.generalization.teleports import PLAIN, PUBLISHED_BATCHES, Teleports, Variant
from experiments.lab.image_training import Curves, Plan, train
from experiments.lab.progress import say
from experiments.lab.teleport_log import TeleportLog
from meta_teleport.models import MLP
from meta_teleport.optimizers.ensemble import Ensemble
from meta_teleport.runs.checkpoint import load_tensors, save_tensors
from meta_teleport.tasks.images import Images

LAST = max(PUBLISHED_BATCHES.values()) - 1
"""The step of the last teleport."""


def branches(
    images: Images,
    base: Ensemble,
    variants: Sequence[Variant],
    epochs: Epochs,
    directions: tuple[int, int],
    folder: Path,
) -> dict[str, Any]:
    """All variants, and none, from the runs of ``base``: per row and seed the test loss and the training loss per
    epoch, and what is behind them before the first teleport, after the last one, and at the end.

    ``directions``: how many random directions a search and a probe average over.
    """
    names = [PLAIN, *(variant.name for variant in variants)]
    copies = copies_of(images, base.seeds, len(names))
    place(base, copies)
    model = copies.model
    assert isinstance(model, MLP)
    teleports = Teleports(model, setting_of(images).sizes, directions[0])
    log = TeleportLog(folder / "branch-teleports.json", names)
    size = len(teleport_batch(images, 0)[0])

    def look(at: Ensemble, moment: str) -> dict[str, Tensor]:
        keep = folder / f"probe-{moment}.safetensors"
        if not keep.exists():
            folder.mkdir(parents=True, exist_ok=True)
            save_tensors(keep, probe(at, images, size, directions[1]), {"names": names})
            say(f"{images.name}: measured {moment}")
        return load_tensors(keep)[0]

    def before_step(epoch: int, step: int) -> None:
        if epoch != epochs.branch or step > LAST:
            return
        for number, variant in enumerate(variants, 1):
            if step < variant.batches:
                log.add(variant.name, step, teleports.move(copies, number, variant, step, teleport_batch(images, step)))
        log.save()
        if step == LAST:
            look(copies, "after")

    plan = Plan(epochs.end - epochs.branch, BATCH, "shared", epochs.branch)
    keep = folder / "branch.safetensors"
    before = look(base, "before")
    curves = train(copies, images, plan, label=f"{images.name} branches", keep=keep, before_step=before_step)
    say(f"{images.name}: {copies.count} copies, {len(names)} variants, {float(curves.seconds.sum()):.0f} s")
    probes = {"before": {k: v.repeat(len(names)) for k, v in before.items()}}
    probes |= {"after": look(copies, "after"), "end": look(copies, "end")}
    rows = [_row(names, number, curves, probes, log, len(base.seeds)) for number in range(len(names))]
    return {
        "seeds": len(base.seeds),
        "directions": {"search": directions[0], "probe": directions[1]},
        "teleport_batch": TELEPORT_BATCH,
        "from": epochs.branch,
        "to": epochs.end,
        "seconds": float(curves.seconds.sum()),
        "rows": rows,
    }


def _row(
    names: Sequence[str],
    number: int,
    curves: Curves,
    probes: dict[str, dict[str, Tensor]],
    log: TeleportLog,
    seeds: int,
) -> dict[str, Any]:
    own = slice(number * seeds, (number + 1) * seeds)
    return {
        "variant": names[number],
        "test": curves.test[:, own].tolist(),
        "train": curves.train[:, own].tolist(),
        "accuracy": curves.accuracy[-1, own].tolist(),
        "probes": {moment: {k: v[own].tolist() for k, v in found.items()} for moment, found in probes.items()},
        "teleports": log.summary(names[number]),
    }
