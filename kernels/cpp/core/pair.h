// A product of two arrays of activations, both quantized in the call: y[a, b, m, n] = sum over k of x[a, b, m, k] w[a, b, n, k].
// Neither is moved before: batch axes, rows and columns lie as many elements apart as the caller says.
#pragma once

#include <cstdint>
#include <vector>

#include "core/calls.h"
#include "core/problem.h"

namespace lowbit {

// The grid of an operand: one scale and a zero point; or, dynamic, a scale of its own for every row or column.
struct PairGrid {
  float scale = 1.0f;
  int32_t zero = 0, lo = -128, hi = 127;
  bool dynamic = false;
  LOWBIT_INLINE int32_t shift() const { return hi > 127 ? 128 : 0; }
};

struct Pair {
  int64_t outer = 0, inner = 0, rows = 0, length = 0, out = 0;  // batch axes; M, K, N
  const float* x = nullptr;
  const float* w = nullptr;
  int64_t x_outer = 0, x_inner = 0, x_row = 0;                  // elements apart; along K side by side
  int64_t w_outer = 0, w_inner = 0, w_column = 0, w_step = 0;   // of the last two, one is 1
  PairGrid left, right;
  bool keeps_nan = false;  // of static grids: what sums over a NaN is NaN
  float* y = nullptr;      // (outer, inner, rows, out)
};

// Arrays and integers that nobody has checked.
struct PairCall {
  View x, w;                              // f32, of any rank
  View x_scale, x_zero, w_scale, w_zero;  // f32 (1), s32 (1)
  View y;                                 // f32 (outer, inner, M, N)
  int64_t length = 0, x_strides[3] = {}, w_strides[4] = {};
  int64_t lo = -128, hi = 127, w_lo = -128, w_hi = 127, x_dynamic = 0, w_dynamic = 0, keeps_nan = 0, isa = -1, threads = 0;
};

// Null, or what is wrong: then nothing was read or written.
const char* Call(const PairCall& call, Pool* pool);

}  // namespace lowbit
