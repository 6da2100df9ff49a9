// Integer matmuls in tiles. Weights of 8 bits and one group are tiles already: a prepared block is a row of one (4 inputs of 16
// channels). Others are unpacked, once for all rows of a part. Include inside the body's namespace, after amx_tiles.h.
#pragma once

// Stored codes of `blocks` blocks less `base`, as bytes, one field after the other: in the order of the activations' codes.
template <int kBits>
LOWBIT_INLINE uint8_t* UnpackBlocks(const uint8_t* w, int64_t blocks, __m512i base, uint8_t* out) {
  for (int64_t b = 0; b < blocks; ++b, w += kBlockBytes) {
    const Vec::W block = Vec::LoadW(w);
#pragma GCC unroll 4
    for (int s = 0; s < 8 / kBits; ++s, out += kBlockBytes) {
      _mm512_store_si512(out, _mm512_sub_epi8(Vec::Field<kBits>(block, s), base));
    }
  }
  return out;
}

// A tile of channels, every group filled up with zeros to whole steps of `step` inputs.
inline void Unpack(const Matmul& p, int64_t tile, int32_t base, int64_t step, uint8_t* out) {
  const uint8_t* w = p.w + tile * p.blocks * kBlockBytes;
  const __m512i less = _mm512_set1_epi8(static_cast<char>(base));
  for (int64_t g = 0; g < p.groups; ++g) {
    const int64_t blocks = p.blocks_of(g), inputs = (p.group_size(g) + step - 1) / step * step;
    const uint8_t* end = out + inputs * kLanes;
    out = p.bits == 8   ? UnpackBlocks<8>(w, blocks, less, out)
          : p.bits == 4 ? UnpackBlocks<4>(w, blocks, less, out)
                        : UnpackBlocks<2>(w, blocks, less, out);
    for (; out < end; out += kBlockBytes) _mm512_store_si512(out, _mm512_setzero_si512());
    w += blocks * kBlockBytes;
  }
}

// Memory of a thread in which weights are unpacked.
inline uint8_t* UnpackedBytes(int64_t bytes) {
  thread_local std::vector<uint8_t> memory;
  if (static_cast<int64_t>(memory.size()) < bytes + kBlockBytes) memory.resize(bytes + kBlockBytes);
  return reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(memory.data()) + kBlockBytes - 1) & -uintptr_t{kBlockBytes});
}

// Memory that is needed next, asked for some lines at a time while something else is computed: a core alone gets weights from
// memory more slowly than it multiplies them.
struct Ahead {
  const uint8_t *at, *end;
  int64_t lines;
  // `bytes` at `from`, in `times` portions.
  LOWBIT_INLINE Ahead(const uint8_t* from, int64_t bytes, int64_t times)
      : at(from), end(from + bytes), lines((bytes / 64 + times - 1) / times) {}
  LOWBIT_INLINE void Portion() {
    for (int64_t i = 0; i < lines && at < end; ++i, at += 64) __builtin_prefetch(at, 0, 2);
  }
};

// ---- one group ----------------------------------------------------------------------------------------------------

// Results of a tile of sums of stored codes times activations.
LOWBIT_INLINE void FinishSums(const Matmul& p, int64_t row, int64_t valid, int64_t tile, const int32_t* sums) {
  const int64_t index = tile * kLanes;
  const Vec::I column = ColumnTerm(p, index, p.zero());
  auto sum = [&](int64_t r) __attribute__((always_inline)) {
    Vec::I v = Vec::Sub(Vec::Add(Vec::Load(sums + r * kLanes), Vec::Set(p.starts[row + r])), column);
    if (p.zeros != nullptr) v = Vec::Sub(v, Vec::Mul(Vec::Load16(p.zeros + index), Vec::Set(p.sums[row + r])));
    return v;
  };
  if (p.tail.fixed != nullptr) {
    Vec::I v[kTileRows];
    for (int64_t r = 0; r < kTileRows; ++r) v[r] = sum(r);
    return StoreFixed<kTileRows>(p.tail, p.out, row, valid, tile, v);
  }
  const Vec::F scale = LoadScales(p, index);
  constexpr int kHalf = 8;
  for (int64_t first = 0; first < kTileRows && first < valid; first += kHalf) {
    Vec::F v[kHalf];
    for (int r = 0; r < kHalf; ++r) v[r] = Vec::MulF(Vec::Convert(sum(first + r)), scale);
    FinishRows<kHalf>(p, row + first, valid - first, tile, v);
  }
}

