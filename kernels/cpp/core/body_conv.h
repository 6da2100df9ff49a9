// The convolution's own loops: x on its grid with padding, windows as rows of a matmul, and depthwise. Include inside
// the body's namespace, after body_quantize.h and body_store.h.
#pragma once

// q = clip(nearest_even(x * inverse), lo - z, hi - z): steps (q_x - z_x), as floats. NaN takes `nan`: step 0, or itself.
template <typename T>
LOWBIT_INLINE void StepSpan(const T* x, int64_t n, float inverse, float lo, float hi, float nan, float* steps) {
  for (int64_t k = 0; k < n; ++k) {
    const float value = Value(x, k);
    float r = __builtin_rintf(value * inverse);
    r = r == r ? r : 0.0f;
    r = r < lo ? lo : r;
    r = r > hi ? hi : r;
    steps[k] = value == value ? r : nan;
  }
}

// The scale of an example by its largest magnitude.
float ConvScale(const Conv& c, int64_t example) {
  const int64_t n = c.height * c.width * c.channels;
  return DynamicScale(c.x_type == Type::kBF16 ? AbsMax(static_cast<const uint16_t*>(c.x) + example * n, n)
                                              : AbsMax(static_cast<const float*>(c.x) + example * n, n));
}

// `n` inputs that lie side by side, on the grid, as the convolution's body wants them.
template <typename T>
LOWBIT_INLINE void ConvSpan(const Conv& c, const T* x, float scale, int64_t n, float* steps) {
  if constexpr (sizeof(T) == 1) {
    const uint8_t flip = c.shift() == 128 ? 128 : 0;
    for (int64_t k = 0; k < n; ++k) {
      steps[k] = static_cast<float>(static_cast<int8_t>(static_cast<uint8_t>(x[k]) ^ flip) - c.zero());
    }
  } else {
    StepSpan(x, n, 1.0f / scale, static_cast<float>(c.lo - c.x_zero), static_cast<float>(c.hi - c.x_zero),
             c.keeps_nan ? __builtin_nanf("") : 0.0f, steps);
  }
}
template <typename T>
LOWBIT_INLINE void ConvSpan(const Conv& c, const T* x, float scale, int64_t n, int16_t* steps) {
  if constexpr (sizeof(T) == 1) {
    const uint8_t flip = c.shift() == 128 ? 128 : 0;
    const int32_t zero = c.zero();
    for (int64_t k = 0; k < n; ++k) {
      steps[k] = static_cast<int16_t>(static_cast<int8_t>(static_cast<uint8_t>(x[k]) ^ flip) - zero);
    }
  } else {
    const bool nan = QuantizeSpan(x, n, 1.0f / scale, static_cast<float>(c.lo - c.x_zero),
                                  static_cast<float>(c.hi - c.x_zero), 0, steps);
    if (nan) __atomic_store_n(c.found, 1u, __ATOMIC_RELAXED);
  }
}
// Codes as int8, or in uint8 with 128 more.
template <typename T, typename Q, std::enable_if_t<sizeof(Q) == 1, int> = 0>
LOWBIT_INLINE void ConvSpan(const Conv& c, const T* x, float scale, int64_t n, Q* codes) {
  constexpr int32_t kMore = std::is_same_v<Q, uint8_t> ? 128 : 0;
  if constexpr (sizeof(T) == 1) {
    FlipSpan(x, n, static_cast<uint8_t>(c.shift() ^ kMore), reinterpret_cast<int8_t*>(codes));
  } else {
    const bool nan = QuantizeSpan(x, n, 1.0f / scale, static_cast<float>(c.lo - c.x_zero),
                                  static_cast<float>(c.hi - c.x_zero), c.zero() + kMore, codes);
    if (nan) __atomic_store_n(c.found, 1u, __ATOMIC_RELAXED);
  }
}

