"""Batch-norm folding: the function unchanged, found by data flow; training as batch norm until the freeze."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lowbit as lb
from lowbit.rewrites.batch_norm import fold
from tests.rewrites.models import linen_net, nnx_net
from tests.values import heavy_tailed

EPS = float(jnp.finfo(jnp.float32).eps)
NETS = {"linen": linen_net, "nnx": nnx_net}


def close(got, want, summands, *, eps=EPS):
    """Equal up to ``8 eps sqrt(summands)`` of the largest value: each result sums that many rounded products."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    np.testing.assert_allclose(got, want, rtol=0, atol=8 * eps * np.sqrt(summands) * np.abs(want).max())


def _conv(x, w, **options):
    strides = options.pop("strides", (1, 1))
    return lax.conv_general_dilated(x, w, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)


def _norm(y, p, s, axis=-1):
    shape = [1] * y.ndim
    shape[axis] = -1
    mean, var, gamma, beta = (v.reshape(shape) for v in (s["mean"], s["var"], p["gamma"], p["beta"]))
    return (y - mean) / jnp.sqrt(var + 1e-3) * gamma + beta


@jax.jit
def _helper(y, mean, scale):
    return (y - mean) * scale


IMAGE, ROWS = heavy_tailed(0, 2, 5, 5, 4), heavy_tailed(1, 3, 6)
PLAIN = {  # name: (function, weight's shape, channels, input)
    "dense": (lambda p, s, x: _norm(x @ p["w"], p, s), (6, 5), 5, ROWS),
    "weight_on_the_left": (lambda p, s, x: _norm(p["w"] @ x.T, p, s, axis=0), (5, 6), 5, ROWS),
    "transposed_weight": (lambda p, s, x: _norm(x @ p["w"].T, p, s), (5, 6), 5, ROWS),
    "conv": (lambda p, s, x: _norm(_conv(x, p["w"], strides=(2, 2)) + p["beta"], p, s), (3, 3, 4, 5), 5, IMAGE),
    "grouped": (lambda p, s, x: _norm(_conv(x, p["w"], feature_group_count=2), p, s), (3, 3, 2, 6), 6, IMAGE),
    "depthwise": (lambda p, s, x: _norm(_conv(x, p["w"], feature_group_count=4), p, s), (3, 3, 1, 8), 8, IMAGE),
    "transposed_conv": (
        lambda p, s, x: _norm(lax.conv_transpose(x, p["w"], (2, 2), "SAME", transpose_kernel=True), p, s),
        (3, 3, 5, 4),
        5,
        IMAGE,
    ),
    "reshaped": (
        lambda p, s, x: _norm(jnp.moveaxis(_conv(x, p["w"]), 3, 1)[:, None].astype(jnp.float32), p, s, axis=2),
        (3, 3, 4, 5),
        5,
        IMAGE,
    ),
    "rsqrt_in_a_helper": (
        lambda p, s, x: p["beta"] + _helper(x @ p["w"], s["mean"], p["gamma"] * lax.rsqrt(s["var"])),
        (6, 5),
        5,
        ROWS,
    ),
    "subtracted_from": (lambda p, s, x: p["beta"] - (-(x @ p["w"])) / jnp.sqrt(s["var"]), (6, 5), 5, ROWS),
    "one_channel": (lambda p, s, x: _norm(x @ p["w"], p, s), (6, 1), 1, ROWS),
}


def _plain(name):
    fn, shape, channels, x = PLAIN[name]
    gamma = heavy_tailed(3, channels).at[0].set(-0.5)
    params = {"w": heavy_tailed(2, *shape), "gamma": gamma, "beta": heavy_tailed(4, channels)}
    state = {
        "mean": heavy_tailed(5, channels),
        "var": jnp.abs(heavy_tailed(6, channels)) + 0.3,
        "wide": jnp.arange(1.0, 11.0),
    }
    return fn, params, state, x


@pytest.mark.parametrize("name", PLAIN)
def test_plain_functions_fold(name):
    fn, params, state, x = _plain(name)
    folded, new, _ = fold(x)(fn, params, state)
    assert folded.paths == ("w",)
    assert new["params"]["gamma"] is None or name == "subtracted_from"  # which reads no gamma
    close(folded(new, state, x), fn(params, state, x), np.prod(params["w"].shape[:-1]) + 2)
    program = str(jax.make_jaxpr(folded)(new, state, x))
    assert "sqrt" not in program  # the norm is gone: one sum with b_inf is left
    factor = params["gamma"] / np.sqrt(state["var"] + (0.0 if "_" in name and name[0] in "rs" else 1e-3))
    if name in ("dense", "grouped", "depthwise"):  # W_inf = gamma W / sigma
        np.testing.assert_allclose(new["params"]["w"], params["w"] * factor, rtol=8 * EPS)


