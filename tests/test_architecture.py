"""The folders show the architecture, and dependencies point one way."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# A module may import from its own layer and from those before it.
LAYERS = [
    "errors",
    "environment",
    "measure",
    "probe",
    "sites",
    "adapt",
    "models",
    "data",
    "optimizers",
    "config",
    "store",
    "engine",
    "analysis",
    "report",
    "cli",
]
NEVER = {"measure": {"engine"}, "analysis": {"engine"}, "report": {"engine"}}
MAX_LINES = 350
SOURCES = sorted((ROOT / "ici").rglob("*.py"))


def layer(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "ici":
                found |= {f"ici.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    own = path.relative_to(ROOT / "ici").parts[0].removesuffix(".py")
    if own == "__init__":
        return
    assert own in LAYERS, f"{own} has no place among the layers"
    for module in imports(path):
        if module.startswith("ici."):
            other = layer(module)
            if other not in LAYERS:  # `from ici import name`
                continue
            assert LAYERS.index(other) <= LAYERS.index(own), f"{own} imports {module}"
            assert other not in NEVER.get(own, set()), f"{own} imports {module}"
        if module.split(".")[0] == "flax":
            assert own in ("adapt", "models"), f"{path.name} knows Flax"


def test_no_file_is_a_hall():
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for folder in ("ici", "tests", "benchmarks", "experiments")
        for path in (ROOT / folder).rglob("*.py")
    }
    long = {name: n for name, n in lengths.items() if n > MAX_LINES and name != "ici/adapt.py"}
    assert not long
    assert lengths["ici/adapt.py"] <= 400  # both module systems, by design in one file
    assert not [name for name in lengths if name.endswith("utils.py")]


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=False
    )
    return [ROOT / name for name in listed.stdout.splitlines()]


def test_code_lives_in_four_folders():
    folders = {path.relative_to(ROOT).parts[0] for path in tracked() if path.suffix == ".py"}
    assert folders <= {"ici", "experiments", "tests", "benchmarks"}


def test_nothing_names_one_machine():
    pattern = re.compile(r"(?<![\w.])/(?:root|home|work)/\w")
    for path in tracked():
        if path.suffix in (".py", ".md", ".toml", ".txt", ".json", "") and path.is_file():
            assert not pattern.search(path.read_text(errors="replace")), path


def test_import_is_light():
    heavy = [
        "xarray",
        "zarr",
        "matplotlib",
        "tensorflow_datasets",
        "rich",
        "tyro",
        "sklearn",
        "torch",
        "pandas",
        "scipy",
    ]
    # What jax and flax themselves load does not count.
    code = (
        "import sys, jax, flax; before = set(sys.modules); import ici; "
        f"print([m for m in {heavy!r} if m in sys.modules and m not in before])"
    )
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert seen.stdout.strip() == "[]", seen.stdout + seen.stderr


def test_public_names_exist_and_are_documented():
    import ici

    for name in ici.__all__:
        assert getattr(ici, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        ici.nonsense  # noqa: B018
    assert set(ici.__all__) <= set(dir(ici))
