"""Every public function of `lowbit_kernels`, called wrongly: as in `test_wrong_calls.py`, for a package that takes arrays and numbers.

Every parameter has one right value below. What is wrong follows from its kind: another type, another dtype, a list, a length, a
field of a packed weight that does not fit the others.
"""

import dataclasses
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lowbit_kernels as lk

from .answers import Call, Wrong, answers

PACKAGE = str(Path(lk.__file__).parent)


def right() -> dict[str, dict[str, Any]]:
    """Of every function every parameter."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((3, 8)), jnp.float32)
    image = jnp.asarray(rng.standard_normal((2, 5, 6, 4)), jnp.float32)
    codes = jnp.asarray(rng.integers(-8, 8, (8, 5)), jnp.int8)
    kernel = jnp.asarray(rng.integers(-8, 8, (3, 3, 4, 5)), jnp.int8)
    table = jnp.asarray(rng.uniform(0.5, 1.0, (2, 5)), jnp.float32)
    one = jnp.asarray(rng.uniform(0.5, 1.0, (1, 5)), jnp.float32)
    packed = lk.pack_matrix(codes, table, bits=4, group=4)
    conv = lk.pack_conv(kernel, one[0], bits=4)
    grid = lk.StaticActivation(jnp.float32(0.05), jnp.int32(3))
    steps = lk.prepare_steps([("add", one[0]), ("residual", None), ("max", 0.0)], 5)
    rows = lk.pack_table(codes, jnp.ones((8, 1), jnp.float32), bits=4)
    call = {"x": x, "packed": packed, "activation": "int8", "out_dtype": "float32", "implementation": "cpu", "platform": "cpu"}  # fmt: skip
    after = {"steps": steps, "emit": grid, "keep": True}
    window = {
        "x": image, "packed": conv, "activation": grid, "strides": (1, 1), "padding": "SAME", "rhs_dilation": (1, 1),
        "feature_group_count": 1, "out_dtype": "float32", "layout": "NHWC", "implementation": "cpu", "config": lk.CpuConfig(),
        "keeps_nan": False,
    }  # fmt: skip
    return {
        "explain": call,
        "largest_group": {"bits": 4, "signed": True, "affine": False},
        "quant_matmul": call | {"config": lk.CpuConfig()},
        "quant_sums": {"codes": jnp.asarray(rng.integers(-9, 9, (3, 8)), jnp.int8),
                       "packed": lk.pack_matrix(codes, one, bits=4), "zero": 1, "implementation": "xla", "platform": "cpu"},
        "pack_conv": {"codes": kernel, "scales": one[0], "bits": 4, "signed": True, "layout": "HWIO"},
        "prepare_conv": {"packed": conv, "feature_group_count": 1},
        "quant_conv": window,
        "status": {},
        "prepare": {"packed": packed, "column_sums": True},
        "restore": {"prepared": lk.prepare(packed)},
        "fused_conv": {n: v for n, v in window.items() if n != "out_dtype"} | after
        | {"by_channel": False, "residual": jnp.ones((2, 5, 6, 5), jnp.float32)},
        "fused_matmul": {n: v for n, v in call.items() if n not in ("out_dtype", "platform")} | after
        | {"config": lk.CpuConfig(), "keeps_nan": False, "x_columns": False, "y_columns": False,
           "residual": jnp.ones((3, 5), jnp.float32)},
        "prepare_steps": {"steps": [("add", one[0])], "out": 5, "feature_group_count": 1},
        "gather_rows": {"table": rows, "ids": jnp.array([1, 0]), "out_dtype": "float32"},
        "pack_table": {"codes": codes, "scales": jnp.ones((8, 2), jnp.float32), "bits": 4, "group": 3,
                       "zeros": jnp.ones((8, 2), jnp.int8), "signed": True},
        "code_range": {"bits": 4, "signed": True},
        "pack_codes": {"codes": codes, "bits": 4, "axis": -2},
        "packed_length": {"length": 9, "bits": 3},
        "unpack_codes": {"packed": packed.codes, "bits": 4, "length": 8, "axis": -2, "signed": True},
        "dequantize_conv": {"packed": conv},
        "dequantize_matrix": {"packed": packed},
        "pack_matrix": {"codes": codes, "scales": table, "bits": 4, "group": 4, "zeros": jnp.ones((2, 5), jnp.int8), "signed": True,
                        "codebook": None, "factors": None},
        "quantize_dynamic": {"x": x},
        "quantize_fp8": {"x": x},
        "quantize_static": {"x": x, "activation": grid},
        "rounded_product": {"a": x, "b": x},
        "scale_groups": {"acc": jnp.asarray(rng.integers(-99, 99, (2, 3, 5)), jnp.int32), "scales": table},
    }  # fmt: skip


ODD = (("an object", object()), ("text", "odd"), ("a fraction", 1.5), ("a list", [[1.0]]), ("a dict", {}))

FIELDS = {
    lk.PackedMatrix: {"codes": [[1]], "scales": None, "bits": 9, "signed": "yes", "length": -1, "group": 1.5},
    lk.PackedConv: {"codes": [[1]], "scales": None, "bits": "4", "signed": 2, "kernel": (3, 3, 4), "axis": 7},
    lk.PackedTable: {"codes": None, "scales": [[1.0]], "bits": True, "signed": None, "width": 0, "group": -3},
    lk.PreparedMatrix: {"blocks": [[1]], "scales": None, "column_sums": [1], "bits": 0, "signed": "no", "length": 1.5, "group": 0, "out": -5},
    lk.Steps: {"table": [[1.0]], "kinds": ("zz", "add"), "numbers": (None,), "out": 4, "groups": 0},
    lk.StaticActivation: {"scale": "odd", "zero": 1.5, "lo": -129, "hi": 1.5},
    lk.CpuConfig: {"isa": "odd", "threads": 1.5},
}  # fmt: skip
"""Of what holds several values, one wrong value a field."""


def wrong(function: str, name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Values of the same parameter that must be refused."""
    default = inspect.signature(getattr(lk, function)).parameters.get(name)
    may_be_none = default is None or default.default is None  # `**geometry` has its defaults in another signature
    if not may_be_none:
        yield "None", None
    if isinstance(value, jax.Array):
        yield from (each for each in ODD if each[0] != "a fraction" or name not in ("a", "b"))
        yield "complex numbers", value.astype(jnp.complex64)
        yield "booleans", value > 0
        yield "a PackedMatrix", lk.pack_matrix(jnp.ones((2, 2), jnp.int8), jnp.ones((1, 2), jnp.float32), bits=4)
        if not jnp.issubdtype(value.dtype, jnp.floating):
            yield "floats", value.astype(jnp.float32)
        if (function, name) not in ((f, n) for f in ANY_LENGTH for n in ANY_LENGTH[f]):
            yield "one fewer", value[..., :-1]
            yield "one number", value.reshape(-1)[0]
    elif isinstance(value, bool):
        yield from (*ODD, ("a number", 1), ("an array", jnp.array([True])))
    elif isinstance(value, int):
        yield from (*ODD, ("below", -99), ("a flag", True), ("an array", jnp.arange(2)))
        if name != "zero":
            yield "beyond", 1 << 70
    elif dataclasses.is_dataclass(value):
        yield from (each for each in ODD if (name, each[0]) != ("zero", "a fraction"))
        for field, bad in FIELDS[type(value)].items():
            yield f"one of {field} {bad!r:.20}", dataclasses.replace(value, **{field: bad})
    elif name == "steps":
        yield from (*ODD, ("numbers", [1, 2]), ("an odd kind", [("zz", 1.0)]), ("an odd operand", [("add", "text")]))
        yield from (("a triple", [("add", 1.0, 2.0)]), ("a wide operand", [("add", jnp.ones(6, jnp.float32))]))
    elif name in ("strides", "rhs_dilation", "padding"):
        yield from (
            *ODD,
            ("too many", (1, 1, 1)),
            ("fractions", (1.5, 1.5)),
            ("texts", ("a", "b")),
            ("flags", (True, True)),
        )
        if name != "padding":
            yield from (("none", ()), ("a zero", (1, 0)))
        else:
            yield from (("a pair", ((1, 1),)), ("triples", ((1, 1, 1), (1, 1, 1))), ("halves", ((0.5, 1), (1, 1))))
    elif name == "out_dtype":
        yield from (*ODD, ("integers", "int8"), ("wide", "float64"), ("complex", jnp.complex64))
    elif isinstance(value, str):
        yield from (*ODD, ("a number", 3), ("nothing", ""))
    elif name in ("codebook", "factors"):
        yield from (*ODD, ("booleans", np.ones((2, 5), bool)), ("one number", np.float32(1)))


