"""Small networks beyond MLPs: as copies, under teleports, and the experiment on them from end to end."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import meta_teleport as mt
from experiments.architectures.run import detected
from experiments.architectures.training import Method, entries_of, tuned
from experiments.lab.image_teleports import climb, of_gradient_norm, randomized
from experiments.lab.networks import networks
from meta_teleport.errors import UserError
from meta_teleport.tasks.images import Images, load_images
from meta_teleport.teleportation.curvature import unit_algebra

SEEDS = (0, 1, 2)
NAMES = ("CNN", "ResNet", "transformer")


@pytest.fixture(scope="module")
def images() -> Images:
    return load_images("digits").to("cpu", torch.float64).head(60, 30)


def building(images: Images, name: str) -> Callable[[], nn.Module]:
    return lambda: networks(images)[name]().double()


@pytest.mark.parametrize("name", NAMES)
def test_copies_are_separate_runs(images: Images, name: str) -> None:
    build = building(images, name)
    factory = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    copies = mt.Ensemble(build, SEEDS, [factory])
    batches = torch.arange(60).view(4, len(SEEDS), 5)
    for index in batches:
        copies.step(images.x_train[index], images.y_train[index])
    together = copies.evaluate(images.x_test, images.y_test)[0]
    for number, seed in enumerate(SEEDS):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = build()
        optimizer = factory(model.parameters())
        for index in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(images.x_train[index[number]]), images.y_train[index[number]]).backward()
            optimizer.step()
        for kind, tensors in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
            own = copies.params if kind == "parameter" else copies.buffers
            for key, tensor in tensors:
                torch.testing.assert_close(own[key][number], tensor, rtol=1e-10, atol=1e-10, msg=f"{kind} {key}")
        model.eval()
        alone = F.cross_entropy(model(images.x_test), images.y_test)
        torch.testing.assert_close(together[number], alone, rtol=1e-10, atol=1e-10)
    assert len({round(float(loss), 6) for loss in together}) == len(SEEDS)


@pytest.mark.parametrize("name", NAMES)
def test_a_teleport_moves_the_weights_and_neither_the_function_nor_the_buffers(images: Images, name: str) -> None:
    copies = mt.Ensemble(building(images, name), SEEDS, [partial(torch.optim.Adam, lr=1e-2)])
    x, y = images.x_train[:20], images.y_train[:20]
    for _ in range(3):
        copies.step(x[None], y[None])
    symmetry = detected(building(images, name), images)[0]
    search = randomized(climb(of_gradient_norm), 0)
    for mode in (copies.model.train, copies.model.eval):
        mode()
        start = {key: p.detach().clone() for key, p in copies.params.items()}
        buffers = {key: b.clone() for key, b in copies.buffers.items()}
        outputs = copies.outputs(x[None], None, {key: b.clone() for key, b in buffers.items()})
        jump = copies.teleport(0, symmetry, search, x, y)
        assert bool(jump.kept.all()) and float(jump.size.min()) > 0.1
        assert all(torch.equal(copies.buffers[key], buffer) for key, buffer in buffers.items())
        moved = {name for site in symmetry.sites for name in site.parameters}
        assert all((not torch.equal(copies.params[key], p)) == (key in moved) for key, p in start.items())
        torch.testing.assert_close(copies.outputs(x[None]), outputs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_a_random_step_that_is_no_teleport_moves_the_function(images: Images, name: str) -> None:
    model = building(images, name)()
    symmetry, x = detected(building(images, name), images)[0], images.x_train[:20]
    params = {key: p.detach()[None] for key, p in model.named_parameters()}
    algebra = unit_algebra(symmetry, None, next(iter(params.values())), torch.Generator().manual_seed(0))
    moved = symmetry.flow(params, algebra)
    producers = {view.name for site in symmetry.sites for view in site.producers}
    half = {key: moved[key][0] if key in producers else p for key, p in model.named_parameters()}
    before, after = model(x).detach(), torch.func.functional_call(model, half, (x,)).detach()
    assert float((after - before).abs().max()) > 1e-3


def test_sites_that_detection_finds(images: Images) -> None:
    found = {name: detected(building(images, name), images)[0] for name in NAMES}
    assert [site.name for site in found["CNN"].sites] == ["norm1", "norm2"]
    assert [site.name for site in found["ResNet"].sites] == [
        "norm",
        "blocks.0.norm1",
        "blocks.1.norm1",
        "blocks.1.norm2",
    ]
    stream = found["ResNet"].sites[0]
    assert {"norm.weight", "blocks.0.norm2.weight", "blocks.1.shortcut.weight"} <= set(stream.parameters)
    kinds = [type(site.group).__name__ for site in found["transformer"].sites]
    assert len(kinds) == 6 and kinds.count("PositiveScaling") == 4


def test_attention_is_differentiable_twice(images: Images) -> None:
    model = building(images, "transformer")()
    params = dict(model.named_parameters())

    def loss(weight: torch.Tensor) -> torch.Tensor:
        outputs = torch.func.functional_call(model, {**params, "layers.0.query.weight": weight}, (images.x_train[:3],))
        return F.cross_entropy(outputs, images.y_train[:3])

    weight = params["layers.0.query.weight"].detach()
    (row,) = torch.autograd.functional.hessian(loss, weight)[0, 0][None]
    step = torch.zeros_like(weight)
    step[0, 0] = 1e-5
    slopes = [torch.func.grad(loss)(weight + sign * step) for sign in (1, -1)]
    torch.testing.assert_close(row, (slopes[0] - slopes[1]) / 2e-5, rtol=1e-5, atol=1e-9)


def test_every_setting_gets_the_step_size_with_the_lowest_loss() -> None:
    methods = (Method("SGD", torch.optim.SGD, (0.1, 1.0)), Method("Adam", torch.optim.Adam, (0.01, 0.1)))
    entries = entries_of(methods, 5)
    assert [entry.method for entry in entries].count("SGD") == 5
    assert [entry.method for entry in entries].count("Adam") == 6
    assert "reset, every 5 epochs" not in [entry.variant.name for entry in entries if entry.method == "SGD"]
    wanted = {("SGD", "none"): 0.1}
    losses = {0.1: 2.0, 1.0: 1.0, 0.01: float("nan")}
    best, table = tuned(
        entries,
        methods,
        lambda tried: torch.tensor(
            [[0.0 if wanted.get((e.method, e.variant.name)) == e.lr else losses[e.lr]] for e in tried]
        ),
    )
    assert [entry.lr for entry in best] == [0.1] + [1.0] * 4 + [0.1] * 6
    assert [row["losses"] for row in table[:2]] == [[0.0, 1.0], [2.0, 1.0]]


def test_variants_act_when_they_are_due() -> None:
    entries = {entry.variant.name: entry.variant for entry in entries_of([Method("Adam", None, (1.0,))], 5)}
    due = {name: [epoch for epoch in range(11) if variant.due(epoch)] for name, variant in entries.items()}
    regular, start = [0, 5, 10], [0]
    assert due == {
        "none": [],
        "teleport, start": start,
        "teleport, every 5 epochs": regular,
        "random, start": start,
        "random, every 5 epochs": regular,
        "reset, every 5 epochs": regular,
    }


@pytest.mark.parametrize("shape", [(7,), (1, 8, 12), (1, 6, 6)])
def test_images_that_do_not_fit(images: Images, shape: tuple[int, ...]) -> None:
    x = torch.zeros(4, *shape)
    other = Images("other", x, images.y_train[:4], x, images.y_train[:4], x, images.y_train[:4])
    text = rf"^other: inputs of shape {shape} do not fit the networks: give square images".replace("(", r"\(")
    with pytest.raises(UserError, match=text.replace(")", r"\)")):
        networks(other)


def run_smoke(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "experiments.architectures.run", "--smoke", "--out", str(out), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_experiment(tmp_path: Path) -> None:
    result = run_smoke(tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "architectures.json").read_text())
    assert found["smoke"] is True and [content["data"] for content in found["results"]] == ["digits"]
    networks_found = found["results"][0]["networks"]
    assert tuple(networks_found) == NAMES
    for network in networks_found.values():
        assert network["drift"] < 1e-12 and network["first_teleport"]["search"] > 1.1
        measures = network["correlation"]["measures"]
        assert {"curvature", "sharpness, t to 0.9", "sharpness, t to 5"} <= set(measures)
        assert len(set(measures["curvature"]["values"])) == 6
        rows = {row["variant"]: row for row in network["comparison"]["rows"]}
        assert rows["none"]["teleports"] is None and rows["teleport, every epoch"]["teleports"]["count"] == 2
        assert rows["teleport, start"]["teleports"]["drift_max"] < 1e-5
        assert rows["reset, every epoch"]["teleports"]["size"] == 0
        early = {name: row["last"]["early"] for name, row in rows.items()}
        assert (
            early["reset, every epoch"] == early["none"] != early["teleport, start"] == early["teleport, every epoch"]
        )
        lasts = [tuple(row["last"]["train"]) for row in rows.values()]
        assert all(len(last) == 3 for last in lasts) and len(set(lasts)) == len(lasts)
    for name in ("comparison-digits", "correlation-digits"):
        assert (tmp_path / f"architectures_{name}.png").stat().st_size > 10_000
    table = (tmp_path / "architectures.md").read_text()
    assert table in result.stdout
    assert sum(line.startswith("| Adam |") for line in table.splitlines()) == 6 * len(NAMES)


@pytest.mark.slow
def test_a_stopped_experiment_goes_on_where_it_was(tmp_path: Path) -> None:
    for part in ("correlation", "comparison"):
        assert run_smoke(tmp_path, "--parts", part).returncode == 0
    began = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(began) == 4 * len(NAMES)
    assert run_smoke(tmp_path).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == began
    other = run_smoke(tmp_path, "--seeds", "5")
    assert other.returncode == 2
    assert other.stderr.startswith("error: ") and "belongs to a run with other seeds" in other.stderr
