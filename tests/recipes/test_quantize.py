"""`lowbit.quantize` on public calls: laws in float64, resuming, and what happens when the data is no good."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.recipes.gptq import GPTQ
from lowbit.recipes.lookup import named, names
from lowbit.recipes.recipe import Recipe
from lowbit.recipes.report import cells
from lowbit.rewrites.equalize import equalize

RECIPES = names()


def network(params, x):
    return jax.nn.relu(x @ params["first"]["w"]) @ params["second"]["w"]


def heavy(rng, *shape):
    return jnp.asarray(rng.standard_t(4, size=shape), jnp.float32)


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    params = {"first": {"w": heavy(rng, 24, 16)}, "second": {"w": heavy(rng, 16, 8)}}
    mixed = rng.normal(size=(24, 24)) * np.geomspace(1, 0.05, 24)
    batches = [(jnp.asarray(rng.normal(size=(64, 24)) @ mixed, jnp.float32),) for _ in range(3)]
    return params, batches, jnp.asarray(rng.normal(size=(512, 24)) @ mixed, jnp.float32)


def loss(y, x):
    return float(np.sum((np.asarray(y, np.float64) - np.asarray(x, np.float64)) ** 2))


def served(report, plan, qparams, *args):
    """Executed, where the recipe rewrote the model as rewritten."""
    return lb.execute(report.fn, plan)(qparams, *args)


@pytest.fixture(scope="module")
def nearest_loss(case):
    params, batches, x = case
    qparams, plan, _ = lb.quantize(network, params, {"**": "w3"}, batches=batches, recipe="rtn")
    return loss(lb.execute(network, plan)(qparams, x), network(params, x))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_beats_nearest_on_data_it_has_not_seen(name, case, nearest_loss):
    params, batches, x = case
    before = jax.tree.map(np.asarray, params)
    qparams, plan, report = lb.quantize(network, params, {"**": "w3"}, batches=batches, recipe=name)
    got = loss(served(report, plan, qparams, x), network(params, x))
    assert got == nearest_loss if name == "rtn" else got < 0.8 * nearest_loss
    jax.tree.map(np.testing.assert_array_equal, before, params)  # left as they are
    assert str(report).startswith(f"{name}:")
    # A recipe may add operations of its own, which stay in float.
    assert [line.path for line in report.lines if line.weight] == ["first/w", "second/w"]
    assert json.loads(report.to_json())["operations"][0]["bits"] == pytest.approx(3 + 32 / 24)
    assert all(line.kernel for line in report.lines)


def test_the_report_is_what_execute_does(case):
    """Decibels of the first operation, from its own packed weight in float64."""
    params, batches, _ = case
    qparams, _, report = lb.quantize(network, params, {"**": "w3"}, batches=batches, recipe="gptq")
    x = np.concatenate([np.asarray(x, np.float64) for (x,) in batches])
    w = np.asarray(params["first"]["w"], np.float64)
    q = np.asarray(qparams.weights()["first/w"].dequantize(), np.float64)
    line = report.lines[0]
    assert line.output_db == pytest.approx(10 * np.log10(np.sum((x @ w) ** 2) / np.sum((x @ (q - w)) ** 2)), abs=1e-2)
    assert line.weight_db == pytest.approx(10 * np.log10(np.sum(w**2) / np.sum((q - w) ** 2)), abs=1e-3)


def test_gptq_over_nearest_is_the_ratio_of_conditional_to_marginal_variance():
    """``sum c_k / tr H`` of the calibration inputs themselves, ``c`` by a Cholesky factor in float64, by falling ``H_kk``."""
    rng = np.random.default_rng(3)
    size, columns, rows = 48, 1024, 400
    x = rng.normal(size=(rows, size)) @ np.linalg.cholesky(0.9 ** np.abs(np.subtract.outer(range(size), range(size)))).T
    x = (x * np.geomspace(1, 3, size)).astype(np.float32)
    h = x.astype(np.float64).T @ x / rows
    order = np.argsort(-np.diag(h))
    lower = np.linalg.cholesky(h[np.ix_(order[::-1], order[::-1])])  # the last row to be rounded is known first
    law = np.sum(np.diag(lower) ** 2) / np.trace(h)
    plain = Recipe("law", GPTQ(value="none", rounds=0, damping=0.0))
    params = {"w": jnp.asarray(rng.normal(size=(size, columns)), jnp.float32)}
    _, _, report = lb.quantize(lambda p, x: x @ p["w"], params, {"**": "w8"}, batches=[(x,)], recipe=plain)
    assert report.lines[0].ratio == pytest.approx(law, rel=5 / np.sqrt(columns))


def test_codes_of_a_weight_that_is_filled_up_are_those_of_the_rounding_written_out():
    """37 inputs, one of them dead, and 990 outputs, in float64: what a shape is filled up with changes no code."""
    rng = np.random.default_rng(4)
    size, columns, rows = 37, 990, 300
    x = (rng.normal(size=(rows, size)) @ (np.eye(size) + 0.1 * rng.normal(size=(size, size)))).astype(np.float32)
    x[:, 5] = 0
    w = rng.normal(size=(size, columns)).astype(np.float32)
    plain = Recipe("law", GPTQ(value="none", rounds=0, damping=0.0))
    qparams, _, _ = lb.quantize(lambda p, x: x @ p["w"], {"w": w}, {"**": "w8"}, batches=[(x,)], recipe=plain)
    packed = qparams.weights()["w"]
    step = np.asarray(packed.scale_values, np.float64)[0]
    h = x.astype(np.float64).T @ x / rows
    h[5, 5] = np.trace(h) / (size - 1)  # any: it is tied to no other
    order = np.argsort(-np.diag(h), kind="stable")
    lower = np.linalg.cholesky(h[np.ix_(order[::-1], order[::-1])])
    upper = lower[::-1, ::-1]
    off, codes = np.zeros((size, columns)), np.zeros((size, columns))
    for i, k in enumerate(order):
        aim = w[k] + upper[:i, i] @ off[:i] / upper[i, i]
        codes[k] = np.clip(np.rint(aim / step), -128, 127)
        off[i] = w[k] - codes[k] * step
    assert (
        np.mean(np.asarray(packed.unpacked_codes()) != codes) < 1e-3
    )  # where float32 falls on the other side of a half


def test_a_run_that_was_stopped_goes_on(case, tmp_path):
    params, batches, _ = case
    whole, _, _ = lb.quantize(network, params, {"**": "w3"}, batches=batches, recipe="gptq")
    said: list[str] = []

    def stop(what, done, of):
        said.append(what)
        if what == "inputs of window 1":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lb.quantize(network, params, {"**": "w3"}, batches=batches, recipe="gptq", cache=tmp_path, progress=stop)
    again: list[str] = []
    got, _, _ = lb.quantize(
        network, params, {"**": "w3"}, batches=batches, recipe="gptq", cache=tmp_path,
        progress=lambda what, done, of: again.append(what),
    )  # fmt: skip
    assert "inputs of window 0" in said
    assert "inputs of window 0" not in again
    assert "inputs of window 1" in again
    jax.tree.map(np.testing.assert_array_equal, whole, got)
    for window in (1, 1 << 28):  # other windows hold other weights: nothing of one is taken for the other's
        held, _, _ = lb.quantize(
            network, params, {"**": "w3"}, batches=batches, recipe="search", cache=tmp_path, window=window
        )
        apart, _, _ = lb.quantize(network, params, {"**": "w3"}, batches=batches, recipe="search", window=window)
        jax.tree.map(np.testing.assert_array_equal, apart, held)
    other = {**params, "second": {"w": params["second"]["w"] * 2}}
    later = [*batches[:-1], (batches[-1][0] * 2,)]
    twice = lambda p, x: network(p, x * 2)  # noqa: E731
    for run in ((network, other, batches), (network, params, later), (twice, params, batches)):
        fresh: list[str] = []
        lb.quantize(
            run[0], run[1], {"**": "w3"}, batches=run[2], recipe="gptq", cache=tmp_path,
            progress=lambda what, done, of, fresh=fresh: fresh.append(what),
        )  # fmt: skip
        assert "inputs of window 0" in fresh  # other parameters, a later batch, another function: another run


def test_inputs_are_those_that_solved_weights_leave(case):
    """With two passes the second weight is solved on inputs that the first, solved, makes: its own moment in float64."""
    params, batches, _ = case
    solver = dataclasses.replace(named("gptq").solver, rounds=0, value="none", damping=0.01)
    recipe = Recipe("two", solver, passes=2)
    qparams, _, report = lb.quantize(network, params, {"**": "w3"}, batches=batches, recipe=recipe)
    first, second = (np.asarray(qparams.weights()[k].dequantize(), np.float64) for k in ("first/w", "second/w"))
    x = np.concatenate([np.asarray(x, np.float64) for (x,) in batches])
    hidden, w = np.maximum(x @ first, 0), np.asarray(params["second"]["w"], np.float64)
    expected = 10 * np.log10(np.sum((hidden @ w) ** 2) / np.sum((hidden @ (second - w)) ** 2))
    assert report.lines[1].output_db == pytest.approx(expected, abs=1e-2)


@pytest.mark.filterwarnings("ignore:.*held nothing but 0")  # the error says more
@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "batches is empty"),
        ([(np.zeros((8, 24), np.float32),)], "first/w: its inputs were zero in every batch"),
        (
            [(np.ones((8, 24), np.float32),), (np.full((8, 24), np.nan, np.float32),)],
            r"'first/w'.* held NaN or infinity .*batch 1",
        ),
    ],
)
def test_data_that_says_nothing_is_refused(case, batches, message):
    with pytest.raises(ValueError, match=message):
        lb.quantize(network, case[0], {"**": "w3,a8"}, batches=batches, recipe="gptq")


@pytest.mark.parametrize("rules", ["w3", "w8,a8"])
@pytest.mark.parametrize("name", RECIPES)
def test_nan_is_named_by_batch_and_where_it_is_in_every_recipe(name, rules, case):
    bad = np.ones((64, 24), np.float32)
    bad[5, 7] = np.nan
    with pytest.raises(
        ValueError, match=r"input of '(first|second)/w' held NaN .*batch 1 |argument \[0\] of batches\[1\] held NaN"
    ):
        lb.quantize(network, case[0], {"**": rules}, batches=[case[1][0], (bad,)], recipe=name)


def test_one_sample_and_dead_inputs_are_enough_for_a_finite_result(case):
    params, batches, x = case
    one = batches[0][0][:1].at[:, 3].set(0.0)
    qparams, plan, report = lb.quantize(network, params, {"**": "w3"}, batches=[(one,)], recipe="gptq")
    assert np.isfinite(np.asarray(lb.execute(network, plan)(qparams, x))).all()
    assert any("span" in note for note in report.lines[0].notes)
    before = jax.tree.map(np.asarray, params)
    wet = Recipe("wet", GPTQ(damping=0.0))
    with pytest.raises(
        ValueError, match=r"first/w: .* not positive definite with a damping of 0: give more calibration"
    ):
        lb.quantize(network, params, {"**": "w3"}, batches=[(one,)], recipe=wet)
    jax.tree.map(np.testing.assert_array_equal, before, params)


def test_wrong_requests_say_what_is_allowed(case):
    params, batches, _ = case
    with pytest.raises(ValueError, match=r"recipe 'gptk' is none of .*gptq"):
        lb.quantize(network, params, {"**": "w4"}, batches=batches, recipe="gptk")
    with pytest.raises(TypeError, match="recipe must be a name or a Recipe"):
        lb.quantize(network, params, {"**": "w4"}, batches=batches, recipe=4)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="window must be a positive number"):
        lb.quantize(network, params, {"**": "w4"}, batches=batches, window=0)
    with pytest.raises(ValueError, match="mean_batches must be at least 1, got 0"):
        Recipe("none", GPTQ(), mean_batches=0)
    with pytest.raises(ValueError, match="value must be one of"):
        GPTQ(value="hessian")


def test_a_recipe_prints_every_hyper_parameter():
    for name in RECIPES:
        recipe = named(name)
        for field in dataclasses.fields(recipe.solver):
            assert f"{field.name}={getattr(recipe.solver, field.name)!r}" in str(recipe)


def test_convolutions_groups_tensors_and_inputs(case):
    """Depthwise, grouped and shared scales: solved weights lose less than nearest, executed, on inputs not seen."""
    rng = np.random.default_rng(5)
    params = {
        "depth": heavy(rng, 3, 3, 1, 4), "point": heavy(rng, 1, 1, 4, 8), "head": heavy(rng, 8, 6),
    }  # fmt: skip

    def fn(p, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            x, p["depth"], (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=4
        )
        y = jax.nn.relu(jax.lax.conv_general_dilated(y, p["point"], (2, 2), "SAME", dimension_numbers=numbers))
        return jnp.mean(y, axis=(1, 2)) @ p["head"]

    def draw(count):
        smooth = rng.normal(size=(count, 6, 6, 4)).cumsum(axis=1)
        return jnp.asarray(smooth, jnp.float32)

    batches, x = [(draw(32),), (draw(32),)], draw(128)
    rules = {"depth": "w3/tensor,a8", "point": "w3/g4,a8", "head": "w3,a8"}
    losses = {}
    for name in ("rtn", "gptq"):
        qparams, plan, _ = lb.quantize(fn, params, rules, batches=batches, recipe=name)
        losses[name] = loss(lb.execute(fn, plan)(qparams, x), fn(params, x))
    assert losses["gptq"] < 0.8 * losses["rtn"]


def test_a_recipe_rewrites_the_model_and_corrects_biases():
    """Channels of ranges far apart in 4 bits per tensor: equalized they fit, and the means of all outputs are float's."""
    rng = np.random.default_rng(7)
    spread = np.geomspace(0.02, 20, 16)
    params = {
        "a": {"w": jnp.asarray(rng.normal(size=(12, 16)) * spread, jnp.float32), "b": jnp.zeros(16)},
        "c": {"w": jnp.asarray(rng.normal(size=(16, 6)) / spread[:, None], jnp.float32), "b": jnp.zeros(6)},
    }

    def fn(p, x):
        return jax.nn.relu(x @ p["a"]["w"] + p["a"]["b"]) @ p["c"]["w"] + p["c"]["b"]

    x = jnp.asarray(rng.normal(size=(256, 12)) + 0.5, jnp.float32)
    plain = dataclasses.replace(named("rtn"), name="plain")
    mended = dataclasses.replace(plain, name="mended", rewrite=lb.chain(equalize()), is_corrected=True)
    y, losses, off = np.asarray(fn(params, x)), {}, {}
    for recipe in (plain, mended, named("equalized")):
        qparams, plan, report = lb.quantize(fn, params, {"**": "w4/tensor"}, batches=[(x,)], recipe=recipe)
        got = np.asarray(served(report, plan, qparams, x))
        losses[recipe.name], off[recipe.name] = loss(got, y), np.abs((got - y).mean(axis=0)).max()
    for name in ("mended", "equalized"):
        assert losses[name] < 0.2 * losses["plain"]
        assert off[name] < 1e-3 * np.abs(y).max() < off["plain"]


