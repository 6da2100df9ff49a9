"""Scores against float64 numpy, closed forms and measured losses."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.allocate import sensitivity
from lowbit.allocate.taylor import float_pass
from lowbit.core.metrics import sqnr_db

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(8, 6)), jnp.float32)
PARAMS = {
    "a": jnp.asarray(RNG.normal(size=(6, 5)), jnp.float32),
    "b": jnp.asarray(RNG.normal(size=(5, 4)) * 0.3, jnp.float32),
}
WORDS = ("w2", "w4", "w8,a4")


def chain(params, x):
    return jnp.tanh(x @ params["a"]) @ params["b"]


def loss(y):
    return jnp.sum(jnp.sin(y))


@pytest.fixture(scope="module")
def plan():
    return lb.bind(chain, {"**": "w8,a8"}, PARAMS, X)


def quantized(path: str, word: str, plan) -> np.ndarray:
    """A weight on its grid, in float64."""
    made = lb.with_quantizers(plan, lambda row: word if row.path == path else "keep")
    qparams = lb.pack(made, PARAMS, lb.init(chain, made, PARAMS, X))
    return np.asarray(qparams.weights()[path].dequantize(), np.float64)


def test_taylor_is_the_squared_product_of_gradient_and_change(plan):
    words = ("w2", "w4")
    weight_only = lb.bind(chain, {"**": "w8"}, PARAMS, X)
    scores = lb.sensitivity(chain, weight_only, PARAMS, [(X,)], candidates=words, method="taylor", loss=loss)
    x, a, b = (np.asarray(v, np.float64) for v in (X, PARAMS["a"], PARAMS["b"]))
    hidden = np.tanh(x @ a)
    at_out = np.cos(hidden @ b)
    at_hidden = (at_out @ b.T) * (1 - hidden**2)
    for c, word in enumerate(words):
        for r, (path, came, slope, w) in enumerate((("a", x, at_hidden, a), ("b", hidden, at_out, b))):
            change = came @ (quantized(path, word, weight_only) - w)
            assert scores.values[r][c] == pytest.approx(np.sum((slope * change) ** 2), rel=1e-4)


def test_errors_of_inputs_count_as_well(plan):
    scores = lb.sensitivity(chain, plan, PARAMS, [(X,)], candidates=("w8,a2", "w8,a8"), method="taylor", loss=loss)
    assert all(coarse > 10 * fine for coarse, fine in scores.values)


def test_mse_is_the_error_of_the_model_with_one_operation_quantized(plan):
    data = [(X,), (X + 0.5,)]
    scores = lb.sensitivity(chain, plan, PARAMS, data, candidates=("w2", "w8,a4"), method="mse")
    for r, c, rule in ((0, 0, "w2,a8"), (1, 1, "w8,a4")):
        made = lb.with_quantizers(plan, lambda row, r=r, rule=rule: rule if row.path == "ab"[r] else "keep")
        qstate, run = lb.calibrate(chain, made, PARAMS, data), lb.simulate(chain, made)
        each = [np.mean((np.asarray(run(PARAMS, qstate, x)) - np.asarray(chain(PARAMS, x))) ** 2) for (x,) in data]
        assert scores.values[r][c] == pytest.approx(np.mean(each), rel=1e-3)


def test_a_rise_of_the_loss_and_a_divergence_are_measured(plan):
    rise = lb.sensitivity(chain, plan, PARAMS, [(X,)], candidates=("keep", "w2"), method="loss", loss=loss)
    assert [row[0] for row in rise.values] == [0.0, 0.0]
    made = lb.with_quantizers(plan, lambda row: "w2,a8" if row.path == "a" else "keep")
    other = lb.simulate(chain, made)(PARAMS, lb.init(chain, made, PARAMS, X), X)
    assert rise.values[0][1] == pytest.approx(float(loss(other) - loss(chain(PARAMS, X))), rel=1e-3)
    found = lb.sensitivity(chain, plan, PARAMS, [(X,)], candidates=("w2",), method="kl")
    p, q = (np.asarray(jax.nn.log_softmax(y), np.float64) for y in (chain(PARAMS, X), other))
    assert found.values[0][0] == pytest.approx(np.mean(np.sum(np.exp(p) * (p - q), axis=-1)), rel=1e-3)


def test_noise_and_fisher_are_their_formulas(plan):
    noise = lb.sensitivity(chain, plan, PARAMS, [(X,)], candidates=("w4",), method="sqnr")
    fisher = lb.sensitivity(chain, plan, PARAMS, [(X,), (X + 1.0,)], candidates=("w4",), method="fisher", loss=loss)
    slopes = [jax.grad(lambda p, x=x: loss(chain(p, x)))(PARAMS) for x in (X, X + 1.0)]
    for r, path in enumerate(("a", "b")):
        after = quantized(path, "w4", plan)
        ratio = float(sqnr_db(PARAMS[path], jnp.asarray(after, jnp.float32)))
        assert -10 * math.log10(noise.values[r][0]) == pytest.approx(ratio, abs=1e-3)
        squares = np.mean([np.asarray(s[path], np.float64) ** 2 for s in slopes], axis=0)
        error = (after - np.asarray(PARAMS[path], np.float64)) ** 2
        assert fisher.values[r][0] == pytest.approx(np.sum(squares * error), rel=1e-4)


def test_hessian_traces_of_a_quadratic_are_exact():
    """Of ``sum (x w)^2`` with white inputs the Hessian is a multiple of one: every probe gives its trace."""
    x = jnp.sqrt(8.0) * jnp.eye(8)[:, :4]
    params = {"w": jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)}
    model = lambda p, x: x @ p["w"]  # noqa: E731 (a model in a line)
    plan = lb.bind(model, {"**": "w8"}, params, x)
    found = lb.sensitivity(
        model, plan, params, [(x,)], candidates=("w2",), method="hessian", loss=lambda y: jnp.sum(y**2)
    )
    made = lb.with_quantizers(plan, lambda row: "w2")
    after = lb.pack(made, params, lb.init(model, made, params, x)).weights()["w"].dequantize()
    assert found.values[0][0] == pytest.approx(16.0 * float(jnp.sum((after - params["w"]) ** 2)), rel=1e-4)


def test_linearity_is_exact_where_the_error_is_quadratic():
    """A linear model on white inputs: ``|x dw|^2 = n |dw|^2``, so one slope predicts every quantizer."""
    x = jnp.sqrt(8.0) * jnp.eye(8)[:, :4]
    params = {"w": jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)}
    model = lambda p, x: x @ p["w"]  # noqa: E731 (a model in a line)
    plan = lb.bind(model, {"**": "w8"}, params, x)
    given = {"candidates": ("w2", "w3", "w4"), "batches": [(x,)]}
    predicted = lb.sensitivity(model, plan, params, method="linearity", **given)
    measured = lb.sensitivity(model, plan, params, method="mse", **given)
    assert predicted.array() == pytest.approx(measured.array(), rel=1e-3)


def test_label_free_taylor_predicts_the_error_of_a_linear_model():
    """With random signs, ``E (g . dy)^2`` of the last layer is the squared error of the result itself, for any signs."""
    weight_only = lb.bind(chain, {"**": "w8"}, PARAMS, X)
    found = lb.sensitivity(chain, weight_only, PARAMS, [(X,)], candidates=("w3",), method="taylor", loss="mse")
    exact = lb.sensitivity(chain, weight_only, PARAMS, [(X,)], candidates=("w3",), method="mse")
    assert found.values[1][0] == pytest.approx(exact.values[1][0] * X.shape[0] * 4, rel=1e-4)


def test_layers_of_a_scan_are_scored_together():
    stacked = {"layers": jnp.asarray(RNG.normal(size=(3, 6, 6)) * 0.4, jnp.float32)}

    def deep(params, x):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["layers"])[0]

    plan = lb.bind(deep, {"**": "w8,a8"}, stacked, X)
    taylor = lb.sensitivity(deep, plan, stacked, [(X,)], candidates=("w2", "w8"), loss=loss)
    measured = lb.sensitivity(deep, plan, stacked, [(X,)], candidates=("w2", "w8"), method="mse")
    for table in (taylor, measured):
        assert table.values[0][0] > 50 * table.values[0][1] > 0


def test_programs_do_not_grow_with_the_number_of_operations():
    count = 0

    def traced(params, x):
        nonlocal count
        count += 1
        for w in params.values():
            x = jnp.tanh(x @ w)
        return x

    counts = []
    for depth in (2, 6):
        params = {f"w{i}": jnp.eye(6) * 0.9 for i in range(depth)}
        plan = lb.bind(traced, {"**": "w8"}, params, X)
        for method in ("taylor", "mse", "linearity"):
            count = 0
            lb.sensitivity(
                traced,
                plan,
                params,
                [(X,)],
                candidates=("w2", "w4"),
                method=method,
                loss=loss if method == "taylor" else None,
            )
            counts.append(count)
    assert counts[:3] == counts[3:]


def test_a_run_that_was_stopped_goes_on(plan, tmp_path):
    given = {"candidates": WORDS, "loss": loss, "cache": tmp_path}

    class StoppedError(Exception):
        pass

    def stop(done: int) -> None:
        if done == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        lb.sensitivity(chain, plan, PARAMS, [(X,)], progress=stop, **given)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    done: list[int] = []
    found = lb.sensitivity(chain, plan, PARAMS, [(X,)], progress=done.append, **given)
    assert done == [1, 2, 3]
    assert found.values == lb.sensitivity(chain, plan, PARAMS, [(X,)], candidates=WORDS, loss=loss).values
    louder = functools.wraps(loss)(lambda y: 3.0 * loss(y))  # of the same name
    got = lb.sensitivity(chain, plan, PARAMS, [(X,)], **(given | {"loss": louder}))
    np.testing.assert_allclose(got.values, 9.0 * np.array(found.values), rtol=1e-5)  # sum (g . dy)^2


def test_bad_input_is_answered(plan):
    given = {"candidates": ("w4",)}
    with pytest.raises(ValueError, match="loss must make a scalar"):
        lb.sensitivity(chain, plan, PARAMS, [(X,)], loss=lambda y: y, **given)
    with pytest.raises(ValueError, match="loss must make a scalar"):
        lb.sensitivity(chain, plan, PARAMS, [(X,)], method="loss", **given)
    with pytest.raises(ValueError, match="method must be one of taylor"):
        lb.sensitivity(chain, plan, PARAMS, [(X,)], method="taylr", **given)
    with pytest.raises(ValueError, match="the score of 'a' with 'w4' is nan"):
        lb.sensitivity(chain, plan, PARAMS, [(X,)], loss=lambda y: jnp.sum(y) * jnp.nan, **given)
    with pytest.raises(ValueError, match="batches is empty"):
        lb.sensitivity(chain, plan, PARAMS, [], **given)
    with pytest.raises(TypeError, match="candidates must be a list of rules"):
        lb.sensitivity(chain, plan, PARAMS, [(X,)], candidates="w4")
    with pytest.raises(ValueError, match="candidates must differ"):
        lb.sensitivity(chain, plan, PARAMS, [(X,)], candidates=("w4", "w4"))


def test_thirty_layers_and_five_candidates_cost_few_passes(monkeypatch):
    """One pass forward and backward a batch, and of every candidate one forward for ranges and one for its changes."""
    forwards, backwards = [], []

    def differentiated(*args):
        run = float_pass(*args)
        return lambda *operands: (backwards.append(1), run(*operands))[1]

    monkeypatch.setattr(sensitivity, "float_pass", differentiated)
    params = {f"w{i:02}": jnp.asarray(RNG.normal(size=(6, 6)) * 0.4, jnp.float32) for i in range(30)}

    def deep(params, x):
        jax.debug.callback(lambda: forwards.append(1))  # whenever the function is computed, however it is interpreted
        for name in sorted(params):
            x = jnp.tanh(x @ params[name])
        return x

    plan = lb.bind(deep, {"**": "w8,a8"}, params, X)
    words = ("w2", "w3", "w4", "w8,a4", "w8,a8")
    scores = lb.sensitivity(deep, plan, params, [(X,)], candidates=words, method="taylor", loss=lambda y: jnp.sum(y**2))
    jax.effects_barrier()
    assert scores.array().shape == (30, 5)
    assert len(backwards) == 1
    assert 5 <= len(forwards) <= 12