// Of codes whose values were NaN: steps are NaN, of `n` positions of a line from `m` of x on.
template <typename Q>
LOWBIT_INLINE void PutBackNan(const Conv& c, int64_t m, int64_t n, Q* steps) {
  if constexpr (std::is_same_v<Q, float>) {
    if (c.x_bits == nullptr || c.x_marks == nullptr) return;
    const int64_t positions = c.batch * c.height * c.width;
    for (int64_t j = 0; j < n; ++j) {
      if (c.x_marks[m + j] == c.x_marks[m + j]) continue;
      for (int64_t k = 0; k < c.channels; ++k) {
        if (c.x_bits[k / 32 * positions + m + j] >> k % 32 & 1) steps[j * c.channels + k] = __builtin_nanf("");
      }
    }
  }
}

// Some padded lines. Q is what the body reads: int8 codes, or steps (q_x - z_x), int16 or float, whose padding is step 0.
template <typename T, typename Q>
LOWBIT_INLINE void ConvQuantizeLines(const Conv& c, Q padding, int64_t line_begin, int64_t line_end) {
  const int64_t height = c.padded_height(), width = c.padded_width(), row = width * c.channels;
  for (int64_t line = line_begin; line < line_end; ++line) {
    const int64_t b = line / height, i = line % height - c.pad_top;
    const float scale = c.scale_of(b);
    // Columns [left, right) of this padded line lie inside x.
    int64_t left = c.pad_left < width ? c.pad_left : width;
    int64_t right = c.pad_left + c.width < width ? c.pad_left + c.width : width;
    if (i < 0 || i >= c.height) left = right = width;
    Q* out = static_cast<Q*>(c.padded) + c.line_at(line) * c.channels;
    const int64_t before = left * c.channels, inside = right - left;
    for (int64_t k = 0; k < before; ++k) out[k] = padding;
    out += before;
    if (inside > 0 && !c.x_channels_first) {
      ConvSpan(c, static_cast<const T*>(c.x) + (b * c.height + i) * c.width * c.channels, scale, inside * c.channels,
               out);
    } else if (inside > 0) {
      constexpr int64_t kPart = 256;  // a line of one channel, part by part, scattered to its channel
      Q part[kPart];
      for (int64_t n = 0; n < c.channels; ++n) {
        const T* x = static_cast<const T*>(c.x) + ((b * c.channels + n) * c.height + i) * c.width;
        for (int64_t j = 0; j < inside; j += kPart) {
          const int64_t count = inside - j < kPart ? inside - j : kPart;
          ConvSpan(c, x + j, scale, count, part);
          for (int64_t k = 0; k < count; ++k) out[(j + k) * c.channels + n] = part[k];
        }
      }
    }
    if (inside > 0) PutBackNan(c, (b * c.height + i) * c.width, inside, out);
    for (int64_t k = inside * c.channels; k < row - before; ++k) out[k] = padding;
  }
}

template <typename T>
LOWBIT_INLINE void ConvQuantizeLines(const Conv& c, int64_t line_begin, int64_t line_end) {
  if (c.depthwise) return ConvQuantizeLines<T, float>(c, 0.0f, line_begin, line_end);
  if (c.words != nullptr) {
    if constexpr (Vec::kDirectInputs == 2) {
      return ConvQuantizeLines<T, int16_t>(c, 0, line_begin, line_end);
    } else {
      return ConvQuantizeLines<T, uint8_t>(c, static_cast<uint8_t>(c.zero() + 128), line_begin, line_end);
    }
  }
  ConvQuantizeLines<T, int8_t>(c, static_cast<int8_t>(c.zero()), line_begin, line_end);
}

void ConvQuantize(const Conv& c, int64_t line_begin, int64_t line_end) {
  if (c.x_type == Type::kF32) {
    ConvQuantizeLines<float>(c, line_begin, line_end);
  } else if (c.x_type == Type::kBF16) {
    ConvQuantizeLines<uint16_t>(c, line_begin, line_end);
  } else {
    ConvQuantizeLines<int8_t>(c, line_begin, line_end);
  }
}

