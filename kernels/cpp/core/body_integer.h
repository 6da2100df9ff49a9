// The integer matmul over tiles of rows and channels. Include inside the body's namespace, after Vec.
#pragma once

LOWBIT_INLINE int32_t LoadWord(const int8_t* p) {
  int32_t v;
  __builtin_memcpy(&v, p, 4);
  return v;
}

// The fields of one block: `add(m, t, field, word)` for every field of tile t and the activations of row m.
template <int kRows, int kTiles, int kBits, typename Fn>
LOWBIT_INLINE void EachField(const int8_t* const (&x)[kRows], const uint8_t* const (&w)[kTiles], int64_t b, Fn add) {
  constexpr int kPer = 8 / kBits;
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
      for (int t = 0; t < kTiles; ++t) add(m, t, field[t], word);
    }
  }
}

// acc[m][t] += over `blocks` blocks of stored codes times activation codes.
template <int kRows, int kTiles, int kBits, typename V = Vec>
LOWBIT_INLINE void Accumulate(Vec::I (&acc)[kRows][kTiles], const int8_t* const (&x)[kRows],
                              const uint8_t* const (&w)[kTiles], int64_t blocks) {
  if constexpr (V::template kNarrowFields<kBits> > 0) {
    constexpr int64_t kTogether = V::template kNarrowFields<kBits> / (8 / kBits);
    for (int64_t b = 0; b < blocks; b += kTogether) {
      const int64_t end = b + kTogether < blocks ? b + kTogether : blocks;
      typename V::N sum[kRows][kTiles];
      for (int m = 0; m < kRows; ++m) {
        for (int t = 0; t < kTiles; ++t) sum[m][t] = V::NarrowZero();
      }
      auto one = [&](int64_t i) __attribute__((always_inline)) {
        EachField<kRows, kTiles, kBits>(x, w, i, [&](int m, int t, Vec::W field, int32_t word) __attribute__((always_inline)) {
          sum[m][t] = V::NarrowDot(sum[m][t], field, word);
        });
      };
      if (kRows == 1 && end - b == kTogether) {
#pragma GCC unroll 8
        for (int64_t i = 0; i < kTogether; ++i) one(b + i);
      } else {  // unrolled, the sums of several rows would leave the registers
#pragma GCC unroll 1
        for (int64_t i = b; i < end; ++i) one(i);
      }
      for (int m = 0; m < kRows; ++m) {
        for (int t = 0; t < kTiles; ++t) acc[m][t] = V::Widened(acc[m][t], sum[m][t]);
      }
    }
  } else {
    for (int64_t b = 0; b < blocks; ++b) {
      EachField<kRows, kTiles, kBits>(x, w, b, [&](int m, int t, Vec::W field, int32_t word) __attribute__((always_inline)) {
        acc[m][t] = Vec::Dot<kBits>(acc[m][t], field, word);
      });
    }
  }
}

// Exact integer terms: z_x times column sums, z_w times row sums.
template <int kRows, int kTiles>
LOWBIT_INLINE void AddTerms(const Matmul& p, Vec::I (&acc)[kRows][kTiles], const int32_t* starts, int64_t index,
                            int32_t zero) {
  const int32_t* sums = p.sums + (starts - p.starts);
  for (int t = 0; t < kTiles; ++t) {
    const int64_t at = index + t * p.groups * kLanes;
    if (zero != 0) {
      const Vec::I term = ColumnTerm(p, at, zero);
      for (int m = 0; m < kRows; ++m) acc[m][t] = Vec::Sub(acc[m][t], term);
    }
    if (p.zeros != nullptr) {
      const Vec::I zeros = Vec::Load16(p.zeros + at);
      for (int m = 0; m < kRows; ++m) acc[m][t] = Vec::Sub(acc[m][t], Vec::Mul(zeros, Vec::Set(sums[m])));
    }
  }
}

