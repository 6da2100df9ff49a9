"""Rewrites leave the function as it is: all that are found, on networks of every kind; and the law of each."""

import importlib
import inspect
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
import lowbit.rewrites
from lowbit.core.paths import flatten
from lowbit.program.pairs import largest
from lowbit.rewrites.awq import awq
from lowbit.rewrites.batch_norm import fold
from lowbit.rewrites.equalize import Equalize, equalize, ranges
from lowbit.rewrites.gains import fold_gains
from lowbit.rewrites.given import Given
from lowbit.rewrites.scaling import Model
from lowbit.rewrites.smooth import smooth
from tests.interpret.zoo import CASES, Case
from tests.program.nets import NETS, gated, mobile, mobile6
from tests.rewrites.models import linen_net, nnx_net
from tests.values import heavy_tailed, normal


def _found() -> dict[str, type[Given]]:
    names = [module.name for module in pkgutil.iter_modules(lowbit.rewrites.__path__, "lowbit.rewrites.")]
    things = {k: v for name in names for k, v in vars(importlib.import_module(name)).items() if inspect.isclass(v)}
    return {k: v for k, v in things.items() if issubclass(v, Given) and not inspect.isabstract(v)}


REWRITES = _found()
MODELS = {**NETS, **{k: CASES[k] for k in ("scanned_remat", "nnx_eval", "linen_conv_eval", "fused_qkv")}}


def _model(name):
    case: Case = MODELS[name]()
    if name in NETS or name == "fused_qkv":
        return lambda p, s, *args: case.fn(p, *args), case.params, {}, [case.args]
    return case.fn, case.params, case.args[0], [case.args[1:]]


def differs(a, b) -> float:
    worst = 0.0
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        worst = max(worst, float(np.abs(x - y).max() / np.abs(x).max()))
    return worst


def _made(rewrite) -> Given:
    """A rewrite with what it needs beside batches."""
    return rewrite(**{k: v for k, v in {"rules": {"**": "w4"}}.items() if k in rewrite.__dataclass_fields__})


QUICK = ("mobile6", "gated", "repeated", "linen_conv_eval")


@pytest.mark.parametrize("model", [pytest.param(k, marks=() if k in QUICK else pytest.mark.slow) for k in MODELS])
@pytest.mark.parametrize("rewrite", REWRITES)
def test_the_function_is_the_same(rewrite, model):
    fn, params, state, batches = _model(model)
    before = jax.tree.map(np.asarray, params)
    other, new_params, new_state = lb.chain(_made(REWRITES[rewrite]), batches=batches)(fn, params, state)
    for args in batches:
        want, got = jax.jit(fn)(params, state, *args), jax.jit(other)(new_params, new_state, *args)
        assert differs(want, got) < 1e-5
    jax.tree.map(np.testing.assert_array_equal, before, params)  # what was given is left alone
    assert "left as it is" in str(other) or " -> " in str(other)  # it says what it did, or why not


@pytest.mark.parametrize("rewrite", REWRITES)
def test_bad_batches_are_named(rewrite):
    fn, params, state, _ = _model("mobile")
    made = _made(REWRITES[rewrite])
    with pytest.raises(ValueError, match="no batches"):
        made(fn, params, state)
    with pytest.raises(ValueError, match="batches is empty"):
        made.given([])(fn, params, state)
    with pytest.raises(TypeError, match="iterator"):
        made.given(iter([]))(fn, params, state)


def test_a_graph_that_no_rewrite_fits_is_left_with_reasons():
    params, x = {"a": normal(0, 4, 4), "b": normal(1, 4, 4)}, normal(2, 3, 4)

    def fn(p, s, x):
        return jnp.tanh(x @ p["a"]) @ p["b"]

    other, new, _ = lb.chain(equalize(), smooth(), batches=[(x,)])(fn, params, {})
    jax.tree.map(np.testing.assert_array_equal, params, new)
    assert "a: left as it is: tanh (test_rewrites.py:" in str(other)
    assert "b: left as it is: result is a result of the model" in str(other)


# --- equalization ---------------------------------------------------------------------------------------------


