"""The command line where the world is not as it should be: one line and status 2, or silence and 141."""

import os
import random
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from safetensors.numpy import save_file

from lowbit import cli

CONFIG = """
import dataclasses
@dataclasses.dataclass(frozen=True)
class Inner:
    epochs: int = 1
@dataclasses.dataclass(frozen=True)
class Config:
    name: str = "c"
    seeds: tuple[int, ...] = (0,)
    rate: float = 0.5
    fit: Inner | None = None
    methods: tuple[Inner, ...] = ()
def run(config: Config, out, *, fresh):
    print("ran", config.name)
"""


def started(*words: str, **streams):
    return subprocess.Popen([sys.executable, "-m", "lowbit.cli", *words], stderr=subprocess.PIPE, text=True, **streams)


@pytest.mark.parametrize("words", [("--help",), ("formats", "int4"), ("--version",)])
def test_a_full_disk_and_a_reader_that_left(words):
    """Both at once: the processes start side by side."""
    with open("/dev/full", "w") as full:
        on_full = started(*words, stdout=full)
    reader, writer = os.pipe()
    os.close(reader)
    left = started(*words, stdout=writer)
    os.close(writer)
    _, said = on_full.communicate()
    assert (on_full.returncode, said) == (2, "lowbit: No space left on device\n")
    _, said = left.communicate()
    assert (left.returncode, said) == (141, "")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("config = Config", "config must be a Config(...)"),
        ("config = 3", "config must be a Config(...)"),
        ("config = {'name': 'x'}", "config must be a Config(...)"),
        ("config = Inner()", "config needs a name"),
        ("config = Config(name=3)", "config needs a name"),
        ("config = Config(seeds=0)", "config.seeds must be tuple[int, ...], got 0 (int)"),
        ("config = Config(seeds=('a',))", "config.seeds must be tuple[int, ...]"),
        ("config = Config(seeds=(True,))", "config.seeds must be tuple[int, ...]"),
        ("config = Config(rate='fast')", "config.rate must be float, got 'fast' (str)"),
        ("config = Config(fit=3)", "config.fit must be"),
        ("config = Config(fit=Inner('x'))", "config.fit.epochs must be int, got 'x' (str)"),
        ("config = Config(methods=(Inner(), Inner(1.5)))", "config.methods[1].epochs must be int, got 1.5"),
        ("class Other(Inner): name = 'x'\nconfig = Other()", "config must be a Config, which its run takes, got Other"),
        ("import sys\nsys.exit(3)", "it calls sys.exit(3): a config only describes"),
        ("raise SystemExit", "it calls sys.exit(None)"),
        ("raise SystemExit('text\\n')", r"it calls sys.exit('text\n')"),
        ("raise GeneratorExit", "c.py, line 15: GeneratorExit"),
        ("class Own(BaseException): pass\nraise Own('no')", "line 16: lowbit_config.Own: no"),
        ("config = Config()\ndef run(config, out, *, fresh): return {}['x']", "c.py, line 16: KeyError: 'x'"),
        ("config = Config()\ndef run(config, out, *, fresh): raise GeneratorExit", "c.py, line 16: GeneratorExit"),
        ("def (", "c.py, line 15: invalid syntax"),
        ("config = Config()\ndef run(config, out, *, fresh): raise SystemExit(5)", "its run calls sys.exit(5)"),
        ("config = Config()\ndef run(config, out, *, fresh): raise MemoryError('no room')", "no room"),
        ("config = Config()\ndef run(config, out): pass", "fresh"),
    ],
)
def test_configs_that_are_none(tmp_path, capsys, more, message):
    path = tmp_path / "c.py"
    path.write_text(textwrap.dedent(CONFIG) + more)
    assert cli.main(["run", str(path), "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert "Traceback" not in err


def test_a_right_config_runs_and_stopping_is_one_line(tmp_path, capsys):
    path = tmp_path / "c.py"
    path.write_text(textwrap.dedent(CONFIG) + "config = Config(fit=Inner(2), rate=1)\n")
    assert cli.main(["run", str(path)]) == 0
    assert capsys.readouterr().out == "ran c\n"
    path.write_text(path.read_text() + "def run(config, out, *, fresh): raise KeyboardInterrupt\n")
    assert cli.main(["run", str(path)]) == 130
    assert capsys.readouterr().err == "lowbit: stopped; the same command goes on from here\n"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import sys\nsys.exit('bye')", "m.py, line 2: it calls sys.exit('bye'): return, or raise an error"),
        ("def build(): raise SystemExit(3)", "m.py, line 1: it calls sys.exit(3)"),
        ("def build(): return {}['x']", "m.py, line 1: KeyError: 'x'"),
        ("def build(): assert not 1", "m.py, line 1: AssertionError"),
        ("def build(", "m.py, line 1: '(' was never closed"),
    ],
)
def test_models_whose_code_fails(tmp_path, capsys, source, message):
    path = tmp_path / "m.py"
    path.write_text(f"{source}\ndef data(): return []\n" if "never" not in message else source)
    for words in (["quantize", "--rules", "w8"], ["allocate", "--candidate", "w4", "--bits", "4"]):
        command, *options = words
        given = [command, f"{path}:build", f"--data={path}:data", *options, "--out", str(tmp_path / "out")]
        assert cli.main(given) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n"), "Traceback" in err) == ("", 1, False)
        assert message in err