// kRows rows from `row`, of which `valid` are stored, times kTiles tiles from `tile`.
// kBlocks is the count of blocks of every group where that is known, else 0. What a group needs are pointers that move: with
// few blocks a group, address arithmetic would cost as much as the dot products.
template <int kRows, int kTiles, int kBits, int kBlocks>
__attribute__((noinline)) void IntegerTile(const Matmul& p, int64_t row, int64_t valid, int64_t tile) {
  constexpr int kSpan = 4 * (8 / kBits);
  const int8_t* x[kRows];
  const uint8_t* w[kTiles];
  for (int m = 0; m < kRows; ++m) x[m] = p.codes + (row + m) * p.codes_stride;
  for (int t = 0; t < kTiles; ++t) w[t] = p.w + (tile + t) * p.blocks * kBlockBytes;
  const int32_t zero = p.zero();
  const bool terms = zero != 0 || p.zeros != nullptr;
  const int32_t* starts = p.starts + row;
  int64_t index = tile * p.groups * kLanes;
  const int64_t next = p.groups * kLanes;
  // -0.0 is the neutral element of a rounded sum: -0.0 + f is f for every f, zeros of both signs included.
  Vec::F total[kRows][kTiles];
  for (int m = 0; m < kRows; ++m) {
    for (int t = 0; t < kTiles; ++t) total[m][t] = Vec::SetF(-0.0f);
  }
  for (int64_t g = 0; g < p.groups; ++g, starts += p.padded_rows, index += kLanes) {
    const int64_t blocks = kBlocks > 0 ? kBlocks : p.blocks_of(g);
    Vec::I acc[kRows][kTiles];
    for (int m = 0; m < kRows; ++m) {
      for (int t = 0; t < kTiles; ++t) acc[m][t] = Vec::Set(starts[m]);
    }
    if (__builtin_expect(terms, 0)) AddTerms<kRows, kTiles>(p, acc, starts, index, zero);
    if constexpr (kRows == 1 && kBlocks > 0) {  // of one row weights come from memory, through several streams at once
      for (int t = 0; t < kTiles; ++t) {
        for (int b = 0; b < kBlocks; ++b) __builtin_prefetch(w[t] + (4 * kBlocks + b) * kBlockBytes);
        if (!p.scales_bf16) __builtin_prefetch(static_cast<const float*>(p.scales) + index + t * next + 4 * kLanes);
      }
    }
    Accumulate<kRows, kTiles, kBits>(acc, x, w, blocks);
    if (__builtin_expect(p.tail.fixed != nullptr, 0)) {  // of one group
      for (int t = 0; t < kTiles; ++t) {
        Vec::I column[kRows];
        for (int m = 0; m < kRows; ++m) column[m] = acc[m][t];
        StoreFixed<kRows>(p.tail, p.out, row, valid, tile + t, column);
      }
      return;
    }
    for (int m = 0; m < kRows; ++m) x[m] += blocks * kSpan;
    for (int t = 0; t < kTiles; ++t) {
      w[t] += blocks * kBlockBytes;
      const Vec::F scale = LoadScales(p, index + t * next);
      for (int m = 0; m < kRows; ++m) {
        const Vec::F product = Vec::MulF(Vec::Convert(acc[m][t]), scale);
        total[m][t] = Vec::AddF(total[m][t], product);  // two roundings: never fused
      }
    }
  }
  for (int t = 0; t < kTiles; ++t) {
    Vec::F column[kRows];
    for (int m = 0; m < kRows; ++m) column[m] = total[m][t];
    FinishRows<kRows>(p, row, valid, tile + t, column);
  }
}

