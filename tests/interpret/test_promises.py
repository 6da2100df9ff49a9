"""Promises that peers break: see DESIGN section 1 in the README, "How it works"."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lowbit as lb
from tests.interpret.zoo import CASES
from tests.values import normal


def _ready(fn, rules, params, *args):
    plan = lb.bind(fn, rules, params, *args)
    return plan, lb.init(fn, plan, params, *args)


def test_float_model_is_untouched_before_between_and_after():
    params, x = {"w": normal(0, 16, 16)}, normal(1, 16, 16)

    @jax.jit
    def helper(x, w):
        return jnp.matmul(x, w)

    def fn(p, x):
        y, _ = jax.lax.scan(lambda c, _: (jnp.tanh(helper(c, p["w"]) @ p["w"]), None), x, None, length=2)
        return jax.checkpoint(lambda y: y @ p["w"])(y)

    before = [fn(params, x), jax.jit(fn)(params, x)]
    plan, qstate = _ready(fn, {"**": "w4,a4"}, params, x)
    quantized = lb.simulate(fn, plan)(params, qstate, x)
    between = [fn(params, x), jax.jit(fn)(params, x)]
    np.testing.assert_array_equal(quantized, lb.simulate(fn, plan)(params, qstate, x))
    after = [fn(params, x), jax.jit(fn)(params, x)]
    for a, b, c in zip(before, between, after, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    assert not np.array_equal(quantized, before[1])


def test_training_works_where_batch_equals_features():
    n = 16
    params = {"a": normal(0, n, n) * 0.3, "b": normal(1, n, n) * 0.3}
    x, target = normal(2, n, n), normal(3, n, n) * 0.1

    def fn(p, x):
        return jax.nn.relu(x @ p["a"]) @ p["b"]

    plan, qstate = _ready(fn, {"**": lb.lsq("w4,a4")}, params, x)
    run = lb.simulate(fn, plan)
    variables = {"params": params, "learn": qstate["learn"]}
    optimizer = optax.adam(1e-2)

    def loss(v):
        return jnp.mean((run(v["params"], {**qstate, "learn": v["learn"]}, x) - target) ** 2)

    @jax.jit
    def step(v, s):
        value, grads = jax.value_and_grad(loss)(v)
        updates, s = optimizer.update(grads, s)
        return optax.apply_updates(v, updates), s, value

    opt_state, losses = optimizer.init(variables), []
    with jax.numpy_dtype_promotion("standard"):  # optax promotes
        for _ in range(60):
            variables, opt_state, value = step(variables, opt_state)
            losses.append(float(value))
    assert losses[-1] < 0.3 * losses[0]
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), variables["learn"], qstate["learn"])
    assert all(jax.tree.leaves(moved))


def test_weight_only_int4_convolution_and_w4a4_run():
    case = CASES["linen_conv_eval"]()
    for rule in ("w4", "w4,a4"):
        plan, qstate = _ready(case.fn, {"**": rule}, case.params, *case.args)
        qparams = lb.pack(plan, case.params, qstate)
        assert bool(jnp.all(jnp.isfinite(lb.execute(case.fn, plan, implementation="reference")(qparams, *case.args))))


def test_int4_costs_half_a_byte():
    params = {"w": normal(0, 256, 64)}
    fn = lambda p, x: x @ p["w"]  # noqa: E731
    plan, qstate = _ready(fn, {"**": "w4/g32/bfloat16,a8"}, params, normal(1, 2, 256))
    q = lb.pack(plan, params, qstate).params["w"]
    assert q.codes.nbytes == 256 * 64 // 2
    assert q.nbytes / (256 * 64) == 0.5625
    assert q.bits_per_element == 4.5


DEEP = {"w8,a8": "w8,a8", "w4/g16,a8": "w4/g16,a8", "w4,a4": "w4,a4", "dynamic": "w4,a8/dynamic", "aint16": "w8,aint16"}


_SLOW = ("w4/g16,a8", "aint16")


@pytest.mark.parametrize("rule", [pytest.param(r, marks=[pytest.mark.slow] * (r in _SLOW)) for r in DEEP])
def test_deep_networks_are_served_bit_for_bit(rule):
    """Ten quantized layers with gelu, layer norm, softmax and residuals between them."""
    width = 48
    params = {
        f"layer_{i}": {"kernel": normal(i, width, width) * 0.25, "scale": 1 + 0.1 * normal(50 + i, width)}
        for i in range(10)
    }

    def fn(p, x):
        for i in range(10):
            layer = p[f"layer_{i}"]
            h = jax.nn.gelu(x @ layer["kernel"])
            h = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-6) * layer["scale"] + 0.1
            x = x + h * jax.nn.softmax(h)
        return x

    x = normal(99, 64, width)
    plan, qstate = _ready(fn, {"**": DEEP[rule]}, params, x)
    want = lb.simulate(fn, plan)(params, qstate, x)
    qparams = lb.pack(plan, params, qstate)
    for implementation in (None, "carried", "reference"):
        np.testing.assert_array_equal(want, lb.execute(fn, plan, implementation=implementation)(qparams, x))
    assert float(jnp.max(jnp.abs(want - fn(params, x)))) > 1e-4


def test_a_long_contraction_stays_exact():
    """8-bit sums over 4096 products pass 2**24: float32 alone would round them."""
    params, x = {"w": normal(0, 4096, 8)}, jnp.abs(normal(1, 4, 4096)) + 1.0
    fn = lambda p, x: x @ p["w"]  # noqa: E731
    plan, qstate = _ready(fn, {"**": "w8,a8"}, params, x)
    want = lb.simulate(fn, plan)(params, qstate, x)
    qparams = lb.pack(plan, params, qstate)
    np.testing.assert_array_equal(want, lb.execute(fn, plan, implementation="reference")(qparams, x))


def test_a_second_call_compiles_nothing():
    case = CASES["linen_conv_eval"]()
    state, x = case.args
    plan, qstate = _ready(case.fn, {"**": "w8,a8"}, case.params, state, x)
    qparams = lb.pack(plan, case.params, qstate)
    traces = 0

    def counted(params, state, x):
        nonlocal traces
        traces += 1
        return case.fn(params, state, x)

    def serve(x):
        lb.simulate(counted, plan)(case.params, qstate, state, x)
        lb.execute(counted, plan)(qparams, state, x)

    serve(x)
    serve(x[:1])
    first = traces
    for batch in (x, x[:1], x, x[:1]):
        serve(batch)
    assert first == 4
    assert traces == first


def test_the_range_is_that_of_all_batches():
    fn = lambda p, x: x @ p["w"]  # noqa: E731
    params, batches = {"w": normal(0, 6, 5)}, [(normal(1, 3, 6) * size,) for size in (1.0, 9.0, 2.0)]
    plan = lb.bind(fn, {"**": "w8,a8"}, params, *batches[0])
    scale = lb.calibrate(fn, plan, params, batches)["fixed"]["w"]["input"]["scale"]
    values = np.concatenate([np.asarray(x, np.float64) for (x,) in batches])
    assert float(scale.reshape(())) == pytest.approx((values.max() - values.min()) / 255, rel=1e-6)


def test_other_weights_are_not_served_from_a_cache():
    """Packed weights are put into the kernels' order once: those of one model must not be another's."""
    fn = lambda p, x: x @ p["w"]  # noqa: E731
    x = normal(1, 3, 64)
    plan, qstate = _ready(fn, {"**": "w8,a8"}, {"w": normal(0, 64, 32)}, x)
    models = [lb.pack(plan, {"w": normal(seed, 64, 32)}, qstate) for seed in (2, 3)]
    run, reference = lb.execute(fn, plan), lb.execute(fn, plan, implementation="reference")
    for qparams in (*models, *models):
        np.testing.assert_array_equal(run(qparams, x), reference(qparams, x))
    assert not np.array_equal(*(run(qparams, x) for qparams in models))


def test_bad_values_raise_by_name():
    fn = lambda p, x: x @ p["w"]  # noqa: E731
    params, x = {"w": normal(0, 6, 5)}, normal(1, 3, 6)
    plan, qstate = _ready(fn, {"**": "w8,a8"}, params, x)
    broken = {"w": params["w"].at[2, 3].set(jnp.nan)}
    with pytest.raises(ValueError, match="weight 'w' holds NaN or infinity"):
        lb.init(fn, plan, broken, x)
    with pytest.raises(ValueError, match="weight 'w' holds NaN or infinity"):
        lb.pack(plan, broken, qstate)
    with pytest.raises(ValueError, match="the input of 'w' held NaN or infinity"):
        lb.calibrate(fn, plan, params, [(x.at[0, 0].set(jnp.inf),)])
    with pytest.raises(ValueError, match="batches is empty"):
        lb.calibrate(fn, plan, params, [])
    with pytest.raises(TypeError, match="tuple of arguments"):
        lb.calibrate(fn, plan, params, [x])
    with pytest.raises(TypeError, match=r"packed parameters from lowbit\.pack"):
        lb.execute(fn, plan)(params, x)
    with pytest.raises(ValueError, match="implementation must be one of"):
        lb.execute(fn, plan, implementation="fast")


def test_degenerate_channels_are_decided():
    w = normal(0, 6, 4).at[:, 1].set(0.0).at[:, 2].mul(1e-20)
    fn = lambda p, x: x @ p["w"]  # noqa: E731
    x = normal(1, 3, 6)
    plan, qstate = _ready(fn, {"**": "w8,a8"}, {"w": w}, x)
    scale = qstate["fixed"]["w"]["weight"]["scale"]
    assert float(scale[0, 1]) == 1.0
    assert 0 < float(scale[0, 2]) < 1e-20
    y = lb.simulate(fn, plan)({"w": w}, qstate, x)
    assert bool(jnp.all(jnp.isfinite(y)))
    np.testing.assert_array_equal(y[:, 1], 0.0)


def test_sharded_parameters_keep_their_sharding():
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    assert jax.device_count() == 8
    mesh = jax.make_mesh((8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    fn = lambda p, x: x @ p["w"]  # noqa: E731
    params, x = {"w": normal(0, 32, 64)}, normal(1, 4, 32)
    plan, qstate = _ready(fn, {"**": "w4/g8,a8"}, params, x)
    want = lb.simulate(fn, plan)(params, qstate, x)
    placed = jax.device_put(params, NamedSharding(mesh, P(None, "model")))
    np.testing.assert_array_equal(want, jax.jit(lb.simulate(fn, plan))(placed, qstate, x))
    qparams = jax.jit(lambda p, q: lb.pack(plan, p, q))(placed, qstate)
    q = qparams.params["w"]
    assert q.codes.sharding.is_equivalent_to(NamedSharding(mesh, P(None, "model")), 2)
    assert q.scale.sharding.is_equivalent_to(NamedSharding(mesh, P(None, "model")), 2)
    np.testing.assert_array_equal(want, lb.execute(fn, plan)(qparams, x))


def test_inside_shard_map():
    from jax.sharding import PartitionSpec as P

    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    params, x = {"w": normal(0, 16, 8)}, normal(1, 8, 16)

    def fn(p, x):
        body = lambda x, w: jax.lax.psum(jnp.tanh(x @ w), "model")  # noqa: E731
        return jax.shard_map(body, mesh=mesh, in_specs=(P("data"), P(None, "model")), out_specs=P("data"))(x, p["w"])

    plan, qstate = _ready(fn, {"**": "w8,a8"}, params, x)
    assert float(qstate["fixed"]["w"]["input"]["scale"].reshape(())) == pytest.approx(
        float((jnp.max(x) - jnp.min(x)) / 255), rel=1e-6
    )
    qparams = lb.pack(plan, params, qstate)
    np.testing.assert_array_equal(lb.simulate(fn, plan)(params, qstate, x), lb.execute(fn, plan)(qparams, x))


def test_sequential_calibration_sees_quantized_inputs():
    case = CASES["mlp"]()
    plan = lb.bind(case.fn, {"**": "w2,a4"}, case.params, *case.args)
    plain = lb.calibrate(case.fn, plan, case.params, [case.args])
    later = lb.calibrate(case.fn, plan, case.params, [case.args], sequential=True)
    np.testing.assert_array_equal(*(q["fixed"]["a/kernel"]["input"]["scale"] for q in (plain, later)))
    scales = [float(q["fixed"]["b/kernel"]["input"]["scale"].reshape(())) for q in (plain, later)]
    assert scales[0] != scales[1]
