"""The documentation names what there is: settings, options, links."""

import re
from pathlib import Path

import pytest

from pipelines.config import SearchConfig, SpaceConfig
from tokenpool.options import PoolOptions

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ROOMS = ("tests", "benchmarks", "cluster", "pipelines", "tokenpool", "tune_spaces")
GUIDE = (ROOT / "docs/search.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_within_the_repository_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_section_and_setting_of_the_space_is_in_the_guide():
    common = {"name", "seed", "model"}
    for name in set(SearchConfig.model_fields) - common:
        assert f"{name}:" in GUIDE or f"`{name}`" in GUIDE, name
    for name in set(SpaceConfig.model_fields) - {"min_gmacs"}:
        assert name in GUIDE, name
    for name in set(PoolOptions.__dataclass_fields__) - {"generator"}:
        assert f"`{name}`" in GUIDE, name


def test_every_file_that_the_architecture_page_names_is_there():
    page = (ROOT / "docs/architecture.md").read_text()
    names = set(re.findall(r"`([\w/]+\.(?:py|md|sh))`", page))
    files = {str(p.relative_to(ROOT)) for room in ROOMS for p in (ROOT / room).rglob("*.*")}
    assert len(names) > 60 and page.count("\n") <= 120
    assert not {name for name in names if not any(f"/{f}".endswith(f"/{name}") for f in files)}
