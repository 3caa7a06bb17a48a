"""What was found in a model, for people and for machines."""

from typing import Any

from rich.table import Table
from torch import nn

from meta_teleport.detection.check import verify
from meta_teleport.detection.detect import find_symmetries
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.tracing.trace import Examples

WIDE = 120


def report(model: nn.Module, example_inputs: Examples) -> dict[str, Any]:
    """The sites of a model, what they reach, what was refused and why, as plain JSON values.

    ``reached`` is the share of the trainable numbers of the model that some continuous site moves; ``drift`` the
    largest relative change of the outputs over random elements of all sites at once (:func:`verify`).
    """
    symmetry = find_symmetries(model, example_inputs)
    return {
        "model": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "reached": reached(model, symmetry),
        "drift": verify(model, symmetry, example_inputs) if symmetry.sites else 0.0,
        "sites": [
            {
                "name": site.name,
                "group": type(site.group).__name__,
                "k": site.group.k,
                "blocks": list(site.group.blocks),
                "producers": [view.name for view in site.producers],
                "consumers": [view.name for view in site.consumers],
                "exact": site.exact,
            }
            for site in symmetry.sites
        ],
        "refusals": [refusal._asdict() for refusal in symmetry.refusals],
    }


def reached(model: nn.Module, symmetry: Symmetry) -> float:
    """The share of the trainable numbers of a model that lie in a parameter that some continuous site moves."""
    sizes = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    names = {name for site in symmetry.continuous.sites for name in site.parameters}
    return sum(sizes[name] for name in names) / sum(sizes.values())


def tables(found: dict[str, Any], width: int = WIDE) -> list[Table]:
    """The report as tables: sites, and refusals. In less than 120 columns groups stand below the names of sites, and
    where they are exact."""
    title = (
        f"{found['model']}: {len(found['sites'])} sites, {found['reached']:.0%} of {found['parameters']:,} parameters "
        f"reached, outputs move by {found['drift']:.0e}"
    )
    wide = width >= WIDE
    headers = (
        ("site", "group", "produced by", "consumed by", "exact") if wide else ("site", "produced by", "consumed by")
    )
    sites = Table(*headers, title=title, title_justify="left")
    for site in found["sites"]:
        group = "".join(f"{n} x " for n in site["blocks"]) + f"{site['group']}({site['k']})"
        exact = "every input" if site["exact"] else "on the batch"
        parameters = [_listed(site[side]) for side in ("producers", "consumers")]
        if wide:
            sites.add_row(site["name"], group, *parameters, exact)
        else:
            sites.add_row("\n".join((site["name"], group, exact)), *parameters, end_section=True)
    refusals = Table("parameters", "refused because it", title="refusals", title_justify="left")
    for refusal in found["refusals"]:
        refusals.add_row(_listed(refusal["parameters"]), refusal["reason"])
    return [sites, *([refusals] if found["refusals"] else [])]


def _listed(names: list[str], most: int = 4) -> str:
    shown = list(dict.fromkeys(names))
    return "\n".join(shown[:most]) + (f"\n... and {len(shown) - most} more" if len(shown) > most else "")
