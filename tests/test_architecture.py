"""The folders show the architecture, and dependencies point one way."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ici

ROOT = Path(__file__).resolve().parents[1]
# A module may import from its own layer and from those before it.
LAYERS = [
    "errors",
    "environment",
    "measure",
    "probe",
    "tags",
    "harvest",
    "sites",
    "adapt",
    "dissect",
    "models",
    "data",
    "optimizers",
    "description",
    "config",
    "store",
    "sinks",
    "engine",
    "analysis",
    "report",
    "quantities",
    "cli",
]
# Beyond the order: records are read without anything that trains.
NEVER = {"analysis": {"engine", "adapt", "models"}, "report": {"engine", "adapt", "models"}}
KNOW_FLAX = {"adapt", "models"}
CODE_FOLDERS = {"ici", "experiments", "tests", "benchmarks"}
MAX_LINES = 350
SOURCES = sorted(path for path in (ROOT / "ici").rglob("*.py") if path != ROOT / "ici/__init__.py")


def layer_of(path: Path) -> str:
    return path.relative_to(ROOT / "ici").parts[0].removesuffix(".py")


def imports(source: str) -> set[str]:
    """Dotted names of every import, however deep in the code; with what `from ici` fetches."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            named = module == "ici" or not module.strip(".")
            found |= {f"{module}.{a.name}" for a in node.names} if named else {module}
    return found


def faults(layer: str, source: str) -> list[str]:
    """What a module of this layer imports and may not."""
    found = []
    for module in sorted(imports(source)):
        root, _, rest = module.partition(".")
        other = rest.partition(".")[0]
        if not root:
            found.append(f"{module}: relative")
        elif root == "flax" and layer not in KNOW_FLAX or root == "tensorflow":
            found.append(module)
        elif root == "ici" and other != "__version__":
            # The package itself reaches every layer: from inside, it would hide a direction.
            upward = other not in LAYERS or LAYERS.index(other) > LAYERS.index(layer)
            if upward or other in NEVER.get(layer, ()):
                found.append(module)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    layer = layer_of(path)
    assert layer in LAYERS, f"{layer} has no place among the layers yet"
    assert not faults(layer, path.read_text())


@pytest.mark.parametrize(
    ("layer", "source", "fault"),
    [
        ("measure", "from ici.engine.step import gradients", "ici.engine.step"),
        ("measure", "def f():\n    import ici", "ici"),
        ("config", "from ici import run", "ici.run"),
        ("engine", "from ici import cli", "ici.cli"),
        ("analysis", "from ici.engine import step", "ici.engine"),
        ("engine", "from flax import nnx", "flax"),
        ("data", "from ..engine import step", "..engine: relative"),
        ("cli", "from . import run", "..run: relative"),
        ("data", "import tensorflow as tf", "tensorflow"),
    ],
)
def test_the_rule_sees_a_wrong_import(layer, source, fault):
    assert faults(layer, source) == [fault]


def test_no_file_is_a_hall():
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for folder in CODE_FOLDERS
        for path in (ROOT / folder).rglob("*.py")
    }
    assert not {name: n for name, n in lengths.items() if n > MAX_LINES}
    assert not [name for name in lengths if name.endswith("utils.py")]


def checkout() -> list[Path]:
    """The files git keeps or would keep; skips the test where this is no checkout."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_code_lives_in_four_folders():
    folders = {path.relative_to(ROOT).parts[0] for path in checkout() if path.suffix == ".py"}
    assert folders <= CODE_FOLDERS
    assert "ici" in folders


# A folder of one person or one machine; part of a URL or of a relative path is none.
ONE_MACHINE = re.compile(r"(?<![\w.~])/(?:root|home|Users|work|workspace|mnt|scratch|tmp)/\w")


def test_nothing_names_one_machine():
    named = []
    for path in checkout():
        content = path.read_bytes()
        if b"\0" not in content:
            lines = content.decode(errors="replace").splitlines()
            hits = [i for i, line in enumerate(lines, 1) if ONE_MACHINE.search(line)]
            named += [f"{path.relative_to(ROOT)}:{i}" for i in hits]
    assert not named
    assert ONE_MACHINE.search(f"see {'/home'}/ann/ici") and not ONE_MACHINE.search("x.org/home/y")


def loaded_by(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    seen = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert seen.returncode == 0, seen.stderr
    return set(seen.stdout.split())


def test_import_is_light():
    heavy = {
        "matplotlib",
        "pandas",
        "rich",
        "scipy",
        "sklearn",
        "tensorflow_datasets",
        "torch",
        "tyro",
        "xarray",
        "zarr",
    }
    assert not loaded_by("import ici") & heavy
    # Nor does what a training script takes from it, beyond what JAX and its libraries load.
    names = ("Experiment", "MLPConfig", "Moments", "Probe", "from_nnx", "make_train_step", "shift")
    took = loaded_by("import ici\n" + "\n".join(f"ici.{name}" for name in names))
    assert not (took - loaded_by("import jax, optax\nfrom flax import linen, nnx")) & heavy


def test_public_names_exist_and_are_documented():
    for name in ici.__all__:
        assert getattr(ici, name).__doc__, name
    assert set(ici.__all__) <= set(dir(ici))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        ici.nonsense  # noqa: B018


def test_type_checkers_see_the_public_names():
    tree = ast.parse((ROOT / "ici/__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    seen = {
        alias.asname: getattr(importlib.import_module(node.module or ""), alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {name: getattr(ici, name) for name in ici.__all__}
