"""The native library: that it runs, that threads do not matter, that it cannot deadlock."""

import concurrent.futures
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from lowbit_kernels import CpuConfig, explain, prepare, quant_matmul, status
from lowbit_kernels.cpu.library import ISAS
from lowbit_kernels.shapes import MatmulShape
from tests.kernels.cases import ACTIVATIONS, inputs, matrix

SHAPE = MatmulShape(67, 512, 200, 64)


def test_the_library_is_built_and_chosen():
    """A missing compiler is legal for a user; in this suite it would hide every native test."""
    assert status().reason == ""
    packed, x = matrix(0, SHAPE, 4, signed=True, affine=False), inputs(0, SHAPE)
    assert "cpu        runs" in explain(x, packed, activation="int8")
    text = jax.jit(lambda x, p: quant_matmul(x, p, activation="int8")).lower(x, packed).as_text()
    assert "lowbit_kernels.cpu.matmul" in text


def test_a_named_instruction_set_runs_or_raises(monkeypatch):
    packed, x = prepare(matrix(0, SHAPE, 4, signed=True, affine=False)), inputs(0, SHAPE)
    isa = status().isas[-1]
    numbers = {
        each: quant_matmul(x, packed, implementation="cpu", config=CpuConfig(isa=each)) for each in status().isas
    }
    assert np.isfinite(numbers[isa]).all()
    text = jax.jit(lambda x, p: quant_matmul(x, p, implementation="cpu", config=CpuConfig(isa="scalar"))).lower(
        x, packed
    )
    (config,) = re.findall(r"config = dense<\[([-\d, ]+)\]>", text.as_text())
    assert config.split(", ")[-2] == str(ISAS.index("scalar"))
    with pytest.raises(ValueError, match="instruction set 'sse9' is unknown"):
        quant_matmul(x, packed, implementation="cpu", config=CpuConfig(isa="sse9"))
    missing = next(each for each in ("neon", "amx") if each not in status().isas)
    with pytest.raises(NotImplementedError, match="does not run here"):
        quant_matmul(x, packed, implementation="cpu", config=CpuConfig(isa=missing))
    monkeypatch.setenv("LOWBIT_KERNELS_ISA", "sse9")
    with pytest.raises(ValueError, match="sse9"):
        quant_matmul(x, packed, implementation="cpu")


@pytest.mark.parametrize("bits", [4, 8])
def test_results_do_not_depend_on_the_thread_count(bits):
    packed, x = prepare(matrix(0, SHAPE, bits, signed=True, affine=True)), inputs(0, SHAPE)
    for activation in (None, ACTIVATIONS["unsigned"]):
        results = [
            quant_matmul(x, packed, activation=activation, implementation="cpu", config=CpuConfig(threads=threads))
            for threads in (1, 2, None)
        ]
        np.testing.assert_array_equal(results[0], results[1])
        np.testing.assert_array_equal(results[0], results[2])


def test_many_concurrent_calls_finish():
    packed, x = prepare(matrix(0, SHAPE, 4, signed=True, affine=False)), inputs(0, SHAPE)
    call = jax.jit(lambda x, p: quant_matmul(x, p, activation="int8", implementation="cpu"))
    expected = np.asarray(call(x, packed))
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for got in pool.map(lambda _: np.asarray(call(x, packed)), range(400), timeout=60):
            np.testing.assert_array_equal(got, expected)


def test_calls_side_by_side_in_one_program_finish():
    packed, x = prepare(matrix(0, SHAPE, 4, signed=True, affine=False)), inputs(0, SHAPE)

    @jax.jit
    def many(x, p):
        return [quant_matmul(x + i, p, activation="int8", implementation="cpu") for i in range(16)]

    for _ in range(10):
        results = jax.block_until_ready(many(x, packed))
    assert len({float(y[0, 0]) for y in results}) > 8


def test_execute_never_holds_a_float_copy_of_the_weight():
    shape = MatmulShape(1, 2048, 2048, 32)
    packed, x = prepare(matrix(0, shape, 4, signed=True, affine=False)), inputs(0, shape)
    compiled = jax.jit(lambda x, p: quant_matmul(x, p, activation="int8")).lower(x, packed).compile()
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < 2048 * 2048 // 4
    assert packed.blocks.nbytes == 2048 * 2048 // 2


def test_the_pure_python_package_says_what_it_lost(tmp_path):
    program = (
        "import lowbit_kernels.cpu.library as library; library.LIBRARY = 'absent.so'\n"
        "import jax.numpy as jnp, lowbit_kernels as lk\n"
        "w = lk.pack_matrix(jnp.array([[1, -2], [3, 4]]), jnp.array([[0.5, 2.0]]), bits=4)\n"
        "print(lk.quant_matmul(jnp.array([[1.0, 1.0]]), w).tolist()); print(lk.explain(jnp.ones((1, 2)), w))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "[[2.0, 4.0]]" in result.stdout
    assert "not built" in result.stdout
