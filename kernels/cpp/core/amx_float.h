// Float activations times codes in bfloat16 tiles. A float32 has 24 significant bits, which are the sum of three bfloat16 numbers of
// 8, exactly; codes of up to 8 bits, less their zero, are one. Products are exact then, and sums are float32's. Include inside the
// body's namespace, after amx_integer.h.
#pragma once

constexpr int64_t kFloatInputs = 32;     // of a step
constexpr int64_t kFloatPart = 1024;     // inputs whose weights are unpacked together
constexpr int64_t kFloatRows = 128;      // rows that use them before the next are unpacked: their terms stay in L2

LOWBIT_INLINE int64_t Terms(const Matmul& p) { return p.x_type == Type::kBF16 ? 1 : 3; }
LOWBIT_INLINE int64_t FloatSteps(const Matmul& p) { return (p.length + kFloatInputs - 1) / kFloatInputs; }

// Tiles of 16 rows of 32 inputs: (row tiles, steps, terms, 1024 bytes).
LOWBIT_INLINE uint8_t* TermTile(const Matmul& p, int64_t row, int64_t step) {
  return p.terms + (row / kTileRows * FloatSteps(p) + step) * Terms(p) * kTileBytes;
}

// A row of x as terms. Whether none of its numbers is infinite, NaN, or so small that a term of it would be flushed to zero.
LOWBIT_INLINE bool SplitRow(const Matmul& p, int64_t m) {
  const float* x = p.floats + m * p.codes_stride;
  const Vec::I mask = Vec::Set(static_cast<int32_t>(0xffff0000u)), magnitude = Vec::Set(0x7fffffff);
  const Vec::I least = Vec::Set(0x0d800000), infinite = Vec::Set(0x7f800000);  // 2^-100
  __mmask16 odd = 0;
  auto high = [&](Vec::F v) { return _mm512_and_si512(Vec::Bits(v), mask); };
  for (int64_t s = 0; s < FloatSteps(p); ++s) {
    uint8_t* out = TermTile(p, m, s) + m % kTileRows * kBlockBytes;
    Vec::F v[2];
    for (int i = 0; i < 2; ++i) {
      const int64_t first = s * kFloatInputs + i * kLanes, left = p.length - first;
      const __mmask16 there = Vec::First(left < 0 ? 0 : left < kLanes ? left : kLanes);
      v[i] = _mm512_maskz_loadu_ps(there, x + first);
      const Vec::I size = _mm512_and_si512(Vec::Bits(v[i]), magnitude);
      odd |= _mm512_cmpge_epi32_mask(size, infinite);
      odd |= _mm512_mask_cmplt_epi32_mask(_mm512_test_epi32_mask(size, size), size, least);
    }
    for (int64_t term = 0; term < Terms(p); ++term, out += kTileBytes) {
      for (int i = 0; i < 2; ++i) {
        const Vec::I part = high(v[i]);
        _mm256_storeu_si256((__m256i*)(out + 32 * i), _mm512_cvtepi32_epi16(_mm512_srli_epi32(part, 16)));
        v[i] = Vec::SubF(v[i], _mm512_castsi512_ps(part));
      }
    }
  }
  return odd == 0;
}

// The levels of `blocks` blocks as pairs of inputs of 16 channels, less the channels' zeros.
template <int kBits>
LOWBIT_INLINE uint8_t* UnpackLevels(const Matmul& p, const uint8_t* w, int64_t blocks, Vec::F zeros, uint8_t* out) {
  const Vec::Decoder<kBits, false> decode(nullptr, p.zeros == nullptr ? p.offset : 0);
  const Vec::I mask = Vec::Set(static_cast<int32_t>(0xffff0000u));
  for (int64_t b = 0; b < blocks; ++b, w += kBlockBytes) {
    const Vec::W block = Vec::LoadW(w);
#pragma GCC unroll 8
    for (int i = 0; i < 32 / kBits; i += 2, out += kBlockBytes) {
      Vec::F even = decode(block, i), odd = decode(block, i + 1);
      if (p.zeros != nullptr) even = Vec::SubF(even, zeros), odd = Vec::SubF(odd, zeros);
      const Vec::I low = _mm512_srli_epi32(Vec::Bits(even), 16), high = _mm512_and_si512(Vec::Bits(odd), mask);
      _mm512_store_si512(out, _mm512_or_si512(low, high));
    }
  }
  return out;
}

// Inputs [first, first + size) of group g of a tile, filled up with zeros to whole steps.
inline uint8_t* UnpackLevels(const Matmul& p, int64_t tile, int64_t g, int64_t first, int64_t size, uint8_t* out) {
  const int64_t index = (tile * p.groups + g) * kLanes, span = p.span();
  const uint8_t* w = p.w + (tile * p.blocks + g * p.group_blocks + first / span) * kBlockBytes;
  const Vec::F zeros = p.zeros == nullptr ? Vec::SetF(0.0f) : Vec::Convert(Vec::Load16(p.zeros + index));
  const int64_t blocks = (size + span - 1) / span;
  const uint8_t* end = out + (size + kFloatInputs - 1) / kFloatInputs * kTileBytes;
  out = p.bits == 8   ? UnpackLevels<8>(p, w, blocks, zeros, out)
        : p.bits == 4 ? UnpackLevels<4>(p, w, blocks, zeros, out)
                      : UnpackLevels<2>(p, w, blocks, zeros, out);
  for (; out < end; out += kBlockBytes) _mm512_store_si512(out, _mm512_setzero_si512());
  return out;
}