def test_a_look_up_takes_the_nearest_levels_and_says_so():
    rng = np.random.default_rng(8)
    params = {"words": heavy(rng, 40, 8), "head": heavy(rng, 8, 3)}

    def fn(p, i):
        return p["words"][i] @ p["head"]

    i = jnp.asarray(rng.integers(0, 40, size=(64,)))
    _, _, report = lb.quantize(fn, params, {"**": "w4"}, batches=[(i,)], recipe="search")
    assert "look-up" in report.lines[0].notes[0]
    product = lb.quantize(lambda p, x: (x @ p["head"]) @ (x @ p["head"]).T, params, {"head": "w4", "**": "keep"},
                          batches=[(jnp.ones((2, 8)),)], recipe="rtn")[2].lines[-1]  # fmt: skip
    assert cells(product)[1] == "-"  # a product of two activations has no weight, in float or otherwise
    assert (report.lines[0].ratio or 1.0) < 1.0  # searched scales, every entry alike


def test_batches_of_an_iterator_reach_the_rewrite(case):
    """An iterator is used up by whoever reads it first: the rewrite must see the same batches as the solver."""
    params, batches, x = case
    recipe = dataclasses.replace(named("rtn"), rewrite=lb.chain(equalize(bounds=True)))
    (one, _, _), (two, plan, report) = (
        lb.quantize(network, params, {"**": "w4"}, batches=given, recipe=recipe) for given in (batches, iter(batches))
    )
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert report.batches == len(batches)
    assert np.isfinite(np.asarray(served(report, plan, two, x))).all()