def test_without_streams():
    """A program may be started without them: what is written is lost, and nothing else."""
    for end, status in ((">&-", 0), ("2>&-", 0), ("2>/dev/full", 0)):
        command = f"{sys.executable} -m lowbit.cli --version {end}"
        found = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
        assert (found.returncode, found.stderr) == (status, ""), end


def test_paths_that_are_something_else(tmp_path, capsys):
    os.mkfifo(tmp_path / "fifo.py")
    (tmp_path / "file").write_text("x")
    path = tmp_path / "c.py"
    path.write_text(textwrap.dedent(CONFIG) + "config = Config()\n")
    for words in (
        ["run", str(tmp_path / "fifo.py")],
        ["show", str(tmp_path / "fifo.py")],
        ["show", str(tmp_path)],
        ["show", str(tmp_path / "file")],
        ["show", str(tmp_path / "file" / "below")],
        ["verify", str(tmp_path / "file")],
        ["verify", str(tmp_path / "fifo.py")],
        ["verify", str(tmp_path / "none")],
        ["verify", str(tmp_path), "--wall-seconds", "0"],
        ["verify", str(tmp_path), "--memory-gb", "nan"],
        ["verify", str(tmp_path), "--cpu-seconds", "soon"],
    ):
        assert cli.main(words) == 2, words
        out, err = capsys.readouterr()
        assert (out, err.count("\n"), "Traceback" in err) == ("", 1, False), err


def test_the_benchmark_says_one_line(capfd):
    assert cli.main(["bench", "kernels", "--case", "zzz"]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "invalid choice: 'zzz'" in err
    assert cli.main(["bench", "--case", "zzz"]) == 2
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("kind", [".npz", ".safetensors"])
def test_damaged_arrays_are_one_line(capsys, tmp_path, kind):
    """Cut anywhere, or a bit flipped: what their readers raise is no end of ``lowbit check``."""
    arrays = {"weight": np.ones((4, 4), np.float32), "codes": np.ones((4, 4), np.int8), "scales": np.ones((1, 4))}
    path, draw = tmp_path / f"x{kind}", random.Random(0)
    np.savez(path, **arrays) if kind == ".npz" else save_file(arrays, path)
    whole = path.read_bytes()
    found = set()
    for n in range(80):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data[: draw.randrange(len(data))] if n % 4 == 0 else data)
        status = cli.main(["check", str(path), "--bits", "8"])
        assert capsys.readouterr().err.count("\n") == (status == 2)
        found.add(status)
    assert 2 in found
    assert found <= {0, 1, 2}
