"""What a rule for all layers passes over, what no rule can be about, and that the plan shows both."""

import ast
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import sparse
from jax.extend import core as jex
from jax.interpreters import mlir

import lowbit as lb
from lowbit.plan.serial import from_json, to_json
from tests.values import normal

P = {"w": normal(0, 8, 8)}
MASK = jnp.array([1, 0, 1], jnp.int32)
SCALES = jnp.array([0.5, 2.0])


def _served(fn, rules, params, *args):
    plan = lb.bind(fn, rules, params, *args)
    qparams = lb.pack(plan, params, lb.init(fn, plan, params, *args))
    return np.asarray(lb.execute(fn, plan)(qparams, *args)), plan


def _quantized(w):
    w = np.asarray(w, np.float64)
    step = (np.abs(w).max(0).astype(np.float32) * np.float32(1 / 127)).astype(np.float64)
    return np.round(w / step) * step


def test_products_of_integers_are_left_as_they_are():
    def fn(p, x, mask):
        both = jnp.einsum("i,j->ij", mask, mask) + jnp.einsum("ij,jk->ik", mask[:, None] * MASK, jnp.eye(3, dtype=int))
        return jnp.where(both[:, :1] > 0, x @ p["w"], 0.0)

    x, mask = normal(1, 3, 8), jnp.array([0, 1, 1], jnp.int32)
    got, plan = _served(fn, {"**": "w8"}, P, x, mask)
    assert {row.path: row.is_quantized for row in plan} == {"w": True, "dot_0": False, "constant_0": False}
    assert "not for int32" in plan["dot_0"].rule
    assert "of integers, left as they are: dot_0, constant_0" in str(plan)
    both = np.outer(mask, mask) + np.outer(mask, MASK)
    truth = np.where(both[:, :1] > 0, np.asarray(x, np.float64) @ _quantized(P["w"]), 0.0)
    np.testing.assert_allclose(got, truth, atol=1e-5)
    with pytest.raises(ValueError, match=r"dot_0 .*: only float operands can be quantized, its lhs is int32"):
        lb.bind(fn, {"dot_0": "w8,a8", "**": "w8"}, P, x, mask)


def test_complex_parameters_are_named_and_left_as_they_are():
    """A product, a factor and a table of complex numbers; what is made real of one is a weight again."""

    def fn(p, x):
        h = jnp.fft.ifft(jnp.fft.fft(x) * p["filter"]).real @ p["w"]
        return h + jnp.abs(h.astype(jnp.complex64) @ p["c"]) + p["table"][jnp.argmax(x, 1)].imag + h @ p["c"].real

    c = lax.complex(normal(5, 8, 8), normal(6, 8, 8))
    params, x = {**P, "c": c, "filter": c[0], "table": c[1:4]}, normal(1, 3, 8)
    got, plan = _served(fn, {"**": "w8"}, params, x)
    assert {row.path: row.rule.split(": ")[-1] for row in plan if not row.is_quantized} == {
        "c@0": "not for complex64",
        "table": "not for complex64",
    }
    (leaf,) = plan.uncovered
    assert (leaf.path, leaf.nbytes) == ("filter", 64)
    assert leaf.uses[0].startswith("mul test_bind_coverage.py")
    with pytest.raises(ValueError, match=r"c@0 .*only float operands can be quantized"):
        lb.bind(fn, {"c": "w8", "**": "keep"}, params, x)
    h = np.fft.ifft(np.fft.fft(np.asarray(x, np.float64)) * np.asarray(c[0])).real @ _quantized(P["w"])
    table = np.asarray(c[1:4])[np.argmax(np.asarray(x), 1).clip(0, 2)].imag
    truth = h + np.abs(h @ np.asarray(c)) + table + h @ _quantized(c.real)
    np.testing.assert_allclose(got, truth, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"integer=True cannot place real \(test_bind_coverage.py:\d+\)"):
        lb.bind(fn, {"**": "w8,a8"}, params, x, integer=True)


