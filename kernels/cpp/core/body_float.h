// The weight-only matmul: float activations times decoded levels, float32 accumulation. Include after Vec.
#pragma once

template <int kRows, int kTiles, int kBits, bool kBook>
void FloatTile(const Matmul& p, int64_t row, int64_t valid, int64_t tile) {
  constexpr int kInputs = 32 / kBits;
  const Vec::Decoder<kBits, kBook> decode(p.codebook, p.zeros == nullptr ? p.offset : 0);
  Vec::F total[kRows][kTiles];
  const float* x[kRows];
  const uint8_t* w[kTiles];
  for (int m = 0; m < kRows; ++m) x[m] = p.floats + (row + m) * p.codes_stride;
  for (int t = 0; t < kTiles; ++t) w[t] = p.w + (tile + t) * p.blocks * kBlockBytes;
  for (int m = 0; m < kRows; ++m) {
    for (int t = 0; t < kTiles; ++t) total[m][t] = Vec::SetF(0.0f);
  }
  for (int64_t g = 0; g < p.groups; ++g) {
    const int64_t blocks = p.blocks_of(g);
    const int64_t index = (tile * p.groups + g) * kLanes, next = p.groups * kLanes;
    Vec::F part[kRows][kTiles], zeros[kTiles] = {};
    for (int t = 0; t < kTiles; ++t) {
      if (p.zeros != nullptr) zeros[t] = Vec::Convert(Vec::Load16(p.zeros + index + t * next));
      for (int m = 0; m < kRows; ++m) part[m][t] = Vec::SetF(0.0f);
    }
    for (int64_t b = 0; b < blocks; ++b) {
      Vec::W block[kTiles];
      for (int t = 0; t < kTiles; ++t) block[t] = Vec::LoadW(w[t] + b * kBlockBytes);
#pragma GCC unroll 16
      for (int i = 0; i < kInputs; ++i) {
        Vec::F level[kTiles];
        for (int t = 0; t < kTiles; ++t) {
          level[t] = decode(block[t], i);
          if (p.zeros != nullptr) level[t] = Vec::SubF(level[t], zeros[t]);
        }
#pragma GCC unroll 8
        for (int m = 0; m < kRows; ++m) {
          const Vec::F value = Vec::SetF(x[m][b * kInputs + i]);
#pragma GCC unroll 4
          for (int t = 0; t < kTiles; ++t) part[m][t] = Vec::Fma(level[t], value, part[m][t]);
        }
      }
    }
    for (int m = 0; m < kRows; ++m) x[m] += blocks * kInputs;
    for (int t = 0; t < kTiles; ++t) {
      w[t] += blocks * kBlockBytes;
      const Vec::F scale = LoadScales(p, index + t * next);
      for (int m = 0; m < kRows; ++m) total[m][t] = Vec::Fma(part[m][t], scale, total[m][t]);
    }
  }
  for (int t = 0; t < kTiles; ++t) {
    Vec::F column[kRows];
    for (int m = 0; m < kRows; ++m) column[m] = total[m][t];
    StoreTile<kRows>(p.tail, p.out, row, valid, tile + t, column);
  }
}

template <int kBits, bool kBook, int kTiles>
void FloatRows(const Matmul& p, int64_t row_begin, int64_t row_end, int64_t tile) {
  constexpr int kFull = kTiles > Vec::kTileTile ? 1 : Vec::kRowTile;
  int64_t row = row_begin;
  for (; row + kFull <= row_end; row += kFull) FloatTile<kFull, kTiles, kBits, kBook>(p, row, kFull, tile);
  const int64_t left = row_end - row;
  if (left == 1) return FloatTile<1, kTiles, kBits, kBook>(p, row, left, tile);
  if constexpr (kFull > 4) {
    if (left > 0 && left <= 4) return FloatTile<4, kTiles, kBits, kBook>(p, row, left, tile);
  }
  if (left > 0) FloatTile<kFull, kTiles, kBits, kBook>(p, row, left, tile);
}

template <int kBits, bool kBook>
void FloatRange(const Matmul& p, int64_t row_begin, int64_t row_end, int64_t tile_begin, int64_t tile_end) {
  constexpr int kStep = Vec::kTileTile;
  int64_t tile = tile_begin;
  if constexpr (kStep > 1) {  // as IntegerRange
    for (; row_end - row_begin == 1 && tile + 2 * kStep <= tile_end; tile += 2 * kStep) {
      FloatRows<kBits, kBook, 2 * kStep>(p, row_begin, row_end, tile);
    }
  }
  for (; tile + kStep <= tile_end; tile += kStep) FloatRows<kBits, kBook, kStep>(p, row_begin, row_end, tile);
  for (; tile < tile_end; ++tile) FloatRows<kBits, kBook, 1>(p, row_begin, row_end, tile);
}
