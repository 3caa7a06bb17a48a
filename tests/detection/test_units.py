"""Marks on units: joined, forbidden, used."""

import pytest
import torch
from detection.nets import Net
from torch import Tensor, nn

from meta_teleport.detection.detect import find_symmetries
from meta_teleport.operations.forest import Forest
from meta_teleport.operations.labels import FIXED, ZERO, differ, distinct, squeeze_repeats, varies
from meta_teleport.operations.units import Units


def coordinates(*shape: int) -> tuple[Tensor, ...]:
    return torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")


def test_sets_keep_signs_relative_to_their_smallest_member() -> None:
    forest = Forest()
    forest.grow(5)
    assert forest.join(3, 4, -1) and forest.join(1, 4, 1)
    assert forest.root(1) == (1, 1) and forest.root(4) == (1, 1) and forest.root(3) == (1, -1)
    assert forest.root(0) == (0, 1) and forest.root(2) == (2, 1)
    assert forest.join(1, 3, -1)
    assert not forest.join(1, 3, 1)


def test_a_unit_that_meets_its_inverse_is_neither_mixed_nor_scaled() -> None:
    units = Units()
    a = units.fresh(2, "layer")
    units.join(a, a, "a product", sign=-1)
    assert (
        units.forbidden["scale"]
        == units.forbidden["mix"]
        == dict.fromkeys((0, 1), "meet their own inverse in a product")
    )
    assert not units.forbidden["permute"]


def test_what_meets_a_fixed_number_may_not_move_and_zero_is_none() -> None:
    units = Units()
    a = units.fresh(3, "layer")
    units.join(a, torch.tensor([FIXED, ZERO, 1]), "a sum")
    assert all(units.forbidden[kind] == {0: "meet what does not move in a sum"} for kind in ("mix", "scale", "permute"))


def test_the_first_reason_stays() -> None:
    units = Units()
    a = units.fresh(1, "layer")
    units.forbid_labels(a, ["scale"], "first")
    units.forbid_labels(a, ["mix", "scale"], "second")
    assert units.forbidden["scale"] == {0: "first"} and units.forbidden["mix"] == {0: "second"}


def test_a_parameter_used_twice_alike_joins_its_units() -> None:
    units = Units()
    a, b = units.fresh(4, "one"), units.fresh(4, "two")
    units.use("w", coordinates(4, 3), a[:, None], None, "one")
    units.use("w", coordinates(4, 3), b[:, None], None, "two")
    assert [units.scaled.root(unit)[0] for unit in range(8)] == [0, 1, 2, 3] * 2
    assert not any(units.forbidden.values())


def test_a_parameter_used_twice_otherwise_bars_its_units() -> None:
    units = Units()
    a, b = units.fresh(3, "one"), units.fresh(3, "two")
    units.use("w", coordinates(3, 3), a[:, None], None, "one")
    units.use("w", tuple(c.T for c in coordinates(3, 3)), b[:, None], None, "two")
    assert units.forbidden["permute"] == dict.fromkeys(range(6), "depend on 'w', which one and two share")


def test_parts_of_a_parameter_that_do_not_overlap_are_apart() -> None:
    units = Units()
    a, b = units.fresh(2, "one"), units.fresh(2, "two")
    top, bottom = (tuple(c[part] for c in coordinates(4, 3)) for part in (slice(0, 2), slice(2, 4)))
    units.use("w", top, a[:, None], None, "one")
    units.use("w", bottom, b[:, None], None, "two")
    assert not any(units.forbidden.values())
    assert [units.scaled.root(unit)[0] for unit in range(4)] == [0, 1, 2, 3]


def test_labels_are_compared_without_being_stored() -> None:
    expanded = torch.arange(3)[:, None].expand(3, 1_000_000_000)
    assert distinct(expanded) == [(0,), (1,), (2,)]
    assert distinct(expanded, torch.tensor(FIXED)) == [(0, FIXED), (1, FIXED), (2, FIXED)]
    assert varies(expanded) == [True, False]
    assert squeeze_repeats(expanded)[0].shape == (3, 1)
    assert differ(expanded, torch.tensor([[0], [1], [1]])) and not differ(expanded, expanded)


@pytest.mark.parametrize(("rows", "units", "read"), [(1, 100, True), ((1 << 18) + 1, 4, False)])
def test_a_scale_makes_new_units_but_not_one_of_more_than_a_million_entries(rows: int, units: int, read: bool) -> None:
    model = Net(
        lambda net, x: net.b(net.s * net.a(x)),
        a=nn.Linear(1, units), s=torch.ones(rows, units), b=nn.Linear(units, 1),
    )  # fmt: skip
    found = find_symmetries(model, torch.ones(1, 1), check=False)
    assert any("s" in site.parameters for site in found.sites) is read