// 16 kRows rows from `row`, of which `valid` are stored, times kTiles tiles of stored codes at `w`, `apart` bytes apart.
template <int kRows, int kTiles>
__attribute__((noinline)) void SumTiles(const Matmul& p, int64_t row, int64_t valid, int64_t tile, const uint8_t* w,
                                        int64_t apart, int64_t blocks, Ahead* next, int64_t near) {
  constexpr int64_t kStepBlocks = kTileBytes / kBlockBytes;
  alignas(64) int32_t sums[kRows * kTiles][kTileRows * kLanes];
  const int8_t* x = p.codes + row * p.codes_stride;
  const int64_t stride = p.codes_stride, whole = blocks / kStepBlocks, left = blocks % kStepBlocks;
  const uint8_t* b[kTiles];
  for (int t = 0; t < kTiles; ++t) b[t] = w + t * apart;
  ZeroSums<kRows * kTiles>();
  for (int64_t i = 0; i < whole; ++i, x += kTileInputs) {
    next->Portion();
    for (int t = 0; near > 0 && t < kTiles; ++t) {
#pragma GCC unroll 16
      for (int64_t j = 0; j < kTileBytes; j += 64) __builtin_prefetch(b[t] + near + j);
    }
    StepTiles<Dot::kSignedUnsigned, kRows, kTiles>(x, stride, kTileRows * stride, b);
    for (int t = 0; t < kTiles; ++t) b[t] += kTileBytes;
  }
  if (left > 0) {  // weights of zero cancel whatever activations the tile reads past the end
    alignas(64) uint8_t rest[kTiles][kTileBytes] = {};
    for (int t = 0; t < kTiles; ++t) {
      __builtin_memcpy(rest[t], b[t], left * kBlockBytes);
      b[t] = rest[t];
    }
    WritesBeforeTiles();
    StepTiles<Dot::kSignedUnsigned, kRows, kTiles>(x, stride, kTileRows * stride, b);
  }
  StoreSums<kRows * kTiles>(sums);
  for (int t = 0; t < kTiles; ++t) {
    for (int r = 0; r < kRows; ++r) {
      FinishSums(p, row + r * kTileRows, valid - r * kTileRows, tile + t, sums[r * kTiles + t]);
    }
  }
}

void MultiplyOneGroup(const Matmul& p, int64_t row_begin, int64_t row_end, int64_t tile_begin, int64_t tile_end) {
  const int64_t rows = row_end - row_begin;
  const bool unpacks = p.bits < 8;
  const int64_t blocks = p.blocks * (8 / p.bits), apart = blocks * kBlockBytes;
  constexpr int kMost = 4;
  uint8_t* unpacked = unpacks ? UnpackedBytes(kMost * apart) : nullptr;
  const Tiles shaped(rows < kTileRows ? rows : kTileRows, kTileInputs);
  for (int64_t tile = tile_begin; tile < tile_end;) {
    const int64_t left = tile_end - tile, count = left >= 4 && rows <= kTileRows ? 4 : left >= 2 ? 2 : 1;
    const int64_t bytes = p.blocks * kBlockBytes, after = left - count < count ? left - count : count;
    const int64_t steps = (rows + 2 * kTileRows - 1) / (2 * kTileRows) * (blocks / (kTileBytes / kBlockBytes) + 1);
    const int64_t near = !unpacks && rows <= 2 * kTileRows ? 2 * kTileBytes : 0;  // of weights that are multiplied as they come
    Ahead next(p.w + (tile + count) * bytes, near > 0 ? 0 : after * bytes, steps);
    const uint8_t* w = p.w + tile * bytes;
    if (unpacks) {
      for (int64_t t = 0; t < count; ++t) Unpack(p, tile + t, 0, 4, unpacked + t * apart);
      WritesBeforeTiles();
      w = unpacked;
    }
    for (int64_t row = row_begin; row < row_end; row += 2 * kTileRows) {
      const int64_t valid = row_end - row;
      auto run = [&](auto fn) { fn(p, row, valid, tile, w, apart, blocks, &next, near); };
      if (count == 4) {
        run(SumTiles<1, 4>);
      } else if (count == 2) {
        valid > kTileRows ? run(SumTiles<2, 2>) : run(SumTiles<1, 2>);
      } else {
        valid > kTileRows ? run(SumTiles<2, 1>) : run(SumTiles<1, 1>);
      }
    }
    tile += count;
  }
}