// Few bytes are copied here: a call of memcpy costs more than the copy. The last piece overlaps the one before it.
template <int kPiece>
LOWBIT_INLINE void CopyPieces(int8_t* to, const int8_t* from, int64_t n) {
  for (int64_t k = 0; k + kPiece < n; k += kPiece) __builtin_memcpy(to + k, from + k, kPiece);
  __builtin_memcpy(to + n - kPiece, from + n - kPiece, kPiece);
}
LOWBIT_INLINE void CopySpan(int8_t* to, const int8_t* from, int64_t n) {
  if (n >= 512) {
    __builtin_memcpy(to, from, n);
  } else if (n >= 32) {
    CopyPieces<32>(to, from, n);
  } else if (n >= 8) {
    CopyPieces<8>(to, from, n);
  } else {
    for (; n > 0; --n) *to++ = *from++;
  }
}

// The scale of a window: NaN where a position that it sums over is marked so, for its group if groups have their own.
LOWBIT_INLINE float WindowScale(const Conv& c, int64_t b, int64_t i, int64_t j, int64_t group) {
  if (c.x_marks == nullptr || (c.depthwise && c.x_bits != nullptr)) return c.scale_of(b);
  const int64_t own = c.mark_groups > 1 ? group : 0;
  for (int64_t u = 0; u < c.kernel_height; ++u) {
    const int64_t h = i * c.stride_height + u * c.dilation_height - c.pad_top;
    if (h < 0 || h >= c.height) continue;
    for (int64_t v = 0; v < c.kernel_width; ++v) {
      const int64_t w = j * c.stride_width + v * c.dilation_width - c.pad_left;
      if (w < 0 || w >= c.width) continue;
      const float mark = c.x_marks[((b * c.height + h) * c.width + w) * c.mark_groups + own];
      if (mark != mark) return mark;
    }
  }
  return c.scale_of(b);
}

void ConvGather(const Conv& c, const Matmul& p, int64_t group, int64_t row_begin, int64_t row_end) {
  const int64_t height = c.padded_height(), width = c.padded_width(), tap = c.group_channels();
  const bool together = tap == c.channels && c.dilation_width == 1;  // a line of taps lies side by side in x
  const int64_t pad = p.blocks * p.span() - c.inputs();
  for (int64_t m = row_begin; m < row_end; ++m) {
    const int64_t j = m % c.out_width, i = m / c.out_width % c.out_height, b = m / c.out_width / c.out_height;
    const int8_t* x = static_cast<const int8_t*>(c.padded) + group * tap +
                      (c.line_at(b * height + i * c.stride_height) + j * c.stride_width) * c.channels;
    int8_t* row = p.codes + m * p.codes_stride;
    int8_t* q = row;
    for (int64_t u = 0; u < c.kernel_height; ++u) {
      const int8_t* line = x + u * c.dilation_height * width * c.channels;
      if (together) {
        CopySpan(q, line, c.kernel_width * tap);
        q += c.kernel_width * tap;
        continue;
      }
      for (int64_t v = 0; v < c.kernel_width; ++v, q += tap) CopySpan(q, line + v * c.dilation_width * c.channels, tap);
    }
    for (int64_t k = 0; k < pad; ++k) q[k] = 0;
    FinishGroup(p, m, 0, row, p.blocks, Vec::Sum(row, c.inputs()), static_cast<int32_t>(c.inputs()));
    p.row_scales[m] = WindowScale(c, b, i, j, group);
  }
}

// Whether a sum of int32 times these scales stays a float32: then nothing saturates. Scales that are NaN are none.
LOWBIT_INLINE bool IsTame(const Conv& c, const float* scales) {
  if (c.x_scales != nullptr || c.x_marks != nullptr || !(c.x_scale < 0x1p30f && c.x_scale > -0x1p30f)) return false;
  bool tame = true;
  for (int i = 0; i < kLanes; ++i) tame &= scales[i] < 0x1p60f && scales[i] > -0x1p60f;
  return tame;
}

