"""NaN in the scales of rows, where XLA fuses what makes x into their largest magnitude; independent truth: numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit_kernels import pack_matrix, quant_matmul, quantize_dynamic, quantize_fp8
from lowbit_kernels.pallas import gpu
from tests.values import normal

ROWS = {3: np.nan, 7: -np.nan, 9: np.inf, 11: -np.inf}


def rows():
    x = np.array(normal(0, 16, 512))
    for row, value in ROWS.items():
        x[row, row * 40] = value
    return x


@pytest.mark.parametrize("quantize", [quantize_dynamic, quantize_fp8, gpu.quantize_fp8])
@pytest.mark.parametrize("before", [lambda x: x, lambda x: x * 0.5, lambda x: jax.nn.relu(x) + x, jnp.abs])
def test_a_row_with_nan_or_infinity_has_scale_nan_however_it_is_fused(quantize, before):
    codes, scale = jax.jit(lambda x: quantize(before(x)))(rows())
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(scale)), sorted(ROWS))
    codes = np.asarray(codes.astype(jnp.float32))
    assert not codes[sorted(ROWS)].any()
    y = np.asarray(before(jnp.asarray(rows())))
    others = [i for i in range(len(y)) if i not in ROWS]
    most = 127 if quantize is quantize_dynamic else 448
    want = np.abs(y[others]).max(1) * np.float32(1 / most)
    np.testing.assert_array_equal(np.asarray(scale)[others], want)


@pytest.mark.parametrize("activation", ["int8", "fp8"])
def test_a_row_with_nan_is_nan_in_the_product_and_stays_alone(activation):
    w = pack_matrix(np.ones((512, 16), np.int8), np.ones((1, 16), np.float32), bits=4)
    y = jax.jit(lambda x: quant_matmul(jnp.sinh(x), w, activation=activation, implementation="xla"))(rows())
    np.testing.assert_array_equal(np.isnan(np.asarray(y)).all(1), [i in ROWS for i in range(16)])
    np.testing.assert_array_equal(np.isnan(np.asarray(y)).any(1), [i in ROWS for i in range(16)])