@pytest.mark.parametrize("rules", ["w8,a8", "w4/g4", "w4/g4,a8/dynamic"])
def test_products_without_a_contraction_are_left_in_float(rules):
    """The mask of heads that Hugging Face's Flax models multiply with, and an outer product of activations."""

    def fn(p, x):
        h = x @ p["w"]
        return jnp.einsum("hqk,h->hqk", jnp.stack([h, h]), SCALES), jnp.einsum("qk,h->qkh", h, h[0])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = lb.bind(fn, {"**": rules}, P, normal(1, 3, 8))
    assert [row.path for row in plan.quantized] == ["w"]
    assert sum("no contraction" in row.rule for row in plan) == 2
    named = lb.bind(fn, {"constant_0": "w8", "**": rules}, P, normal(1, 3, 8))
    assert [row.path for row in named.quantized] == ["w", "constant_0"]


def test_a_constant_needs_a_rule_of_its_own():
    blur = jnp.ones((3, 3, 1, 8)) / 9

    def fn(p, x):
        dims = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x @ p["w"], blur, (1, 1), "SAME", dimension_numbers=dims, feature_group_count=8)

    x = normal(1, 1, 4, 4, 8)
    with pytest.warns(UserWarning, match=r"constant_0: .* closed over.* left in float"):
        got, plan = _served(fn, {"**": "w8"}, P, x)
    assert [row.path for row in plan.quantized] == ["w"]
    assert "its weight is a constant" in plan["constant_0"].rule
    h = np.pad(np.asarray(x, np.float64)[0] @ _quantized(P["w"]), ((1, 1), (1, 1), (0, 0)))
    truth = sum(h[i : i + 4, j : j + 4] for i in range(3) for j in range(3)) / 9
    np.testing.assert_allclose(got[0], truth, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not lb.bind(fn, {"constant_0": "keep", "**": "w8"}, P, x)["constant_0"].is_quantized
        assert lb.bind(fn, {"constant_0": "w4", "**": "w8"}, P, x)["constant_0"].is_quantized
        assert lb.bind(fn, {"**": "w8,a8"}, P, x, integer=True)["constant_0"].is_quantized


@pytest.mark.parametrize(
    "choose",
    [
        lambda p, x: jnp.where(x.sum() > 0, p["a"], p["b"]),
        lambda p, x: jnp.where(x > 0, p["a"], p["b"]),
        lambda p, x: lax.cond(x.sum() > 0, lambda: p["a"], lambda: p["b"]),
        lambda p, x: lax.while_loop(lambda c: c[0] < x[0, 0], lambda c: (c[0] + 1, c[1] * 0.5), (0.0, p["a"]))[1],
    ],
)
def test_parameters_that_data_chooses_between_are_mixed(choose):
    params = {"a": normal(0, 6, 6), "b": normal(1, 6, 6)}
    with pytest.raises(ValueError, match=r"dot_0 .*: operand 1 mixes parameters with data"):
        lb.bind(lambda p, x: x @ choose(p, x), {"**": "w8"}, params, normal(2, 6, 6))


def test_counters_and_constant_keys_are_no_data_and_states_are():
    stack, x = {"s": normal(0, 3, 6, 6)}, normal(1, 2, 6)
    turns = lambda p, x: lax.fori_loop(0, 3, lambda i, c: jnp.tanh(c @ p["s"][i]), x)  # noqa: E731
    key = lambda p, x: x @ p["s"][jax.random.randint(jax.random.key(0), (), 0, 3)]  # noqa: E731

    def until(p, x):
        def turn(carry):
            return carry[0] + 1, carry[1] @ p["s"][carry[0].astype(int)]

        return lax.while_loop(lambda carry: carry[0] < x[0, 0], turn, (0.0, x))[1]

    for fn in (turns, key, until):
        assert [(row.path, row.weight.kind) for row in lb.bind(fn, {"**": "w8"}, stack, x)] == [("s", "leaf")]
    given = lambda p, x, key: x @ p["s"][jax.random.randint(key, (), 0, 3)]  # noqa: E731
    after = lambda p, x: x @ p["s"][lax.while_loop(lambda i: i < x[0, 0], lambda i: i + 1, 0)]  # noqa: E731
    plan = lb.bind(given, {"**": "w8"}, stack, x, jax.random.key(1))
    qparams = lb.pack(plan, stack, lb.init(given, plan, stack, x, jax.random.key(1)))
    for seed in range(4):
        at = int(jax.random.randint(jax.random.key(seed), (), 0, 3))
        truth = np.asarray(x, np.float64) @ _quantized(stack["s"][at])
        np.testing.assert_allclose(lb.execute(given, plan)(qparams, x, jax.random.key(seed)), truth, atol=1e-5)
    plan = lb.bind(after, {"**": "w8"}, stack, x)
    qparams = lb.pack(plan, stack, lb.init(after, plan, stack, x))
    for first, at in ((-1.0, 0), (0.5, 1), (1.5, 2)):
        y = x.at[0, 0].set(first)
        truth = np.asarray(y, np.float64) @ _quantized(stack["s"][at])
        np.testing.assert_allclose(lb.execute(after, plan)(qparams, y), truth, atol=1e-5)
    h = np.asarray(x, np.float64)
    for w in stack["s"]:
        h = np.tanh(h @ _quantized(w))
    np.testing.assert_allclose(_served(turns, {"**": "w8"}, stack, x)[0], h, atol=1e-5)


def test_a_weight_computed_anew_in_every_turn_is_refused():
    """It would be evaluated once when packed, and the last turn's would serve all."""
    fn = lambda p, x: lax.fori_loop(0, 3, lambda i, c: jnp.tanh(c @ (p["s"][i] * 2)), x)  # noqa: E731
    stack, x = {"s": normal(0, 3, 6, 6)}, normal(1, 2, 6)
    with pytest.raises(ValueError, match=r"s \(test_bind_coverage.py:\d+\): its weight is computed anew in every turn"):
        lb.bind(fn, {"**": "w8"}, stack, x)
    assert not lb.bind(fn, {"s": "keep"}, stack, x)["s"].is_quantized
    over = lambda p, x: lax.scan(lambda c, w: (jnp.tanh(c @ (w * 2)), None), x, p["s"])[0]  # noqa: E731
    h = np.asarray(x, np.float64)
    for w in stack["s"]:
        h = np.tanh(h @ _quantized(w * 2))
    np.testing.assert_allclose(_served(over, {"**": "w8"}, stack, x)[0], h, atol=1e-5)


def test_parameters_of_no_operation_are_named_with_their_bytes():
    matrix = sparse.BCOO.fromdense(jnp.where(normal(2, 16, 16) > 0.5, 1.5, 0.0))

    def fn(p, x):
        held = sparse.BCOO((p["sparse"]["data"], p["sparse"]["indices"]), shape=(16, 16))
        x = (held @ x.T).T
        x = jnp.sum(x[:, :, None] * p["hidden"][None], axis=1) + p["bias"]
        x = jnp.fft.irfft(jnp.fft.rfft(x) * jnp.fft.rfft(p["filter"]), n=16)
        return (x.at[:, 0].add(p["scattered"][0]) @ p["w"]) * jnp.exp(p["gain"])

    params = {
        "sparse": {"data": matrix.data, "indices": matrix.indices}, "hidden": normal(3, 16, 16), "bias": normal(4, 16),
        "filter": normal(5, 16), "scattered": normal(6, 2), "w": normal(7, 16, 4), "gain": normal(8, 4), "left": normal(9, 3),
    }  # fmt: skip
    plan = lb.bind(fn, {"**": "w8,a8"}, params, normal(10, 2, 16))
    found = {leaf.path: (leaf.nbytes, leaf.primitives) for leaf in plan.uncovered}
    count = matrix.data.size
    assert found.pop("sparse/data") == (4 * count, ("bcoo_dot_general",))
    assert found.pop("sparse/indices") == (8 * count, ("bcoo_dot_general",))
    assert found == {
        "hidden": (1024, ("mul", "multiply_and_sum")), "bias": (64, ("add",)), "filter": (64, ("fft", "mul")), "scattered": (8, ("scatter-add",)),
        "gain": (16, ("exp", "mul")), "left": (12, ()),
    }  # fmt: skip
    for text in (str(plan), str(from_json(to_json(plan)))):
        assert "parameters of no operation, stored as they are" in text
        for line in (
            "mul, multiply_and_sum: hidden 1.02k",
            "fft, mul: filter 64",
            "nothing: left 12",
            "bcoo_dot_general: sparse/",
        ):
            assert line in text
    qparams = lb.pack(plan, params, lb.init(fn, plan, params, normal(10, 2, 16)))
    assert "hidden" in lb.explain(fn, plan, qparams, normal(10, 2, 16))
    assert not lb.bind(lambda p, x: x @ p["w"], {"**": "w8"}, P, normal(1, 3, 8)).uncovered


def test_an_unknown_primitive_that_takes_parameters_is_a_line_of_the_plan():
    """A primitive of next year, defined outside of jax and lowbit."""
    new = jex.Primitive("a_primitive_of_next_year")
    new.def_impl(lambda x, w: x * w)
    new.def_abstract_eval(lambda x, w: x)
    mlir.register_lowering(new, mlir.lower_fun(lambda x, w: x * w, multiple_results=False))
    params = {"w": normal(0, 8, 8), "hidden": normal(1, 8), "moved": normal(2, 8)}

    def fn(p, x):
        return new.bind(new.bind(x @ p["w"], p["hidden"]) + x, -p["moved"])

    plan = lb.bind(fn, {"**": "w8,a8"}, params, normal(3, 8))
    assert [name for name, _ in plan.unseen] == [new.name]
    assert all(where.startswith("test_bind_coverage.py:") for _, where in plan.unseen)
    assert f"unseen (may hide a matmul): {new.name} at test_bind_coverage.py" in str(plan)
    found = {leaf.path: (leaf.nbytes, leaf.primitives) for leaf in plan.uncovered}
    assert found == {"hidden": (32, (new.name,)), "moved": (32, ("neg", new.name))}
    assert from_json(to_json(plan)).unseen == plan.unseen
    only_data = lb.bind(lambda p, x: new.bind(x @ p["w"], x), {"**": "w8,a8"}, params, normal(3, 8))
    assert only_data.unseen == ()


def test_functions_with_gradients_of_their_own_are_found_at_bind():
    @jax.custom_vjp
    def fixed_point(w, x):
        return lax.fori_loop(0, 5, lambda _, y: jnp.tanh(y @ w + x), x)

    fixed_point.defvjp(lambda w, x: (fixed_point(w, x), (w, x)), lambda _, g: (jnp.zeros((4, 4)), g))
    params, x = {"w": normal(4, 4, 4), "out": normal(5, 4, 2)}, normal(6, 3, 4)
    plan = lb.bind(lambda p, x: fixed_point(p["w"], x) @ p["out"], {"**": "w8,a8"}, params, x)
    assert plan["w"].own_gradient.startswith("custom_vjp test_bind_coverage.py:")
    assert plan["out"].own_gradient == ""
    assert "simulated with custom_vjp='body' only: w (custom_vjp test_bind_coverage.py:" in str(plan)
    assert from_json(to_json(plan))["w"].own_gradient == plan["w"].own_gradient
    kept = lb.bind(lambda p, x: fixed_point(p["w"], x) @ p["out"], {"w": "keep", "**": "w8,a8"}, params, x)
    assert "custom_vjp" not in str(kept)


def test_every_refusal_of_one_bind_has_its_path_and_line():
    """A sort and two layers left in float in one error, each with both; rules to paste where rules help, and they bind."""

    def fn(p, x):
        return jnp.sort(x @ p["w"], -1) @ p["v"] @ p["u"]

    params = {**P, "v": normal(2, 8, 4), "u": normal(4, 4, 4)}
    rules, x = {"v": "keep", "u": "w4", "**": "w8,a8"}, normal(3, 3, 8)
    with pytest.raises(ValueError, match="3 operations are refused:") as error:
        lb.bind(fn, rules, params, x, integer=True)
    lines = str(error.value).splitlines()[1:]
    assert len(lines) == 3, "rules do not help with the sort, so there are none to paste"
    assert all("test_bind_coverage.py:" in line for line in lines), lines
    for word in ("sort", "of v ", "of u "):
        assert sum(word in line for line in lines) == 1, (word, lines)

    def placed(p, x):
        return jnp.tanh(x @ p["w"]) @ p["v"] @ p["u"]

    with pytest.raises(ValueError, match="With these rules it binds:") as error:
        lb.bind(placed, rules, params, x, integer=True)
    pasted = ast.literal_eval(str(error.value).splitlines()[-1].strip())
    assert pasted == {"v": "w8,a8", "u": "w8,a8", "**": "w8,a8"}
    lb.bind(placed, pasted, params, x, integer=True)

    def image(p, x):
        return lax.conv_general_dilated(p["i"], x, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    with pytest.raises(
        ValueError, match=r"^i: integer=True \(test_bind_coverage.py:\d+\): a weight's scale may differ"
    ):
        lb.bind(image, {"**": "w8,a8"}, {"i": normal(1, 2, 4, 4, 3)}, normal(3, 3, 3, 3, 8), integer=True)
