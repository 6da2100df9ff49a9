"""Integer functions as C programs: compiled with every warning an error, undefined behaviour trapped, run, compared."""

import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowbit.export.c import harness
from lowbit.export.c.source import CModel, compiled, ports

FLAGS = (
    "-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O1",
    "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error",
)  # fmt: skip


class Found(NamedTuple):
    program: CModel
    outputs: list[np.ndarray]


def ints(seed, *shape, dtype=jnp.int32, low=None, high=None):
    """Random integers, by default of the whole range."""
    limits = jnp.iinfo(dtype)
    rng = np.random.default_rng(seed)
    draw = rng.integers(
        low if low is not None else limits.min, high if high is not None else limits.max, shape, dtype=np.int64
    )
    return jnp.asarray(draw.astype(dtype))


def entries(arrays: Any, word: str) -> list[dict[str, Any]]:
    return [{"name": f"{word}_{i}", "shape": list(a.shape), "dtype": str(a.dtype)} for i, a in enumerate(arrays)]


def written(fn: Any, *args: Any) -> CModel:
    """The C of a function."""
    jaxpr = jax.make_jaxpr(fn)(*args)
    inputs, outputs = ports(entries(args, "x"), entries(jaxpr.out_avals, "y"))
    return compiled(jaxpr, "m", inputs, outputs, {})


def run(fn: Any, *args: Any) -> Found:
    """What the C of a function makes of arguments."""
    program = written(fn, *args)
    wanted = [np.zeros(port.shape, port.dtype) for port in program.outputs]
    case = ([np.asarray(x) for x in args], wanted)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "model.h").write_text(program.header)
        (folder / "model.c").write_text(program.source)
        (folder / "test.c").write_text(harness.program_source("m", program.inputs, program.outputs, [case]))
        made = subprocess.run(
            ["cc", *FLAGS, "model.c", "test.c", "-o", "t"], cwd=folder, capture_output=True, text=True, check=False
        )
        assert made.returncode == 0, made.stderr[:3000]
        printed = subprocess.run([str(folder / "t")], capture_output=True, text=True, check=False)
        assert printed.returncode in (0, 1), (printed.returncode, printed.stderr)
    return Found(program, harness.parsed(printed.stdout, program.outputs, 1)[0])


def check(fn: Any, *args: Any) -> CModel:
    """Asserts that C and JAX agree on every output, and returns the program."""
    found = run(fn, *args)
    fast = {"xla_backend_optimization_level": 0}  # half the time; integers are the same
    wanted = jax.tree.leaves(jax.jit(fn).lower(*args).compile(compiler_options=fast)(*args))
    for got, want in zip(found.outputs, wanted, strict=True):
        np.testing.assert_array_equal(got, np.asarray(want))
    return found.program
