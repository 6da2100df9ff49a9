// Scales in, results out. Include inside the body's namespace, after Vec.
#pragma once

LOWBIT_INLINE uint16_t ToBF16(float f) {
  const uint32_t u = Bits(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(u >> 16 | 0x40);
  return static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}

// y[m, 16 tile ..] = values, cut at the last channel.
LOWBIT_INLINE void StoreTile(const Matmul& p, int64_t m, int64_t tile, Vec::F values) {
  const int64_t n = tile * kLanes, count = p.out - n < kLanes ? p.out - n : kLanes;
  if (!p.y_bf16 && count == kLanes) return Vec::Store(static_cast<float*>(p.y) + m * p.out + n, values);
  float buffer[kLanes];
  Vec::Store(buffer, values);
  if (p.y_bf16) {
    uint16_t* y = static_cast<uint16_t*>(p.y) + m * p.out + n;
    for (int64_t i = 0; i < count; ++i) y[i] = ToBF16(buffer[i]);
  } else {
    float* y = static_cast<float*>(p.y) + m * p.out + n;
    for (int64_t i = 0; i < count; ++i) y[i] = buffer[i];
  }
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
  StoreTile(p, m, tile, Vec::Saturate(Vec::MulF(total, Vec::SetF(scale))));
}
