"""Full-integer plans: a test per rule (a) to (f), whole models, training, files."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import lowbit as lb
from lowbit.plan import serial
from tests.interpret.integer_models import WHOLE
from tests.values import normal

W = {"w": normal(0, 8, 8) * 0.5, "g": 1 + 0.2 * normal(1, 8), "b": 0.3 * normal(2, 8)}
X = normal(3, 3, 5, 8)


def _check(fn, params, *args, rules="w8,a8", tolerance=0.03, implementations=("reference",), **options):
    """Binds, checks that simulation is execution to the last bit and near the float model, and returns the plan."""
    plan = lb.bind(fn, {"**": rules}, params, *args, integer=True, **options)
    qstate = lb.init(fn, plan, params, *args)
    want = jax.tree.leaves(lb.simulate(fn, plan)(params, qstate, *args))
    qparams = lb.pack(plan, params, qstate)
    for implementation in implementations:
        got = jax.tree.leaves(lb.execute(fn, plan, implementation=implementation)(qparams, *args))
        for a, b in zip(want, got, strict=True):
            np.testing.assert_array_equal(a, b)
    for a, b in zip(want, jax.tree.leaves(fn(params, *args)), strict=True):
        assert float(jnp.max(jnp.abs(a - b))) <= tolerance * float(jnp.max(jnp.abs(b)))
    return plan


def _kinds(plan):
    return [step.kind for step in plan.steps]


def test_a_a_dot_absorbs_bias_affine_relu_and_clip():
    def fn(p, x):
        return jnp.minimum(jax.nn.relu((x @ p["w"] + p["b"]) * p["g"] - 0.1), 1.5)

    plan = _check(fn, W, X)
    assert _kinds(plan) == ["input", "dot"]
    assert plan.steps[1].absorbed == ("add", "mul", "sub", "max", "min")


def test_a_a_value_with_two_readers_is_not_absorbed():
    def fn(p, x):
        y = x @ p["w"]
        return y * 2.0, y + p["b"]

    assert _kinds(_check(fn, W, X)) == ["input", "dot", "affine", "table"]


def test_a_a_constant_that_varies_along_more_than_the_channels_is_added_on_its_own():
    places, rows = normal(7, 5, 8), 1 + 0.1 * normal(8, 5, 1)
    heads = {"w": normal(9, 8, 2, 4) * 0.5, "b": normal(10, 2, 4)}

    assert _kinds(_check(lambda p, x: x @ p["w"] + p["b"] + places, W, X)) == ["input", "dot", "affine"]
    assert _kinds(_check(lambda p, x: x @ p["w"] * rows, W, X)) == ["input", "dot", "affine"]

    def bound(fn, params):
        return lb.bind(fn, {"**": "w8,a8"}, params, X, integer=True)

    split = bound(lambda p, x: jnp.einsum("btc,cdh->btdh", x, p["w"]) + p["b"], heads)
    turned = bound(lambda p, x: jnp.einsum("cd,btc->dbt", p["w"], x) + p["b"][:, None, None], W)
    experts = bound(lambda p, x: jnp.einsum("btc,tcd->tbd", x, p["w"]) + p["b"][:, None], {"w": normal(11, 5, 8, 8), "b": places})  # fmt: skip
    for plan in (split, turned, experts):
        assert _kinds(plan)[:2] == ["input", "dot"]
        assert plan.steps[1].absorbed == ("add",)


def test_a_a_channel_whose_factor_vanishes_keeps_its_bias():
    params = {**W, "g": W["g"].at[2].set(0.0).at[3].set(1e-12).at[4].mul(-1.0)}
    _check(lambda p, x: x @ p["w"] * p["g"] + p["b"], params, X)


def test_b_movements_share_a_grid_and_concatenations_unify_theirs():
    def fn(p, x):
        y = jnp.pad(jnp.transpose(x @ p["w"], (0, 2, 1))[:, 1:], ((0, 0), (1, 0), (0, 2)))
        y = lax.reduce_window(y, -jnp.inf, lax.max, (1, 2, 2), (1, 1, 1), "VALID")
        return jnp.concatenate([y, x[:, :, :6], jnp.zeros((3, 1, 6))], 1)[:, jnp.array([3, 0, 5])].reshape(3, -1)

    plan = _check(fn, W, X)
    assert set(_kinds(plan)) == {"input", "dot", "move", "constant", "concatenate"}
    assert list(plan.grids()) == ["input_0"]  # the input is sliced into the concatenation, which unifies all


def test_b_a_selection_by_a_constant_unifies_its_grids():
    mask = np.arange(8) % 3 == 0
    plan = _check(lambda p, x: jnp.where(mask, x @ p["w"], x), W, X)
    assert list(plan.grids()) == ["input_0"]


@pytest.mark.parametrize("function", [jax.nn.gelu, jax.nn.silu, lambda x: jnp.tanh(x) + jax.nn.sigmoid(2.0 * x) ** 2])
def test_c_what_is_elementwise_in_one_tensor_is_a_table(function):
    plan = _check(lambda p, x: function(x @ p["w"] + p["b"]), W, X)
    assert _kinds(plan) == ["input", "dot", "table"]


def test_c_a_region_with_two_results_is_two_tables():
    def fn(p, x):
        e = jnp.exp(-jnp.abs(x))
        return (e / (1.0 + e)) @ p["w"], e

    assert _kinds(_check(fn, W, X)) == ["input", "table", "dot", "table"]


def test_d_two_tensors_get_a_grid_and_absorb_a_relu():
    def fn(p, x):
        y = x @ p["w"]
        return jax.nn.relu(x - y), jnp.maximum(x, y), x * y * p["g"]

    plan = _check(fn, W, X)
    assert _kinds(plan) == ["input", "dot", "add", "max", "product"]
    assert [step.absorbed for step in plan.steps[2:]] == [("max",), (), ("mul",)]


def _norm(x, eps=1e-5):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + eps)


def _rms(x):
    return x * lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5)


def _softmax(x):
    e = jnp.exp(x - jnp.max(x, -1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


TEMPLATES = {
    "softmax": (jax.nn.softmax, "softmax"),
    "softmax by hand": (_softmax, "softmax"),
    "softmax of the first axis": (lambda x: jax.nn.softmax(x, axis=1), "softmax"),
    "layer norm": (_norm, "norm"),
    "layer norm with a large epsilon": (lambda x: _norm(x, 2.0), "norm"),
    "rms norm": (_rms, "norm"),
    "mean": (lambda x: x.mean(1), "sum"),
    "average pool": (lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2, 1), (1, 1, 1), "SAME") / 2.0, "sum"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_e_templates(name):
    function, kind = TEMPLATES[name]
    # The smallest deviation of a row is 0.35: a norm makes three times as much of the steps before it.
    tolerance = 0.04 if kind == "norm" else 0.03
    plan = _check(lambda p, x: function(x @ p["w"] + p["b"]), W, X, tolerance=tolerance)
    assert _kinds(plan) == ["input", "dot", kind]


@pytest.mark.parametrize("epsilon", [0.3, 2.0, 100.0])
@pytest.mark.parametrize("is_centered", [True, False])
def test_e_a_norm_keeps_an_epsilon_that_is_larger_than_its_squares(epsilon, is_centered):
    """Rows a thousand times smaller than the largest: the epsilon has more bits than their squares."""
    x = normal(0, 12, 16) * jnp.logspace(0, -3, 12)[:, None]
    params = {"w": jnp.eye(16), "g": jnp.float32(epsilon**0.5)}

    def fn(p, x):
        y = x @ p["w"]
        rms = y * lax.rsqrt(jnp.mean(y**2, -1, keepdims=True) + epsilon)
        return (_norm(y, epsilon) if is_centered else rms) * p["g"]

    plan = lb.bind(fn, {"**": "w8,a8"}, params, x, integer=True)
    qstate = lb.init(fn, plan, params, x)
    got, want = lb.simulate(fn, plan)(params, qstate, x), fn(params, x)
    step = 2 * float(jnp.max(jnp.abs(x))) / 255
    assert float(jnp.max(jnp.abs(got - want))) <= 3 * step  # the grids of input, product and result


@pytest.mark.parametrize("masked", [-1e9, float(jnp.finfo(jnp.float32).min)])
def test_e_a_masked_score_takes_no_level(masked):
    """The mask goes into the softmax: a grid that held -1e9 would have one level left for the scores."""
    causal = np.tril(np.ones((8, 8), bool))
    causal[3] = False  # a row without any score is uniform

    def fn(p, x):
        return jax.nn.softmax(jnp.where(causal[:5], x @ p["w"], masked), -1)

    plan = _check(fn, W, X)
    assert _kinds(plan) == ["input", "dot", "softmax"]
    qparams = lb.pack(plan, W, lb.init(fn, plan, W, X))
    got = np.asarray(lb.execute(fn, plan)(qparams, X))
    assert not got[:, [0, 1, 2, 4]][:, ~causal[[0, 1, 2, 4]]].any()
    assert (got[:, 3] == got[0, 3, 0]).all()


def test_e_an_added_mask_takes_no_level_and_a_bias_is_absorbed():
    causal = np.tril(np.ones((5, 5), bool))
    alibi = -0.3 * np.abs(np.arange(5)[:, None] - np.arange(5)).astype(np.float32)

    def fn(p, x):
        y = x @ p["w"]
        return jax.nn.softmax((y @ y.swapaxes(1, 2) + alibi) + jnp.where(causal, 0.0, -1e9), -1)

    plan = _check(fn, W, X)
    assert _kinds(plan) == ["input", "dot", "move", "dot", "softmax"]
    assert plan.steps[3].absorbed == ("add",)
    got = np.asarray(lb.execute(fn, plan)(lb.pack(plan, W, lb.init(fn, plan, W, X)), X))
    assert not got[:, ~causal].any()
    both = np.where(np.tril(np.ones((5, 8), bool)), np.float32(-0.3), np.float32(-1e9))
    with pytest.raises(ValueError, match=r"masks \(it holds -1000000000.0\) and biases at once"):
        lb.bind(lambda p, x: jax.nn.softmax(x @ p["w"] + both, -1), {"**": "w8,a8"}, W, X, integer=True)


def test_e_a_norm_of_small_and_of_constant_rows():
    x = jnp.stack([X[0, 0], 0.02 * X[0, 1], jnp.zeros(8), jnp.ones(8), -X[1, 0]])
    plan = lb.bind(lambda p, x: _norm(x @ p["w"]), {"**": "w8,a8"}, W, x, integer=True)
    fn = lambda p, x: _norm(x @ p["w"])  # noqa: E731
    qparams = lb.pack(plan, W, lb.init(fn, plan, W, x))
    got = lb.execute(fn, plan, implementation="reference")(qparams, x)
    assert bool(jnp.all(jnp.abs(got[0] - fn(W, x)[0]) < 0.1))
    np.testing.assert_array_equal(got[2], 0.0)


def test_f_what_is_left_is_named_with_its_line():
    with pytest.raises(ValueError, match=r"cannot place sort \(test_integer\.py:\d+\)"):
        lb.bind(lambda p, x: jnp.sort(x @ p["w"]), {"**": "w8,a8"}, W, X, integer=True)
    with pytest.raises(
        ValueError, match=r"cannot place div \(test_integer\.py:\d+\): no integer form .* float32\[3,5,8\]"
    ):
        lb.bind(lambda p, x: x / (x @ p["w"]), {"**": "w8,a8"}, W, X, integer=True)
    with pytest.raises(ValueError, match=r"cannot place while .*only\s+scans"):
        lb.bind(lambda p, x: lax.while_loop(lambda c: c[0, 0, 0] > 0, lambda c: c @ p["w"], x), {"**": "w8,a8"}, W, X, integer=True)  # fmt: skip


def test_f_rules_that_leave_floats_are_refused():
    fn = lambda p, x: jax.nn.relu(x @ p["w"]) @ p["w"]  # noqa: E731
    for rule, words in {
        "w8": "the input of w@0 .* is left in float",
        "w8,a8/dynamic": "computed at run time",
        "w8,auint8": "signed integers",
        "wnf4,a8": "signed integers",
    }.items():
        with pytest.raises(ValueError, match=words):
            lb.bind(fn, {"**": rule}, W, X, integer=True)
    with pytest.raises(ValueError, match="read one grid, input_0, with different inputs"):
        lb.bind(
            lambda p, x: (x @ p["w"], x @ p["v"]), {"w": "w8,a8", "v": "w8,a4"}, {**W, "v": W["w"]}, X, integer=True
        )
    counts = jnp.asarray(np.arange(64).reshape(8, 8) % 5, jnp.int32)  # summed over, so no factor of elements
    product = lambda x: lax.dot_general(x, counts, (((2,), (0,)), ((), ())), preferred_element_type=jnp.float32)  # noqa: E731
    with pytest.raises(ValueError, match=r"the weight of constant_0 .* is int32, .* cast it to float") as error:
        lb.bind(lambda p, x: product(x @ p["w"]) @ p["w"], {"**": "w8,a8"}, W, X, integer=True)
    assert "With these rules" not in str(error.value)
    with pytest.raises(ValueError, match="rounding must be one of"):
        lb.bind(fn, {"**": "w8,a8"}, W, X, integer=True, rounding="up")
    with pytest.raises(ValueError, match="is for full-integer plans"):
        lb.bind(fn, {"**": "w8,a8"}, W, X, rounding="tflite_single")


_SLOW = ("gru", "audio_net", "lstm")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in _SLOW)) for n in WHOLE])
def test_whole_models(name):
    case = WHOLE[name]()
    implementations = (None, "reference") if name == "gru" else ("reference",)
    plan = _check(case.fn, case.params, *case.args, tolerance=0.08, implementations=implementations)
    assert "grids, rounding exact" in str(plan)
    again = serial.from_json(serial.to_json(plan))

    def bare(site):
        return dataclasses.replace(site, quantizer=None, text=site.method)

    assert list(again.steps) == [dataclasses.replace(s, site=s.site and bare(s.site)) for s in plan.steps]
    assert again.rounding == plan.rounding


def test_a_file_serves_the_same_bits_and_batch_sizes_share_a_plan(tmp_path):
    case = WHOLE["residual_cnn"]()
    state, x = case.args
    plan = lb.bind(case.fn, {"**": "w4,a8"}, case.params, *case.args, integer=True)
    qstate = lb.init(case.fn, plan, case.params, *case.args)
    qparams = lb.pack(plan, case.params, qstate)
    lb.save(tmp_path / "model.lowbit", plan, qparams)
    loaded, again = lb.load(tmp_path / "model.lowbit")
    want = lb.simulate(case.fn, plan)(case.params, qstate, state, x)
    np.testing.assert_array_equal(want, lb.execute(case.fn, loaded)(again, state, x))
    np.testing.assert_array_equal(want[:1], lb.execute(case.fn, loaded)(again, state, x[:1]))
    floats = [leaf for leaf in jax.tree.leaves(again.params) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert sum(leaf.size for leaf in floats) == 6 + 6 + 6 + 5  # the weights' scales: biases are integers now
    with pytest.raises(ValueError, match="integer steps are not those of the plan"):
        lb.execute(lambda p, s, x: 2.0 * jnp.tanh(case.fn(p, s, x)), loaded)(again, state, x)
    for name in ("pallas_tpu", "mosaic_gpu"):
        with pytest.raises(ValueError, match=f"'{name}' has no kernels for full-integer plans"):
            lb.execute(case.fn, plan, implementation=name)


def test_named_roundings_give_different_bits_and_each_is_served():
    results, x = [], normal(9, 600, 8)
    for rounding in ("exact", "tflite_single", "gemmlowp_double"):
        fn = lambda p, x: x @ p["w"] + jax.nn.relu(x)  # noqa: E731
        plan = _check(fn, W, x, rounding=rounding)
        results.append(np.asarray(lb.simulate(fn, plan)(W, lb.init(fn, plan, W, x), x)))
    assert not np.array_equal(results[0], results[2])


def test_a_state_that_is_read_is_refused():
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4)(nn.BatchNorm(use_running_average=True)(x))

    fn, params, state = lb.linen(Net(), Net().init(jax.random.key(0), X))
    with pytest.raises(ValueError, match=r"reads 'batch_stats/BatchNorm_0/mean' of its state"):
        lb.bind(fn, {"**": "w8,a8"}, params, state, X, integer=True)


def test_training_through_integers():
    """A small net learns with the values of the integer arithmetic; every weight and step gets a gradient."""
    params = {"a": {"w": W["w"], "b": W["b"]}, "c": {"w": normal(7, 8, 4) * 0.3}}
    target = jnp.sin(X @ normal(8, 8, 4))

    def fn(p, x):
        h = jax.nn.gelu(x @ p["a"]["w"] + p["a"]["b"])
        return _rms(h + x) @ p["c"]["w"]

    plan = lb.bind(fn, {"**": lb.lsq("w4,a4")}, params, X, integer=True)
    qstate = lb.init(fn, plan, params, X)
    run = lb.simulate(fn, plan, train=True)
    variables = {"params": params, "learn": qstate["learn"]}
    optimizer = optax.adam(1e-2)

    def loss(v):
        y, _ = run(v["params"], {**qstate, "learn": v["learn"]}, X)
        return jnp.mean((y - target) ** 2)

    @jax.jit
    def step(v, s):
        value, grads = jax.value_and_grad(loss)(v)
        updates, s = optimizer.update(grads, s)
        return optax.apply_updates(v, updates), s, value, grads

    opt_state, losses = optimizer.init(variables), []
    with jax.numpy_dtype_promotion("standard"):  # optax promotes
        for _ in range(80):
            variables, opt_state, value, grads = step(variables, opt_state)
            losses.append(float(value))
    assert losses[-1] < 0.4 * losses[0]
    assert all(bool(jnp.any(g != 0)) and bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(grads))
    trained = {**qstate, "learn": variables["learn"]}
    want = lb.simulate(fn, plan)(variables["params"], trained, X)
    qparams = lb.pack(plan, variables["params"], trained)
    np.testing.assert_array_equal(want, lb.execute(fn, plan, implementation="reference")(qparams, X))
