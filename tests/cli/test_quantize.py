"""`lowbit quantize` on a file outside the repository, and its one-line errors."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.cli import main

MODEL = """
import jax, jax.numpy as jnp, numpy as np
from flax import linen as nn

def build():
    rng = np.random.default_rng(0)
    return fn, {"a": jnp.asarray(rng.normal(size=(24, 16)), jnp.float32)}, None

def fn(params, x):
    return x @ params["a"]

def batches():
    rng = np.random.default_rng(1)
    for _ in range(2):
        yield (rng.normal(size=(32, 24)).astype(np.float32),)

def module():
    dense = nn.Dense(4)
    return dense, dense.init(jax.random.key(0), np.zeros((1, 24), np.float32))

def wrong():
    return 3
"""


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "my_model.py"
    path.write_text(MODEL)
    return path


def quantized(model, out, *more, build="build"):
    given = ["quantize", f"{model}:{build}", "--data", f"{model}:batches", "--rules", "w4,a8", "--recipe", "rtn"]
    return main([*given, "--out", str(out), *more])


def test_a_model_in_a_file_becomes_packed_bits_and_a_report(model, tmp_path, capsys):
    out = tmp_path / "out"
    assert quantized(model, out, "--report") == 0
    plan, qparams = lb.load(out / "packed.safetensors")
    assert qparams.params["a"].spec.text == "int4/channel/sym"
    x = np.random.default_rng(2).normal(size=(5, 24)).astype(np.float32)
    y = lb.execute(lambda params, x: x @ params["a"], plan)(qparams, jnp.asarray(x))
    w = np.random.default_rng(0).normal(size=(24, 16)).astype(np.float32)
    assert np.linalg.norm(y - x @ w) < 0.2 * np.linalg.norm(x @ w)
    report = json.loads((out / "report.json").read_text())
    assert report["operations"][0]["path"] == "a"
    assert report["operations"][0]["output_db"] > 15
    page = (out / "report.html").read_text()
    assert "<svg" in page
    assert "Loses most by its own rounding: a." in page
    assert "bits per weight with scales" in capsys.readouterr().out


def test_a_linen_module_with_its_variables(model, tmp_path):
    assert quantized(model, tmp_path / "out", build="module") == 0
    _, qparams = lb.load(tmp_path / "out" / "packed.safetensors")
    assert list(qparams.weights()) == ["kernel"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{m}:nothing", "--data", "{m}:batches", "--rules", "w4"], "has no function 'nothing'; it has batches, build"),
        (["{m}", "--data", "{m}:batches", "--rules", "w4"], "model must be FILE.py:FUNCTION"),
        (["{m}x:build", "--data", "{m}:batches", "--rules", "w4"], "does not exist"),
        (["{m}:wrong", "--data", "{m}:batches", "--rules", "w4"], "it returned int"),
        (["{m}:build", "--data", "{m}:batches", "--rules", "w4", "--recipe", "gtpq"], "recipe 'gtpq' is none of"),
        (["{m}:build", "--data", "{m}:batches", "--rules", "b/*=w4"], "matches no operation"),
        (["{m}:build", "--data", "{m}:batches", "--rules", "w4", "--rules", "w8"], "gives '**' twice"),
    ],
)
def test_wrong_requests_are_one_line_and_status_2(model, tmp_path, capsys, words, message):
    given = [word.format(m=model) for word in words]
    assert main(["quantize", *given, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("lowbit: ")
    assert message in said