def test_noise_so_far_is_that_of_executed_results(case):
    """Diagnosed: decibels of the results of both products, against the executed model up to each, in float64."""
    params, batches, _ = case
    qparams, _, report = lb.quantize(
        network, params, {"**": "w3"}, batches=batches[:1], recipe="gptq", diagnose=True
    )  # fmt: skip
    first, second = (np.asarray(qparams.weights()[k].dequantize(), np.float64) for k in ("first/w", "second/w"))
    x = np.asarray(batches[0][0], np.float64)
    w, v = (np.asarray(params[k]["w"], np.float64) for k in ("first", "second"))
    pairs = (x @ w, x @ first), (np.maximum(x @ w, 0) @ v, np.maximum(x @ first, 0) @ second)
    for line, (y, q) in zip(report.lines, pairs, strict=True):
        assert line.accumulated_db == pytest.approx(10 * np.log10(np.sum(y**2) / np.sum((y - q) ** 2)), abs=1e-2)
    assert "so far dB" in str(report)
    _, _, plain = lb.quantize(network, params, {"**": "w3"}, batches=batches[:1], recipe="gptq")
    assert "so far dB" not in str(plain)


def test_scales_of_uneven_levels_are_searched_beyond_the_full_range():
    """NVFP4 on normal weights, inputs that weigh alike: 6.6 thousandths, where scales up to 1.1 of the full range leave 7.3."""
    w, x = jax.random.normal(jax.random.key(0), (512, 48)), jnp.eye(512)
    qparams, _, _ = lb.quantize(lambda p, x: x @ p["w"], {"w": w}, {"**": "wnvfp4"}, batches=[(x,)], recipe="search")
    error = np.asarray(qparams.weights()["w"].dequantize() - w, np.float64)
    assert np.sum(error**2) / np.sum(np.asarray(w, np.float64) ** 2) < 0.0069


