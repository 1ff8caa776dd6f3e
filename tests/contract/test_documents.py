"""The documents: links, figures, and the reference of the configuration."""

import re
import runpy
from pathlib import Path

import pytest

from fedmr_flwr.analysis.studies.plan import plan
from fedmr_flwr.analysis.studies.study import study_of
from fedmr_flwr.data.datasets import DATASETS
from fedmr_flwr.data.partitions import PARTITIONS
from fedmr_flwr.models import MODELS

ROOT = Path(__file__).parents[2]
ROOT_PAGES = ("README.md", "CONTRIBUTING.md", "AGENTS.md", "SECURITY.md")
PAGES = [*(ROOT / name for name in ROOT_PAGES), *sorted((ROOT / "docs").rglob("*.md"))]

# Strategies of a comparison that the page names with values for their options.
PAGE = (ROOT / "docs" / "guides" / "strategies.md").read_text(encoding="utf-8")
VALUES = sorted(set(re.findall(r"`(\w+(?:/[\w.-]+=[\w.]+)+)`", PAGE)))


@pytest.mark.parametrize("text", VALUES)
def test_published_values_are_accepted(text, tmp_path):
    (run,) = plan(study_of(["quickstart"], text), [], tmp_path)
    assert run.settings.strategy.name == text.partition("/")[0]


def test_page_has_published_values():
    assert len(VALUES) > 5


SIX_FILES = r"[Ss]ix files.*?about ([\d,]+) lines(.*?)(?=\n\n[A-Z#\[])"


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md"])
def test_six_files_have_about_the_stated_lines(page):
    stated, text = re.search(SIX_FILES, (ROOT / page).read_text(encoding="utf-8"), re.DOTALL).groups()
    files = [(ROOT / page).parent / link for link in re.findall(r"\(([\w./]+\.py)\)", text)]
    lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
    assert len(files) == 6
    assert abs(lines - int(stated.replace(",", ""))) < 50


def anchors(page):
    """Return the anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "benchmarks" / "README.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!http)([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for path, _, anchor in (link.partition("#") for link in links):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def test_reference_is_that_of_the_settings():
    written = runpy.run_path(str(ROOT / "docs" / "configuration.py"))
    assert written["PAGE"].read_text(encoding="utf-8") == written["page"](), "run python docs/configuration.py"


def test_guide_has_each_data_set_and_partition():
    page = (ROOT / "docs" / "guides" / "data.md").read_text(encoding="utf-8")
    assert [name for name in [*DATASETS, *PARTITIONS] if f"`{name}`" not in page] == []


def test_reference_has_each_model():
    page = (ROOT / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")
    assert [name for name in MODELS if f"`{name}`" not in page] == []


def test_guide_says_of_each_data_set_whether_it_was_trained_on_its_real_files():
    page = (ROOT / "docs" / "guides" / "data.md").read_text(encoding="utf-8")
    (said,) = re.findall(r"^Trained by us on the real files: .*?never trained on the real ones", page, re.M | re.S)
    assert sorted(re.findall(r"`([\w-]+)`", said)) == sorted(DATASETS)


def test_idea_is_shown_in_two_pictures():
    page = (ROOT / "docs" / "fedmr.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[.+\]\((\w+)\.png\)", page)
    assert pictures[:2] == ["one_round", "paths"]
    assert (ROOT / "docs" / "one_round.py").is_file(), "the first is drawn by a script"
