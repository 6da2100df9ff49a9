// Both operands of a product of activations as codes. Include inside the body's namespace, after body_quantize.h.
#pragma once

// Rows [begin, end) of the left operand, whose first is at `x`, as rows of `p`.
void PairRows(const Pair& c, const Matmul& p, const float* x, int64_t begin, int64_t end) {
  const PairGrid& grid = c.left;
  const float lo = static_cast<float>(grid.lo - grid.zero), hi = static_cast<float>(grid.hi - grid.zero);
  for (int64_t m = begin; m < end; ++m) {
    const float* row = x + m * c.x_row;
    const float scale = grid.dynamic ? DynamicScale(AbsMax(row, c.length)) : grid.scale;
    int8_t* q = p.codes + (m - begin) * p.codes_stride;
    const bool nan = QuantizeSpan(row, c.length, 1.0f / scale, lo, hi, grid.zero - grid.shift(), q);
    for (int64_t k = c.length; k < p.blocks * 4; ++k) q[k] = 0;
    FinishGroup(p, m - begin, 0, q, p.blocks, Vec::Sum(q, c.length), static_cast<int32_t>(c.length));
    p.row_scales[m - begin] = nan && c.keeps_nan && !grid.dynamic ? __builtin_nanf("") : scale;
  }
}

// A tile of 16 columns of the right operand, which is at `w`: blocks of stored codes (code - shift + 128), scales and sums.
void PairColumns(const Pair& c, const float* w, int64_t tile, uint8_t* blocks, float* scales, int32_t* sums) {
  const PairGrid& grid = c.right;
  const float lo = static_cast<float>(grid.lo - grid.zero), hi = static_cast<float>(grid.hi - grid.zero);
  const int32_t add = grid.zero - grid.shift() + 128;
  const int64_t first = tile * kLanes, count = c.out - first < kLanes ? c.out - first : kLanes;
  const int64_t total = (c.length + 3) / 4;
  w += first * c.w_column;
  for (int n = 0; n < kLanes; ++n) {
    scales[n] = grid.scale;
    sums[n] = 0;
  }
  if (c.w_step == 1) {  // columns side by side in memory, one after the other
    thread_local std::vector<uint8_t> line;
    if (static_cast<int64_t>(line.size()) < total * 4) line.resize(total * 4);
    uint8_t* q = line.data();
    for (int64_t n = 0; n < kLanes; ++n) {
      bool nan = false;
      int64_t k = 0;
      if (n < count) {
        const float* column = w + n * c.w_column;
        if (grid.dynamic) scales[n] = DynamicScale(AbsMax(column, c.length));
        nan = QuantizeSpan(column, c.length, 1.0f / scales[n], lo, hi, add, q);
        int32_t sum = 0;
        for (int64_t i = 0; i < c.length; ++i) sum += q[i];
        sums[n] = sum;
        k = c.length;
      }
      for (; k < total * 4; ++k) q[k] = 0;
      for (int64_t i = 0; i < total; ++i) __builtin_memcpy(blocks + i * kBlockBytes + 4 * n, q + 4 * i, 4);
      if (nan && c.keeps_nan && !grid.dynamic) scales[n] = __builtin_nanf("");
    }
    return;
  }
  alignas(64) float inverse[kLanes];
  uint32_t nan[kLanes] = {};
  alignas(64) float padded[kLanes] = {};
  const auto line = [&](int64_t k) -> const float* {
    const float* from = w + k * c.w_step;
    if (count == kLanes) return from;
    for (int64_t n = 0; n < count; ++n) padded[n] = from[n];
    return padded;
  };
  if (grid.dynamic) {
    uint32_t largest[kLanes] = {};
    for (int64_t k = 0; k < c.length; ++k) {
      const float* from = line(k);
      for (int n = 0; n < kLanes; ++n) {
        const uint32_t u = Bits(from[n]) & 0x7fffffffu;
        largest[n] = u > largest[n] ? u : largest[n];
      }
    }
    for (int n = 0; n < kLanes; ++n) scales[n] = DynamicScale(FromBits(largest[n]));
  }
  for (int n = 0; n < kLanes; ++n) inverse[n] = 1.0f / scales[n];
  for (int64_t i = 0; i < total; ++i) {
    alignas(64) uint32_t word[kLanes] = {};
    for (int64_t k = 4 * i; k < 4 * i + 4 && k < c.length; ++k) {
      const float* from = line(k);
      const int at = static_cast<int>(8 * (k % 4));
      for (int n = 0; n < kLanes; ++n) {
        const float value = from[n];
        nan[n] |= value != value ? 1u : 0u;
        float r = __builtin_rintf(value * inverse[n]);
        r = r == r ? r : 0.0f;
        r = r < lo ? lo : r;
        r = r > hi ? hi : r;
        const int32_t stored = static_cast<int32_t>(r) + add;
        sums[n] += stored;
        word[n] |= static_cast<uint32_t>(stored) << at;
      }
    }
    __builtin_memcpy(blocks + i * kBlockBytes, word, kBlockBytes);
  }
  for (int n = 0; n < kLanes; ++n) {
    if (nan[n] != 0 && c.keeps_nan && !grid.dynamic) scales[n] = __builtin_nanf("");
  }
}
