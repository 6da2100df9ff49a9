// Scales in, results out. Include inside the body's namespace, after Vec and body_quantize.h.
#pragma once

LOWBIT_INLINE uint16_t ToBF16(float f) {
  const uint32_t u = Bits(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(u >> 16 | 0x40);
  return static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}

// XLA's maximum and minimum: NaN wins, and 0.0 is above -0.0.
LOWBIT_INLINE float Larger(float a, float b) {
  const float larger = a > b ? a : b > a ? b : a == b ? FromBits(Bits(a) & Bits(b)) : a;
  return b == b ? (a == a ? larger : a) : b;
}
LOWBIT_INLINE float Smaller(float a, float b) {
  const float smaller = a < b ? a : b < a ? b : a == b ? FromBits(Bits(a) | Bits(b)) : a;
  return b == b ? (a == a ? smaller : a) : b;
}

// The steps of the tail over 16 channels, each float32 and rounded by itself.
LOWBIT_INLINE void ApplySteps(const Tail& t, int64_t tile, float* v) {
  constexpr float kMost = 3.402823466e38f;
  const float* row = t.steps == nullptr ? nullptr : t.steps + tile * kLanes;
  for (int s = 0; s < t.count; ++s) {
    alignas(64) float w[kLanes];
    if (t.one[s]) {
      for (int i = 0; i < kLanes; ++i) w[i] = t.numbers[s];
    } else {
      __builtin_memcpy(w, row, sizeof w);
      row += t.step_stride;
    }
    switch (t.kinds[s]) {
      case Step::kAdd:
        for (int i = 0; i < kLanes; ++i) v[i] = v[i] + w[i];
        break;
      case Step::kMul:
        for (int i = 0; i < kLanes; ++i) {
          const float product = v[i] * w[i];
          v[i] = product > kMost ? kMost : product < -kMost ? -kMost : product;
        }
        break;
      case Step::kMax:
        for (int i = 0; i < kLanes; ++i) v[i] = Larger(v[i], w[i]);
        break;
      case Step::kMin:
        for (int i = 0; i < kLanes; ++i) v[i] = Smaller(v[i], w[i]);
        break;
    }
  }
}

// Codes of `count` values on the next grid, and the row's mark.
LOWBIT_INLINE void EmitCodes(const Tail& t, int64_t m, int64_t at, const float* v, int64_t count) {
  const int32_t shift = t.next_hi > 127 ? 128 : 0;
  const float lo = static_cast<float>(t.next_lo - t.next_zero), hi = static_cast<float>(t.next_hi - t.next_zero);
  int8_t q[kLanes];
  QuantizeSpan(v, kLanes, 1.0f / t.next_scale, lo, hi, t.next_zero - shift, q);
  bool nan = false;
  for (int64_t i = 0; i < count; ++i) {
    nan |= v[i] != v[i];
    t.codes[at + i * t.channel_stride] = static_cast<int8_t>(static_cast<uint8_t>(q[i]) ^ static_cast<uint8_t>(shift));
  }
  // Other threads may find another NaN of the same row: they write the same.
  if (nan) __atomic_store_n(reinterpret_cast<uint32_t*>(t.marks + m), 0x7fc00000u, __ATOMIC_RELAXED);
}

// Whatever is more than 16 floats side by side, out of line: cut at the last channel, strided, bfloat16, steps, codes.
__attribute__((noinline)) void StoreSlowly(const Tail& t, int64_t m, int64_t tile, int64_t count, Vec::F values) {
  alignas(64) float v[kLanes];
  Vec::Store(v, values);
  ApplySteps(t, tile, v);
  const int64_t at = t.at(m) + tile * kLanes * t.channel_stride;
  if (t.y != nullptr && t.y_bf16) {
    uint16_t* y = static_cast<uint16_t*>(t.y) + at;
    for (int64_t i = 0; i < count; ++i) y[i * t.channel_stride] = ToBF16(v[i]);
  } else if (t.y != nullptr && t.channel_stride == 1 && count == kLanes) {
    __builtin_memcpy(static_cast<float*>(t.y) + at, v, sizeof v);
  } else if (t.y != nullptr) {
    float* y = static_cast<float*>(t.y) + at;
    for (int64_t i = 0; i < count; ++i) y[i * t.channel_stride] = v[i];
  }
  if (t.codes != nullptr) EmitCodes(t, m, at, v, count);
}

// Results [m, 16 tile ..] of a problem with `out` channels: the tail, then memory.
LOWBIT_INLINE void StoreTile(const Tail& t, int64_t out, int64_t m, int64_t tile, Vec::F values) {
  const int64_t left = out - tile * kLanes, count = left < kLanes ? left : kLanes;
  if (count == kLanes && t.channel_stride == 1 && !t.y_bf16 && t.plain()) {
    return Vec::Store(static_cast<float*>(t.y) + t.at(m) + tile * kLanes, values);
  }
  StoreSlowly(t, m, tile, count, values);
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

// y = total * row scale, the last rounding but the cast.
LOWBIT_INLINE void FinishTile(const Matmul& p, int64_t m, int64_t tile, Vec::F total, float scale) {
  StoreTile(p.tail, p.out, m, tile, Vec::Saturate(Vec::MulF(total, Vec::SetF(scale))));
}
