// A convolution that gathers no windows: what the grid says of x is read where it lies, a word of 4 bytes a multiply. No sums of
// rows are needed, and what few channels and small images cost beside multiplies is gone. Include after body_conv.h.
//
// A word is two steps (q_x - z_x) in int16; or, where the machine multiplies bytes, four codes in uint8, 128 more than they
// are: what that and the zero point add to a sum is the same for every window, padding included, and taken off at the start.
#pragma once

// A tile of weights as words: word w of channel n is at (w * 16 + n) * 4. A run that ends inside a word is filled with zeros,
// which meet whatever lies there.
void DirectExpand(const Conv& c, int64_t tile) {
  constexpr int kTogether = Vec::kDirectInputs, kBits = 32 / kTogether;
  const int per = 8 / c.bits;
  const uint32_t mask = (1u << c.bits) - 1;
  const int64_t inputs = c.inputs(), run = c.run();
  const uint8_t* from = c.w + tile * c.blocks() * kBlockBytes;
  uint8_t* out = c.words + tile * c.words_count * kBlockBytes;
  thread_local std::vector<int32_t> codes;
  const int64_t size = c.blocks() * c.span() * kLanes;
  if (static_cast<int64_t>(codes.size()) < size) codes.resize(size);
  int32_t* to = codes.data();
  for (int64_t b = 0; b < c.blocks(); ++b, from += kBlockBytes) {
    uint32_t lanes[kLanes];
    __builtin_memcpy(lanes, from, sizeof lanes);
    for (int j = 0; j < 4; ++j) {
      for (int s = 0; s < per; ++s, to += kLanes) {
        const int at = 8 * j + c.bits * s;
        for (int n = 0; n < kLanes; ++n) to[n] = static_cast<int32_t>(lanes[n] >> at & mask) - c.offset;
      }
    }
  }
  constexpr uint32_t kLow = (1u << kBits) - 1;
  for (int64_t k = 0; k < inputs; k += run) {
    for (int64_t e = 0; e < run; e += kTogether, out += kBlockBytes) {
      uint32_t word[kLanes] = {};
      for (int64_t i = 0; i < kTogether && e + i < run; ++i) {
        const int32_t* low = codes.data() + (k + e + i) * kLanes;
        for (int n = 0; n < kLanes; ++n) word[n] |= (uint32_t(low[n]) & kLow) << (kBits * i);
      }
      __builtin_memcpy(out, word, sizeof word);
    }
  }
}

