import pytest
import torch
from evaluation_cases import Quadratic, Turning
from matplotlib.image import imread

from meta_teleport.evaluation.evaluation import evaluate
from meta_teleport.evaluation.plots import line_style, plot_evaluation
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


def test_methods_look_different():
    names = ("gd", "gd+ascent", "gd+random", "adam", "rule/identity", "rule/random", "whitening")
    kinds = ("baseline", "teleport-baseline", "teleport-baseline", "baseline", "control", "control", "control")
    styles = {tuple(line_style(name, kind).items()) for name, kind in zip(names, kinds, strict=True)}
    assert len(styles) == len(names) == 7