@pytest.mark.parametrize("net", NETS)
def test_networks_fold_and_are_served(net):
    """Every quantized operation sees a folded weight, per output channel; simulate and execute agree to the last bit."""
    model = NETS[net]()
    folded, params, state = lb.chain(fold(model.x))(model.fn, model.params, model.state)
    assert folded.paths == model.weights
    assert str(folded).splitlines()[0] == "conv/kernel: batch norm folded"
    close(jax.jit(folded)(params, state, model.x), jax.jit(model.fn)(model.params, model.state, model.x), 96 * 3)
    plan = lb.bind(folded, {"**": "w4,a4"}, params, state, model.x)
    assert [row.path for row in plan] == [*model.weights, "head/kernel"]
    assert all(row.weight.kind == "leaf" and row.weight.spec.granularity.text == "channel" for row in plan)
    qstate = lb.init(folded, plan, params, state, model.x)
    qparams = lb.pack(plan, params, qstate)
    served = lb.execute(folded, plan)(qparams, state, model.x)
    np.testing.assert_array_equal(lb.simulate(folded, plan)(params, qstate, state, model.x), served)


@functools.cache
def _training(net):
    """The model, the value and gradients of both training functions for a weighted sum, and frozen results."""
    model = NETS[net]()
    rewrite = fold(model.x, **model.kwargs)

    def loss(fn, params, **more):
        y, state = fn(params, model.state, model.x, **model.kwargs, **more)
        return jnp.sum(y * heavy_tailed(7, *y.shape)), (y, state)

    def folded(params, frozen):
        fn, new, _ = rewrite(model.train_fn, params, model.state)
        return loss(fn, new, frozen=frozen)

    plain = jax.jit(jax.value_and_grad(lambda p: loss(model.train_fn, p), has_aux=True))
    return model, plain(model.params), jax.jit(jax.value_and_grad(folded, has_aux=True))


@pytest.mark.parametrize("net", NETS)
def test_training_is_batch_norm_until_the_freeze(net):
    """Results, running averages, and gradients to gamma, beta and every weight; then averages stand still, y is evaluation's."""
    model, ((_, (want, averages)), gradients), run = _training(net)
    (_, (y, state)), found = run(model.params, False)
    summands = 96 * 3 * 12  # the longest contraction times layers, and the batch that statistics are taken over
    close(y, want, summands)
    jax.tree.map(lambda a, b: close(a, b, summands) if a.ndim == 1 else None, state, averages)
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradients))
    tolerance = 8 * EPS * np.sqrt(summands) * scale
    names = [jax.tree_util.keystr(keys) for keys, _ in jax.tree_util.tree_flatten_with_path(gradients)[0]]
    for name, a, b in zip(names, jax.tree.leaves(found), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance, err_msg=name)
        is_cancelled = name in ("['conv']['bias']", "['dense']['bias']")  # a bias before a norm: its gradient is 0
        assert is_cancelled or np.abs(b).max() > 4 * tolerance, name
    (_, (y, state)), frozen = run(model.params, True)
    assert not np.allclose(y, want, atol=1e-2)  # long-term statistics differ from the batch's
    for before, after in zip(jax.tree.leaves(model.state), jax.tree.leaves(state), strict=True):
        if before.ndim == 1:
            np.testing.assert_array_equal(before, after)
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(frozen))


def _evaluated(p, s, x):
    return (x @ p["w"] - s["mean"]) * lax.rsqrt(s["var"] + 1e-3) * p["gamma"] + p["beta"]


def _bn(p, s, x, *, momentum=0.9):
    y = x @ p["w"]
    mean, var = y.mean(0), y.var(0)
    out = (y - mean) * lax.rsqrt(var + 1e-3) * p["gamma"] + p["beta"]
    return out, {
        **s,
        "mean": s["mean"] + (1 - momentum) * (mean - s["mean"]),
        "var": momentum * s["var"] + (1 - momentum) * var,
    }


def test_frozen_training_is_what_is_served():
    """Quantized training after the freeze and the packed model give the same bits; freezing compiles nothing anew."""
    _, params, state, x = _plain("dense")
    params["gamma"] = params["gamma"].at[1].set(0.0)  # nothing divides by zero
    rewrite = fold(x)
    served, new, _ = rewrite(_evaluated, params, state)
    trained, training, _ = rewrite(_bn, params, state)
    assert trained.is_training
    np.testing.assert_array_equal(new["params"]["w"], training["params"]["w"])
    plan = lb.bind(served, {"**": lb.lsq("w4,a4")}, new, state, x)
    qstate = lb.init(served, plan, new, state, x)
    traces = 0

    def counted(params, state, x, *, frozen):
        nonlocal traces
        traces += 1
        return trained(params, state, x, frozen=frozen)

    run = lb.simulate(counted, plan, train=True)
    (moving, after), _ = run(training, qstate, state, x, frozen=jnp.int32(5) >= 10, step=5)
    (y, still), _ = run(training, qstate, state, x, frozen=jnp.int32(10) >= 10, step=10)
    assert traces == 1
    np.testing.assert_array_equal(y, lb.execute(served, plan)(lb.pack(plan, new, qstate), state, x))
    np.testing.assert_array_equal(still["var"], state["var"])
    assert (after["var"] != state["var"]).all()
    np.testing.assert_allclose(moving.mean(0), params["beta"], atol=32 * EPS * float(jnp.abs(moving).max()))


