from dataclasses import replace

import pytest
import torch
from torch import nn

import meta_teleport as mt
from meta_teleport.errors import UserError
from meta_teleport.symmetry.groups import GL, PositiveScaling


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


HIDDEN = {"hidden": ("scaling", ["0.weight", "0.bias"], ["2.weight"])}


def test_sites_by_hand_are_those_that_detection_finds() -> None:
    model, x = mlp(), torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    (site,) = mt.Symmetry.manual(model, HIDDEN).sites
    found = mt.find_symmetries(model, x).sites[0]
    assert (site.group, site.producers, site.consumers) == (PositiveScaling(6), found.producers, found.consumers)
    assert mt.verify(model, mt.Symmetry.manual(model, HIDDEN), x, trials=3) < 1e-12


def test_verify_sees_a_false_site() -> None:
    model, x = mlp(), torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    false = mt.Symmetry.manual(model, {"hidden": ("gl", ["0.weight", "0.bias"], ["2.weight"])})
    assert mt.verify(model, false, x) > 1e-3
    half = mt.Symmetry.manual(model, {"hidden": ("scaling", ["0.weight"], ["2.weight"])})
    assert mt.verify(model, half, x) > 1e-3


def test_axes_and_views_by_hand() -> None:
    class Stored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.a @ self.b

    model, x = Stored(), torch.randn(5, 4)
    named = mt.Symmetry.manual(model, {"pair": ("gl", [("a", 1)], [("b", 0)])})
    viewed = mt.Symmetry.manual(model, {"pair": ("gl", [mt.View.along("a", (4, 6), 1)], [("b", 0)])})
    assert named.sites == viewed.sites and named.sites[0].group == GL(6)
    assert mt.verify(model, named, x) < 1e-12


def test_only_selects_sites() -> None:
    symmetry = mt.Symmetry.manual(mlp(), {**HIDDEN, "other": HIDDEN["hidden"]})
    assert [site.name for site in symmetry.only("other").sites] == ["other"]
    with pytest.raises(UserError, match=r"no site 'othr': choose from hidden, other"):
        symmetry.only("othr")


def test_views_that_cut_axes_fit() -> None:
    model = nn.Sequential(nn.Conv1d(2, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(30, 3))
    flat, bias = mt.View("3.weight", 2, (3, 6, 5), units=(1,)), mt.View("0.bias", 1, (6, 1), units=(0,))
    symmetry = mt.Symmetry.manual(model, {"channels": ("scaling", ["0.weight", bias], [flat])})
    assert mt.verify(model, symmetry, torch.randn(4, 2, 5)) < 1e-12
    packed = nn.MultiheadAttention(4, 2)
    keys = mt.View("in_proj_weight", 2, (2, 2, 4), units=(1,), blocks=(0,), part=(0, 4, 4))
    queries = mt.View("in_proj_weight", 2, (2, 2, 4), units=(1,), blocks=(0,), part=(0, 0, 4))
    (site,) = mt.Symmetry.manual(packed, {"heads": ("gl", [keys], [queries])}).sites
    assert site.group == GL(2, (2,))


VIEW = mt.View("0.weight", 2, (6, 4), units=(0,))


def of_view(**changes: object) -> dict[str, object]:
    """A site whose only producer is a view of the first weight, of shape (6, 4)."""
    return {"a": ("gl", [replace(VIEW, **changes)], ["2.weight"])}


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ({"a": ("scale", ["0.weight"], ["2.weight"])}, "site 'a': unknown group 'scale': choose one of gl, orthogonal"),
        ({"a": (["gl"], ["0.weight"], ["2.weight"])}, "site 'a': unknown group '['gl']': choose one of gl, orthogonal"),
        ({"a": ("gl", ["1.weight"], ["2.weight"])}, "site 'a': the model has no parameter '1.weight'"),
        ({"a": ("gl", ["0.weight"], [])}, "site 'a' needs at least one producer and one consumer"),
        ({"a": ("gl", ["0.weight"], [("2.weight", 0)])}, "'0.weight' 6, '2.weight' 3"),
        ({"a": ("gl", [("0.weight", 2)], ["2.weight"])}, "'0.weight' of shape (6, 4) has no axis 2"),
        ({"a": ("gl", ["0.weight"])}, "site 'a' is ('gl', ['0.weight']): give (group, [producers], [consumers])"),
        ({"a": "gl"}, "site 'a' is 'gl': give (group, [producers], [consumers])"),
        ([("gl", ["0.weight"], ["2.weight"])], "sites are a list: give a dict, {name: (group, [producers], [consumers"),
        ({"a": ("gl", "0.weight", ["2.weight"])}, "site 'a': the producers are '0.weight': give a list of them, ['0."),
        ({"a": ("gl", ["0.weight"], "2.weight")}, "site 'a': the consumers are '2.weight': give a list of them, ['2."),
        ({"a": ("gl", ("0.weight", 0), ["2.weight"])}, "the producers are ('0.weight', 0): give a list of them, [('0."),
        ({"a": ("gl", VIEW, ["2.weight"])}, "site 'a': the producers are View(name='0.weight'"),
        ({"a": ("gl", ["0.weight", 0], ["2.weight"])}, "0 is none of the producers: give the name of a parameter, (na"),
        ({"a": ("gl", [("0.weight", "x")], ["2.weight"])}, "('0.weight', 'x') is none of the producers: give the name"),
        (of_view(name="1.weight"), "site 'a': the model has no parameter '1.weight'"),
        (of_view(ndim=1), "the View of '0.weight' has ndim 1, and the parameter has shape (6, 4): give ndim 2"),
        (
            of_view(shape=(6, 5)),
            "has shape (6, 5), and what it shows has shape (6, 4): give the same, with an axis cut",
        ),
        (
            of_view(shape=(4, 6)),
            "has shape (4, 6), and what it shows has shape (6, 4): give the same, with an axis cut",
        ),
        (of_view(shape=(6, 4, 2)), "has shape (6, 4, 2), and what it shows has shape (6, 4): give the same"),
        (of_view(part=(0, 4, 3)), "has part (0, 4, 3), and the parameter has shape (6, 4): give (axis, start, length)"),
        (of_view(part=(0, 0, 3)), "has shape (6, 4), and what it shows has shape (3, 4): give the same"),
        (of_view(units=()), "has units () and blocks (): give different positions in its shape (6, 4), at least one"),
        (of_view(units=(2,)), "has units (2,) and blocks (): give different positions in its shape (6, 4), at least"),
        (of_view(blocks=(0,)), "has units (0,) and blocks (0,): give different positions in its shape (6, 4), at leas"),
    ],
)
def test_what_does_not_fit_is_refused(sites: dict, message: str) -> None:
    model = mlp()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(UserError) as caught:
        mt.Symmetry.manual(model, sites)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
