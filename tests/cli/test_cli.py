"""The command line, end to end in temporary folders."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import ici
from ici.cli import main

EXPERIMENT = """
import ici

experiment = ici.Experiment(
    name="tiny",
    data="synthetic",
    model=ici.MLPConfig(width=8),
    norm=("none", "batch"),
    depth=(2,),
    lr=(1e-3, 1e-2),
    seed=(0, 1),
    steps=20,
    batch_size=16,
    probe=ici.Probe(every=5),
    reference_every=10,
    eval_every=10,
    target_accuracy=0.5,
)
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.py"
    path.write_text(EXPERIMENT)
    return str(path)


@pytest.mark.slow
def test_run_shows_the_table_and_writes_record_and_figures(file, tmp_path, capsys):
    assert main(["run", file]) == 0
    out = capsys.readouterr().out
    assert "batch" in out and "0.001" in out and "2 seeds" in out
    results = ici.open(tmp_path / "runs" / "tiny")
    assert results.complete and results.train.sizes["step"] == 20
    figures = sorted(path.name for path in (tmp_path / "runs/tiny/figures").iterdir())
    assert len(figures) >= 8 and {Path(name).suffix for name in figures} == {".png", ".pdf"}
    for name in figures:
        if name.endswith(".png"):
            assert name in out


@pytest.mark.slow
def test_second_run_trains_nothing_and_shows_the_same_table(file, capsys):
    assert main(["run", file, "--no-figures"]) == 0
    first = capsys.readouterr().out
    assert main(["run", file, "--no-figures"]) == 0
    second = capsys.readouterr().out
    assert "nothing to train" in second

    def table(text):
        return [line for line in text.splitlines() if line.startswith(("none", "batch"))]

    assert table(first) == table(second) and table(first)
    assert main(["report", "runs/tiny"]) == 0
    assert table(capsys.readouterr().out) == table(first)


@pytest.mark.slow
def test_options_override_every_kind_of_field(file, tmp_path):
    options = "--depth 3 --norm layer --lr 1e-2 --seed 7 --optimizer sgd --width 12"
    options += " --data.shift-mean 2 --probe.every 10 --probe.stats moments extremes"
    probe = "--probe.select */linear"
    arguments = [*options.split(), *probe.split(), "--out", "o", "--no-figures", "--steps=30"]
    assert main(["run", file, *arguments]) == 0
    experiment = ici.open(tmp_path / "o").experiment
    assert experiment["depth"] == [3] and experiment["norm"] == ["layer"]
    assert experiment["lr"] == [1e-2] and experiment["seed"] == [7]
    assert experiment["model"]["width"] == 12 and experiment["data"]["shift_mean"] == 2
    assert experiment["steps"] == 30 and experiment["probe"]["every"] == 10
    assert experiment["probe"]["select"] == "*/linear"
    assert "maximum" in ici.open(tmp_path / "o").probe


@pytest.mark.slow
def test_another_data_set_brings_its_own_options(file, tmp_path):
    pytest.importorskip("sklearn")
    arguments = "--data digits --norm none --lr 1e-2 --seed 0 --out o --no-figures --split-seed 5"
    assert main(["run", file, *arguments.split()]) == 0
    assert ici.open(tmp_path / "o").experiment["data"]["split_seed"] == 5


@pytest.mark.slow
def test_optimizer_brings_its_own_default_grid(file, tmp_path):
    text = EXPERIMENT.replace("lr=(1e-3, 1e-2),", "")
    Path(file).write_text(text)
    assert (
        main(["run", file, "--optimizer", "sgd", "--norm", "none", "--seed", "0", "--no-figures"])
        == 0
    )
    assert max(ici.open(tmp_path / "runs/tiny").train.lr.values) == 10


