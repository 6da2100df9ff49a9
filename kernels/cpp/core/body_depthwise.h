// A depthwise convolution of codes without scratch: x is read where it lies. Of a column of a window the
// taps of four rows are one word of bytes, made once and multiplied into every output position that sees the column. In 32
// bits modulo 2^32: codes are bytes with 128 more, and what that and the zero point add to a sum is the same for every window.
// Include after body_conv.h.
#pragma once

// kSide output positions together; a kernel of kHigh times kWide; kWhole: all 16 channels are there.
template <int kSide, int kStride, int kHigh, int kWide, bool kWhole, typename V>
void StackedLines(const Conv& c, int64_t n, int64_t line_begin, int64_t line_end) {
  constexpr int kWords = (kHigh + 3) / 4, kColumns = (kSide - 1) * kStride + kWide;
  const int64_t count = kWhole ? kLanes : c.channels - n;
  typename V::I weights[kWords][kWide], sum = V::Set(0);
  for (int g = 0; g < kWords; ++g) {
    for (int v = 0; v < kWide; ++v) {
      const int8_t* rows[4];
      for (int t = 0; t < 4; ++t) rows[t] = c.taps + (4 * g + t < kHigh ? (4 * g + t) * kWide + v : v) * c.channels + n;
      const int left = kHigh - 4 * g;
      weights[g][v] = left == 1   ? V::template Stacked<1, kWhole>(rows, count)
                      : left == 2 ? V::template Stacked<2, kWhole>(rows, count)
                      : left == 3 ? V::template Stacked<3, kWhole>(rows, count)
                                  : V::template Stacked<4, kWhole>(rows, count);
      sum = V::DotBytes(sum, V::Set(0x01010101), weights[g][v]);
    }
  }
  const typename V::I start = V::Mul(sum, V::Set(-(c.zero() + 128))), flip = V::Set(static_cast<int32_t>(0x80808080u));
  const uint32_t zero = static_cast<uint8_t>(c.zero());
  const typename V::I outside = V::Set(static_cast<int32_t>(zero * 0x01010101u));
  int8_t border[kLanes];  // a row outside of x
  for (int8_t& each : border) each = static_cast<int8_t>(c.zero());
  std::optional<FixedNumbers<V>> numbers;
  if (c.tail.fixed != nullptr) numbers.emplace(c.tail, n / kLanes);
  const bool tame = numbers || IsTame(c, c.scales + n);
  for (int64_t line = line_begin; line < line_end; ++line) {
    const int64_t b = line / c.out_height, i = line % c.out_height;
    const int8_t* rows[kHigh];
    int64_t steps[kHigh];
    for (int u = 0; u < kHigh; ++u) {
      const int64_t h = i * c.stride_height + u - c.pad_top;
      const bool inside = h >= 0 && h < c.height;
      rows[u] = inside ? static_cast<const int8_t*>(c.x) + (b * c.height + h) * c.width * c.channels + n : border;
      steps[u] = inside ? c.channels : 0;
    }
    for (int64_t j = 0; j < c.out_width; j += kSide) {
      typename V::I acc[kSide];
      for (int k = 0; k < kSide; ++k) acc[k] = start;
      const int64_t first = j * kStride - c.pad_left;
#pragma GCC unroll 32
      for (int p = 0; p < kColumns; ++p) {
        const int64_t column = first + p;
        typename V::I words[kWords];
        if (column >= 0 && column < c.width) {
          for (int g = 0; g < kWords; ++g) {
            const int8_t* at[4];
            constexpr int kLast = kHigh - 1;
            for (int t = 0; t < 4; ++t) {
              const int u = 4 * g + t < kHigh ? 4 * g + t : kLast;
              at[t] = rows[u] + column * steps[u];
            }
            if (4 * g + 4 <= kHigh) {
              words[g] = V::template Stacked<4, kWhole>(at, count);
            } else {
              words[g] = V::template Stacked<(kHigh + 3) % 4 + 1, kWhole>(at, count);
            }
          }
        } else {
          for (int g = 0; g < kWords; ++g) words[g] = outside;
        }
        for (int g = 0; g < kWords; ++g) words[g] = V::Flipped(words[g], flip);
#pragma GCC unroll 8
        for (int k = 0; k < kSide; ++k) {
          const int v = p - k * kStride;
          if (v < 0 || v >= kWide) continue;
          for (int g = 0; g < kWords; ++g) acc[k] = V::DotBytes(acc[k], words[g], weights[g][v]);
        }
      }
      const int64_t m = line * c.out_width + j, valid = c.out_width - j;
      if (!numbers) {
        const typename V::F scale = V::LoadF(c.scales + n), x_scale = V::SetF(c.x_scale);
        typename V::F values[kSide];
        for (int k = 0; k < kSide; ++k) {
          const typename V::F value = V::MulF(V::Convert(acc[k]), scale);
          values[k] = tame ? V::MulF(value, x_scale) : V::Saturate(V::MulF(V::Saturate(value), x_scale));
        }
        StoreTile<kSide>(c.tail, c.channels, m, valid, n / kLanes, values);
        continue;
      }
#pragma GCC unroll 8
      for (int k = 0; k < kSide; ++k) {
        if (k < valid) FixedRow<V>(c.tail, *numbers, c.tail.at(m + k) + n * c.tail.channel_stride, count, acc[k]);
      }
    }
  }
}

template <int kStride, int kHigh, int kWide, typename V>
LOWBIT_INLINE void StackedChannels(const Conv& c, int64_t n, int64_t line_begin, int64_t line_end) {
  constexpr int kSide = kStride == 1 && kHigh <= 4 ? 8 : 4;
  c.channels - n < kLanes ? StackedLines<kSide, kStride, kHigh, kWide, false, V>(c, n, line_begin, line_end)
                          : StackedLines<kSide, kStride, kHigh, kWide, true, V>(c, n, line_begin, line_end);
}

// Some output lines. What `IsStacked` says of `c` holds (conv.cpp). Few lines together, so that channels after the first find
// them in cache.
template <typename V>
LOWBIT_INLINE void DepthwiseStacked(const Conv& c, int64_t line_begin, int64_t line_end) {
  constexpr int64_t kBytes = 40 << 10;
  const int64_t fits = kBytes / (c.stride_height * c.width * c.channels) - c.kernel_height, together = fits < 1 ? 1 : fits;
  for (int64_t line = line_begin; line < line_end; line += together) {
    const int64_t end = line + together < line_end ? line + together : line_end;
    for (int64_t n = 0; n < c.channels; n += kLanes) {
      if (c.kernel_width == 3) {
        c.stride_width == 1 ? StackedChannels<1, 3, 3, V>(c, n, line, end) : StackedChannels<2, 3, 3, V>(c, n, line, end);
      } else {
        c.stride_width == 1 ? StackedChannels<1, 5, 5, V>(c, n, line, end) : StackedChannels<2, 5, 5, V>(c, n, line, end);
      }
    }
  }
}

void DepthwiseCodes(const Conv& c, int64_t line_begin, int64_t line_end) {
  DepthwiseStacked<Vec>(c, line_begin, line_end);
}
