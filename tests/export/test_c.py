"""The C form: packed weights, memory, refusals, whole models through `verify`."""

import dataclasses
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import lowbit as lb
from lowbit.export import forms, verify
from lowbit.export.c import arena, graph, schedule, simplify
from lowbit.export.c import write as c
from lowbit.export.c.run import run_cases
from lowbit.export.c.source import ports
from lowbit.export.reading import read_bundle
from lowbit.targets.table import TARGETS
from tests.values import normal

from . import c_programs, cases
from .c_programs import ints
from .cases import signed

# ---- constants and memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "bits"), [(jnp.int2, 2), (jnp.int4, 4), (jnp.int8, 8)])
def test_weights_take_their_bits(dtype, bits):
    limits = jnp.iinfo(dtype)
    w = ints(12, 33, 7, dtype=jnp.int8, low=limits.min, high=limits.max + 1).astype(dtype)

    def fn(x):
        wide = {"preferred_element_type": jnp.int32}
        return lax.dot_general(x, w.astype(jnp.int8), (((1,), (0,)), ((), ())), **wide), w.astype(jnp.int32).T[2:5] + x[
            :1, :1
        ].astype(jnp.int32)

    program = c_programs.check(fn, ints(13, 2, 33, dtype=jnp.int8).astype(jnp.int8))
    kind = "int8_t" if bits == 8 else "uint8_t"
    assert f"const {kind} m_c0[{-(-33 * 7 * bits // 8)}]" in program.source
    assert program.constant_bytes == -(-33 * 7 * bits // 8)
    assert "float" not in program.source
    assert "double" not in program.source


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 12), st.integers(0, 5)), min_size=1, max_size=24))
@settings(deadline=None, max_examples=200)
def test_no_two_live_buffers_overlap(drawn):
    values = [graph.Value("x", (size,), jnp.dtype(jnp.int8)) for size, _, _ in drawn]
    buffers = [schedule.Buffer("arena", i, value) for i, value in enumerate(values)]
    live = {b: arena.Span(first, first + more) for b, (_, first, more) in zip(buffers, drawn, strict=True)}
    end = arena.place({b: b.value.bytes for b in buffers}, live)
    rounded = sum(-(-b.value.bytes // arena.ALIGNMENT) * arena.ALIGNMENT for b in buffers)
    assert max(b.value.bytes for b in buffers) <= end <= rounded
    for i, a in enumerate(buffers):
        assert a.offset % arena.ALIGNMENT == 0
        assert a.offset + a.value.bytes <= end
        for b in buffers[:i]:
            is_apart = a.offset + a.value.bytes <= b.offset or b.offset + b.value.bytes <= a.offset
            assert is_apart or not live[a].overlaps(live[b])


def test_memory_is_used_again():
    weights = [ints(14 + i, 64, 64, dtype=jnp.int8) for i in range(6)]

    def fn(x):
        for w in weights:
            y = lax.dot_general(x, w, (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32)
            x = jnp.clip(y >> 9, -128, 127).astype(jnp.int8)
        return x

    program = c_programs.check(fn, ints(30, 3, 64, dtype=jnp.int8))
    assert program.arena_bytes == 2 * 3 * 64  # five buffers, never more than two at a time


def test_a_chain_has_no_wide_buffer():
    def fn(x):
        k = ints(15, 3, 3, 2, 4, dtype=jnp.int8)
        conv = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "preferred_element_type": jnp.int32}
        for _ in range(2):
            y = lax.conv_general_dilated(
                lax.pad(x, jnp.int8(3), [(0, 0, 0), (1, 1, 0), (1, 1, 0), (0, 0, 0)]), k, (1, 1), "VALID", **conv
            )
            x = jnp.clip((y * 5 + 1) >> 8, -128, 127).astype(jnp.int8)
            x = lax.reduce_window(x, np.int8(-128), lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")[..., :2]
        return x

    closed = jax.make_jaxpr(fn)(ints(16, 1, 8, 8, 2, dtype=jnp.int8))
    found = graph.read_integers(closed)
    simplify.simplify(found)
    buffers = schedule.Scheduler(found).buffers.values()
    assert [b.value.dtype for b in buffers if b.kind == "arena"] == [jnp.int8]


# ---- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x: lax.sort(x), r"cannot hold 'sort' \(int32\[6\], test_c\.py:\d+\)"),
        (lambda x: jnp.sin(x.astype(jnp.float32)), "holds integers only, and the result of .* is float32"),
        (lambda x: x.at[x].get(mode="fill", fill_value=0), "gather that fills"),
        (lambda x: lax.cond(x[0] > 0, lambda x: x + 1, lambda x: x * 2, x), "cannot hold 'cond'"),
    ],
)
def test_what_has_no_c_is_refused(fn, message):
    with pytest.raises(ValueError, match=message):
        c_programs.written(fn, jnp.arange(6, dtype=jnp.int32))


def test_plans_that_are_not_integer_are_refused(tmp_path):
    fn, params, x = (lambda p, x: x @ p["w"]), {"w": jnp.eye(8)}, jnp.ones((2, 8))
    plan, qparams = cases.packed(fn, {"**": "w4,a8"}, params, x)
    with pytest.raises(ValueError, match=r"integer=True"):
        lb.export(fn, plan, qparams, (x,), tmp_path / "b", targets=["c"])


def test_names_are_legal_and_unique():
    entries = [{"name": name, "shape": [2], "dtype": "int8"} for name in ("state/h", "int", "x", "state_h", "i1", "0")]
    inputs, outputs = ports(entries, entries[:1] + entries[2:3])
    names = [p.name for p in (*inputs, *outputs)]
    assert names == ["state_h", "in_int", "x", "in_state_h", "in_i1", "in_0", "out_state_h", "out_x"]


# ---- whole models ------------------------------------------------------------------------------------------------


def _two(params, x, state):
    hidden = jnp.tanh(x @ params["x"] + state["hidden"] @ params["h"])
    return {"out": jax.nn.relu(hidden @ params["o"]), "state": {"hidden": hidden}}


def _dense():
    rng = np.random.default_rng(0)
    shapes = {"x": (12, 9), "h": (9, 9), "o": (9, 5)}
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    x, state = (jnp.asarray(rng.uniform(-1.0, 1.0, shape), jnp.float32) for shape in ((2, 12), (2, 9)))
    args = (x, {"hidden": state})
    plan = lb.bind(_two, {"**": "w4,a8"}, params, *args, integer=True)
    return plan, lb.pack(plan, params, lb.init(_two, plan, params, *args)), args


def test_a_bundle_is_verified_in_c(tmp_path, monkeypatch):
    plan, qparams, args = _dense()
    kept, write = [], forms.write_form
    monkeypatch.setattr(forms, "write_form", lambda form, lowered: kept.append(lowered) or write(form, lowered))
    bundle = lb.export(_two, plan, qparams, args, tmp_path / "b", integer_io=True, targets=["c"])
    with pytest.raises(ValueError, match="the C form takes and gives codes: export with integer_io=True"):
        c.write(dataclasses.replace(kept[0], has_integer_io=False))

    assert bundle.manifest["forms"] == {"c": ["c/model.c", "c/model.h", "c/test.c"]}
    (row,) = verify.verify(bundle.path, ["c"], run_code=True).rows
    assert (row.status, row.difference, row.bits_per_weight) == ("exact", 0.0, pytest.approx(4.0, abs=0.1))
    assert 0 < row.measured["ram_bytes"] < 1000
    assert row.measured["flash_bytes"] > row.measured["ram_bytes"]
    header = (bundle.path / "c" / "model.h").read_text()
    assert (
        "int lowbit_run(const int8_t *x, const int8_t *state_hidden, int8_t *out, int8_t *out_state_hidden);" in header
    )
    scale, zero = bundle.manifest["inputs"][0]["scale"], bundle.manifest["inputs"][0]["zero_point"]
    assert f"x  int8_t[2, 12]: value = {scale!r} * (code - {zero})".replace("- -", "+ ") in header
    assert "of these 118 for 234 weights, 4.03 bits each" in header
    command = ["cc", *c_programs.FLAGS, "model.c", "test.c", "-o", str(tmp_path / "t")]
    subprocess.run(command, cwd=bundle.path / "c", check=True)
    said = subprocess.run([str(tmp_path / "t")], capture_output=True, text=True, check=True).stdout
    assert said.endswith("out: 0 of 10 mismatches\nout_state_hidden: 0 of 18 mismatches\n")

    inputs, outputs = bundle.vectors()
    others = [np.full_like(x, 7) for x in inputs]
    found = run_cases(bundle, [inputs, others, inputs], "c").outputs  # the program is not asked what was expected
    for got, want in zip(found[0], outputs, strict=True):
        np.testing.assert_array_equal(got, want)
    assert not np.array_equal(found[1][0], outputs[0])
    np.testing.assert_array_equal(found[2][1], outputs[1])

    source = bundle.path / "c" / "model.c"  # what the program really holds and computes is what is read
    text = source.read_text()
    assert "const uint8_t lowbit_x[54] = {" in text
    source.write_text(text.replace("lowbit_x[54]", "lowbit_x[108]"))  # the same numbers, and as many zeros
    signed(bundle.path, files=["c/model.c"])
    (row,) = verify.verify(bundle.path, ["c"], run_code=True).rows
    assert (row.status, row.difference) == ("inflated", 0.0)
    assert row.detail == "at least 108 weights take more than the 4 bits that hold them"
    source.write_text(text.replace("127)", "3)"))
    bundle = read_bundle(signed(bundle.path, files=["c/model.c"]))
    assert not np.array_equal(run_cases(bundle, [inputs], "c").outputs[0][1], outputs[1])
    source.write_text("#error broken\n")
    bundle = read_bundle(signed(bundle.path, files=["c/model.c"]))
    with pytest.raises(ValueError, match=r"cc ended with 1: .*broken"):
        run_cases(bundle, [inputs], "c")
    target = dataclasses.replace(TARGETS["c"], programs=("cc", "no-such-compiler"))
    monkeypatch.setattr(verify, "lookup", lambda names: (target,))
    (row,) = verify.verify(bundle.path, ["c"], run_code=True).rows
    assert (row.status, row.detail) == ("not run", "no-such-compiler is not installed: apt install gcc")


def test_weights_of_the_same_codes_in_another_order_keep_their_names(tmp_path):
    params = {"a": jnp.array([[1.0, -1.0], [1.0, 1.0]]), "b": jnp.array([[1.0, 1.0], [1.0, -1.0]])}
    x = normal(0, 3, 2)

    def fn(params, x):
        return jax.nn.relu(x @ params["a"]) @ params["b"]

    plan = lb.bind(fn, {"**": "w8,a8"}, params, x, integer=True)
    qparams = lb.pack(plan, params, lb.init(fn, plan, params, x))
    bundle = lb.export(fn, plan, qparams, (x,), tmp_path / "model", integer_io=True, targets=["c"])
    text = (bundle.path / "c" / "model.c").read_text()
    assert [f"/* {name}: [2, 2], 8 bits */" in text for name in "ab"] == [True, True]


def test_a_row_of_equal_rows_needs_no_index(tmp_path):
    table = jnp.tile(jnp.array([[1.0, -2.0, 0.5]]), (5, 1))
    params = {"table": table, "w": normal(1, 3, 4)}
    row, x = jnp.int32(3), normal(0, 2, 3)

    def fn(params, x, row):
        return (x + params["table"][row]) @ params["w"]

    plan = lb.bind(fn, {"**": "w8,a8"}, params, x, row, integer=True)
    qparams = lb.pack(plan, params, lb.init(fn, plan, params, x, row))
    bundle = lb.export(fn, plan, qparams, (x, row), tmp_path / "model", integer_io=True, targets=["c"])
    (found,) = [each for each in verify.verify(bundle.path, run_code=True).rows if each.target == "c"]
    assert found.status == "exact", found.detail


@pytest.mark.parametrize("least", [-0.5, -1.0, -7.0])
def test_a_weight_of_one_input_is_stored_once(least, tmp_path):
    """The correction for its input's zero point is the weight's sum over one input: itself, times the zero point."""
    params = {"w": normal(0, 2, 1, 6)}
    x = jnp.linspace(least, 7.0, 6).reshape(3, 2)

    def fn(params, x):
        return jnp.einsum("bpi,pio->bpo", x[..., None], params["w"])

    plan = lb.bind(fn, {"**": "w8,a4"}, params, x, integer=True)
    qparams = lb.pack(plan, params, lb.calibrate(fn, plan, params, [(x,)]))
    bundle = lb.export(fn, plan, qparams, (x,), tmp_path / "model", integer_io=True, targets=["c"])
    (row,) = verify.verify(bundle.path, ["c"], run_code=True).rows
    assert (row.status, row.bits_per_weight) == ("exact", 8.0), row.detail