template <int kBits, int kTiles, int kBlocks>
void IntegerRows(const Matmul& p, int64_t row_begin, int64_t row_end, int64_t tile) {
  constexpr int kFull = kTiles > Vec::kTileTile ? 1 : Vec::kRowTile;
  int64_t row = row_begin;
  for (; row + kFull <= row_end; row += kFull) IntegerTile<kFull, kTiles, kBits, kBlocks>(p, row, kFull, tile);
  // A tile may compute rows past the end: scratch is padded, and they are not stored.
  const int64_t left = row_end - row;
  if (left == 1) return IntegerTile<1, kTiles, kBits, kBlocks>(p, row, left, tile);
  if constexpr (kFull > 4) {
    if (left == 2) return IntegerTile<2, kTiles, kBits, kBlocks>(p, row, left, tile);
    if (left > 0 && left <= 4) return IntegerTile<4, kTiles, kBits, kBlocks>(p, row, left, tile);
  }
  if (left > 0) IntegerTile<kFull, kTiles, kBits, kBlocks>(p, row, left, tile);
}

template <int kBits, int kTiles>
void IntegerRows(const Matmul& p, int64_t row_begin, int64_t row_end, int64_t tile) {
  // Groups of 32 in 4 bits, the common case: no loop over blocks.
  if (kBits == 4 && p.group_blocks == 4 && p.blocks == 4 * p.groups) {
    return IntegerRows<kBits, kTiles, kBits == 4 ? 4 : 0>(p, row_begin, row_end, tile);
  }
  IntegerRows<kBits, kTiles, 0>(p, row_begin, row_end, tile);
}

template <int kBits>
void IntegerRange(const Matmul& p, int64_t row_begin, int64_t row_end, int64_t tile_begin, int64_t tile_end) {
  constexpr int kStep = Vec::kTileTile;
  int64_t tile = tile_begin;
  if constexpr (kStep > 1) {  // of one row more tiles: two sums would wait for each other's multiplies
    for (; row_end - row_begin == 1 && tile + 2 * kStep <= tile_end; tile += 2 * kStep) {
      IntegerRows<kBits, 2 * kStep>(p, row_begin, row_end, tile);
    }
  }
  for (; tile + kStep <= tile_end; tile += kStep) IntegerRows<kBits, kStep>(p, row_begin, row_end, tile);
  for (; tile < tile_end; ++tile) IntegerRows<kBits, 1>(p, row_begin, row_end, tile);
}

// With integer scales of groups the sum over groups is an integer too: each group's, times its factor, in int32.
template <int kRows, int kTiles, int kBits>
__attribute__((noinline)) void FactorTile(const Matmul& p, int64_t row, int64_t valid, int64_t tile) {
  constexpr int kSpan = 4 * (8 / kBits);
  const int8_t* x[kRows];
  const uint8_t* w[kTiles];
  for (int m = 0; m < kRows; ++m) x[m] = p.codes + (row + m) * p.codes_stride;
  for (int t = 0; t < kTiles; ++t) w[t] = p.w + (tile + t) * p.blocks * kBlockBytes;
  const int32_t zero = p.zero();
  const int32_t* starts = p.starts + row;
  int64_t index = tile * p.groups * kLanes;
  Vec::I total[kRows][kTiles];
  for (int m = 0; m < kRows; ++m) {
    for (int t = 0; t < kTiles; ++t) total[m][t] = Vec::Set(0);
  }
  for (int64_t g = 0; g < p.groups; ++g, starts += p.padded_rows, index += kLanes) {
    const int64_t blocks = p.blocks_of(g);
    Vec::I acc[kRows][kTiles];
    for (int m = 0; m < kRows; ++m) {
      for (int t = 0; t < kTiles; ++t) acc[m][t] = Vec::Set(starts[m]);
    }
    AddTerms<kRows, kTiles>(p, acc, starts, index, zero);
    Accumulate<kRows, kTiles, kBits>(acc, x, w, blocks);
    for (int m = 0; m < kRows; ++m) x[m] += blocks * kSpan;
    for (int t = 0; t < kTiles; ++t) {
      w[t] += blocks * kBlockBytes;
      const Vec::I factor = Vec::Load8(p.factors + index + t * p.groups * kLanes);
      for (int m = 0; m < kRows; ++m) total[m][t] = Vec::Add(total[m][t], Vec::Mul(acc[m][t], factor));
    }
  }
  for (int t = 0; t < kTiles; ++t) {
    const Vec::F scale = LoadScales(p, (tile + t) * kLanes);
    Vec::F column[kRows];
    for (int m = 0; m < kRows; ++m) column[m] = Vec::MulF(Vec::Convert(total[m][t]), scale);
    FinishRows<kRows>(p, row, valid, tile + t, column);
  }
}

