"""How often should one teleport? The second part of generalization.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.generalization.runs import BATCH, Epochs, copies_of, place, setting_of, teleport_batch
from experiments.generalization.teleports import PLAIN, Teleports, Variant
from experiments.lab.image_training import Plan, train
from experiments.lab.progress import say
from experiments.lab.teleport_log import TeleportLog
from meta_teleport.models import MLP
from meta_teleport.optimizers.ensemble import Ensemble
from meta_teleport.tasks.images import Images

EVERY = {"once": 0, "every 10": 10, "every 5": 5, "every 2": 2, "every epoch": 1}
"""Epochs between two teleports; 0: only one."""

SMALL_BATCH = 500
"""Images that a teleport sees, fewer than the published 2000, as there are hundreds of teleports."""


def due(every: int, epochs_gone: int) -> bool:
    """Whether one teleports, so many epochs after the first time."""
    return epochs_gone == 0 if every == 0 else epochs_gone % every == 0


def frequencies(
    images: Images,
    base: Ensemble,
    variants: Sequence[Variant],
    epochs: Epochs,
    seeds: int,
    directions: int,
    folder: Path,
) -> dict[str, Any]:
    """The variants at all frequencies from the first ``seeds`` runs of ``base``: per row and seed the last test loss,
    and the gap to the last training loss. A teleport sees one batch."""
    entries = [(variant, name) for variant in variants for name in EVERY]
    names = [PLAIN, *(f"{variant.name}, {name}" for variant, name in entries)]
    copies = copies_of(images, base.seeds[:seeds], len(names))
    place(base, copies)
    model = copies.model
    assert isinstance(model, MLP)
    teleports = Teleports(model, setting_of(images).sizes, directions)
    log = TeleportLog(folder / "frequency-teleports.json", names)

    def before_step(epoch: int, step: int) -> None:
        if step:
            return
        gone = epoch - epochs.early
        for number, (variant, name) in enumerate(entries, 1):
            if due(EVERY[name], gone):
                log.add(
                    names[number], gone, teleports.move(copies, number, variant, gone, teleport_batch(images, gone))
                )
        log.save()

    plan = Plan(epochs.end - epochs.early, BATCH, "shared", epochs.early)
    keep = folder / "frequency.safetensors"
    curves = train(copies, images, plan, label=f"{images.name} frequency", keep=keep, before_step=before_step)
    say(f"{images.name}: {copies.count} copies, {len(EVERY)} frequencies, {float(curves.seconds.sum()):.0f} s")
    test, trained = (column[-1].reshape(len(names), seeds) for column in (curves.test, curves.train))
    rows = [
        {
            "variant": PLAIN if not number else entries[number - 1][0].name,
            "frequency": PLAIN if not number else entries[number - 1][1],
            "test": test[number].tolist(),
            "gap": (test[number] - trained[number]).tolist(),
            "teleports": log.summary(name),
        }
        for number, name in enumerate(names)
    ]
    return {
        "seeds": seeds,
        "directions": directions,
        "teleport_batch": SMALL_BATCH,
        "from": epochs.early,
        "to": epochs.end,
        "rows": rows,
    }
