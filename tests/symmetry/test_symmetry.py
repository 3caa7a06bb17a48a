"""What a symmetry offers beside its action: activations, exactness, refusals and their texts."""

from dataclasses import replace

import laws
import pytest
import tolerances
import torch
from cases import Case, build

from meta_teleport.activations import ACTIVATIONS, activation
from meta_teleport.errors import UserError
from meta_teleport.linalg.pseudo_inverse import invert_columns
from meta_teleport.models import MLP
from meta_teleport.symmetry.groups import GL
from meta_teleport.symmetry.mlp import mlp_symmetry
from meta_teleport.symmetry.site import LayerInput, Site
from meta_teleport.symmetry.symmetry import Refusal, Symmetry
from meta_teleport.symmetry.views import View

DEEP = Case("general_linear", "leaky_relu", True, (6, 7, 5, 4), 4)


def test_hidden_gives_the_activations_of_every_site() -> None:
    instance = build(DEEP)
    p, x = instance.params, instance.inputs
    first = instance.model.activation(x @ p["layers.0.weight"].mT + p["layers.0.bias"].unsqueeze(1))
    second = instance.model.activation(first @ p["layers.1.weight"].mT + p["layers.1.bias"].unsqueeze(1))
    hidden = instance.symmetry.hidden(p, x)
    assert [tuple(h.shape) for h in hidden] == [(3, 7, 4), (3, 5, 4)]
    below = tolerances.multiplied(x, p["layers.0.weight"].mT)
    laws.assert_close(hidden[0], first.mT, below)
    laws.assert_close(hidden[1], second.mT, below + tolerances.multiplied(first, p["layers.1.weight"].mT))
    again = instance.symmetry.hidden(p, LayerInput(x.mT))
    assert all(torch.equal(a, b) for a, b in zip(hidden, again, strict=True))


def test_the_group_acts_on_the_hidden_activations(generator: torch.Generator) -> None:
    instance = build(DEEP)
    g = [s.group.sample(3, generator=generator, size=0.5, dtype=torch.float64) for s in instance.symmetry.sites]
    moved = instance.symmetry.act(instance.params, g, instance.inputs)
    before = instance.symmetry.hidden(instance.params, instance.inputs)
    after = instance.symmetry.hidden(moved, instance.inputs)
    for element, h, gh in zip(g, before, after, strict=True):
        laws.assert_close(gh, element @ h, 1e-10)


def test_prepared_inputs_give_the_same_move(generator: torch.Generator) -> None:
    instance = build(DEEP)
    g = [s.group.sample(3, generator=generator, dtype=torch.float64) for s in instance.symmetry.sites]
    prepared = instance.symmetry.prepare(instance.inputs)
    assert prepared.pseudo_inverse is not None and prepared.pseudo_inverse.shape == (3, 4, 7)
    plain = instance.symmetry.act(instance.params, g, instance.inputs)
    laws.params_close(instance.symmetry.act(instance.params, g, prepared), plain, laws.formula(instance, g))


def test_acting_moves_nothing_in_place(generator: torch.Generator) -> None:
    instance = build(DEEP)
    before = {name: p.clone() for name, p in instance.params.items()}
    g = [s.group.sample(3, generator=generator, dtype=torch.float64) for s in instance.symmetry.sites]
    instance.symmetry.act(instance.params, g, instance.inputs)
    assert all(torch.equal(before[name], p) for name, p in instance.params.items())


@pytest.mark.parametrize("action", ["general_linear", "pseudo_inverse"])
@pytest.mark.parametrize("name", ["layers.0", "layers.1"])
def test_a_part_of_the_sites_acts_as_the_whole_with_identities(
    action: str, name: str, generator: torch.Generator
) -> None:
    instance = build(replace(DEEP, action=action))
    symmetry, params, x = instance.symmetry, instance.params, instance.inputs
    part = symmetry.only(name)
    (g,) = (site.group.sample(len(x), generator=generator, dtype=torch.float64) for site in part.sites)
    elements = [g if site.name == name else site.group.identity(len(x), dtype=torch.float64) for site in symmetry.sites]
    whole = symmetry.act(params, elements, x)
    laws.params_close(part.act(params, [g], x), whole, 1e-9)
    laws.must_fail(laws.params_close, params, whole, 1e-3)
    (own,) = part.hidden(params, x)
    laws.assert_close(own, symmetry.hidden(params, x)[[site.name for site in symmetry.sites].index(name)], 1e-12)
    assert len(part.grams(params, x)) == 1


def test_limits_per_site() -> None:
    params = build(DEEP).params
    assert [site.limit(params) for site in DEEP.symmetry.sites] == [7, 8]
    other = Case("pseudo_inverse", "tanh", False, (6, 7, 5, 4), 4)
    assert [site.limit(build(other).params) for site in other.symmetry.sites] == [7, 5]
    exact = Case("permutation", "tanh", False, (6, 7, 5, 4), 4)
    assert [site.limit(build(exact).params) for site in exact.symmetry.sites] == [None, None]


