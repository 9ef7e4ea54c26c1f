"""The documentation's code runs as it stands."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs" / "extend").glob("*.md"))
REGISTRIES = (
    "ici.models.registry._MODELS",
    "ici.optimizers.directions._OPTIMIZERS",
    "ici.optimizers.schedules._SCHEDULES",
    "ici.data.registry._REGISTRY",
)


def blocks(page: Path) -> str:
    """All Python of a page, in its place: line numbers of errors are the page's."""
    kept, inside = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            inside = line == "```python"
            kept.append("")
        else:
            kept.append(line if inside else "")
    return "\n".join(kept)


def test_there_is_a_page_for_each_thing_one_adds():
    assert {page.stem for page in PAGES} >= {"norm", "model", "data", "optimizer", "experiment"}
    for page in PAGES:
        assert "```python" in page.read_text(encoding="utf-8")
        assert len(page.read_text(encoding="utf-8").splitlines()) <= 120, "one page"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in REGISTRIES:
        module, _, attribute = name.rpartition(".")
        __import__(module)
        monkeypatch.setattr(name, dict(getattr(sys.modules[module], attribute)))
    # A module of its own: dataclasses look their annotations up there.
    module = types.ModuleType(f"docs_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    # As users' programs run: the suite's stricter rule on ranks is for this package's own code.
    with jax.numpy_rank_promotion("allow"):
        exec(compile(blocks(page), str(page), "exec"), module.__dict__)
    assert not re.search(r"\bnan\b", capsys.readouterr().out)
