"""The committed tables of the documentation are those of the registries, and its pages refer only to pages that exist."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("limbeck_docs_generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_tables_are_current(generator: ModuleType) -> None:
    assert generator.PAGE.read_text(encoding="utf-8") == generator.page(), "run: python docs/generate.py"


def test_check_says_when_the_tables_are_stale(
    generator: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(generator, "PAGE", tmp_path / "tables.md")
    assert generator.main(["--check"]) == 1
    assert "docs/reference/tables.md is stale; run: python docs/generate.py" in capsys.readouterr().out
    assert generator.main([]) == 0
    assert generator.main(["--check"]) == 0


def test_every_name_and_field_has_a_description(generator: ModuleType) -> None:
    text = generator.page()
    assert "\n\n\n" not in text
    for table in (generator.SOURCES, generator.METHODS, generator.SELECTORS, generator.MODELS, generator.PIXEL_SPACES):
        for name in table:
            assert re.search(rf"^### {re.escape(name)}\n\n\w|^### {re.escape(name)}\n\n`", text, re.MULTILINE), name
    for name, field in generator.DistillOptions.model_fields.items():
        assert field.description, name


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).is_file(), target
