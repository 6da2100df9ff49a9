// A convolution in tiles that gathers no windows: a tile of activations is 16 output positions whose windows begin a fixed step
// apart, 64 bytes of each, read where the grid has put them. Codes are uint8, 128 more than they are, as in body_direct.h, and
// weights int8. Include inside the body's namespace, after amx_tiles.h and body_conv.h.
#pragma once

// A tile of weights: of every run its words of four inputs, filled up with zeros to whole tiles of 16 words.
void DirectExpand(const Conv& c, int64_t tile) {
  const int64_t each = (c.run() + 3) / 4, words = c.words_count / c.runs() * kTileRows;  // of a run
  uint8_t* out = c.words + tile * c.words_count * kTileBytes;
  const uint8_t* from = c.w + tile * c.blocks() * kBlockBytes;
  const bool stored = c.bits == 8 && c.run() % 4 == 0;  // blocks are words already, of codes with 128 more
  if (!stored) {
    uint8_t* words_of_tile = UnpackedBytes(c.runs() * each * kBlockBytes);
    Conv one = c;
    one.words = words_of_tile - tile * c.runs() * each * kBlockBytes;
    one.words_count = c.runs() * each;
    body_avx512vnni::kBody.direct_expand(one, tile);
    from = words_of_tile;
  }
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(stored ? 128 : 0)), none = _mm512_setzero_si512();
  for (int64_t u = 0; u < c.runs(); ++u) {
    for (int64_t i = 0; i < words; ++i, out += kBlockBytes) {
      if (i >= each) {
        _mm512_storeu_si512(out, none);
        continue;
      }
      _mm512_storeu_si512(out, _mm512_xor_si512(_mm512_loadu_si512(from), flip));
      from += kBlockBytes;
    }
  }
}

// Output positions whose windows lie a fixed step apart: `width` of every `period` are there, the first result is row m.
struct Positions {
  const uint8_t* x;
  int64_t step, count, period, width, m;
};

// Results of 16 positions from `first` on, of which those before `done` are there already.
LOWBIT_INLINE void FinishPositions(const Conv& c, const Tail& tail, const Positions& at, int64_t first, int64_t done,
                                   int64_t group, int64_t tile, const int32_t* sums) {
  constexpr int kHalf = 8;
  const int64_t out = c.group_out(), numbers = (group * c.group_tiles() + tile) * kLanes;
  const int64_t last = first + kTileRows < at.count ? first + kTileRows : at.count;
  const bool fixed = tail.fixed != nullptr, tame = !fixed && IsTame(c, c.scales + numbers);
  std::optional<FixedNumbers<Vec>> held;
  if (fixed && tail.rounding != Rounding::kDouble) held.emplace(tail, tile);
  const int64_t left = out - tile * kLanes, lanes = left < kLanes ? left : kLanes;
  for (int64_t q = done > first ? done : first; q < last;) {
    const int64_t line = q / at.period, column = q - line * at.period;
    if (column >= at.width) {
      q = (line + 1) * at.period;
      continue;
    }
    int64_t valid = at.width - column;
    valid = valid < last - q ? valid : last - q;
    valid = valid < kHalf ? valid : kHalf;
    const int64_t m = at.m + line * at.width + column;
    const int32_t* from = sums + (q - first) * kLanes;
    q += valid;
    if (fixed) {
      Vec::I v[kHalf];
      for (int r = 0; r < kHalf; ++r) v[r] = Vec::Load(from + r * kLanes);
      held ? FixedRows<kHalf, Vec>(tail, *held, m, valid, tile, lanes, v) : StoreFixed<kHalf>(tail, out, m, valid, tile, v);
      continue;
    }
    const Vec::F scale = Vec::LoadF(c.scales + numbers);
    Vec::F v[kHalf];
    for (int r = 0; r < kHalf; ++r) v[r] = Vec::MulF(Vec::Convert(Vec::Load(from + r * kLanes)), scale);
    for (int r = 0; tame && r < kHalf; ++r) v[r] = Vec::MulF(v[r], Vec::SetF(c.x_scale));
    for (int64_t r = 0; !tame && r < valid; ++r) {
      const int64_t row = m + r, j = row % c.out_width, i = row / c.out_width % c.out_height;
      const float x_scale = WindowScale(c, row / c.out_width / c.out_height, i, j, group);
      v[r] = Vec::Saturate(Vec::MulF(Vec::Saturate(v[r]), Vec::SetF(x_scale)));
    }
    StoreTile<kHalf>(tail, out, m, valid, tile, v);
  }
}