// ---- many groups --------------------------------------------------------------------------------------------------

// Tiles take a group's inputs in steps of so many, or not at all (0).
LOWBIT_INLINE int64_t StepOfGroups(const Matmul& p) { return p.group % 64 == 0 ? 64 : p.group % 32 == 0 ? 32 : 0; }

struct Groups {
  const uint8_t* weights;  // codes less `base`, (groups, padded inputs / 4, 64)
  const int32_t* starts;   // (groups, 16) what sums start at, or null for 0
  int32_t base;
  int64_t step;            // inputs that tiles take together
  int64_t steps, last;     // of a whole group, and of the last one
};

// Where the next group lies whose sums are computed.
struct NextGroup {
  const int8_t* x;
  const uint8_t* w;
  const int32_t* starts;
  int64_t left;
};

// The sums of the next group in tile kSum, if there is one.
template <int kSum>
LOWBIT_INLINE void SumGroup(const Groups& u, int64_t stride, NextGroup* next) {
  if (next->left == 0) return;
  next->starts != nullptr ? LoadTile<kSum>(next->starts, 0) : ZeroTile<kSum>();  // every row the same
  if (next->starts != nullptr) next->starts += kLanes;
  const int64_t steps = --next->left > 0 ? u.steps : u.last, span = u.step * kLanes;
  for (int64_t s = 0; s < steps; ++s, next->x += u.step, next->w += span) {
    constexpr int kX = 4 + kSum % 2, kW = 6 + kSum % 2;
    LoadTile<kX>(next->x, stride);
    LoadTile<kW>(next->w, kBlockBytes);
    DotTiles<Dot::kSignedSigned, kSum, kX, kW>();
  }
}