def test_require_exact_names_both_numbers_and_the_option() -> None:
    instance = build(DEEP)
    instance.symmetry.require_exact(instance.params, 7, "allow_drift")
    with pytest.raises(UserError) as error:
        instance.symmetry.require_exact(instance.params, 9, "allow_drift")
    assert str(error.value) == (
        "site 'layers.0' keeps the loss on at most 7 points and the batch has 9: use fewer points, a wider layer, "
        "or allow_drift to accept the drift"
    )


REFUSALS = [
    ("tanh", "general_linear", "gl", "action 'general_linear' needs an activation that is a bijection of the real "
     "line, and 'tanh' is not: use leaky_relu, asinh or identity, or action 'pseudo_inverse'"),
    ("relu", "linear", "gl", "action 'linear' needs activation 'identity', not 'relu'"),
    ("sigmoid", "scaling", "gl", "action 'scaling' needs a positively homogeneous activation, and 'sigmoid' is not"),
    ("relu", "rotation", "gl", "unknown action 'rotation': choose one of general_linear, pseudo_inverse, linear, "
     "scaling, permutation, sign_flips"),
    ("relu", "pseudo_inverse", "su3", "unknown group 'su3': choose one of gl, orthogonal, first_order"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "action", "group", "text"), REFUSALS)
def test_refusals(name: str, action: str, group: str, text: str) -> None:
    with pytest.raises(UserError) as error:
        mlp_symmetry(MLP((4, 5, 3), name), action, group)
    assert str(error.value) == text


def test_every_activation_without_an_inverse_is_refused_by_action_a() -> None:
    refused = [name for name, a in ACTIVATIONS.items() if a.inverse is None]
    assert len(refused) >= 5
    for name in refused:
        with pytest.raises(UserError, match=f"'{name}' is not"):
            mlp_symmetry(MLP((4, 5, 3), name), "general_linear")


def test_unknown_activation() -> None:
    with pytest.raises(UserError) as error:
        activation("swish")
    assert str(error.value) == f"unknown activation 'swish': choose one of {', '.join(ACTIVATIONS)}"


def test_one_element_per_site() -> None:
    instance = build(DEEP)
    with pytest.raises(UserError) as error:
        instance.symmetry.act(instance.params, [torch.eye(7)], instance.inputs)
    assert str(error.value) == "1 elements for 2 sites: give one per site, in the order of .sites"


def test_a_singular_element_is_named() -> None:
    instance = build(Case("linear", "identity", True, (6, 7, 5, 4), 4))
    g = [site.group.identity(3, dtype=torch.float64).clone() for site in instance.symmetry.sites]
    g[1][2, 0] = 0
    before = {name: p.clone() for name, p in instance.params.items()}
    with pytest.raises(UserError) as error:
        instance.symmetry.act(instance.params, g)
    assert str(error.value) == (
        "the element at site 'layers.1' is singular: give one that has an inverse, such as exp(T)"
    )
    assert all(torch.equal(before[name], p) for name, p in instance.params.items())


def test_elements_without_finite_numbers_give_parameters_without() -> None:
    """Nothing looks at the numbers of an element while it acts."""
    instance = build(Case("scaling", "relu", True, (6, 7, 4), 4))
    moved = instance.symmetry.act(instance.params, [torch.full((3, 7), torch.inf, dtype=torch.float64)])
    assert not bool(torch.isfinite(moved["layers.0.weight"]).any())


@pytest.mark.parametrize("action", ["general_linear", "pseudo_inverse"])
def test_data_dependent_actions_want_inputs(action: str) -> None:
    case = Case(action, "identity", False, (6, 5, 4), 4)
    instance = build(case)
    g = [site.group.identity(3, dtype=torch.float64) for site in instance.symmetry.sites]
    with pytest.raises(UserError) as error:
        instance.symmetry.act(instance.params, g)
    assert str(error.value) == "site 'layers.0' acts on a batch: pass the inputs of the network to act"


@pytest.mark.parametrize(
    ("action", "group", "exact"),
    [
        ("linear", "gl", True),
        ("linear", "orthogonal", True),
        ("scaling", "gl", True),
        ("permutation", "gl", True),
        ("linear", "first_order", False),
        ("general_linear", "gl", False),
        ("pseudo_inverse", "gl", False),
    ],
)
def test_sites_that_are_exact(action: str, group: str, exact: bool) -> None:
    sites = mlp_symmetry(MLP((6, 7, 5, 4), "identity"), action, group).sites
    assert [site.exact for site in sites] == [exact, exact]


@pytest.mark.parametrize(
    ("action", "group"), [("scaling", "PositiveScaling"), ("general_linear", "GL"), ("pseudo_inverse", "GL")]
)
def test_a_symmetry_reads_as_one_line_per_site(action: str, group: str) -> None:
    symmetry = mlp_symmetry(MLP((6, 7, 5, 4), "leaky_relu", bias=True), action)
    written = "layers.2.weight, layers.2.bias" if action == "pseudo_inverse" else "layers.2.weight"
    assert str(symmetry.only("layers.1")) == (
        f"layers.1: {group}(5), layers.1.weight, layers.1.bias -> {written}\nrefusals: 0"
    )
    assert len(str(symmetry).splitlines()) == 3
    assert repr(symmetry).startswith("Symmetry(sites=(")


