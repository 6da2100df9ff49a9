// The convolution's own loops: x on its grid with padding, windows as rows of a matmul, and depthwise. Include inside
// the body's namespace, after body_quantize.h and body_store.h.
#pragma once

// q = clip(nearest_even(x * inverse), lo - z, hi - z): steps (q_x - z_x), as floats. NaN takes step 0.
template <typename T>
LOWBIT_INLINE void StepSpan(const T* x, int64_t n, float inverse, float lo, float hi, float* steps) {
  for (int64_t k = 0; k < n; ++k) {
    float r = __builtin_rintf(Value(x, k) * inverse);
    r = r == r ? r : 0.0f;
    r = r < lo ? lo : r;
    steps[k] = r > hi ? hi : r;
  }
}

template <typename T>
LOWBIT_INLINE void ConvQuantizeLines(const Conv& c, int64_t line_begin, int64_t line_end) {
  constexpr bool kCodes = sizeof(T) == 1;
  const int64_t height = c.padded_height(), width = c.padded_width(), row = width * c.channels;
  const int32_t zero = c.zero();
  const float inverse = 1.0f / c.x_scale;
  const float lo = static_cast<float>(c.lo - c.x_zero), hi = static_cast<float>(c.hi - c.x_zero);
  for (int64_t line = line_begin; line < line_end; ++line) {
    const int64_t b = line / height, i = line % height - c.pad_top;
    // Columns [left, right) of this padded line lie inside x.
    int64_t left = c.pad_left < width ? c.pad_left : width;
    int64_t right = c.pad_left + c.width < width ? c.pad_left + c.width : width;
    if (i < 0 || i >= c.height) left = right = width;
    const T* x = static_cast<const T*>(c.x) + ((b * c.height + i) * c.width) * c.channels;
    const int64_t before = left * c.channels, inside = (right - left) * c.channels;
    if (c.depthwise) {
      float* steps = static_cast<float*>(c.padded) + line * row;
      for (int64_t k = 0; k < before; ++k) steps[k] = 0.0f;
      if constexpr (kCodes) {
        const uint8_t flip = c.shift() == 128 ? 128 : 0;
        for (int64_t k = 0; k < inside; ++k) {
          steps[before + k] = static_cast<float>(static_cast<int8_t>(static_cast<uint8_t>(x[k]) ^ flip) - zero);
        }
      } else {
        StepSpan(x, inside, inverse, lo, hi, steps + before);
      }
      for (int64_t k = before + inside; k < row; ++k) steps[k] = 0.0f;
    } else {
      int8_t* codes = static_cast<int8_t*>(c.padded) + line * row;
      __builtin_memset(codes, zero, before);
      if constexpr (kCodes) {
        const uint8_t flip = c.shift() == 128 ? 128 : 0;
        FlipSpan(x, inside, flip, codes + before);
      } else {
        QuantizeSpan(x, inside, inverse, lo, hi, zero, codes + before);
      }
      __builtin_memset(codes + before + inside, zero, row - before - inside);
    }
  }
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

void ConvGather(const Conv& c, const Matmul& p, int64_t row_begin, int64_t row_end) {
  const int64_t height = c.padded_height(), width = c.padded_width(), tap = c.tap_inputs();
  const bool together = tap == c.channels && c.dilation_width == 1;  // a line of taps lies side by side in x
  for (int64_t m = row_begin; m < row_end; ++m) {
    const int64_t j = m % c.out_width, i = m / c.out_width % c.out_height, b = m / c.out_width / c.out_height;
    const int8_t* x = static_cast<const int8_t*>(c.padded) +
                      ((b * height + i * c.stride_height) * width + j * c.stride_width) * c.channels;
    int8_t* row = p.codes + m * p.codes_stride;
    int8_t* q = row;
    for (int64_t u = 0; u < c.kernel_height; ++u) {
      const int8_t* line = x + u * c.dilation_height * width * c.channels;
      if (together) {
        __builtin_memcpy(q, line, c.kernel_width * tap);
        q += c.kernel_width * tap;
        continue;
      }
      for (int64_t v = 0; v < c.kernel_width; ++v, q += tap) {
        __builtin_memcpy(q, line + v * c.dilation_width * c.channels, c.channels);
        __builtin_memset(q + c.channels, 0, tap - c.channels);
      }
    }
    FinishGroup(p, m, 0, row, p.blocks, Vec::Sum(row, q - row), static_cast<int32_t>(c.taps_count() * c.channels));
    p.row_scales[m] = c.x_scale;
  }
}

// Sums of integers carried in float: below 2^24 they are exact in any order, fused or not (Check() refuses more taps).
void Depthwise(const Conv& c, int64_t line_begin, int64_t line_end) {
  const int64_t height = c.padded_height(), width = c.padded_width();
  Matmul view;  // what StoreTile needs
  view.out = c.channels;
  view.y = c.y;
  view.y_bf16 = c.y_bf16;
  const Vec::F x_scale = Vec::SetF(c.x_scale);
  for (int64_t line = line_begin; line < line_end; ++line) {
    const int64_t b = line / c.out_height, i = line % c.out_height;
    const float* x = static_cast<const float*>(c.padded) + (b * height + i * c.stride_height) * width * c.channels;
    for (int64_t n = 0; n < c.channels; n += kLanes) {
      const int64_t count = c.channels - n < kLanes ? c.channels - n : kLanes;
      constexpr int64_t kTaps = 258;
      alignas(64) float w[kTaps * kLanes];
      for (int64_t t = 0; t < c.taps_count(); ++t) {
        for (int64_t k = 0; k < kLanes; ++k) w[t * kLanes + k] = k < count ? c.taps[t * c.channels + n + k] : 0.0f;
      }
      const Vec::F scale = Vec::LoadF(c.scales + n);
      constexpr int64_t kSide = 4;  // positions computed together: four sums in flight hide the latency of one
      for (int64_t j = 0; j < c.out_width; j += kSide) {
        const int64_t last = c.out_width - 1;
        Vec::F sum[kSide];
        const float* at[kSide];
        for (int64_t k = 0; k < kSide; ++k) {
          sum[k] = Vec::SetF(0.0f);
          at[k] = x + (j + k < last ? j + k : last) * c.stride_width * c.channels + n;
        }
        const float* weight = w;
        for (int64_t u = 0; u < c.kernel_height; ++u) {
          for (int64_t v = 0; v < c.kernel_width; ++v, weight += kLanes) {
            const int64_t offset = (u * c.dilation_height * width + v * c.dilation_width) * c.channels;
            const Vec::F tap = Vec::LoadF(weight);
#pragma GCC unroll 4
            for (int64_t k = 0; k < kSide; ++k) sum[k] = Vec::Fma(Vec::LoadF(at[k] + offset), tap, sum[k]);
          }
        }
        for (int64_t k = 0; k < kSide && j + k < c.out_width; ++k) {
          const Vec::F y = Vec::MulF(Vec::Saturate(Vec::MulF(sum[k], scale)), x_scale);
          StoreTile(view, line * c.out_width + j + k, n / kLanes, Vec::Saturate(y));
        }
      }
    }
  }
}