def test_a_scale_that_outputs_share_loses_the_least_share_of_every_output():
    """In float64: of 64 multiples of the full range, the one with the least sum over outputs of error over power, both by ``H_kk``.

    Of those, that is, that clip no output by more energy than rounding on the full range costs it."""
    rng = np.random.default_rng(9)
    w = (rng.standard_t(4, size=(24, 16)) * np.geomspace(0.01, 1, 16)).astype(np.float32)
    x = (rng.normal(size=(256, 24)) * np.geomspace(1, 0.05, 24)).astype(np.float32)
    searched = dataclasses.replace(named("search"), solver=dataclasses.replace(named("search").solver, damping=0.0))
    qparams, _, _ = lb.quantize(lambda p, x: x @ p["w"], {"w": w}, {"**": "w3/tensor"}, batches=[(x,)], recipe=searched)
    got = np.asarray(qparams.weights()["w"].scale_values, np.float64).item()
    h = np.mean(np.square(x, dtype=np.float64), axis=0)[:, None]
    scales = np.linspace(0.4, 1.1, 64) * np.abs(w).max() / 3
    off = [s * np.clip(np.rint(w / s), -4, 3) - w for s in scales]
    relative = [np.sum(np.sum(h * e**2, axis=0) / np.sum(h * np.square(w, dtype=np.float64), axis=0)) for e in off]
    plain = [np.sum(h * e**2) for e in off]
    clipped = [np.sum(np.maximum(np.abs(w) - 3 * s, 0.0) ** 2, axis=0).max() for s in scales]
    relative = np.where(np.array(clipped) <= 24 * (np.abs(w).max() / 3) ** 2 / 12, relative, np.inf)
    assert got == pytest.approx(scales[np.argmin(relative)], rel=1e-6)
    assert np.argmin(relative) != np.argmin(plain)  # data that tell one from the other


@pytest.mark.parametrize("rule", ["w8/tensor", "w4/tensor"])
def test_a_giant_that_calibration_makes_cheap_is_not_clipped_away(rule):
    """One weight a hundred times the others, on an input that others predict: what is clipped is at most what rounding on the
    whole range costs, ``K (max / reach)^2 / 12``; by calibration alone a half of it would be cut off."""
    rng = np.random.default_rng(3)
    w = rng.normal(size=(64, 32)).astype(np.float32)
    w[5, 7] = 100.0
    x = rng.normal(size=(512, 64)).astype(np.float32)
    x[:, 5] = 0.05 * x[:, 6]
    qparams, _, _ = lb.quantize(lambda p, x: x @ p["w"], {"w": w}, {"**": rule}, batches=[(x,)], recipe="gptq")
    got = qparams.weights()["w"]
    top = got.spec.format.high
    reach = float(np.asarray(got.scale_values, np.float64).item()) * top
    assert 100.0 - reach <= np.sqrt(64 / 12) * 100.0 / top
    far = float(np.asarray(got.dequantize())[5, 7])
    assert abs(far - 100.0) <= np.sqrt(64 / 12) * 100.0 / top + reach / top
