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


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ({"a": ("scale", ["0.weight"], ["2.weight"])}, "site 'a': unknown group 'scale': choose one of gl, orthogonal"),
        ({"a": ("gl", ["1.weight"], ["2.weight"])}, "site 'a': the model has no parameter '1.weight'"),
        ({"a": ("gl", ["0.weight"], [])}, "site 'a' needs at least one producer and one consumer"),
        ({"a": ("gl", ["0.weight"], [("2.weight", 0)])}, "'0.weight' 6, '2.weight' 3"),
        ({"a": ("gl", [("0.weight", 2)], ["2.weight"])}, "'0.weight' of shape (6, 4) has no axis 2"),
    ],
)
def test_what_does_not_fit_is_refused(sites: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        mt.Symmetry.manual(mlp(), sites)
    assert message in str(caught.value)
