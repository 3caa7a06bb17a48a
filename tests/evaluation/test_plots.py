import matplotlib
import pytest
import torch
from evaluation_cases import Quadratic, Turning
from matplotlib.image import imread

from meta_teleport.evaluation.evaluation import evaluate
from meta_teleport.evaluation.plots import figure, limits, line_style, plot_evaluation
from meta_teleport.rules.classical import GradientDescent
from meta_teleport.tasks.functions import Functions


@pytest.mark.parametrize(
    ("rule", "family"),
    [
        (Turning(), Functions("ellipse")),
        (GradientDescent(0.5), Quadratic()),
        (GradientDescent(1e4), Quadratic()),
        (None, Quadratic()),
    ],
    ids=["teleports", "exact zeros", "failed", "no rule"],
)
def test_a_figure_is_written(tmp_path, rule, family):
    evaluation = evaluate(rule, family, horizon=2, tasks=4, steps=8, label="learned-rule")
    plot_evaluation(evaluation, tmp_path / "evaluation.png", 2)
    image = torch.from_numpy(imread(tmp_path / "evaluation.png").copy())
    assert image.shape[0] > 600 and image.shape[1] > 1200
    assert image[..., :3].std() > 0.05


def test_settings_of_matplotlib_run_no_program(tmp_path, monkeypatch):
    """As those of a file matplotlibrc in the working directory would."""

    def run(*arguments, **options):
        raise AssertionError(f"{arguments[0]} is run")

    monkeypatch.setattr("subprocess.check_output", run)
    evaluation = evaluate(None, Quadratic(), horizon=2, tasks=4, steps=4)
    with matplotlib.rc_context({"text.usetex": True}):
        plot_evaluation(evaluation, tmp_path / "evaluation.png", 2)


def legend(drawing):
    return [text.get_text() for text in drawing.legends[0].get_texts()]


def crosses(axes):
    return [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in axes.lines if line.get_marker() == "x"]


def test_a_method_that_diverges_ends_in_a_cross_and_the_legend_says_where():
    evaluation = evaluate(GradientDescent(1.5), Quadratic(), horizon=2, tasks=4, steps=60, label="wild")
    measured = evaluation.measurements["wild"].losses.quantile(0.5, dim=1)
    bottom, top = limits(evaluation)
    end = int((measured > top).nonzero()[0])
    drawing = figure(evaluation, 2)
    assert evaluation.measurements["wild"].failed == 4 and 0 < end < 60
    assert f"wild (diverged at step {end})" in legend(drawing)
    assert [text for text in legend(drawing) if "(" in text] == [f"wild (diverged at step {end})"]
    ((step, loss),) = crosses(drawing.axes[0])
    assert step == end - 1 and bottom < loss <= top and loss == pytest.approx(float(measured[end - 1]))
    assert len(crosses(drawing.axes[1])) == 1
    lines = [line for line in drawing.axes[0].lines if line.get_label().startswith("wild")]
    assert len(lines[0].get_ydata()) == end


def test_losses_that_only_rise_above_the_figure_are_not_called_failed():
    evaluation = evaluate(GradientDescent(1.5), Quadratic(), horizon=2, tasks=4, steps=4, label="wild")
    assert evaluation.measurements["wild"].failed == 0
    assert [text for text in legend(figure(evaluation, 2)) if "(" in text] == ["wild (above from step 3)"]


def test_exact_zeros_do_not_stretch_the_axis():
    evaluation = evaluate(GradientDescent(0.5), Quadratic(), horizon=2, tasks=4, steps=8, label="exact")
    assert bool((evaluation.measurements["exact"].losses[1:] == 0).all())
    drawing = figure(evaluation, 2)
    axes, initial = drawing.axes[0], float(evaluation.measurements["exact"].losses[0].max())
    low, high = axes.get_ylim()
    assert axes.get_yscale() == "log" and high / low < 1e3 / torch.finfo(torch.float32).eps ** 2
    assert "exact zeros) are drawn there" in drawing.get_supxlabel() and initial < high
    for line in axes.lines[:-1]:
        assert all(low < value for value in line.get_ydata())


def test_the_figure_shows_every_loss_where_there_are_no_zeros():
    evaluation = evaluate(None, Functions("rosenbrock"), horizon=2, tasks=4, steps=4)
    drawing = figure(evaluation, 2)
    smallest = min(float(m.losses.quantile(0.5, dim=1).min()) for m in evaluation.measurements.values())
    assert smallest > 1e-12 and drawing.axes[0].get_ylim()[0] < smallest and drawing.get_supxlabel() == ""


def test_methods_look_different():
    names = ("gd", "gd+ascent", "gd+random", "adam", "rule/identity", "rule/random", "whitening")
    kinds = ("baseline", "teleport-baseline", "teleport-baseline", "baseline", "control", "control", "control")
    styles = {tuple(line_style(name, kind).items()) for name, kind in zip(names, kinds, strict=True)}
    assert len(styles) == len(names) == 7
