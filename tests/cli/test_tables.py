"""What is printed at 60, 80 and 120 columns: no number is cut, nothing is left out."""

import io
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

import meta_teleport as mt
from meta_teleport.cli.main import main
from meta_teleport.cli.tables import fit
from meta_teleport.evaluation import evaluation

WIDTHS = (60, 80, 120)
SMALL = ["--training.tasks=4", "--training.window=2", "--training.horizon=4", "--rule.hidden_size=4", "--task.width=3"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small run, whose evaluation is computed once and printed at every width."""
    folder = tmp_path_factory.mktemp("run") / "a"
    assert main(["train", "--out", str(folder), "--training.meta_steps=2", *SMALL]) == 0
    computed = cache(lambda: evaluation.evaluate(mt.load(folder), mt.Regression(width=3), horizon=4, tasks=4, steps=41))
    with pytest.MonkeyPatch.context() as patch:
        computed()
        patch.setattr(evaluation, "evaluate", lambda *_, **__: computed())
        yield folder


def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int, *argv: str) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    capsys.readouterr()
    assert main(list(argv)) == 0
    shown = capsys.readouterr().out
    assert "…" not in shown
    return shown


def rendered(tables: list[Table], width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    for table in tables:
        console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize("width", WIDTHS)
def test_the_numbers_of_an_evaluation_are_whole_at_every_width(
    width: int, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = printed(capsys, monkeypatch, width, "evaluate", str(run), "--tasks=4", "--steps=41")
    *tables, path = shown.rstrip().splitlines()
    assert path.endswith(".png") and max(map(len, tables)) <= width
    written = json.loads(printed(capsys, monkeypatch, width, "evaluate", str(run), "--json"))
    words = set(shown.replace("│", " ").replace("[", " ").replace("]", " ").replace(",", " ").split())
    for method in written["methods"].values():
        for step in (4, 12, 40, 41):
            assert f"{method['median'][step]:.3g}" in words
        assert f"{method['seconds'][-1] / 41:.1e}" in words
    assert len(written["verdicts"]) >= 4 * 4
    for row in written["verdicts"]:
        assert row["word"] in words and {f"{x:.3g}" for x in (row["ratio"], *row["ci95"])} <= words
    for step in ("4", "12", "40", "41"):
        assert f"step {step}" in shown


MODEL = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.project_to_hidden_10 = nn.Linear(8, 6)
        self.project_to_output_20 = nn.Linear(6, 8)

    def forward(self, x):
        return self.project_to_output_20(self.project_to_hidden_10(x).relu())

def model():
    return nn.Sequential(Block(), Block()), torch.randn(2, 8)
"""


def test_the_symmetries_of_a_model_are_whole_at_every_width(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_wide_names.py").write_text(MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    found = json.loads(printed(capsys, monkeypatch, 80, "symmetries", "own_wide_names:model", "--json"))
    for width in WIDTHS:
        shown = printed(capsys, monkeypatch, width, "symmetries", "own_wide_names:model")
        assert max(map(len, shown.splitlines())) <= width
        assert f"{found['parameters']:,}" in shown
        joined = re.sub(r"[\s│]", "", shown)
        for site in found["sites"]:
            assert f"{site['group']}({site['k']})" in shown
            for name in (*site["producers"], *site["consumers"]):
                assert not re.search(r"\d$", name) and all(piece in shown for piece in re.findall(r"\d+", name))
        assert all(refusal["reason"].split()[-1] in joined for refusal in found["refusals"])


def wide_table() -> Table:
    table = Table("name", title="a title of some words")
    for i in range(9):
        table.add_column(f"column {i}", justify="right", no_wrap=True)
    for name in ("short", "a.very.long.name.with-many_parts/of.words"):
        table.add_row(name, *(f"-1.2345678e-{10 + i}" for i in range(9)))
    return table


@pytest.mark.parametrize("width", [31, 47, 60, 80, 120])
def test_columns_without_room_stand_in_further_tables(width: int) -> None:
    parts = fit(wide_table(), width)
    shown = rendered(parts, width)
    assert len(parts) > 1 and "…" not in shown and max(map(len, shown.splitlines())) <= width
    for i in range(9):
        assert shown.count(f"-1.2345678e-{10 + i}") == 2
    assert shown.count("short") == len(parts) and shown.count("title") == 1


def test_a_table_that_fits_is_left_as_it_is() -> None:
    table = wide_table()
    assert fit(table, 400) == [table]


def test_words_are_broken_between_their_parts_and_numbers_nowhere() -> None:
    table = Table("what")
    table.add_row("layers.12.attention.weight at 0.12345678 of 3.5e-07 and layer-norm 1.25")
    shown = rendered(fit(table, 14), 14).split()
    assert {"0.12345678", "3.5e-07", "1.25"} <= set(shown) and "…" not in "".join(shown)
    assert "".join(shown).endswith("layers.12.attention.weightat0.12345678of3.5e-07andlayer-norm1.25")