BAD = [
    ("run", "wanted a file"),
    ("run missing.py", "no file missing.py"),
    ("run FILE --norm btach", "unknown norm 'btach'.*Did you mean 'batch'"),
    ("run FILE --data moviereviews", "unknown data set 'moviereviews'.*movie_reviews"),
    ("run FILE --optimizer adm", "unknown optimizer 'adm'.*adam"),
    ("run FILE --schedule cosin", "unknown schedule 'cosin'.*cosine"),
    ("run FILE --model mpl", "unknown model 'mpl'.*mlp"),
    ("run FILE --stepz 3", "unknown option --stepz: did you mean --steps"),
    ("run FILE 17", "unexpected '17'"),
    ("run FILE --steps abc", "--steps.*abc"),
    ("run FILE --depth 0", "depth is 0"),
    ("run FILE --depth -3", "depth is -3"),
    ("run FILE --width 0", "width is 0"),
    ("run FILE --lr 0", "lr is 0"),
    ("run FILE --lr -1e-3", "lr is -0.001"),
    ("run FILE --lr nan", "lr is nan"),
    ("run FILE --lr inf", "lr is inf"),
    ("run FILE --lr", "lr is empty"),
    ("run FILE --seed", "seed is empty"),
    ("run FILE --seed 1 1", "seed is .*every value once"),
    ("run FILE --batch-size 99999", "batch_size is 99999 and .* training examples"),
    ("run FILE --probe.select nowhere", "matches no site.*blocks/0/linear"),
    ("run FILE --probe.stats mements", "unknown statistic 'mements'.*moments"),
    ("run FILE --probe.every 7", "reference_every is 10 and probe.every is 7"),
    ("run FILE --devices 99", "devices is 99"),
    (
        "run FILE --data-parallel 3 --batch-size 16",
        "batch_size is 16 and is split by data_parallel 3",
    ),
    ("run FILE --out FILE", "is a file: wanted a folder"),
    ("run FILE --data=moviereviews", "unknown data set 'moviereviews'"),
    ("run FILE --data", "--data has no value"),
    (
        "run FILE --activation swish",
        "unknown activation 'swish': .* relu, sigmoid, silu, tanh[.]",
    ),
    ("run FILE --devices few", "--devices: .*instantiated from .'few'.: wanted"),
    ("run FILE --lr 1e-3,1e-2", "separated by spaces, such as --lr 1e-3 1e-2[.]"),
    ("run FILE --lr=(1e-3, 1e-2)", "separated by spaces"),
    ("run FILE --norm none,batch", "separated by spaces, such as --norm none batch[.]"),
    ("run FILE --weight_decay 0,1", "separated by spaces, such as --weight-decay 0 1[.]"),
    ("run FILE --probe.stats moments,extremes", "--probe.stats moments extremes[.]"),
    ("run FILE --resume --overwrite", "--resume and --overwrite are both set"),
    ("run FILE --out=", "--out is '': wanted a folder"),
    ("run FILE --warmup-steps 21", "warmup_steps is 21 and steps is 20"),
    ("run FILE --name ..", "name is '..'"),
    ("run FILE --name .", "name is '.'"),
    ("report nowhere", "no manifest.json"),
    ("data show nothing", "unknown data set 'nothing'"),
    ("data prepare", "wanted one name"),
    ("data lits", "unknown data command 'lits'.*list"),
    ("rnu", "unknown command 'rnu'.*run"),
]


@pytest.mark.parametrize(("command", "message"), BAD, ids=[command for command, _ in BAD])
def test_bad_input_is_one_line_and_leaves_no_trace(file, tmp_path, capsys, command, message):
    before = sorted(tmp_path.rglob("*"))
    arguments = [file if word == "FILE" else word for word in command.split()]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("ici: ") and err.count("\n") == 1
    import re

    assert re.search(message, err), err
    assert [p for p in sorted(tmp_path.rglob("*")) if "__pycache__" not in str(p)] == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "defines no `experiment`"),
        ("experiment = 3", "defines int `experiment`"),
        ("import ici\n\nexperiment = ici.Experiment(norm='nope')", "unknown norm 'nope'"),
        ("x = 1\nx.y = 2", "line 2: AttributeError"),
        ("def f(:", "line 1: SyntaxError"),
        ("import ici\nexperiment = ici.Experiment(dpeth=3)", "line 2: TypeError.*dpeth"),
        ("import sys\n\nsys.exit()", "line 3: SystemExit"),
        ("raise SystemExit('no\\ndata')", "line 1: SystemExit: no data"),
        ("import json\n\njson.loads('\\n\\n\\n\\n')", "line 3: JSONDecodeError"),
    ],
)
@pytest.mark.parametrize("given", ["absolute", "relative", "up"])
def test_experiment_file_that_cannot_be(file, tmp_path, monkeypatch, capsys, text, message, given):
    import re

    Path(file).write_text(text)
    path = {"absolute": file, "relative": "tiny.py", "up": "../tiny.py"}[given]
    if given == "up":
        (tmp_path / "below").mkdir()
        monkeypatch.chdir(tmp_path / "below")
    assert main(["run", path]) == 2
    err = capsys.readouterr().err
    assert re.search(message, err) and err.count("\n") == 1