// Output positions side by side of 16 channels, from column j of a line on. `lines` are where the taps of each height begin,
// `w` the taps of these channels.
template <int kSide, int kTaps>
LOWBIT_INLINE void DepthwiseSums(const Conv& c, const float* const* lines, const float* w, int64_t w_stride, int64_t n,
                                 int64_t j, Vec::F* sum) {
  const int64_t last = c.out_width - 1, step = c.dilation_width * c.channels;
  int64_t at[kSide];
  for (int64_t k = 0; k < kSide; ++k) {
    sum[k] = Vec::SetF(0.0f);
    at[k] = (j + k < last ? j + k : last) * c.stride_width * c.channels + n;
  }
  const int64_t height = kTaps > 0 ? kTaps : c.kernel_height, width = kTaps > 0 ? kTaps : c.kernel_width;
  for (int64_t u = 0; u < height; ++u) {
    for (int64_t v = 0; v < width; ++v, w += w_stride) {
      const float* line = lines[u] + v * step;
      const Vec::F tap = Vec::LoadF(w);
#pragma GCC unroll 8
      for (int64_t k = 0; k < kSide; ++k) sum[k] = Vec::Fma(Vec::LoadF(line + at[k]), tap, sum[k]);
    }
  }
}

// Sums of integers carried in float: below 2^24 they are exact in any order, fused or not (Check() refuses more taps). Lines of
// x are put on the grid as they are needed, into a ring of as many as a window has, which stays in cache.
void Depthwise(const Conv& c, int64_t line_begin, int64_t line_end) {
  constexpr int kSide = Vec::kRowTile >= 8 ? 8 : 4;  // positions computed together: sums in flight hide the latency of one
  constexpr int64_t kTaps = 258;
  const int64_t height = c.padded_height(), span = c.window_lines(), stride = (c.channels + kLanes - 1) / kLanes * kLanes;
  const bool square = c.kernel_height == 3 && c.kernel_width == 3;
  thread_local std::vector<float> taps;
  if (static_cast<int64_t>(taps.size()) < c.taps_count() * stride) taps.resize(c.taps_count() * stride);
  for (int64_t t = 0; t < c.taps_count(); ++t) {
    float* to = taps.data() + t * stride;
    for (int64_t n = 0; n < c.channels; ++n) to[n] = static_cast<float>(c.taps[t * c.channels + n]);
    for (int64_t n = c.channels; n < stride; ++n) to[n] = 0.0f;
  }
  int64_t done = 0;
  const float* lines[kTaps];
  for (int64_t line = line_begin; line < line_end; ++line) {
    const int64_t b = line / c.out_height, i = line % c.out_height, first = b * height + i * c.stride_height;
    ConvQuantize(c, first > done ? first : done, first + span);
    done = first + span;
    for (int64_t u = 0; u < c.kernel_height; ++u) {
      lines[u] = static_cast<const float*>(c.padded) + c.line_at(first + u * c.dilation_height) * c.channels;
    }
    for (int64_t n = 0; n < c.channels; n += kLanes) {
      const float* w = taps.data() + n;
      const Vec::F scale = c.tail.fixed != nullptr ? Vec::SetF(1.0f) : Vec::LoadF(c.scales + n);
      const bool tame = c.tail.fixed == nullptr && IsTame(c, c.scales + n);
      for (int64_t j = 0; j < c.out_width; j += kSide) {
        Vec::F sum[kSide];
        square ? DepthwiseSums<kSide, 3>(c, lines, w, stride, n, j, sum)
               : DepthwiseSums<kSide, 0>(c, lines, w, stride, n, j, sum);
        if (c.tail.fixed != nullptr) {
          Vec::I whole[kSide];
          for (int64_t k = 0; k < kSide; ++k) whole[k] = Vec::Whole(sum[k]);
          StoreFixed<kSide>(c.tail, c.channels, line * c.out_width + j, c.out_width - j, n / kLanes, whole);
          continue;
        }
        const int64_t last = c.out_width - 1;
        for (int64_t k = 0; tame && k < kSide; ++k) sum[k] = Vec::MulF(Vec::MulF(sum[k], scale), Vec::SetF(c.x_scale));
        for (int64_t k = 0; !tame && k < kSide; ++k) {
          const float x_scale = WindowScale(c, b, i, j + k < last ? j + k : last, 0);
          sum[k] = Vec::Saturate(Vec::MulF(Vec::Saturate(Vec::MulF(sum[k], scale)), Vec::SetF(x_scale)));
        }
        StoreTile<kSide>(c.tail, c.channels, line * c.out_width + j, c.out_width - j, n / kLanes, sum);
      }
    }
  }
}
