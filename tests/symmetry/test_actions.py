"""Every action on every activation, with and without biases, at depth 2 and 3: the laws and what breaks them."""

import laws
import pytest
import torch
from cases import (
    CASES,
    COMPOSITION_CASES,
    DATA_CASES,
    EXACT_CASES,
    FIRST_ORDER_CASES,
    IDENTITY_CASES,
    NARROW_CASES,
    TASKS,
    WIDE_CASES,
    Case,
    Instance,
    build,
    elements,
)
from torch import Tensor

from meta_teleport.symmetry.mlp import actions

DTYPES = (torch.float32, torch.float64)
SMOOTH_CASES = [case for case in CASES if case.symmetry.continuous.sites]


def algebra(instance: Instance, size: float, generator: torch.Generator) -> list[Tensor]:
    like, groups = instance.inputs, [site.group for site in instance.symmetry.sites]
    options = {"generator": generator, "size": size, "dtype": like.dtype, "device": like.device}
    return [group.sample_algebra(TASKS, **options) for group in groups]


def test_the_lists_are_not_empty() -> None:
    lists = (CASES, IDENTITY_CASES, COMPOSITION_CASES, EXACT_CASES, DATA_CASES, SMOOTH_CASES)
    assert [len(cases) for cases in lists] >= [100, 100, 80, 40, 60, 60]
    assert min(len(cases) for cases in (FIRST_ORDER_CASES, NARROW_CASES, WIDE_CASES)) >= 20
    assert {case.action for case in CASES} == set(actions())
    assert {len(case.widths) for case in CASES} == {3, 4}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", IDENTITY_CASES, ids=str)
def test_identity_moves_nothing(case: Case, dtype: torch.dtype, device: str) -> None:
    laws.identity_moves_nothing(build(case, dtype=dtype, device=device))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", NARROW_CASES, ids=str)
def test_identity_law_rejects_plain_forms_on_narrow_batches(case: Case, dtype: torch.dtype) -> None:
    laws.must_fail(laws.identity_moves_nothing, build(case, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", COMPOSITION_CASES, ids=str)
def test_composition(case: Case, dtype: torch.dtype, device: str) -> None:
    instance = build(case, dtype=dtype, device=device)
    laws.composition(instance, elements(instance, 1), elements(instance, 2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_composition_rejects_displacement_b_on_narrow_batches(dtype: torch.dtype) -> None:
    cases = [c for c in DATA_CASES if c.action == "pseudo_inverse" and c.displacement]
    assert cases
    for case in cases:
        instance = build(case, dtype=dtype)
        laws.must_fail(laws.composition, instance, elements(instance, 1), elements(instance, 2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_invariance_on_the_batch(case: Case, dtype: torch.dtype, device: str) -> None:
    instance = build(case, dtype=dtype, device=device)
    laws.invariance(instance, elements(instance))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", EXACT_CASES, ids=str)
def test_exact_actions_keep_the_function_everywhere(
    case: Case, dtype: torch.dtype, generator: torch.Generator, device: str
) -> None:
    instance = build(case, dtype=dtype, device=device)
    elsewhere = torch.randn(TASKS, 30, case.widths[0], generator=generator, dtype=torch.float64).to(device, dtype)
    laws.invariance(instance, elements(instance), inputs=elsewhere)


def test_data_dependent_actions_do_not_keep_the_function_elsewhere(generator: torch.Generator) -> None:
    for case in [c for c in DATA_CASES if c.activation == "leaky_relu"]:
        instance = build(case)
        elsewhere = torch.randn(TASKS, 30, case.widths[0], generator=generator, dtype=torch.float64)
        laws.must_fail(laws.invariance, instance, elements(instance), inputs=elsewhere)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", FIRST_ORDER_CASES, ids=str)
def test_invariance_rejects_the_first_order_pair(case: Case, dtype: torch.dtype, generator: torch.Generator) -> None:
    instance = build(case, dtype=dtype)
    moves = instance.symmetry.exp(algebra(instance, 1.0, generator))
    laws.must_fail(laws.invariance, instance, moves)


@pytest.mark.parametrize("case", WIDE_CASES, ids=str)
def test_invariance_rejects_batches_wider_than_the_layer(case: Case) -> None:
    instance = build(case)
    laws.must_fail(laws.invariance, instance, elements(instance), tolerance=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SMOOTH_CASES, ids=str)
def test_infinitesimal(case: Case, dtype: torch.dtype, generator: torch.Generator, device: str) -> None:
    instance = build(case, dtype=dtype, device=device)
    laws.infinitesimal(instance, algebra(instance, 1.0, generator))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SMOOTH_CASES, ids=str)
def test_flow(case: Case, dtype: torch.dtype, generator: torch.Generator, device: str) -> None:
    instance = build(case, dtype=dtype, device=device)
    laws.flow_is_action(instance, algebra(instance, 0.3, generator))


@pytest.mark.parametrize("case", WIDE_CASES, ids=str)
def test_infinitesimal_rejects_batches_wider_than_the_layer(case: Case, generator: torch.Generator) -> None:
    instance = build(case)
    laws.must_fail(laws.infinitesimal, instance, algebra(instance, 1.0, generator))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_batch_of_tasks_is_a_loop_over_them(case: Case, dtype: torch.dtype, device: str) -> None:
    instance = build(case, dtype=dtype, device=device)
    laws.batch_is_loop(instance, elements(instance))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_drift_in_float32(case: Case, generator: torch.Generator, device: str) -> None:
    instance = build(case, dtype=torch.float32, device=device)
    groups = [site.group for site in instance.symmetry.sites]
    moves = [g.sample(TASKS, generator=generator, size=0.5, dtype=torch.float32, device=device) for g in groups]
    moved = instance.symmetry.act(instance.params, moves, instance.inputs)
    before, after = laws.loss(instance, instance.params), laws.loss(instance, moved)
    assert bool(((after - before).abs() <= 1e-4 * before.clamp(min=1)).all()), (before, after)
