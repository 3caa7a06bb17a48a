"""The pages of the experiments: links lead somewhere, commands name scripts, every claim has its page and its row."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
INDEX = EXPERIMENTS / "README.md"
CLAIMS = sorted(path.parent for path in EXPERIMENTS.glob("*/__init__.py") if path.parent.name != "lab")
PAGES = [ROOT / "README.md", INDEX, *sorted(EXPERIMENTS.glob("*/README.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(r"python -m (experiments(?:\.\w+)+)")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path, text: str) -> list[str]:
    """The relative links and images of a page's text whose file or heading does not exist."""
    found = []
    for link in LINK.findall(text):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if "://" not in link and not (target.exists() and (not anchor or anchor in anchors(target))):
            found.append(link)
    return found


def without_module(text: str) -> list[str]:
    """The modules of ``python -m experiments...`` commands that cannot be run: not there, or no script."""

    def is_script(name: str) -> bool:
        path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
        return path.exists() and find_spec(name) is not None and '__name__ == "__main__"' in path.read_text()

    return [name for name in COMMAND.findall(text) if not is_script(name)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_commands(page: Path) -> None:
    text = page.read_text()
    assert not broken(page, text)
    assert not without_module(text)


def test_what_is_broken_is_seen() -> None:
    links = "![](results/none.png) [](cost/README.md#no-heading) [](https://x.org) [](cost/README.md)"
    assert broken(INDEX, links) == ["results/none.png", "cost/README.md#no-heading"]
    commands = (
        "python -m experiments.cost.none, python -m experiments.cost.sizes, python -m experiments.cost.throughput"
    )
    assert without_module(commands) == ["experiments.cost.none", "experiments.cost.sizes"]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_every_claim_has_a_page_and_a_row(claim: Path) -> None:
    assert COMMAND.search((claim / "README.md").read_text())
    rows = [line for line in INDEX.read_text().splitlines() if line.startswith("|")]
    row = [r for r in rows if f"({claim.name}/README.md" in r and f"python -m experiments.{claim.name}." in r]
    assert row and all(r.count(" | ") == 4 for r in row)


def test_every_script_has_a_command() -> None:
    scripts = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in EXPERIMENTS.glob("*/*.py")
        if '__name__ == "__main__"' in path.read_text()
    }
    assert scripts <= {name for page in PAGES for name in COMMAND.findall(page.read_text())}