template <int kBits>
void FactorRange(const Matmul& p, int64_t row_begin, int64_t row_end, int64_t tile_begin, int64_t tile_end) {
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    int64_t row = row_begin;
    for (; row + 2 <= row_end; row += 2) FactorTile<2, 1, kBits>(p, row, 2, tile);
    if (row < row_end) FactorTile<1, 1, kBits>(p, row, 1, tile);
  }
}

// A group's codes times factors, as ExpandTile writes them.
template <int kBits, typename V>
LOWBIT_INLINE uint8_t* ExpandGroup(const Matmul& p, const int8_t* factors, const uint8_t* w, int64_t blocks, uint8_t* out) {
  const typename V::I factor = V::Factors(factors), add = V::Shifts(factor, p.offset);
  for (int64_t b = 0; b < blocks; ++b, w += kBlockBytes) {
    const typename V::W block = V::LoadW(w);
    for (int s = 0; s < 8 / kBits; ++s, out += kBlockBytes) {
      const typename V::W codes = V::Expanded(V::template Field<kBits>(block, s), factor, add);
      __builtin_memcpy(out, &codes, kBlockBytes);
    }
  }
  return out;
}

// A tile of codes times factors as stored 8-bit codes: field s of block b becomes block (b * per + s), whose bytes meet
// the activations where they lie. `sums` are the column sums of what is stored, over the inputs that there are.
void ExpandTile(const Matmul& p, int64_t tile, uint8_t* out, int32_t* sums) {
  const uint8_t* w = p.w + tile * p.blocks * kBlockBytes;
  [[maybe_unused]] const int per = 8 / p.bits, mask = (1 << p.bits) - 1;
  for (int64_t n = 0; n < kLanes; ++n) sums[n] = static_cast<int32_t>(128 * p.length);
  for (int64_t g = 0; g < p.groups; ++g) {
    const int64_t index = (tile * p.groups + g) * kLanes;
    if constexpr (Vec::kExpands) {
      const int64_t blocks = p.blocks_of(g);
      out = p.bits == 4 ? ExpandGroup<4, Vec>(p, p.factors + index, w, blocks, out)
                        : ExpandGroup<2, Vec>(p, p.factors + index, w, blocks, out);
      w += blocks * kBlockBytes;
    } else {
      int16_t factor[kBlockBytes];
      for (int64_t i = 0; i < kBlockBytes; ++i) factor[i] = p.factors[index + i / 4];
      for (int64_t b = 0; b < p.blocks_of(g); ++b, w += kBlockBytes) {
        for (int s = 0; s < per; ++s, out += kBlockBytes) {
          for (int64_t i = 0; i < kBlockBytes; ++i) {
            const int16_t code = static_cast<int16_t>((w[i] >> (p.bits * s) & mask) - p.offset);
            out[i] = static_cast<uint8_t>(code * factor[i] + 128);
          }
        }
      }
    }
    if (p.column_sums == nullptr) continue;
    for (int64_t n = 0; n < kLanes; ++n) {
      const int32_t column = p.column_sums_16 ? static_cast<const int16_t*>(p.column_sums)[index + n]
                                              : static_cast<const int32_t*>(p.column_sums)[index + n];
      const uint32_t levels = uint32_t(column) - uint32_t(p.offset) * uint32_t(p.group_size(g));
      sums[n] = static_cast<int32_t>(uint32_t(sums[n]) + levels * uint32_t(int32_t{p.factors[index + n]}));
    }
  }
}