def test_copies_are_counted_and_refusals_listed() -> None:
    packed = View("in", 2, (2, 4, 3), units=(1,), blocks=(0,))
    heads = Site("heads", GL(4, (2,)), (packed, packed), (packed,))
    symmetry = Symmetry((heads,), refusals=(Refusal(("a",), "why"), Refusal(("b",), "why")))
    assert str(symmetry) == "heads: 2 x GL(4), in -> in\nrefusals: 2\n  a: why\n  b: why"
    assert str(Symmetry(())) == "refusals: 0"


@pytest.mark.parametrize("shape", [(5, 5), (6, 4), (4, 6)], ids=str)
def test_invert_columns_is_the_pseudo_inverse(shape: tuple[int, int], generator: torch.Generator, device: str) -> None:
    x = torch.randn(3, *shape, generator=generator, dtype=torch.float64).to(device)
    laws.assert_close(invert_columns(x), torch.linalg.pinv(x), 1e-11)
    assert invert_columns(x.float()).dtype == torch.float32
    x = x[:1].clone().requires_grad_()
    assert torch.autograd.gradcheck(invert_columns, x)


@pytest.mark.parametrize("shape", [(3, 3), (3, 5), (5, 3)], ids=str)
def test_one_task_without_an_inverse_leaves_the_others_alone(
    shape: tuple[int, int], generator: torch.Generator, device: str
) -> None:
    x = torch.randn(3, *shape, generator=generator, dtype=torch.float64).to(device)
    expected = torch.linalg.pinv(x[[0, 2]])
    x[1, :, 1] = 0
    leaf = x.clone().requires_grad_()
    laws.assert_close(invert_columns(leaf), torch.linalg.pinv(x), 1e-11)
    (gradient,) = torch.autograd.grad(invert_columns(leaf).sum(), leaf)
    assert bool(torch.isfinite(gradient).all())
    x[1] = torch.nan
    result = invert_columns(x)
    laws.assert_close(result[[0, 2]], expected, 1e-11)
    assert bool(torch.isnan(result[1]).all())


@pytest.mark.parametrize("shape", [(20, 20), (25, 20)], ids=str)
def test_equal_columns_are_inverted_by_singular_values(shape: tuple[int, int], generator: torch.Generator) -> None:
    x = torch.randn(32, *shape, generator=generator, dtype=torch.float64)
    x[1:, :, 3] = x[1:, :, 7]
    laws.assert_close(invert_columns(x), torch.linalg.pinv(x), 1e-9)


VIEWS = (
    (View.along("w", (4, 5), 0), (4, 5)),
    (View.along("w", (4, 5), 1), (4, 5)),
    (View.along("b", (4,), 0), (4,)),
    (View.along("c", (6, 5, 3, 3), 1), (6, 5, 3, 3)),
    (View("w", 2, (3, 4, 6), units=(1,)), (3, 24)),
    (View("w", 2, (4, 3, 5), units=(1,), blocks=(0,), part=(0, 12, 12)), (36, 5)),
    (View("w", 4, (2, 3, 4, 3, 3), units=(0, 2)), (6, 4, 3, 3)),
    (View("w", 2, (5, 2, 3, 4), units=(3,), blocks=(1,), part=(1, 2, 24)), (5, 30)),
)


@pytest.mark.parametrize(("view", "shape"), VIEWS)
def test_views_restore_what_they_show(view: View, shape: tuple[int, ...], generator: torch.Generator) -> None:
    for tasks in ((), (2,)):
        parameter = torch.randn(*tasks, *shape, generator=generator)
        matrix = view.matrix(parameter)
        assert matrix.shape[: len(tasks) + len(view.blocks) + 1] == (*tasks, *view.front)
        assert torch.equal(view.restore(matrix, parameter), parameter)
        shown = view.restore(torch.zeros_like(matrix), torch.ones_like(parameter)) == 0
        assert int(shown.sum()) == matrix.numel()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_moved_convolution_keeps_its_memory_format(axis: int, kernel: int, generator: torch.Generator) -> None:
    weight = torch.randn(6, 5, kernel, kernel, generator=generator)
    view = View.along("w", weight.shape, axis)
    assert view.restore(2 * view.matrix(weight), weight).stride() == weight.stride()


def test_a_view_of_heads_in_a_packed_weight(generator: torch.Generator) -> None:
    weight = torch.randn(36, 5, generator=generator)
    keys = View("w", 2, (4, 3, 5), units=(1,), blocks=(0,), part=(0, 12, 12)).matrix(weight)
    assert torch.equal(keys[1, 2], weight[12 + 3 + 2])