def _bad_channels(case: Case, seed: int):
    """The same function with channel ranges spread over four decades, by hand: relu is homogeneous."""
    rng, p = np.random.default_rng(seed), jax.tree.map(np.asarray, case.params)
    for make, read, axis in (("up", "deep", 3), ("deep", "down", 2)):
        s = np.exp(rng.normal(0, 1.5, p[make]["w"].shape[-1])).astype(np.float32)
        p[make] = {"w": p[make]["w"] * s, "b": p[make]["b"] * s}
        shape = [1] * 4
        shape[axis] = -1
        p[read] = {**p[read], "w": p[read]["w"] / s.reshape(shape)}
    return jax.tree.map(jnp.asarray, p)


def test_ranges_are_equal_afterwards():
    case = mobile()
    fn, params, batches = (lambda p, s, x: case.fn(p, x)), _bad_channels(case, 3), [case.args]
    assert differs(fn(case.params, {}, *case.args), fn(params, {}, *case.args)) < 1e-5
    _, new, _ = equalize(batches=batches)(fn, params, {})
    w = {k: np.abs(np.asarray(v["w"], np.float64)) for k, v in new.items()}
    np.testing.assert_allclose(w["up"].max((0, 1, 2)), w["deep"].max((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(w["deep"].max((0, 1, 2)), w["down"].max((0, 1, 3)), rtol=1e-5)
    stream = np.maximum(w["stem"].max((0, 1, 2)), w["down"].max((0, 1, 2)))
    np.testing.assert_allclose(stream, np.maximum(w["up"].max((0, 1, 3)), w["head"].max(1)), rtol=1e-5)


def test_the_closed_form_of_one_pair():
    a, b = heavy_tailed(4, 6, 5), heavy_tailed(5, 5, 3)
    _, new, _ = equalize(batches=[(normal(6, 2, 6),)])(
        lambda p, s, x: jax.nn.relu(x @ p["a"]) @ p["b"], {"a": a, "b": b}, {}
    )
    r1, r2 = np.abs(np.asarray(a, np.float64)).max(0), np.abs(np.asarray(b, np.float64)).max(1)
    np.testing.assert_allclose(new["a"], np.asarray(a) * np.sqrt(r2 / r1), rtol=1e-6)
    np.testing.assert_allclose(new["b"], np.asarray(b) * np.sqrt(r1 / r2)[:, None], rtol=1e-6)


def test_dead_channels_stay():
    a = heavy_tailed(7, 6, 5).at[:, 2].set(0.0)
    b = heavy_tailed(8, 5, 3).at[4].set(0.0)
    _, new, _ = equalize(batches=[(normal(6, 2, 6),)])(
        lambda p, s, x: jax.nn.relu(x @ p["a"]) @ p["b"], {"a": a, "b": b}, {}
    )
    np.testing.assert_array_equal(new["b"][2], b[2])
    np.testing.assert_array_equal(new["a"][:, 4], a[:, 4])
    assert np.all(np.isfinite(new["a"]))


def test_relu6_is_left_unless_its_bound_may_move_and_then_exact():
    case = mobile6()
    fn, batches = (lambda p, s, x: case.fn(p, x)), [case.args]
    left, _, _ = equalize(batches=batches)(fn, case.params, {})
    assert "up/w: left as it is: min (nets.py:" in str(left)
    moved, new, _ = equalize(bounds=True, batches=batches)(fn, case.params, {})
    assert set(new) == {"params", "bounds"}
    x = 5.0 * case.args[0]  # many are clipped
    want = fn(case.params, {}, x)
    assert differs(want, case.fn(case.params, jnp.minimum(x, 3.0))) > 1e-2
    assert differs(want, jax.jit(moved)(new, {}, x)) < 1e-5
    w = {k: np.abs(np.asarray(v["w"], np.float64)) for k, v in new["params"].items()}
    np.testing.assert_allclose(w["up"].max((0, 1, 2)), w["deep"].max((0, 1, 2)), rtol=1e-5)
    with pytest.raises(ValueError, match="rewrite with arguments"):
        type(moved)(lambda p, s, x: x * 2.0, moved.title, moved.lines, moved.bounds)(new, {}, x)


def _sqnr(want, got) -> float:
    want, got = np.asarray(want, np.float64), np.asarray(got, np.float64)
    return 10 * np.log10((want**2).sum() / ((want - got) ** 2).sum())


def _quantized(fn, params, batches, rules):
    (args,) = batches
    plan = lb.bind(fn, rules, params, {}, *args)
    qstate = lb.calibrate(fn, plan, params, [({}, *args)])
    return lb.execute(fn, plan)(lb.pack(plan, params, qstate), {}, *args)


def test_per_tensor_weights_with_bad_channels_are_as_good_as_before_they_were_bad():
    case = mobile()
    fn, batches = (lambda p, s, x: case.fn(p, x)), [(heavy_tailed(9, 8, 8, 8, 3),)]
    want = fn(case.params, {}, *batches[0])
    bad = _bad_channels(case, 3)
    other, good, _ = equalize(batches=batches)(fn, bad, {})
    rules = {"**": "w8/tensor"}
    plain = _sqnr(want, _quantized(fn, bad, batches, rules))
    better = _sqnr(want, _quantized(other, good, batches, rules))
    assert better > plain + 10
    # The law of rounding noise: per tensor, a channel of range r has a signal-to-noise of (r / largest r)^2 of the best.
    model = Model(fn, bad, {}, batches, "law")
    pair = next(p for p in model.pairs.found if p.size == 12)
    first, _ = ranges(model, pair)
    lost = 10 * np.log10(np.mean((first.max() / first) ** 2))
    assert lost > 10
    assert largest(np.ones((1,)), np.zeros(1, int), 1).tolist() == [1.0]


def test_batch_norms_are_folded_first_in_one_chain():
    for net in (linen_net, nnx_net):
        model = net()
        other, params, state = lb.chain(fold(model.x, unfolded="keep"), equalize(), batches=[(model.x,)])(
            model.fn, model.params, model.state
        )
        assert differs(model.fn(model.params, model.state, model.x), jax.jit(other)(params, state, model.x)) < 1e-5
        assert "  conv/kernel -> depthwise/kernel" in str(other)


# --- SmoothQuant ----------------------------------------------------------------------------------------------


def test_smooth_is_the_closed_form_and_half_equalizes():
    g, w, x = 1.0 + jnp.abs(heavy_tailed(10, 6)), heavy_tailed(11, 6, 4), heavy_tailed(12, 64, 6)
    x = x.at[:, 3].multiply(100.0)

    def fn(p, s, x):
        return (jnp.arctan(x) * p["g"]) @ p["w"]

    for alpha in (0.3, 0.5, 0.8):
        _, new, _ = smooth(alpha, batches=[(x[:32],), (x[32:],)])(fn, {"g": g, "w": w}, {})
        inputs = np.abs(np.arctan(np.asarray(x, np.float64)) * np.asarray(g)).max(0)
        rows = np.abs(np.asarray(w, np.float64)).max(1)
        s = inputs**alpha / rows ** (1 - alpha)
        np.testing.assert_allclose(new["g"], np.asarray(g) / s, rtol=1e-5)
        np.testing.assert_allclose(new["w"], np.asarray(w) * s[:, None], rtol=1e-5)
        if alpha == 0.5:
            np.testing.assert_allclose(inputs / s, np.abs(np.asarray(new["w"])).max(1), rtol=1e-5)


def test_smooth_lets_layers_of_a_scan_have_factors_of_their_own():
    case = gated()
    fn = lambda p, s, x: case.fn(p, x)  # noqa: E731 (as the others)
    _, new, _ = smooth(0.5, makers=("gain",), batches=[case.args])(fn, case.params, {})
    moved = np.asarray(case.params["layers"]["norm1"]) / np.asarray(new["layers"]["norm1"])
    assert moved.shape == (4, 8)
    assert np.abs(moved - moved[:1]).max() > 1e-2
    rows = np.asarray(new["layers"]["q"]) / np.asarray(case.params["layers"]["q"])
    np.testing.assert_allclose(rows, np.broadcast_to(moved[:, :, None, None], rows.shape), rtol=1e-4)


def test_outliers_of_inputs_cost_less_after_smoothing():
    """A channel of inputs a hundred times the others: per-tensor W8A8 loses them; smoothed, it does not."""
    params = {"g": jnp.ones(64).at[5].set(100.0), "b": jnp.zeros(64), "w": 0.1 * normal(13, 64, 64)}
    x = normal(14, 256, 64)

    def fn(p, s, x):
        y = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-6)
        return (y * p["g"] + p["b"]) @ p["w"]

    want = fn(params, {}, x)
    rules = {"**": "w8/tensor,a8"}
    other, new, _ = smooth(0.5, batches=[(x,)])(fn, params, {})
    plain, better = (_sqnr(want, _quantized(f, p, [(x,)], rules)) for f, p in ((fn, params), (other, new)))
    assert better > plain + 6


def test_gains_become_ones_and_signs_are_kept_before_a_relu():
    case = gated()
    fn = lambda p, s, x: case.fn(p, x)  # noqa: E731 (as the others)
    params = {**case.params, "norm": case.params["norm"].at[1].set(0.0).at[2].set(-1.5)}
    _, new, _ = fold_gains(batches=[case.args])(fn, params, {})
    np.testing.assert_array_equal(new["layers"]["norm1"], np.ones((4, 8)))
    np.testing.assert_array_equal(new["norm"], np.ones(8) - np.eye(8)[1])

    def relu(p, s, x):
        return jax.nn.relu(jnp.sin(x) * p["g"]) @ p["w"]

    _, new, _ = fold_gains(batches=[(normal(1, 2, 3),)])(
        relu, {"g": jnp.array([2.0, -2.0, 3.0]), "w": jnp.ones((3, 1))}, {}
    )
    np.testing.assert_array_equal(new["g"], [1.0, -2.0, 1.0])


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="alpha"):
        smooth(1.5)
    with pytest.raises(ValueError, match="makers"):
        smooth(makers=("norm",))
    with pytest.raises(ValueError, match="sweeps"):
        Equalize(sweeps=0)
    x = normal(0, 2, 3).at[0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match=r"smooth: the input of 'w' held NaN .* first in batch 1 "):
        smooth(batches=[(normal(0, 2, 3),), (x,)])(
            lambda p, s, x: (jnp.sin(x) * p["g"]) @ p["w"], {"g": jnp.ones(3), "w": jnp.ones((3, 2))}, {}
        )


def test_paths_of_an_unchanged_tree_are_unchanged():
    case = gated()
    _, new, _ = equalize(batches=[case.args])(lambda p, s, x: case.fn(p, x), case.params, {})
    assert flatten(new)[0] == flatten(case.params)[0]


# --- AWQ ------------------------------------------------------------------------------------------------------


def test_awq_finds_the_exponent_that_a_search_by_hand_finds():
    x, w = np.asarray(heavy_tailed(20, 128, 32), np.float64), np.asarray(heavy_tailed(21, 32, 16), np.float64)
    x[:, :3] *= 30.0
    case = {"g": jnp.ones(32), "w": jnp.asarray(w, jnp.float32)}

    def fn(p, s, x):
        return (jnp.arctan(x) * 20.0 * p["g"]) @ p["w"]

    other, new, _ = awq("w3/g16", steps=11, batches=[(jnp.asarray(x, jnp.float32),)])(fn, case, {})
    h = np.arctan(x) * 20.0
    size, power = np.abs(h).mean(0), (h**2).mean(0)
    losses = {}
    for alpha in np.linspace(0, 1, 11):
        s = size**alpha
        s = s / np.sqrt(s.max() * s.min())
        moved = (w * s[:, None]).reshape(2, 16, 16)
        scale = np.abs(moved).max(1, keepdims=True) / 3
        kept = (np.clip(np.rint(moved / scale), -4, 3) * scale).reshape(32, 16)
        losses[alpha] = (power[:, None] * (kept / s[:, None] - w) ** 2).sum(), s
    best = min(losses, key=lambda a: losses[a][0])
    assert best > 0
    np.testing.assert_allclose(new["g"], 1 / losses[best][1], rtol=1e-4)
    ratio = losses[best][0] / losses[0.0][0]
    assert f"alpha {best:.2f}, error {ratio:.3f} of" in str(other)


def test_awq_leaves_what_no_rule_quantizes():
    case = gated()
    fn = lambda p, s, x: case.fn(p, x)  # noqa: E731 (as the others)
    other, new, _ = awq({"head": "w4"}, batches=[case.args])(fn, case.params, {})
    np.testing.assert_array_equal(new["layers"]["q"], case.params["layers"]["q"])
    assert "norm -> head: 8 channels" in str(other)
    assert "layers/v -> layers/o: left as it is: no rule quantizes" in str(other)
