// Scales in, results out. Include inside the body's namespace, after Vec and body_quantize.h.
#pragma once

LOWBIT_INLINE uint16_t ToBF16(float f) {
  const uint32_t u = Bits(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(u >> 16 | 0x40);
  return static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}

// XLA's maximum and minimum: NaN wins, and 0.0 is above -0.0. Written as selections of whole words, which are vectors'.
LOWBIT_INLINE float Larger(float a, float b) {
  float larger = a > b ? a : b;
  larger = a == b ? FromBits(Bits(a) & Bits(b)) : larger;
  larger = a == a ? larger : a;
  return b == b ? larger : b;
}
LOWBIT_INLINE float Smaller(float a, float b) {
  float smaller = a < b ? a : b;
  smaller = a == b ? FromBits(Bits(a) | Bits(b)) : smaller;
  smaller = a == a ? smaller : a;
  return b == b ? smaller : b;
}

// The number that is added to row m and channel n.
LOWBIT_INLINE float Residual(const Tail& t, int64_t m, int64_t n) {
  n += t.first_channel;
  if (t.channel_stride != 1) return t.residual[t.at(m) + n * t.channel_stride];
  return n < t.residual_channels ? t.residual[m * t.residual_channels + n] : 0.0f;
}

// The same of some rows and 16 channels from n on, side by side.
template <int kRows, typename V>
LOWBIT_INLINE void AddResidual(const Tail& t, int64_t m, int64_t valid, int64_t n, typename V::F* v) {
  const int64_t left = t.residual_channels - t.first_channel - n;
  for (int64_t r = 0; r < kRows && r < valid; ++r) {
    alignas(64) float part[kLanes] = {};
    const float* from = t.residual + (m + r) * t.residual_channels + t.first_channel + n;
    if (left < kLanes) {
      for (int64_t i = 0; i < left; ++i) part[i] = from[i];
      from = part;
    }
    v[r] = V::AddF(v[r], V::LoadF(from));
  }
}

// The steps of the tail over 16 channels of some rows, each float32 and rounded by itself. Rows lie one after the other, and
// the operand is written out for all of them: loops that the compiler takes as vectors, were they not unrolled before.
template <int kRows>
LOWBIT_INLINE void ApplySteps(const Tail& t, int64_t m, int64_t valid, int64_t tile, int64_t count, float* v) {
  constexpr float kMost = 3.402823466e38f;
  constexpr int kCount = kRows * kLanes;
  const float* row = t.steps == nullptr ? nullptr : t.steps + tile * kLanes;
  for (int s = 0; s < t.count; ++s) {
    alignas(64) float w[kCount];
    if (t.kinds[s] == Step::kResidual) {
      for (int64_t r = 0; r < kRows && r < valid; ++r) {
        for (int64_t i = 0; i < count; ++i) v[r * kLanes + i] += Residual(t, m + r, tile * kLanes + i);
      }
      continue;
    }
    if (t.one[s]) {
#pragma GCC unroll 1
      for (int i = 0; i < kCount; ++i) w[i] = t.numbers[s];
    } else {
      for (int r = 0; r < kRows; ++r) __builtin_memcpy(w + r * kLanes, row, kLanes * sizeof(float));
      row += t.step_stride;
    }
    switch (t.kinds[s]) {
      case Step::kAdd:
#pragma GCC unroll 1
        for (int i = 0; i < kCount; ++i) v[i] = v[i] + w[i];
        break;
      case Step::kMul:
#pragma GCC unroll 1
        for (int i = 0; i < kCount; ++i) {
          const float product = v[i] * w[i];
          v[i] = product > kMost ? kMost : product < -kMost ? -kMost : product;
        }
        break;
      case Step::kMax:
#pragma GCC unroll 1
        for (int i = 0; i < kCount; ++i) v[i] = Larger(v[i], w[i]);
        break;
      case Step::kMin:
#pragma GCC unroll 1
        for (int i = 0; i < kCount; ++i) v[i] = Smaller(v[i], w[i]);
        break;
      case Step::kResidual:
        break;
    }
  }
}

// `count` of 16 numbers to memory, whole vectors where they lie side by side.
template <typename T>
LOWBIT_INLINE void StoreSpan(T* to, int64_t stride, const T* from, int64_t count) {
  if (stride == 1 && count == kLanes) {
    __builtin_memcpy(to, from, kLanes * sizeof(T));
  } else if (stride == 1 && count == kLanes / 2) {
    __builtin_memcpy(to, from, kLanes / 2 * sizeof(T));
  } else {
    for (int64_t i = 0; i < count; ++i) to[i * stride] = from[i];
  }
}

// Marks a row, one of whose values in 16 channels is NaN; and which.
LOWBIT_INLINE void MarkRow(const Tail& t, int64_t m, int64_t tile, const float* v, int64_t count) {
  bool here = false;
  for (int64_t i = 0; i < count; ++i) {
    if (v[i] == v[i]) continue;
    here = true;
    const int64_t channel = t.first_channel + tile * kLanes + i;
    if (t.bits != nullptr) __atomic_fetch_or(t.bits + channel / 32 * t.rows + m, 1u << channel % 32, __ATOMIC_RELAXED);
  }
  // Other threads may find another NaN of the same row: they write the same.
  if (here) __atomic_store_n(reinterpret_cast<uint32_t*>(t.marks + m), 0x7fc00000u, __ATOMIC_RELAXED);
}

// Codes of rows on the next grid, and the rows' marks.
template <int kRows>
LOWBIT_INLINE void EmitCodes(const Tail& t, int64_t m, int64_t valid, int64_t tile, const float (*v)[kLanes],
                             int64_t count) {
  const int32_t shift = t.next_hi > 127 ? 128 : 0;
  const float lo = static_cast<float>(t.next_lo - t.next_zero), hi = static_cast<float>(t.next_hi - t.next_zero);
  alignas(64) int8_t q[kRows * kLanes];
  const bool nan = QuantizeSpan(v[0], kRows * kLanes, 1.0f / t.next_scale, lo, hi, t.next_zero - shift, q);
  if (shift != 0) {
    for (int i = 0; i < kRows * kLanes; ++i) q[i] = static_cast<int8_t>(static_cast<uint8_t>(q[i]) ^ 128);
  }
  for (int64_t r = 0; r < kRows && r < valid; ++r) {
    StoreSpan(t.codes + t.at(m + r) + tile * kLanes * t.channel_stride, t.channel_stride, q + r * kLanes, count);
  }
  if (!nan) return;
  for (int64_t r = 0; r < kRows && r < valid; ++r) MarkRow(t, m + r, tile, v[r], count);
}

// Whatever is more than 16 floats side by side, out of line: cut at the last channel, strided, bfloat16, steps, codes.
// Several rows together, so that a step is looked up, and a division made, once for all of them.
template <int kRows>
__attribute__((noinline)) void StoreSlowly(const Tail& t, int64_t m, int64_t valid, int64_t tile, int64_t count,
                                           float (*v)[kLanes]) {
  ApplySteps<kRows>(t, m, valid, tile, count, v[0]);
  for (int64_t r = 0; r < kRows && r < valid && t.y != nullptr; ++r) {
    const int64_t at = t.at(m + r) + tile * kLanes * t.channel_stride;
    if (t.y_bf16) {
      uint16_t* y = static_cast<uint16_t*>(t.y) + at;
      for (int64_t i = 0; i < count; ++i) y[i * t.channel_stride] = ToBF16(v[r][i]);
    } else {
      StoreSpan(static_cast<float*>(t.y) + at, t.channel_stride, v[r], count);
    }
  }
  if (t.codes != nullptr) EmitCodes<kRows>(t, m, valid, tile, v, count);
}

// Rows of 16 channels side by side, the tail in registers: what StoreSlowly does with them.
template <int kRows, typename V>
__attribute__((noinline)) void StoreTail(const Tail& t, int64_t m, int64_t valid, int64_t tile, typename V::F* v) {
  const float* row = t.steps == nullptr ? nullptr : t.steps + tile * kLanes;
  for (int s = 0; s < t.count; ++s) {
    const typename V::F w = t.one[s] ? V::SetF(t.numbers[s]) : V::LoadF(row);
    if (!t.one[s]) row += t.step_stride;
    switch (t.kinds[s]) {
      case Step::kAdd:
        for (int r = 0; r < kRows; ++r) v[r] = V::AddF(v[r], w);
        break;
      case Step::kMul:
        for (int r = 0; r < kRows; ++r) v[r] = V::Saturate(V::MulF(v[r], w));
        break;
      case Step::kMax:
        if (V::IsPlain(w)) {
          for (int r = 0; r < kRows; ++r) v[r] = V::PlainLarger(v[r], w);
        } else if (V::IsZero(w)) {  // a sum with 0.0 makes -0.0 that, and nothing else another
          for (int r = 0; r < kRows; ++r) v[r] = V::AddF(V::PlainLarger(v[r], w), w);
        } else {
          for (int r = 0; r < kRows; ++r) v[r] = V::Larger(v[r], w);
        }
        break;
      case Step::kMin:
        if (V::IsPlain(w)) {
          for (int r = 0; r < kRows; ++r) v[r] = V::PlainSmaller(v[r], w);
        } else {
          for (int r = 0; r < kRows; ++r) v[r] = V::Smaller(v[r], w);
        }
        break;
      case Step::kResidual:
        AddResidual<kRows, V>(t, m, valid, tile * kLanes, v);
        break;
    }
  }
  for (int64_t r = 0; r < kRows && r < valid && t.y != nullptr; ++r) {
    V::Store(static_cast<float*>(t.y) + t.at(m + r) + tile * kLanes, v[r]);
  }
  if (t.codes == nullptr) return;
  const typename V::F inverse = V::SetF(1.0f / t.next_scale), lo = V::SetF(static_cast<float>(t.next_lo - t.next_zero)),
                      hi = V::SetF(static_cast<float>(t.next_hi - t.next_zero));
  const typename V::I add = V::Set(t.next_zero);  // bytes of a code are the same, signed or not
  for (int64_t r = 0; r < kRows && r < valid; ++r) {
    if (!V::StoreCodes(t.codes + t.at(m + r) + tile * kLanes, v[r], inverse, lo, hi, add)) continue;
    alignas(64) float values[kLanes];
    V::Store(values, v[r]);
    MarkRow(t, m + r, tile, values, kLanes);
  }
}

// Results [m .. m + valid, 16 tile ..] of a problem with `out` channels: the tail, then memory.
template <int kRows>
LOWBIT_INLINE void StoreTile(const Tail& t, int64_t out, int64_t m, int64_t valid, int64_t tile,
                             const Vec::F (&values)[kRows]) {
  const int64_t left = out - tile * kLanes, count = left < kLanes ? left : kLanes;
  if (count == kLanes && t.channel_stride == 1 && !t.y_bf16 && t.plain()) {
    for (int r = 0; r < kRows && r < valid; ++r) {
      Vec::Store(static_cast<float*>(t.y) + t.at(m + r) + tile * kLanes, values[r]);
    }
    return;
  }
  if constexpr (Vec::kTails) {
    if (count == kLanes && t.channel_stride == 1 && !t.y_bf16) {
      Vec::F v[kRows];
      for (int r = 0; r < kRows; ++r) v[r] = values[r];
      return StoreTail<kRows, Vec>(t, m, valid, tile, v);
    }
  }
  alignas(64) float v[kRows][kLanes];
  for (int r = 0; r < kRows; ++r) Vec::Store(v[r], values[r]);
  StoreSlowly<kRows>(t, m, valid, tile, count, v);
}

LOWBIT_INLINE Vec::F LoadScales(const Matmul& p, int64_t index) {
  return p.scales_bf16 ? Vec::LoadBF16(static_cast<const uint16_t*>(p.scales) + index)
                       : Vec::LoadF(static_cast<const float*>(p.scales) + index);
}

// zero * column sums of 16 channels: what a zero point of the activations adds to the integer sum.
LOWBIT_INLINE Vec::I ColumnTerm(const Matmul& p, int64_t index, int32_t zero) {
  if (zero == 0) return Vec::Set(0);
  const Vec::I column = p.column_sums_16 ? Vec::Load16(static_cast<const int16_t*>(p.column_sums) + index)
                                         : Vec::Load(static_cast<const int32_t*>(p.column_sums) + index);
  return Vec::Mul(column, Vec::Set(zero));
}

// y = total * row scale, the last rounding but the cast, of `valid` rows from m.
template <int kRows>
LOWBIT_INLINE void FinishRows(const Matmul& p, int64_t m, int64_t valid, int64_t tile, const Vec::F (&total)[kRows]) {
  Vec::F values[kRows];
  for (int r = 0; r < kRows; ++r) {
    values[r] = Vec::Saturate(Vec::MulF(total[r], Vec::SetF(p.row_scales[m + r])));
  }
  StoreTile<kRows>(p.tail, p.out, m, valid, tile, values);
}

LOWBIT_INLINE void FinishTile(const Matmul& p, int64_t m, int64_t tile, Vec::F total) {
  const Vec::F totals[1] = {total};
  FinishRows<1>(p, m, 1, tile, totals);
}
