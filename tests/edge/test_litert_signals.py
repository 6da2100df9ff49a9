"""LiteRT on what runs along one axis: integer kernels only, and the served codes."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import lowbit as lb
from lowbit.export.litert.audit import Contents
from lowbit.export.litert.write import CONTENTS
from lowbit.export.verify import verify
from tests.interpret.integer_models import audio_net
from tests.values import normal

LAST, FIRST = ("NHC", "HIO", "NHC"), ("NCH", "OIH", "NCH")
P = {
    "a": normal(0, 3, 6, 8) / 4,
    "b": normal(1, 3, 8, 8) / 5,
    "d": normal(2, 5, 1, 8) / 2,
    "f": normal(6, 16, 8, 8) / 11,
    "o": normal(3, 8, 6, 3) / 4,
    "bias": normal(4, 8) / 4,
}
X = normal(5, 2, 16, 6)


def _conv(x, w, stride=1, padding="SAME", dilation=1, groups=1, numbers=LAST):
    return lax.conv_general_dilated(
        x, w, (stride,), padding, rhs_dilation=(dilation,), dimension_numbers=numbers, feature_group_count=groups
    )


def _strided(p, x):
    return jax.nn.relu(_conv(x, p["a"], stride=2) + p["bias"])


def _causal(p, x):
    y = jax.nn.relu(_conv(x, p["a"], padding=[(2, 0)]) + p["bias"])
    return _conv(y, p["b"], padding=[(4, 0)], dilation=2) + p["bias"]


def _padded_before(p, x):
    return _conv(jnp.pad(_conv(x, p["a"]), ((0, 0), (2, 0), (0, 0))), p["b"], padding="VALID")


def _residual(p, x):
    y = jax.nn.relu(_conv(x, p["a"]))
    return jax.nn.relu(y + (_conv(_conv(y, p["d"], groups=8), p["b"]) + p["bias"]))


def _spread(p, x):
    """One vector for every sample, added to each of its steps."""
    y = _conv(x, p["a"])
    return _conv(y + _conv(y, p["f"], padding="VALID"), p["b"])


def _windows(reducer, start, axis, y):
    window = [1, 1, 1]
    window[axis] = 2
    return lax.reduce_window(y, start, reducer, window, window, "VALID")


def _largest(p, x):
    return _conv(_windows(lax.max, -jnp.inf, 1, _conv(x, p["a"])), p["b"]).reshape(2, -1)


def _average(p, x):
    return _conv(_windows(lax.add, 0.0, 1, jax.nn.relu(_conv(x, p["a"]))) / 2.0, p["b"])


def _channels_first(p, x):
    y = jax.nn.relu(_conv(x.transpose(0, 2, 1), p["o"], numbers=FIRST) + p["bias"][:, None])
    return _windows(lax.add, 0.0, 2, y) / 2.0


def _pieces(p, x):
    y = _conv(x, p["a"])
    return _conv(jnp.concatenate([y[:, 1:9], y[:, ::2]], 1), p["b"])


def _dense_after(p, x):
    return _conv(x, p["a"]).mean(1) @ p["b"][0]


KINDS = (
    _strided, _causal, _padded_before, _residual, _spread, _largest, _average, _channels_first, _pieces, _dense_after,
)  # fmt: skip
CASES = {f.__name__[1:]: f for f in KINDS}


def _used(name):
    """The parameters that a case names."""
    return {k: v for k, v in P.items() if k in CASES[name].__code__.co_consts}


def _row(fn, params, args, target, path, **options):
    plan = lb.bind(fn, {"**": "w8,a8"}, params, *args, integer=True, **options)
    qparams = lb.pack(plan, params, lb.init(fn, plan, params, *args))
    bundle = lb.export(fn, plan, qparams, args, path, targets=[target], integer_io=True)
    (row,) = verify(bundle.path, [target]).rows
    return row, Contents.of((bundle.path / CONTENTS).read_text())


@pytest.mark.parametrize("name", list(CASES))
def test_signals(name, tmp_path):
    row, contents = _row(CASES[name], _used(name), (X,), "litert", tmp_path / "m")
    assert row.status in ("exact", "close"), row
    assert (row.difference or 0.0) <= 1.0
    assert (row.share or 0.0) <= 0.02
    assert not contents.float_operators


@pytest.mark.parametrize("name", ["strided", "causal", "residual", "largest"])
def test_signals_on_a_microcontrollers_runtime(name, tmp_path):
    row, _ = _row(CASES[name], _used(name), (X,), "tflm", tmp_path / "m", rounding="gemmlowp_double")
    assert row.status == "exact", row


def test_a_temporal_network(tmp_path):
    """Strides, dilations, depthwise, gates and a mean, in integers from end to end."""
    model = audio_net()
    row, contents = _row(model.fn, model.params, model.args, "litert", tmp_path / "m")
    assert row.status in ("exact", "close"), row
    assert (row.difference or 0.0) <= 1.0
    assert not contents.float_operators
    assert {"LOGISTIC", "TANH", "DEPTHWISE_CONV_2D"} <= {op.name for op in contents.operators}
