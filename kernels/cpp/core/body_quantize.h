// Activations to codes, in plain loops that the compiler vectorizes for the body at hand. Include inside its namespace.
#pragma once

LOWBIT_INLINE float Value(const float* x, int64_t k) { return x[k]; }
LOWBIT_INLINE float Value(const uint16_t* x, int64_t k) { return WidenBF16(x[k]); }

// Largest |x| of a row. Compared as integers, which orders finite < infinity < NaN, so that nothing is lost.
template <typename T>
LOWBIT_INLINE float AbsMax(const T* x, int64_t n) {
  uint32_t largest = 0;
  for (int64_t k = 0; k < n; ++k) {
    const uint32_t u = Bits(Value(x, k)) & 0x7fffffffu;
    largest = u > largest ? u : largest;
  }
  float f;
  __builtin_memcpy(&f, &largest, 4);
  return f;
}

// The scale of a dynamic row: see quantize_dynamic in lowbit_kernels/numerics.py.
LOWBIT_INLINE float DynamicScale(float absmax) {
  if (!(absmax <= 3.402823466e38f)) return __builtin_nanf("");
  constexpr float kTiny = 1.17549435e-38f;
  if (absmax < kTiny) return absmax > 0.0f ? kTiny : 1.0f;  // XLA flushes a subnormal to zero
  const float scale = absmax * static_cast<float>(1.0 / 127.0);
  return scale > kTiny ? scale : kTiny;
}

// code = clip(nearest_even(x * inverse) + zero, lo, hi), less `shift`. NaN takes the code of 0.0.
// Returns whether there was one: a word rather than a truth value, so that the loop stays a vector's.
template <typename T, typename Q>
LOWBIT_INLINE bool QuantizeSpan(const T* x, int64_t n, float inverse, float lo, float hi, int32_t add, Q* q) {
  uint32_t nan = 0;
  for (int64_t k = 0; k < n; ++k) {
    const float value = Value(x, k);
    nan |= value != value ? 1u : 0u;
    float r = __builtin_rintf(value * inverse);
    r = r == r ? r : 0.0f;
    r = r < lo ? lo : r;
    r = r > hi ? hi : r;
    q[k] = static_cast<Q>(static_cast<int32_t>(r) + add);
  }
  return nan != 0;
}

// Codes given as such: uint8 is moved to int8.
LOWBIT_INLINE void FlipSpan(const int8_t* x, int64_t n, uint8_t flip, int8_t* __restrict q) {
  if (flip == 0) {
    __builtin_memcpy(q, x, n);
    return;
  }
  for (int64_t k = 0; k < n; ++k) q[k] = static_cast<int8_t>(static_cast<uint8_t>(x[k]) ^ flip);
}

// Into the order of the blocks: inputs p j + s of a block of 4 p go to 4 s + j.
template <int kPer>
LOWBIT_INLINE void Permute(const int8_t* in, int8_t* out, int64_t blocks) {
  for (int64_t b = 0; b < blocks; ++b) {
#if defined(__SSSE3__)
    if constexpr (kPer == 4) {
      const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
      const __m128i v = _mm_loadu_si128((const __m128i*)(in + 16 * b));
      _mm_storeu_si128((__m128i*)(out + 16 * b), _mm_shuffle_epi8(v, order));
      continue;
    }
    if constexpr (kPer == 2) {
      const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
      if (b + 1 < blocks) {
        const __m128i v = _mm_loadu_si128((const __m128i*)(in + 8 * b));
        _mm_storeu_si128((__m128i*)(out + 8 * b), _mm_shuffle_epi8(v, order));
        ++b;
        continue;
      }
    }
#endif
    int8_t block[4 * kPer];
    for (int j = 0; j < 4; ++j) {
      for (int s = 0; s < kPer; ++s) block[4 * s + j] = in[4 * kPer * b + kPer * j + s];
    }
    __builtin_memcpy(out + 4 * kPer * b, block, sizeof block);
  }
}

