"""Two processes that train one model: bitwise together, and where one process on the batches of both would be."""

import copy
import pickle
from typing import Any

import laws
import pytest
import torch
from network_cases import RELU, parameters
from rank_cases import BY_THE_FIRST, SCENES, Here, Weights, alone, found_by_both, train
from rule_cases import trained
from torch import distributed

Found = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Found:
    first, second = found_by_both(tmp_path_factory.mktemp("ranks"))
    return first, second


def stacked(weights: Weights) -> Weights:
    return {name: p.unsqueeze(0) for name, p in weights.items()}


@pytest.mark.slow
@pytest.mark.parametrize("scene", [*SCENES, *BY_THE_FIRST])
def test_processes_stay_together(both: Found, scene: str) -> None:
    first, second = both
    laws.same_bits(first[scene], second[scene])
    accepted = first[scene].get("accepted")
    assert accepted is None or len(accepted) > 0


@pytest.mark.slow
@pytest.mark.parametrize("scene", SCENES)
def test_two_processes_do_what_one_does_on_the_batches_of_both(both: Found, scene: str) -> None:
    expected, found = stacked(SCENES[scene](Here(None))), stacked(both[0][scene])
    laws.params_close(found, expected, 1e-9)


@pytest.mark.slow
def test_processes_that_train_models_of_their_own_do_not_wait_for_each_other(both: Found) -> None:
    for rank, found in enumerate(both):
        laws.same_bits(found["alone"], alone(rank))
        assert int(found["alone"]["accepted"]) > 0


@pytest.mark.slow
def test_sharded_parameters_are_refused(both: Found) -> None:
    for found in both:
        assert len(found["refusals"]) == 2
        for said in found["refusals"]:
            assert said == (
                "parameter '0.weight' is sharded over processes: gather the model, or teleport before sharding"
            )


@pytest.mark.slow
def test_sums_are_pooled_with_their_counts(both: Found) -> None:
    for found in both:
        (total, count), (one_sided, four), none = found["pools"]
        laws.same_bits((total, count, one_sided, four), (torch.full((2,), 8.0), 8, torch.ones(3), 4))
        assert none is None


def test_a_copy_keeps_the_group_that_was_given_and_a_pickle_does_not() -> None:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        group, model = distributed.group.WORLD, RELU.build()
        optimizer = trained(every=2).optimizer(model, symmetry=RELU.symmetry, process_group=group)
        there, copied = copy.deepcopy((model, optimizer))
        saved, pickled = pickle.loads(pickle.dumps((model, optimizer)))
        assert (copied._ranks.given, pickled._ranks.given) == (group, None)
        assert copied._ranks.model is there and copied._bound.ranks is copied._ranks
        for other, its in ((there, copied), (saved, pickled)):
            train(Here(None), RELU, other, its)
        laws.same_bits(parameters(there), parameters(saved))
    finally:
        distributed.destroy_process_group()
