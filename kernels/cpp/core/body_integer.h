// The integer matmul over tiles of rows and channels. Include inside the body's namespace, after Vec.
#pragma once

LOWBIT_INLINE int32_t LoadWord(const int8_t* p) {
  int32_t v;
  __builtin_memcpy(&v, p, 4);
  return v;
}

// acc[m][t] += over `blocks` blocks of stored codes times activation codes.
template <int kRows, int kTiles, int kBits>
LOWBIT_INLINE void Accumulate(Vec::I (&acc)[kRows][kTiles], const int8_t* const (&x)[kRows],
                              const uint8_t* const (&w)[kTiles], int64_t blocks) {
  constexpr int kPer = 8 / kBits;
  for (int64_t b = 0; b < blocks; ++b) {
    Vec::W block[kTiles];
    for (int t = 0; t < kTiles; ++t) block[t] = Vec::LoadW(w[t] + b * kBlockBytes);
#pragma GCC unroll 4
    for (int s = 0; s < kPer; ++s) {
      Vec::W field[kTiles];
      for (int t = 0; t < kTiles; ++t) field[t] = Vec::Field<kBits>(block[t], s);
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) {
        const int32_t word = LoadWord(x[m] + (b * kPer + s) * 4);
#pragma GCC unroll 4
        for (int t = 0; t < kTiles; ++t) acc[m][t] = Vec::Dot<kBits>(acc[m][t], field[t], word);
      }
    }
  }
}

// kRows rows from `row`, of which `valid` are stored, times kTiles tiles from `tile`.
//
// `total` is memory on purpose: with the accumulators it would need more registers than there are, and the compiler
// then spills inside the innermost loop. One load and store a group costs nothing there.
template <int kRows, int kTiles, int kBits>
__attribute__((noinline)) void IntegerTile(const Matmul& p, int64_t row, int64_t valid, int64_t tile, float* total) {
  const int8_t* x[kRows];
  const uint8_t* w[kTiles];
  for (int m = 0; m < kRows; ++m) x[m] = p.codes + (row + m) * p.codes_stride;
  for (int t = 0; t < kTiles; ++t) w[t] = p.w + (tile + t) * p.blocks * kBlockBytes;
  const int32_t zero = p.zero();
  // -0.0 is the neutral element of a rounded sum: -0.0 + f is f for every f, zeros of both signs included.
  for (int i = 0; i < kRows * kTiles; ++i) Vec::Store(total + i * kLanes, Vec::SetF(-0.0f));
  for (int64_t g = 0; g < p.groups; ++g) {
    const int64_t blocks = p.blocks_of(g);
    const int32_t* starts = p.starts + g * p.padded_rows + row;
    const int32_t* sums = p.sums + g * p.padded_rows + row;
    Vec::I acc[kRows][kTiles];
    for (int m = 0; m < kRows; ++m) {
      for (int t = 0; t < kTiles; ++t) acc[m][t] = Vec::Set(starts[m]);
    }
    if (zero != 0 || p.zeros != nullptr) {  // exact integer terms: z_x times column sums, z_w times row sums
      for (int t = 0; t < kTiles; ++t) {
        const int64_t index = ((tile + t) * p.groups + g) * kLanes;
        if (zero != 0) {
          const Vec::I term = ColumnTerm(p, index, zero);
          for (int m = 0; m < kRows; ++m) acc[m][t] = Vec::Sub(acc[m][t], term);
        }
        if (p.zeros != nullptr) {
          const Vec::I zeros = Vec::Load16(p.zeros + index);
          for (int m = 0; m < kRows; ++m) {
            acc[m][t] = Vec::Sub(acc[m][t], Vec::Mul(zeros, Vec::Set(sums[m])));
          }
        }
      }
    }
    if (kBits == 4 && blocks == 4) {  // groups of 32, the common case: no loop
      Accumulate<kRows, kTiles, kBits>(acc, x, w, 4);
    } else {
      Accumulate<kRows, kTiles, kBits>(acc, x, w, blocks);
    }
    for (int m = 0; m < kRows; ++m) x[m] += blocks * p.span();
    for (int t = 0; t < kTiles; ++t) {
      w[t] += blocks * kBlockBytes;
      const Vec::F scale = LoadScales(p, ((tile + t) * p.groups + g) * kLanes);
      for (int m = 0; m < kRows; ++m) {
        const Vec::F product = Vec::MulF(Vec::Convert(acc[m][t]), scale);
        float* sum = total + (m * kTiles + t) * kLanes;
        Vec::Store(sum, Vec::AddF(Vec::LoadF(sum), product));  // two roundings: never fused
      }
    }
  }
  for (int m = 0; m < kRows && m < valid; ++m) {
    for (int t = 0; t < kTiles; ++t) {
      FinishTile(p, row + m, tile + t, Vec::LoadF(total + (m * kTiles + t) * kLanes), p.row_scales[row + m]);
    }
  }
}

template <int kBits, int kTiles>
void IntegerRows(const Matmul& p, int64_t row_begin, int64_t row_end, int64_t tile) {
  constexpr int kFull = Vec::kRowTile;
  alignas(64) float total[kFull * kTiles * kLanes];
  int64_t row = row_begin;
  for (; row + kFull <= row_end; row += kFull) IntegerTile<kFull, kTiles, kBits>(p, row, kFull, tile, total);
  // A tile may compute rows past the end: scratch is padded, and they are not stored.
  const int64_t left = row_end - row;
  if (left == 1) return IntegerTile<1, kTiles, kBits>(p, row, left, tile, total);
  if constexpr (kFull > 4) {
    if (left == 2) return IntegerTile<2, kTiles, kBits>(p, row, left, tile, total);
    if (left > 0 && left <= 4) return IntegerTile<4, kTiles, kBits>(p, row, left, tile, total);
  }
  if (left > 0) IntegerTile<kFull, kTiles, kBits>(p, row, left, tile, total);
}

template <int kBits>
void IntegerRange(const Matmul& p, int64_t row_begin, int64_t row_end, int64_t tile_begin, int64_t tile_end) {
  constexpr int kStep = Vec::kTileTile;
  int64_t tile = tile_begin;
  for (; tile + kStep <= tile_end; tile += kStep) IntegerRows<kBits, kStep>(p, row_begin, row_end, tile);
  for (; tile < tile_end; ++tile) IntegerRows<kBits, 1>(p, row_begin, row_end, tile);
}