// What a group of codes needs beside the codes: its sums, and the order of the blocks.
LOWBIT_INLINE void FinishGroup(const Matmul& p, int64_t m, int64_t g, int8_t* q, int64_t blocks, int32_t sum,
                               int32_t count) {
  // Unsigned arithmetic: what does not fit wraps modulo 2^32, as it does in the vectors and in XLA.
  const uint32_t steps = uint32_t(sum) - uint32_t(p.zero()) * uint32_t(count);  // sum of (q_x - z_x)
  // The dot product sees stored codes, less kSeen8 on some machines: start at what that gets wrong.
  const uint32_t seen = p.bits == 8 ? Vec::kSeen8 : 0;
  p.sums[g * p.padded_rows + m] = static_cast<int32_t>(steps);
  const uint32_t start = seen * uint32_t(sum) - (p.zeros == nullptr ? uint32_t(p.offset) * steps : 0);
  p.starts[g * p.padded_rows + m] = static_cast<int32_t>(start);
  if (p.bits == 4) Permute<2>(q, q, blocks);
  if (p.bits == 2) Permute<4>(q, q, blocks);
}

template <typename T>
LOWBIT_INLINE void QuantizeRow(const Matmul& p, int64_t m) {
  constexpr bool kCodes = sizeof(T) == 1;
  const T* x = static_cast<const T*>(p.x) + m * p.length;
  const int32_t shift = p.shift(), zero = p.zero();
  float scale = 1.0f;
  if (p.activation == Activation::kDynamic) {
    if constexpr (!kCodes) scale = DynamicScale(AbsMax(x, p.length));
  } else {
    scale = p.x_scale[m * p.x_scale_stride];
  }
  p.row_scales[m] = scale;
  const float inverse = 1.0f / scale;
  const float lo = static_cast<float>(p.lo - (zero + shift)), hi = static_cast<float>(p.hi - (zero + shift));
  const int64_t span = p.span();
  int8_t* row = p.codes + m * p.codes_stride;
  // Groups of whole blocks lie side by side: one long loop instead of many short ones.
  const bool joined = !kCodes && p.group % span == 0;
  bool nan = false;
  if constexpr (!kCodes) {
    if (joined) nan = QuantizeSpan(x, p.length, inverse, lo, hi, zero, row);
  }
  int64_t at = 0;
  for (int64_t g = 0; g < p.groups; ++g) {
    const int64_t size = p.group_size(g), blocks = p.blocks_of(g), padded = blocks * span;
    int8_t* q = row + at;
    if constexpr (kCodes) {
      const uint8_t flip = shift == 128 ? 128 : 0;
      FlipSpan(x + g * p.group, size, flip, q);
    } else {
      if (!joined) nan |= QuantizeSpan(x + g * p.group, size, inverse, lo, hi, zero, q);
    }
    for (int64_t k = size; k < padded; ++k) q[k] = 0;
    FinishGroup(p, m, g, q, blocks, Vec::Sum(q, size), static_cast<int32_t>(size));
    at += padded;
  }
  if (nan && p.keeps_nan) p.row_scales[m] = __builtin_nanf("");
}

template <typename T>
LOWBIT_INLINE void WidenRow(const Matmul& p, int64_t m) {
  const T* x = static_cast<const T*>(p.x) + m * p.length;
  float* row = p.floats + m * p.codes_stride;
  for (int64_t g = 0, at = 0; g < p.groups; ++g) {
    const int64_t size = p.group_size(g), padded = p.blocks_of(g) * p.span();
    for (int64_t k = 0; k < size; ++k) row[at + k] = Value(x, g * p.group + k);
    for (int64_t k = size; k < padded; ++k) row[at + k] = 0.0f;
    at += padded;
  }
}

void QuantizeRows(const Matmul& p, int64_t row_begin, int64_t row_end) {
  for (int64_t m = row_begin; m < row_end; ++m) {
    if (p.activation == Activation::kFloat) {
      p.x_type == Type::kBF16 ? WidenRow<uint16_t>(p, m) : WidenRow<float>(p, m);
    } else if (p.x_type == Type::kF32) {
      QuantizeRow<float>(p, m);
    } else if (p.x_type == Type::kBF16) {
      QuantizeRow<uint16_t>(p, m);
    } else {
      QuantizeRow<int8_t>(p, m);
    }
  }
}
