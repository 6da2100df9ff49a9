// A convolution that gathers no windows: steps (q_x - z_x) in int16 are read where they lie, two of them a multiply. No sums
// of rows are needed, and what few channels and small images cost beside multiplies is gone. Include after body_conv.h.
#pragma once

// A tile of weights as pairs of int16: pair w of channel n is at (w * 16 + n) * 2. A run of an odd length ends in a zero, which
// meets whatever lies there.
void DirectExpand(const Conv& c, int64_t tile) {
  const int per = 8 / c.bits;
  const uint32_t mask = (1u << c.bits) - 1;
  const int64_t inputs = c.inputs(), run = c.run();
  thread_local std::vector<int32_t> codes;
  if (static_cast<int64_t>(codes.size()) < c.blocks() * c.span() * kLanes) codes.resize(c.blocks() * c.span() * kLanes);
  const uint8_t* from = c.w + tile * c.blocks() * kBlockBytes;
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
  int16_t* out = c.pairs + tile * c.words() * 2 * kLanes;
  for (int64_t k = 0; k < inputs; k += run) {
    for (int64_t e = 0; e < run; e += 2, out += 2 * kLanes) {
      const int32_t* low = codes.data() + (k + e) * kLanes;
      int32_t pair[kLanes];
      if (e + 1 < run) {
        for (int n = 0; n < kLanes; ++n) pair[n] = (low[n] & 0xffff) | static_cast<int32_t>(uint32_t(low[kLanes + n]) << 16);
      } else {
        for (int n = 0; n < kLanes; ++n) pair[n] = low[n] & 0xffff;
      }
      __builtin_memcpy(out, pair, sizeof pair);
    }
  }
}

// kRows output positions from m, whose windows begin at x; 16 channels, or the first 8.
template <int kRows, bool kHalf>
__attribute__((noinline)) void DirectTile(const Conv& c, const Tail& tail, const int16_t* const* x, const float* scales,
                                          int64_t out, int64_t m, int64_t valid, int64_t tile, int64_t first_tile) {
  Vec::I acc[kRows];
  for (int r = 0; r < kRows; ++r) acc[r] = Vec::Set(0);
  const int64_t words = c.pairs_count;
  const int16_t* w = c.pairs + (first_tile + tile) * words * 2 * kLanes;
  const int8_t* from[kRows];
  for (int r = 0; r < kRows; ++r) from[r] = reinterpret_cast<const int8_t*>(x[r]);
  for (int64_t k = 0; k < words; ++k, w += 2 * kLanes) {
    const Vec::W word = Vec::Held(Vec::LoadW(reinterpret_cast<const uint8_t*>(w)));
    const int64_t at = c.offsets[k];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) acc[r] = Vec::DotPairs<kHalf>(acc[r], word, LoadWord(from[r] + at));
  }
  const Vec::F scale = Vec::LoadF(c.scales + (first_tile + tile) * kLanes);
  Vec::F values[kRows];
  for (int r = 0; r < kRows; ++r) {
    const Vec::F product = Vec::Saturate(Vec::MulF(Vec::Convert(acc[r]), scale));
    values[r] = Vec::Saturate(Vec::MulF(product, Vec::SetF(scales[r])));
  }
  StoreTile<kRows>(tail, out, m, valid, tile, values);
}

// Some output positions of one feature group.
void DirectRows(const Conv& c, const Tail& tail, int64_t group, int64_t row_begin, int64_t row_end) {
  constexpr int64_t kPart = 64;  // positions whose windows are looked up together; fewer of long windows, which stay in L1
  constexpr int kRows = Vec::kRowTile;
  const int64_t height = c.padded_height(), width = c.padded_width();
  const int64_t out = c.group_out(), tiles = c.group_tiles(), channels = c.group_channels(), first_tile = group * tiles;
  const int16_t* x[kPart + kRows];
  float scales[kPart + kRows];
  int64_t j = row_begin % c.out_width, i = row_begin / c.out_width % c.out_height;
  int64_t b = row_begin / c.out_width / c.out_height;
  const int64_t fits = (int64_t{1} << 13) / (c.kernel_height * c.stride_width * c.channels) / kRows * kRows;
  const int64_t part = fits < kRows ? kRows : fits < kPart ? fits : kPart;
  for (int64_t m = row_begin; m < row_end; m += part) {
    const int64_t count = row_end - m < part ? row_end - m : part;
    for (int64_t r = 0; r < count; ++r) {
      x[r] = static_cast<const int16_t*>(c.padded) + group * channels +
             ((b * height + i * c.stride_height) * width + j * c.stride_width) * c.channels;
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
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const bool half = out - tile * kLanes <= kLanes / 2;
      const auto run = half ? DirectTile<kRows, true> : DirectTile<kRows, false>;
      for (int64_t r = 0; r < count; r += kRows) run(c, tail, x + r, scales + r, out, m + r, count - r, tile, first_tile);
    }
  }
}