// kRows tiles of positions, from `first` and from `second`, times kTiles tiles of channels. `starts` is what sums start at; results
// before position `done` are there.
template <int kRows, int kTiles>
__attribute__((noinline)) void PositionTiles(const Conv& c, const Tail& tail, const Positions& at, int64_t first, int64_t second,
                                             int64_t done, int64_t group, int64_t tile, const int32_t* starts) {
  alignas(64) int32_t sums[kRows * kTiles][kTileRows * kLanes + 8 * kLanes];
  const uint8_t* w[kTiles];
  for (int t = 0; t < kTiles; ++t) {
    w[t] = c.words + (group * c.group_tiles() + tile + t) * c.words_count * kTileBytes;
  }
  LoadTile<0>(starts, 0);  // every row the same
  if constexpr (kRows * kTiles > 1) LoadTile<1>(starts + (kTiles > 1 ? kLanes : 0), 0);
  if constexpr (kRows * kTiles > 2) {
    LoadTile<2>(starts, 0);
    LoadTile<3>(starts + kLanes, 0);
  }
  const uint8_t* x = at.x + first * at.step;
  const int64_t below = (second - first) * at.step;
  for (int64_t k = 0; k < c.words_count; ++k) {
    StepTiles<Dot::kUnsignedSigned, kRows, kTiles>(x + c.offsets[k], at.step, below, w);
    for (int t = 0; t < kTiles; ++t) w[t] += kTileBytes;
  }
  StoreTileTo<0>(sums[0]);
  if constexpr (kRows * kTiles > 1) StoreTileTo<1>(sums[1]);
  if constexpr (kRows * kTiles > 2) {
    StoreTileTo<2>(sums[2]);
    StoreTileTo<3>(sums[3]);
  }
  for (int t = 0; t < kTiles; ++t) {
    FinishPositions(c, tail, at, first, done, group, tile + t, sums[t]);
    if constexpr (kRows > 1) FinishPositions(c, tail, at, second, done + kTileRows, group, tile + t, sums[kTiles + t]);
  }
}

// A tile that would reach past the last position begins earlier, so that nothing is read there; its first results are there already.
void DirectPositions(const Conv& c, const Tail& tail, const Positions& at, int64_t group) {
  const int64_t tiles = c.group_tiles();
  const Tiles shaped(at.count < kTileRows ? at.count : kTileRows, kTileInputs);
  for (int64_t first = 0; first < at.count; first += 2 * kTileRows) {
    const int64_t latest = at.count < kTileRows ? 0 : at.count - kTileRows;
    const int64_t begin = first < latest ? first : latest, more = first + kTileRows;
    const int64_t second = more < latest ? more : latest;
    const bool two = more < at.count;
    for (int64_t tile = 0; tile < tiles;) {
      alignas(64) int32_t starts[2 * kLanes];
      const int64_t count = tile + 1 < tiles ? 2 : 1;
      for (int64_t t = 0; t < count; ++t) {  // modulo 2^32: less (z_x + 128) times the sum of the weights
        const Vec::I sum = Vec::Sub(Vec::Load(c.sums + (group * tiles + tile + t) * kLanes),
                                    Vec::Set(static_cast<int32_t>(c.offset * c.inputs())));
        Vec::StoreI(starts + t * kLanes, Vec::Mul(sum, Vec::Set(-(c.zero() + 128))));
      }
      WritesBeforeTiles();
      auto run = [&](auto fn) { fn(c, tail, at, begin, second, first, group, tile, starts); };
      if (two) {
        count == 2 ? run(PositionTiles<2, 2>) : run(PositionTiles<2, 1>);
      } else {
        count == 2 ? run(PositionTiles<1, 2>) : run(PositionTiles<1, 1>);
      }
      tile += count;
    }
  }
}

// Rows are whole output lines. Without a stride, positions of lines one below the other lie a fixed step apart too, and between
// two lines some that are none.
void DirectRows(const Conv& c, const Tail& tail, int64_t group, int64_t row_begin, int64_t row_end) {
  const int64_t channels = c.channels, pitch = c.padded_width();
  for (int64_t line = row_begin / c.out_width; line < row_end / c.out_width;) {
    const int64_t b = line / c.out_height, i = line % c.out_height;
    int64_t lines = 1;
    if (c.stride_width == 1 && c.stride_height == 1) {
      const int64_t left = row_end / c.out_width - line, below = c.out_height - i;
      lines = left < below ? left : below;
    }
    Positions at;
    at.x = static_cast<const uint8_t*>(c.padded) +
           c.line_at(b * c.padded_height() + i * c.stride_height) * channels + group * c.group_channels();
    at.step = c.stride_width * channels;
    at.count = (lines - 1) * pitch + c.out_width;
    at.period = lines > 1 ? pitch : c.out_width;
    at.width = c.out_width;
    at.m = line * c.out_width;
    DirectPositions(c, tail, at, group);
    line += lines;
  }
}
