"""What cannot be traced is refused in words, and nothing is done to it."""

from collections.abc import Callable

import pytest
import torch
from detection.nets import Net, chain, described, normal
from torch import nn

from meta_teleport.detection.detect import find_symmetries
from meta_teleport.errors import UserError
from meta_teleport.tracing.trace import arguments, given, trace

Linear = nn.Linear
ROWS = normal(5, 3)


class Branch(nn.Module):
    """Goes one way or the other, as the numbers are."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return h * self.weight if h.sum() > 0 else h


def pair() -> nn.Sequential:
    return chain(Linear(3, 4), Linear(4, 2))


def quantised() -> nn.Module:
    model = pair()
    model[0] = torch.ao.nn.quantized.dynamic.Linear(3, 4)
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], Callable[[], object], str]] = {
    "branches": (lambda: chain(Linear(3, 4), Branch(), Linear(4, 2)), ROWS, "return h * self.weight if h.sum() > 0"),
    "sizes": (
        lambda: Net(lambda net, x: net.b(net.a(x)[x[:, 0] > 0]), a=Linear(3, 4), b=Linear(4, 2)),
        ROWS,
        "the size of what index in 'model' (Net) returns depends on the numbers in the inputs; leave the module",
    ),
    "no_tensors": (lambda: Net(lambda net, x: None, a=Linear(3, 4)), ROWS, "the model returns no tensors: let its"),
    "inputs_that_do_not_fit": (pair, normal(5, 7), "the model does not run on the example inputs: "),
    "too_many_inputs": (pair, lambda: (ROWS(), ROWS()), "the model does not run on the example inputs: "),
    "unknown_keyword": (pair, lambda: {"y": ROWS()}, "the model does not run on the example inputs: "),
    "a_number": (pair, lambda: 3, "example inputs are a int: give a tensor, a tuple of arguments, or a dict"),
    "a_string": (pair, lambda: "x", "example inputs are a str: give a tensor, a tuple of arguments, or a dict"),
    "meta": (lambda: Linear(3, 4, device="meta"), ROWS, "parameter 'weight' has no numbers yet (meta device)"),
    "lazy": (lambda: chain(nn.LazyLinear(4), Linear(4, 2)), ROWS, "parameter '0.weight' has no numbers yet"),
    "half": (lambda: pair().half(), ROWS, "parameter '0.weight' is float16: keep the parameters in float32"),
    "brain_half": (lambda: pair().bfloat16(), ROWS, "parameter '0.weight' is bfloat16: keep the parameters in float32"),
    "frozen": (lambda: pair().requires_grad_(False), ROWS, "the model has no trainable parameters: set requires_grad"),
    "compiled": (lambda: torch.compile(pair()), ROWS, "the model is compiled: pass the module that was given to"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_and_left_as_it_is(name: str) -> None:
    build, inputs, message = REFUSED[name]
    torch.manual_seed(0)
    model, given = build().eval(), inputs()
    modes = [module.training for module in model.modules()]
    before = {key: value.detach().clone() for key, value in _numbers(model).items()}
    random = torch.get_rng_state()
    with pytest.raises(UserError) as refused:
        find_symmetries(model, given)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == modes
    after = _numbers(model)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_quantised_models_are_refused(recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(UserError, match="the model is quantised: teleport the float model, then quantise it"):
        find_symmetries(quantised(), ROWS())


def test_what_to_do_when_tracing_fails() -> None:
    with pytest.raises(UserError) as refused:
        find_symmetries(chain(Linear(3, 4), Branch(), Linear(4, 2)), ROWS())
    assert str(refused.value).startswith("the model cannot be traced: ")
    assert str(refused.value).endswith(
        "leave the module that makes this call closed (leaves=['its.name']), or name the sites by hand "
        "(Symmetry.manual)"
    )


def test_a_closed_leaf_lets_the_rest_be_found() -> None:
    model = chain(Linear(3, 4), Linear(4, 5), Linear(5, 4), Branch(), Linear(4, 6), Linear(6, 2))
    found = find_symmetries(model, ROWS(), leaves=["3"])
    sites = ["gl 4: 0.bias 0.weight > 1.weight", "gl 5: 1.bias 1.weight > 2.weight", "gl 6: 4.bias 4.weight > 5.weight"]
    assert list(map(described, found.sites)) == sites
    reasons = {refusal.parameters: refusal.reason for refusal in found.refusals}
    assert reasons["2.weight", "2.bias"] == "makes units that reach leaf in '3' (Branch)"
    assert "forward" not in vars(model[3])


def test_what_a_closed_leaf_shares_stays() -> None:
    model = Net(lambda net, x: net.b(net.a(x)) + net.r(x), a=Linear(3, 3), b=Linear(3, 3), r=Branch(3))
    assert find_symmetries(model, ROWS(), leaves=["r"], check=False).sites
    model.r.weight = model.a.bias
    found = find_symmetries(model, ROWS(), leaves=["r"], check=False)
    assert not found.sites
    assert any("'a.bias', which a closed module uses" in refusal.reason for refusal in found.refusals)


def test_closed_leaves_may_return_anything_and_need_not_run() -> None:
    def split(net: Net, h: torch.Tensor) -> dict[str, object]:
        return {"width": h.shape[1], "halves": h.chunk(2, -1)}

    model = chain(Net(split), Net(lambda net, d: torch.cat(d["halves"], -1) * d["width"]), Linear(4, 5), Linear(5, 2))
    model.idle = Branch()
    model.forward = lambda x: model[3](model[2](model[1](model[0](x))))
    found = find_symmetries(model, normal(5, 4)(), leaves=["0", "idle"])
    assert list(map(described, found.sites)) == ["gl 5: 2.bias 2.weight > 3.weight"]


@pytest.mark.parametrize("leaf", ["7", "", "0.weight"])
def test_unknown_leaves(leaf: str) -> None:
    with pytest.raises(UserError, match=f"no module '{leaf}' to leave closed: choose from model.named_modules()"):
        find_symmetries(pair(), ROWS(), leaves=[leaf])


def test_inputs_by_place_and_by_name() -> None:
    x = ROWS()
    assert arguments(x) == ((x,), {})
    assert arguments((x, 2)) == ((x, 2), {})
    assert arguments({"x": x}) == ((), {"x": x})


def test_a_trace_names_parameters_once() -> None:
    model = chain(Linear(4, 4), Linear(4, 4))
    model[1].weight = model[0].weight
    traced = trace(model, given(model, torch.ones(2, 4)))
    assert sorted(set(traced.parameters.values())) == ["0.bias", "0.weight", "1.bias"]


def _numbers(model: nn.Module) -> dict[str, torch.Tensor]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {key: t for key, t in tensors.items() if not t.is_meta and not nn.parameter.is_lazy(t)}


def test_a_branch_on_indices_is_named_by_its_line() -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.expert = nn.Linear(4, 2), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            chosen = torch.where(self.gate(x).argmax(-1) == 0)[0]
            return self.expert(x[chosen]) if len(chosen) > 0 else self.expert(x)

    with pytest.raises(UserError, match=r"cannot be traced: test_trace.py:\d+ in forward.*Symmetry\.manual"):
        find_symmetries(Routed(), torch.randn(4, 4))


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(UserError, match="an example input has no entries: give a batch of at least one example"):
        find_symmetries(nn.Linear(2, 2), torch.randn(0, 2))


def test_one_leaf_may_be_named_by_a_string() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    assert [site.name for site in find_symmetries(model, torch.randn(4, 2), leaves="0").continuous.sites] == ["2"]
