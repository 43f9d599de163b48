"""The README and every page of docs/: their snippets run, their links lead somewhere, the names they use exist."""

from __future__ import annotations

import doctest
import re
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch

import sparselayers as sl
import sparselayers.functional as F

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GENERATED = {"benchmarks.md"}  # written by the benchmarks, not by hand
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN = {"python", "pycon"}
LANGUAGES = RUN | {"sh", "text", "bibtex"}
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")

page_names = {"argvalues": PAGES, "ids": [str(page.relative_to(ROOT)) for page in PAGES]}


def fences(page: Path) -> list[tuple[str, str, int]]:
    """(language, source, first line) of each fenced block of a page, in order."""
    text = page.read_text()
    return [(m[1], m[2], text.count("\n", 0, m.start(2)) + 1) for m in FENCE.finditer(text)]


def run_doctest(source: str, namespace: dict, page: Path, line: int) -> None:
    test = doctest.DocTestParser().get_doctest(source, namespace, page.name, str(page), line - 1)
    assert test.examples, f"{page.name}:{line}: a pycon block without >>>"
    report: list[str] = []
    failed = doctest.DocTestRunner(verbose=False).run(test, out=report.append, clear_globs=False).failed
    namespace.update(test.globs)
    assert not failed, "".join(report)


@pytest.mark.parametrize("page", **page_names)
def test_the_snippets_of_a_page_run_in_order(page: Path) -> None:
    if page.name in GENERATED:
        return
    namespace = {"__name__": "page"}
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("error")
        torch.manual_seed(0)
        for language, source, line in fences(page):
            if language == "python":
                # Blank lines in front make a traceback name the line of the page.
                exec(compile("\n" * (line - 1) + source, page, "exec", dont_inherit=True), namespace)
            elif language == "pycon":
                run_doctest(source, namespace, page, line)


@pytest.mark.parametrize("page", **page_names)
def test_fences_name_a_known_language(page: Path) -> None:
    assert page.read_text().count("\n```") % 2 == 0
    assert {language for language, _, _ in fences(page)} <= LANGUAGES


@pytest.mark.parametrize("page", **page_names)
def test_links_lead_somewhere(page: Path) -> None:
    targets = [target for target in LINK.findall(page.read_text()) if Path(target).name not in GENERATED]
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", **page_names)
def test_names_on_a_page_exist(page: Path) -> None:
    named = set(re.findall(r"\b(sl|F)\.([A-Za-z_]\w*)", page.read_text()))
    assert sorted(f"{m}.{name}" for m, name in named if not hasattr({"sl": sl, "F": F}[m], name)) == []


def test_the_readme_lists_every_public_name() -> None:
    readme = (ROOT / "README.md").read_text()
    public = {
        f"F.{name}" for name in F.__all__ if name not in ("LassoResult", "SimplexResult", "TargetResult", "Thresholded")
    }
    public |= {f"sl.{n}" for n, o in vars(sl).items() if not n.startswith("_") and not isinstance(o, ModuleType)}
    shown = {f"{m}.{name}" for m, name in re.findall(r"`(sl|F)\.(\w+)", readme)}
    assert sorted(public - {"sl.SparsityReport"} - shown) == []


def test_every_page_is_linked_from_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"} - GENERATED
    assert sorted(name for name in pages if f"({name})" not in index) == []