// kRows rows from `row` times a tile. While the sums of a group are scaled those of the next are on their way to memory, and those
// of the two after it are computed.
template <int kRows, bool kZeros>
__attribute__((noinline)) void GroupTile(const Matmul& p, const Groups& groups, int64_t row, int64_t valid, int64_t tile,
                                         Ahead* ahead) {
  alignas(64) int32_t sums[4][kTileRows * kLanes];
  alignas(64) float results[kRows * kLanes];
  const Groups u = groups;
  const int64_t stride = p.codes_stride, count = p.groups;
  NextGroup next{p.codes + row * stride, u.weights, u.starts, count};
  Vec::F total[kRows];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) total[r] = Vec::SetF(-0.0f);  // the neutral element of a rounded sum
  int64_t index = tile * count * kLanes;
  auto scaled = [&](int64_t g, const int32_t* from) __attribute__((always_inline)) {
    const Vec::F scale = LoadScales(p, index);
    Vec::I zeros = Vec::Set(0);
    if constexpr (kZeros) {
      zeros = Vec::Sub(p.zeros != nullptr ? Vec::Load16(p.zeros + index) : Vec::Set(p.offset), Vec::Set(u.base));
    }
    index += kLanes;
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      Vec::I v = Vec::Load(from + r * kLanes);
      if constexpr (kZeros) v = Vec::Sub(v, Vec::Mul(zeros, Vec::Set(p.sums[g * p.padded_rows + row + r])));
      total[r] = Vec::AddF(total[r], Vec::MulF(Vec::Convert(v), scale));  // two roundings
    }
  };
  SumGroup<0>(u, stride, &next);
  SumGroup<1>(u, stride, &next);
  SumGroup<2>(u, stride, &next);
  StoreTileTo<0>(sums[0]);
  int64_t g = 0;
  for (; g + 4 <= count; g += 4) {
    ahead->Portion();
    SumGroup<3>(u, stride, &next);
    StoreTileTo<1>(sums[1]);
    scaled(g, sums[0]);
    SumGroup<0>(u, stride, &next);
    StoreTileTo<2>(sums[2]);
    scaled(g + 1, sums[1]);
    SumGroup<1>(u, stride, &next);
    StoreTileTo<3>(sums[3]);
    scaled(g + 2, sums[2]);
    SumGroup<2>(u, stride, &next);
    StoreTileTo<0>(sums[0]);
    scaled(g + 3, sums[3]);
  }
  StoreTileTo<1>(sums[1]);
  StoreTileTo<2>(sums[2]);
  for (int64_t i = 0; g < count; ++i, ++g) scaled(g, sums[i]);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) Vec::Store(results + r * kLanes, total[r]);
  constexpr int kHalf = 8;
  for (int first = 0; first < kRows && first < valid; first += kHalf) {
    Vec::F v[kHalf];
    for (int r = 0; r < kHalf; ++r) v[r] = Vec::LoadF(results + (first + r) * kLanes);
    FinishRows<kHalf>(p, row + first, valid - first, tile, v);
  }
}

void MultiplyGroups(const Matmul& p, int64_t row_begin, int64_t row_end, int64_t tile_begin, int64_t tile_end) {
  Groups u;
  u.step = StepOfGroups(p);
  u.steps = p.group / u.step;
  u.last = (p.group_size(p.groups - 1) + u.step - 1) / u.step;
  u.base = p.bits == 8 ? 128 : p.zeros != nullptr ? 0 : p.offset;  // what is left fits in 8 bits with a sign
  const bool zeros = p.zeros != nullptr || p.offset != u.base;
  const int64_t inputs = p.groups * u.steps * u.step;
  uint8_t* unpacked = UnpackedBytes(inputs * kLanes + p.groups * kBlockBytes);
  int32_t* starts = reinterpret_cast<int32_t*>(unpacked + inputs * kLanes);
  u.weights = unpacked;
  u.starts = p.zero() != 0 ? starts : nullptr;
  const bool few = row_end - row_begin <= kTileRows / 2;
  const Tiles shaped(few ? kTileRows / 2 : kTileRows, u.step);
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    Unpack(p, tile, u.base, u.step, unpacked);
    for (int64_t g = 0; u.starts != nullptr && g < p.groups; ++g) {
      const Vec::I base = Vec::Set(static_cast<int32_t>(p.zero() * u.base * p.group_size(g)));
      Vec::StoreI(starts + g * kLanes, Vec::Sub(base, ColumnTerm(p, (tile * p.groups + g) * kLanes, p.zero())));
    }
    WritesBeforeTiles();
    const int64_t bytes = p.blocks * kBlockBytes, steps = ((row_end - row_begin) / kTileRows + 1) * (p.groups / 4 + 1);
    Ahead next(p.w + (tile + 1) * bytes, tile + 1 < tile_end ? bytes : 0, steps);
    for (int64_t row = row_begin; row < row_end; row += kTileRows) {
      auto run = [&](auto fn) { fn(p, u, row, row_end - row, tile, &next); };
      if (few) {
        zeros ? run(GroupTile<kTileRows / 2, true>) : run(GroupTile<kTileRows / 2, false>);
      } else {
        zeros ? run(GroupTile<kTileRows, true>) : run(GroupTile<kTileRows, false>);
      }
    }
  }
}