def test_folder_of_another_experiment_shows_the_differing_fields(file, capsys):
    assert main(["run", file, "--no-figures"]) == 0
    capsys.readouterr()
    assert main(["run", file, "--lr", "0.5", "--width", "9"]) == 2
    err = capsys.readouterr().err
    assert "lr: [0.001, 0.01] -> [0.5]" in err and "model.width: 8 -> 9" in err


@pytest.mark.parametrize(
    "content", ['{"schema', '{"schema": 1}', '{"schema": 1, "groups": [2]}', "{}"]
)
def test_damaged_manifest_tells_how_to_start_again(file, tmp_path, capsys, content):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "manifest.json").write_text(content)
    for command in (["run", file, "--out", "o"], ["report", "o"]):
        assert main(command) == 2
        err = capsys.readouterr().err
        assert "manifest.json" in err and "--overwrite" in err and err.count("\n") == 1


def test_own_warning_is_one_line_and_others_are_as_usual(file, monkeypatch, capsys):
    def warned(*args, **kwargs):
        for filename in (ici.__file__, "/elsewhere.py"):
            warnings.warn_explicit("cannot keep\ndata", RuntimeWarning, filename, 3)
        raise ici.InputError("enough")

    monkeypatch.setattr("ici.cli.run.run", warned)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(
            warnings, "showwarning", lambda m, c, f, n, *_: print(f, file=sys.stderr)
        )
        usual = warnings.showwarning
        assert main(["run", file]) == 2
        assert warnings.showwarning is usual
    err = capsys.readouterr().err
    assert err == "ici: warning: cannot keep data\n/elsewhere.py\nici: enough\n"


def test_pipes_get_whole_lines(file, monkeypatch, capsys):
    monkeypatch.setattr("ici.data.commands.show", lambda name: {"how": "word " * 60 + "end"})
    rows = [{"name": "n", "kind": "k", "prepared": "p", "needs": "word " * 60 + "end"}]
    monkeypatch.setattr("ici.data.commands.listing", lambda: rows)
    monkeypatch.setattr("ici.cli.doctor._EXTRAS", {"no_such": ("demo", "word " * 60 + "end")})
    for command in (["data", "show", "n"], ["data", "list"], ["doctor"]):
        assert main(command) == 0
        assert "word " * 60 + "end" in capsys.readouterr().out


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(file, tmp_path, capsys):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert main(["run", file, "--out", str(locked / "out")]) == 2
    assert "not writable" in capsys.readouterr().err


def test_full_disk_is_one_line(file, monkeypatch, capsys):
    def full(self, folder):
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr("ici.store.manifest.Manifest.write", full)
    assert main(["run", file]) == 2
    err = capsys.readouterr().err
    assert "No space left on device" in err and "MiB free" in err and err.count("\n") == 1


def test_interrupt_is_no_traceback(file, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("ici.cli.run.run", interrupt)
    assert main(["run", file]) == 75
    assert capsys.readouterr().err == "ici: interrupted; the same command goes on.\n"


def test_data_and_doctor_commands(file, capsys):
    assert main(["data"]) == 0
    assert "movie_reviews" in capsys.readouterr().out
    assert main(["data", "show", "synthetic"]) == 0
    assert "n_classes" in capsys.readouterr().out
    assert main(["data", "prepare", "synthetic"]) == 0
    assert "ready" in capsys.readouterr().out
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "jax" in out and "GiB free" in out
    assert main([]) == 0
    assert "usage: ici" in capsys.readouterr().out


@pytest.mark.slow
def test_in_a_fresh_process_with_spaces_and_another_locale(tmp_path):
    folder = tmp_path / "a folder, ünïcode"
    folder.mkdir()
    (folder / "tiny.py").write_text(EXPERIMENT)
    environment = os.environ | {"LC_ALL": "C", "TZ": "Asia/Tokyo"}
    environment.pop("JAX_NUM_CPU_DEVICES", None)
    command = [sys.executable, "-m", "ici.cli", "run", "tiny.py"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert ici.open(folder / "runs" / "tiny").complete