// `count` output positions from m, kRows together, whose windows begin at x, and kTiles tiles; with kHalf the first 8 channels of
// one. What belongs to a tile is looked up once for all of them.
template <int kRows, int kTiles, bool kHalf>
__attribute__((noinline)) void DirectTile(const Conv& c, const Tail& tail, const int8_t* const* x, const float* scales,
                                          int64_t out, int64_t m, int64_t count, int64_t tile, int64_t first_tile) {
  const int64_t words = c.words_count;
  const uint8_t* w[kTiles];
  Vec::I start[kTiles];
  for (int t = 0; t < kTiles; ++t) {
    const int64_t at = first_tile + tile + t;
    w[t] = c.words + at * words * kBlockBytes;
    start[t] = Vec::Set(0);
    if constexpr (Vec::kDirectInputs == 4) {  // in integers modulo 2^32: less (z_x + 128) times the sum of the weights
      const auto sum = Vec::Sub(Vec::Load(c.sums + at * kLanes), Vec::Set(static_cast<int32_t>(c.offset * c.inputs())));
      start[t] = Vec::Mul(sum, Vec::Set(-(c.zero() + 128)));
    }
  }
  [[maybe_unused]] const Vec::I flip = Vec::Set(static_cast<int32_t>(c.words_flip));
  const auto each = [&](auto store) __attribute__((always_inline)) {
    for (int64_t first = 0; first < count; first += kRows) {
      Vec::I acc[kTiles][kRows];
      const int8_t* from[kRows];
      for (int r = 0; r < kRows; ++r) {
        from[r] = x[first + r];
        for (int t = 0; t < kTiles; ++t) acc[t][r] = start[t];
      }
      for (int64_t k = 0; k < words; ++k) {
        Vec::W word[kTiles];
        for (int t = 0; t < kTiles; ++t) {
          word[t] = Vec::LoadW(w[t] + k * kBlockBytes);
          if constexpr (Vec::kDirectInputs == 4) word[t] = Vec::Flipped(word[t], flip);
          word[t] = Vec::Held(word[t]);
        }
        const int64_t at = c.offsets[k];
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const int32_t inputs = LoadWord(from[r] + at);
#pragma GCC unroll 2
          for (int t = 0; t < kTiles; ++t) acc[t][r] = Vec::DotDirect<kHalf>(acc[t][r], word[t], inputs);
        }
      }
      for (int t = 0; t < kTiles; ++t) store(t, first, acc[t]);
    }
  };
  using Sums = const Vec::I (&)[kRows];
  if constexpr (Vec::kFixes) {
    if (tail.fixed != nullptr && tail.rounding != Rounding::kDouble) {
      const FixedNumbers<Vec> numbers[] = {{tail, tile}, {tail, tile + kTiles - 1}};
      return each([&](int t, int64_t first, Sums sums) __attribute__((always_inline)) {
        const int64_t left = out - (tile + t) * kLanes, lanes = left < kLanes ? left : kLanes;
        FixedRows<kRows, Vec>(tail, numbers[t], m + first, count - first, tile + t, lanes, sums);
      });
    }
  }
  if (tail.fixed != nullptr) {
    return each([&](int t, int64_t first, Sums sums) __attribute__((always_inline)) {
      StoreFixed<kRows>(tail, out, m + first, count - first, tile + t, sums);
    });
  }
  each([&](int t, int64_t first, Sums sums) __attribute__((always_inline)) {
    const Vec::F scale = Vec::LoadF(c.scales + (first_tile + tile + t) * kLanes);
    Vec::F values[kRows];
    const bool tame = IsTame(c, c.scales + (first_tile + tile + t) * kLanes);
    for (int r = 0; tame && r < kRows; ++r) {
      values[r] = Vec::MulF(Vec::MulF(Vec::Convert(sums[r]), scale), Vec::SetF(c.x_scale));
    }
    for (int r = 0; !tame && r < kRows; ++r) {
      const Vec::F product = Vec::Saturate(Vec::MulF(Vec::Convert(sums[r]), scale));
      values[r] = Vec::Saturate(Vec::MulF(product, Vec::SetF(scales[first + r])));
    }
    StoreTile<kRows>(tail, out, m + first, count - first, tile + t, values);
  });
}

// Some output positions of one feature group.
void DirectRows(const Conv& c, const Tail& tail, int64_t group, int64_t row_begin, int64_t row_end) {
  constexpr int64_t kPart = 64;  // positions whose windows are looked up together; fewer of long windows, which stay in L1
  constexpr int64_t kSize = 4 / Vec::kDirectInputs;
  constexpr int kRows = Vec::kRowTile, kWide = Vec::kDirectInputs == 4 ? 2 : 1;
  const int64_t height = c.padded_height();
  const int64_t out = c.group_out(), tiles = c.group_tiles(), channels = c.group_channels(), first_tile = group * tiles;
  const int8_t* x[kPart + kRows];
  float scales[kPart + kRows];
  int64_t j = row_begin % c.out_width, i = row_begin / c.out_width % c.out_height;
  int64_t b = row_begin / c.out_width / c.out_height;
  const int64_t fits = (int64_t{1} << 14) / kSize / (c.kernel_height * c.stride_width * c.channels) / kRows * kRows;
  const int64_t part = fits < kRows ? kRows : fits < kPart ? fits : kPart;
  for (int64_t m = row_begin; m < row_end; m += part) {
    const int64_t count = row_end - m < part ? row_end - m : part;
    for (int64_t r = 0; r < count; ++r) {
      const int64_t position = c.line_at(b * height + i * c.stride_height) + j * c.stride_width;
      x[r] = static_cast<const int8_t*>(c.padded) + kSize * (group * channels + position * c.channels);
      scales[r] = WindowScale(c, b, i, j, group);
      if (++j < c.out_width) continue;
      j = 0;
      if (++i < c.out_height) continue;
      i = 0;
      ++b;
    }
    for (int64_t r = count; r < count + kRows; ++r) {  // a tile may compute positions past the last, which are not stored
      x[r] = x[count - 1];
      scales[r] = scales[count - 1];
    }
    auto each = [&](auto run, int64_t tile) { run(c, tail, x, scales, out, m, count, tile, first_tile); };
    int64_t tile = 0;
    for (; kWide > 1 && tile + 1 < tiles; tile += kWide) each(DirectTile<kRows, kWide, false>, tile);
    for (; tile < tiles; ++tile) {
      const bool half = out - tile * kLanes <= kLanes / 2;
      each(half ? DirectTile<kRows, 1, true> : DirectTile<kRows, 1, false>, tile);
    }
  }
}