ANY_LENGTH = {
    "pack_codes": ("codes",), "quantize_dynamic": ("x",), "quantize_fp8": ("x",), "quantize_static": ("x",),
    "gather_rows": ("ids",),
}  # fmt: skip
"""Arrays that may have any length."""

LEGAL = {
    ("quant_sums", "zero", "below"), ("packed_length", "length", "beyond"),
    ("pack_table", "codes", "one fewer"),  # a short last group
    ("unpack_codes", "packed", "one fewer"),  # a column
    ("rounded_product", "a", "one number"), ("rounded_product", "b", "one number"),
    ("fused_matmul", "residual", "one fewer"), ("fused_conv", "residual", "one fewer"),  # channels: zeros stand for those it has not
}  # fmt: skip
"""What is wrong elsewhere and right here."""

NAMES = {"packed": "packed|PackedMatrix|PackedConv|PreparedMatrix", "prepared": "prepared|PreparedMatrix", "table": "table|PackedTable",
         "activation": "activation|StaticActivation", "config": "config|CpuConfig|instruction set", "steps": "[sS]teps?",
         "emit": "emit|StaticActivation"}  # fmt: skip


def calls() -> dict[str, Call]:
    """A right call of every public function."""
    return {name: Call(name, getattr(lk, name), given) for name, given in right().items()}


def test_every_parameter_has_a_right_value():
    public = {
        name: value
        for name, value in vars(lk).items()
        if not name.startswith("_") and callable(value) and not inspect.isclass(value)
    }
    assert set(public) == set(right())
    for name, given in right().items():
        kinds = inspect.signature(public[name]).parameters.values()
        assert {p.name for p in kinds if p.kind is not p.VAR_KEYWORD} <= set(given), name


def found_wrong() -> tuple[int, str]:
    """How many wrong calls were made, and those that were not answered as they should be."""
    made = [
        Wrong(call, name, what, bad)
        for call in calls().values()
        for name, value in call.given.items()
        for what, bad in wrong(call.name, name, value)
        if (call.name, name, what) not in LEGAL
    ]
    return len(made), answers(made, PACKAGE, NAMES)


def main() -> None:
    for call in calls().values():
        for name, value in list(call.given.items())[:1]:
            call.made(name, value)
    tried, text = found_wrong()
    print(f"{tried} wrong calls\n{text}")
    sys.exit(bool(text) or tried < 600)


def test_every_wrong_call_is_answered():
    """In a process of its own, as users have it: in this one, annotations are checked as well (tests/conftest.py)."""
    code = "from tests.api.test_wrong_kernel_calls import main; main()"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
