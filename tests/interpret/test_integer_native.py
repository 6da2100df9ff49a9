"""Full-integer plans on the native kernels: the bits of the integer reference, which shares no code with them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lowbit as lb
import lowbit_kernels
from lowbit.packed import fixed_calls

ISAS = lowbit_kernels.status().isas


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_t(4, shape) * 0.5, jnp.float32)


def conv(x, w, layout=("NHWC", "HWIO", "NHWC"), strides=(1, 1), padding="SAME", **options):
    return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=layout, **options)


def mobile(p, x):
    """A stem, a depthwise block with a residual sum, and a head."""
    x = jnp.clip(conv(x, p["stem"], strides=(2, 2)) + p["b"], 0, 6)
    y = jax.nn.relu(conv(x, p["deep"], feature_group_count=20) + p["b"])
    x = conv(y, p["point"]) + p["b"] + x
    return jnp.mean(x, (1, 2)) @ p["head"] + p["c"]


MOBILE = {
    "stem": normal(0, 3, 3, 3, 20), "deep": normal(1, 3, 3, 1, 20), "point": normal(2, 1, 1, 20, 20),
    "head": normal(3, 20, 7), "b": normal(4, 20), "c": normal(5, 7),
}  # fmt: skip


def residual(p, x):
    """Two branches that meet, and a relu after the sum."""
    a, b = conv(x, p["a"]) + p["b"], conv(x, p["s"])
    return conv(jax.nn.relu(a + b), p["t"]) - x


RESIDUAL = {"a": normal(6, 3, 3, 6, 6), "s": normal(7, 1, 1, 6, 6), "t": normal(8, 3, 3, 6, 6), "b": normal(9, 6)}


def first(p, x):
    """Channels before positions, OIHW, groups, dilation, strides, uneven padding."""
    layout = ("NCHW", "OIHW", "NCHW")
    x = jax.nn.relu(conv(x, p["a"], layout, (1, 2), ((1, 2), (0, 1)), rhs_dilation=(2, 1)) + p["b"][:, None, None])
    return conv(x, p["g"], layout, feature_group_count=3)


FIRST = {"a": normal(10, 18, 4, 3, 2), "g": normal(11, 33, 6, 1, 1), "b": normal(12, 18)}


def lines(p, x):
    """One dimension, transposed: positions between those of the input."""
    x = jnp.maximum(conv(x, p["a"], ("NWC", "WIO", "NWC"), (2,), ((1, 1),)) + p["b"], 0)
    return conv(x, p["t"], ("NWC", "WIO", "NWC"), (1,), ((2, 1),), lhs_dilation=(2,))


LINES = {"a": normal(13, 3, 5, 9), "t": normal(14, 3, 9, 17), "b": normal(15, 9)}


def dots(p, x):
    """A weight on either side, transposed, and one that two axes are contracted of."""
    x = jax.nn.relu(x @ p["a"].T + p["b"])
    y = lax.dot_general(p["left"], x, (((0,), (1,)), ((), ())))
    return jnp.einsum("bt,tdn->bdn", y.T, p["heads"])


DOTS = {"a": normal(16, 33, 21), "b": normal(17, 33), "left": normal(18, 33, 12), "heads": normal(19, 12, 3, 5)}

NETS = {
    "mobile": (mobile, MOBILE, normal(20, 2, 12, 10, 3)),
    "residual": (residual, RESIDUAL, normal(21, 3, 5, 6, 6)),
    "first": (first, FIRST, normal(22, 2, 4, 9, 8)),
    "lines": (lines, LINES, normal(23, 2, 11, 5)),
    "dots": (dots, DOTS, normal(24, 19, 21)),
}


RULES = {
    "w8": ({"**": "w8,a8"}, "exact"),
    "w4": ({"**": "w4,a8"}, "tflite_single"),
    "w3": ({"**": "w3,a5"}, "gemmlowp_double"),
    "affine": ({"left": "w8,a8", "**": "w8/affine,a8"}, "exact"),
}


@functools.cache
def packed(name: str, rule: str = "w8"):
    (fn, params, x), (rules, rounding) = NETS[name], RULES[rule]
    plan = lb.bind(fn, rules, params, x, integer=True, rounding=rounding)
    return fn, plan, lb.pack(plan, params, lb.calibrate(fn, plan, params, [(x,)])), x * 1.2


def reference(fn, plan, qparams, x) -> np.ndarray:
    return np.asarray(lb.execute(fn, plan, implementation="reference")(qparams, x))


CASES = [("mobile", "w8"), ("mobile", "w3"), ("residual", "w4"), ("first", "w8"), ("lines", "w3"), ("dots", "affine")]


@pytest.mark.parametrize(("name", "rule"), CASES)
def test_bits_are_those_of_the_reference(name, rule) -> None:
    fn, plan, qparams, x = packed(name, rule)
    want = reference(fn, plan, qparams, x)
    assert len(np.unique(want)) > 4
    told = [line.split()[1] for line in lb.explain(fn, plan, qparams, x).splitlines()]
    assert told == ["cpu"] * len(plan.rows)
    np.testing.assert_array_equal(np.asarray(lb.execute(fn, plan)(qparams, x)), want)
    np.testing.assert_array_equal(
        np.asarray(lb.execute(fn, plan, implementation="cpu")(qparams, x[:1])), reference(fn, plan, qparams, x[:1])
    )


@pytest.mark.parametrize("name", ["mobile", "first", "dots"])
def test_every_instruction_set_gives_them(name, monkeypatch) -> None:
    fn, plan, qparams, x = packed(name)
    want = reference(fn, plan, qparams, x)
    for isa in ISAS:
        monkeypatch.setenv("LOWBIT_KERNELS_ISA", isa)  # read when a call is traced
        mine = lambda p, x: fn(p, x)  # noqa: E731 (another function: nothing is traced yet)
        np.testing.assert_array_equal(np.asarray(lb.execute(mine, plan)(qparams, x)), want, err_msg=isa)


def test_under_jit_vmap_and_scan() -> None:
    fn, plan, qparams, x = packed("mobile")
    want, run = reference(fn, plan, qparams, x), lb.execute(fn, plan)
    closed = jax.jit(lambda x: run(qparams, x))
    assert "lowbit_kernels.cpu.fixed" in closed.lower(x).as_text()
    np.testing.assert_array_equal(np.asarray(closed(x)), want)
    np.testing.assert_array_equal(np.asarray(jax.vmap(lambda x: run(qparams, x[None])[0])(x)), want)
    _, scanned = lax.scan(lambda carry, x: (carry, run(qparams, x[None])[0]), 0, x)
    np.testing.assert_array_equal(np.asarray(scanned), want)


@pytest.mark.parametrize(("name", "calls"), [("mobile", 3), ("first", 2), ("dots", 0)])
def test_traced_weights_are_ordered_in_the_call(name, calls) -> None:
    """Convolutions run on the kernels; dots of so few rows stay in XLA. Both say so, and a warning does."""
    fn, plan, qparams, x = packed(name)
    told = []

    @jax.jit
    def outer(qparams, x):
        told.append(lb.explain(fn, plan, qparams, x))
        return lb.execute(fn, plan)(qparams, x)

    with pytest.warns(UserWarning, match=r"every call .* close over qparams"):
        lowered = outer.lower(qparams, x)
    assert lowered.as_text().count("@lowbit_kernels.cpu.fixed_conv") == calls
    np.testing.assert_array_equal(np.asarray(lowered.compile()(qparams, x)), reference(fn, plan, qparams, x))
    lines = {line.split()[0]: line for line in told[0].splitlines()}
    for row in plan.rows:
        is_conv = row.primitive == "conv_general_dilated"
        assert lines[row.path].split()[1] == ("cpu" if is_conv else "carried")
        assert ("in every call: let" if is_conv else "for few rows") in lines[row.path]


def test_traced_weights_of_many_rows_and_of_many_models() -> None:
    fn, params, x = lambda p, x: jax.nn.relu(x @ p["a"] + p["b"]) @ p["c"], None, normal(40, 67, 9)
    params = {"a": normal(41, 9, 20), "b": normal(42, 20), "c": normal(43, 20, 5)}
    plan = lb.bind(fn, {"**": "w4/affine,a8"}, params, x, integer=True)
    models = [jax.tree.map(lambda w, k=k: w * k, params) for k in (1.0, 0.7)]
    each = [lb.pack(plan, p, lb.calibrate(fn, plan, p, [(x,)])) for p in models]
    run, want = lb.execute(fn, plan), [reference(fn, plan, q, x) for q in each]
    with pytest.warns(UserWarning, match="a, c: packed weights"):
        lowered = jax.jit(run).lower(each[0], x)
    assert lowered.as_text().count("@lowbit_kernels.cpu.fixed_matmul") == 2
    np.testing.assert_array_equal(np.asarray(lowered.compile()(each[0], x)), want[0])
    with pytest.warns(UserWarning, match="a, c: packed weights"):
        both = jax.vmap(run, in_axes=(0, None))(jax.tree.map(lambda *q: jnp.stack(q), *each), x)
    np.testing.assert_array_equal(np.asarray(both), np.stack(want))


def test_a_sum_is_part_of_a_call() -> None:
    """Three products and their sums: three calls, and no addition of codes beside them."""
    fn, plan, qparams, x = packed("residual")
    assert sum(step.kind == "add" for step in plan.steps) == 2
    run = lb.execute(fn, plan)
    text = jax.jit(lambda x: run(qparams, x)).lower(x).as_text()
    assert text.count("@lowbit_kernels.cpu.fixed_conv") == 3
    assert text.count("stablehlo.add") <= 1  # the zero point of the input


def test_new_weights_are_seen() -> None:
    fn, plan, qparams, x = packed("dots")
    run = lb.execute(fn, plan)
    before = np.asarray(run(qparams, x))
    params = {**DOTS, "b": DOTS["b"] + 1}
    other = lb.pack(plan, params, lb.calibrate(fn, plan, params, [(x,)]))
    after = np.asarray(run(other, x))
    assert not np.array_equal(before, after)
    np.testing.assert_array_equal(after, reference(fn, plan, other, x))
    np.testing.assert_array_equal(np.asarray(run(qparams, x)), before)


def test_what_cannot_run_says_why() -> None:
    fn = lambda p, x: jnp.einsum("bik,bkj->bij", x @ p["w"], x @ p["w"])  # noqa: E731
    params, x = {"w": normal(30, 6, 4)}, normal(31, 2, 4, 6)
    plan = lb.bind(fn, {"**": "w8,a8"}, params, x, integer=True)
    qparams = lb.pack(plan, params, lb.calibrate(fn, plan, params, [(x,)]))
    told = lb.explain(fn, plan, qparams, x).splitlines()
    assert [line.split()[1] for line in told] == ["cpu", "cpu", "carried"]
    assert "both operands are computed" in told[2]
    np.testing.assert_array_equal(np.asarray(lb.execute(fn, plan)(qparams, x)), reference(fn, plan, qparams, x))
    with pytest.raises(ValueError, match=r"cannot run .*both operands"):
        lb.execute(fn, plan, implementation="cpu")(qparams, x)


def test_a_gradient_is_refused_as_on_every_route() -> None:
    fn, plan, qparams, x = packed("dots")
    with pytest.raises(ValueError, match="no derivative"):
        jax.grad(lambda x: lb.execute(fn, plan)(qparams, x).sum())(x)


def test_without_the_library_xla_runs_them(monkeypatch) -> None:
    monkeypatch.setattr(fixed_calls, "status", lambda: "not built")
    fn, plan, qparams, x = packed("mobile")
    mine = lambda p, x: fn(p, x)  # noqa: E731
    assert "not built" in lb.explain(mine, plan, qparams, x)
    np.testing.assert_array_equal(np.asarray(lb.execute(mine, plan)(qparams, x)), reference(fn, plan, qparams, x))