def test_the_weight_does_not_jump_with_the_batch():
    """The paper's reason for the correction: between two batches the quantized weight stays, gamma W / sigma_B moves."""
    _, params, state, x = _plain("dense")
    weights = [fold(batch)(_bn, params, state)[1]["params"]["w"] for batch in (x, 5.0 * x)]
    np.testing.assert_array_equal(*weights)


LEFT = {
    "a norm of the input": (lambda p, s, x: _norm(_norm(x @ p["w"], p, s) ** 2, p, s), "does not directly follow"),
    "two uses": (lambda p, s, x: (lambda y: _norm(y, p, s) + y)(x @ p["w"]), "used before the norm"),
    "shared weight": (lambda p, s, x: _norm(x @ p["w"], p, s) + p["w"].sum(), "another use"),
    "computed weight": (lambda p, s, x: _norm(x @ jnp.tanh(p["w"]), p, s), "no weight that is a parameter"),
    "batch axis": (lambda p, s, x: (x @ p["w"]) / jnp.sqrt(s["var"][:3, None]), "does not come from the weight"),
    "part of a leaf": (
        lambda p, s, x: (x @ p["w"].reshape(6, 1, 5)[:, 0, :4]) / jnp.sqrt(s["var"][:4]),
        "no weight that is a parameter",
    ),
    "half a leaf axis": (lambda p, s, x: (x[:, :3] @ p["w"].reshape(3, 10)) / jnp.sqrt(s["wide"]), "one whole axis"),
    "in a loop": (
        lambda p, s, x: lax.scan(lambda c, _: (c, _norm(c @ p["w"], p, s)), x, None, length=2)[1],
        "inside scan",
    ),
    "rematerialized": (jax.checkpoint(lambda p, s, x: _norm(x @ p["w"], p, s)), "inside remat"),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_cannot_be_folded_is_said(name):
    _, params, state, x = _plain("dense")
    fn, reason = LEFT[name]
    with pytest.raises(ValueError, match=reason):
        fold(x)(fn, params, state)
    both = lambda p, s, x: (fn(p["a"], s, x), _norm(x @ p["b"]["w"], p["b"], s))  # noqa: E731
    folded, new, _ = fold(x, unfolded="keep")(both, {"a": params, "b": params}, state)
    assert folded.paths == ("b/w",) or "a/w" in folded.paths
    assert folded.left
    assert "left as it is" in str(folded)
    want = both({"a": params, "b": params}, state, x)
    jax.tree.map(lambda a, b: close(a, b, 8), folded(new, state, x), want)


def test_half_precision_is_normalised_in_float32():
    """A bfloat16 operation under a float32 norm: the weight is rounded once more, by 2**-9, the rest is unchanged."""
    _, params, state, x = _plain("dense")
    params["w"] = params["w"].astype(jnp.bfloat16)
    fn = lambda p, s, x: _norm((x.astype(jnp.bfloat16) @ p["w"]).astype(jnp.float32), p, s)  # noqa: E731
    folded, new, _ = fold(x)(fn, params, state)
    assert new["params"]["w"].dtype == jnp.bfloat16
    close(folded(new, state, x), fn(params, state, x), 6, eps=2.0**-8)


def test_inputs():
    fn, params, state, x = _plain("dense")
    with pytest.raises(ValueError, match="'raise' or 'keep', got 'warn'"):
        fold(x, unfolded="warn")
    with pytest.raises(ValueError, match="nothing to fold"):
        fold(x)(lambda p, s, x: x @ p["w"], params, state)
    folded, new, _ = fold(x)(fn, params, state)
    with pytest.raises(ValueError, match="frozen= is for a training function"):
        folded(new, state, x, frozen=True)
    with pytest.raises(TypeError, match="a rewrite must be a function"):
        inspect.unwrap(lb.chain)(3)  # as users call it: the tests' hook would check the annotation
    with pytest.raises(TypeError, match="must return"):
        lb.chain(lambda *model: None)(fn, params, state)
    assert lb.chain()(fn, params, state) == (fn, params, state)