// Totals of kRows row tiles from `row` and kTiles tiles += those of inputs [begin, end), group by group. `totals` of a row tile
// lie `below` floats apart, of a tile 256.
template <int kRows, int kTiles>
__attribute__((noinline)) void FloatTiles(const Matmul& p, int64_t row, int64_t tile, const uint8_t* w, int64_t apart,
                                          int64_t begin, int64_t end, float* totals, int64_t below) {
  alignas(64) float sums[kRows * kTiles][kTileRows * kLanes];
  const int64_t terms = Terms(p), next = FloatSteps(p) * terms * kTileBytes;
  const uint8_t* b[kTiles];
  for (int t = 0; t < kTiles; ++t) b[t] = w + t * apart;
  const uint8_t* x = TermTile(p, row, begin / kFloatInputs);
  for (int64_t k = begin; k < end;) {
    const int64_t g = k / p.group, left = (g + 1 < p.groups ? (g + 1) * p.group : p.length) - k;
    const int64_t size = left < end - k ? left : end - k;
    ZeroSums<kRows * kTiles>();
    for (int64_t i = 0; i < size; i += kFloatInputs) {
      LoadTile<6>(b[0], kBlockBytes);
      if constexpr (kTiles > 1) LoadTile<7>(b[1], kBlockBytes);
      for (int64_t term = 0; term < terms; ++term, x += kTileBytes) {
        LoadTile<4>(x, kBlockBytes);
        DotTiles<Dot::kFloats, 0, 4, 6>();
        if constexpr (kTiles > 1) DotTiles<Dot::kFloats, 1, 4, 7>();
        if constexpr (kRows > 1) {
          LoadTile<5>(x + next, kBlockBytes);
          DotTiles<Dot::kFloats, kTiles, 5, 6>();
          if constexpr (kTiles > 1) DotTiles<Dot::kFloats, 3, 5, 7>();
        }
      }
      for (int t = 0; t < kTiles; ++t) b[t] += kTileBytes;
    }
    StoreSums<kRows * kTiles>(sums);
    for (int t = 0; t < kTiles; ++t) {
      const Vec::F scale = LoadScales(p, ((tile + t) * p.groups + g) * kLanes);
      for (int r = 0; r < kRows; ++r) {
        float* total = totals + r * below + t * kTileRows * kLanes;
#pragma GCC unroll 16
        for (int i = 0; i < kTileRows * kLanes; i += kLanes) {
          Vec::Store(total + i, Vec::Fma(Vec::LoadF(sums[r * kTiles + t] + i), scale, Vec::LoadF(total + i)));
        }
      }
    }
    k += size;
  }
}

LOWBIT_INLINE bool SuitsFloatTiles(const Matmul& p) {
  return p.terms != nullptr && p.codebook == nullptr && (p.groups == 1 || p.group % kFloatInputs == 0);
}

void MultiplyFloats(const Matmul& p, int64_t row_begin, int64_t row_end, int64_t tile_begin, int64_t tile_end) {
  const int64_t tiles = tile_end - tile_begin, below = tiles * kTileRows * kLanes;
  constexpr int64_t kApart = kFloatPart / kFloatInputs * kTileBytes;
  uint8_t* unpacked = UnpackedBytes(2 * kApart + kFloatRows / kTileRows * below * 4);
  float* totals = reinterpret_cast<float*>(unpacked + 2 * kApart);
  const Tiles shaped(kTileRows, kTileInputs);
  for (int64_t first = row_begin; first < row_end; first += kFloatRows) {
    const int64_t last = row_end - first < kFloatRows ? row_end : first + kFloatRows;
    const int64_t row_tiles = (last - first + kTileRows - 1) / kTileRows;
    __builtin_memset(totals, 0, row_tiles * below * 4);
    for (int64_t begin = 0; begin < p.length; begin += kFloatPart) {
      const int64_t end = p.length - begin < kFloatPart ? p.length : begin + kFloatPart;
      for (int64_t tile = tile_begin; tile < tile_end; tile += 2) {
        const bool two = tile + 1 < tile_end;
        for (int64_t t = 0; t <= (two ? 1 : 0); ++t) {
          uint8_t* out = unpacked + t * kApart;
          for (int64_t k = begin; k < end;) {
            const int64_t g = k / p.group, left = (g + 1 < p.groups ? (g + 1) * p.group : p.length) - k;
            const int64_t size = left < end - k ? left : end - k;
            out = UnpackLevels(p, tile + t, g, k - g * p.group, size, out);
            k += size;
          }
        }
        WritesBeforeTiles();
        for (int64_t r = 0; r < row_tiles; r += 2) {
          float* at = totals + r * below + (tile - tile_begin) * kTileRows * kLanes;
          auto run = [&](auto fn) { fn(p, first + r * kTileRows, tile, unpacked, kApart, begin, end, at, below); };
          if (r + 1 < row_tiles) {
            two ? run(FloatTiles<2, 2>) : run(FloatTiles<2, 1>);
          } else {
            two ? run(FloatTiles<1, 2>) : run(FloatTiles<1, 1>);
          }
        }
      }
    }
    constexpr int kHalf = 8;
    for (int64_t row = first; row < last; row += kHalf) {
      const float* from = totals + (row - first) / kTileRows * below + (row - first) % kTileRows * kLanes;
      for (int64_t tile = tile_begin; tile < tile_end; ++tile, from += kTileRows * kLanes) {
        Vec::F v[kHalf];
        for (int i = 0; i < kHalf; ++i) v[i] = Vec::LoadF(from + i * kLanes);
        StoreTile<kHalf>(p.tail, p.out, row, last - row, tile, v);
      }
    }
  }
}
