// The AMX body: 8-bit codes in tiles of 16 rows x 64 inputs x 16 channels. A prepared block is already one row of a
// weight tile (4 inputs x 16 channels), so tiles are loaded straight from memory. Everything else is avx512vnni's.
#include <immintrin.h>

#include "core/conv.h"
#include "core/pair.h"
#include "core/problem.h"

namespace lowbit {
namespace body_avx512vnni {
extern const Body kBody;
}
namespace body_amx {
namespace {

#include "core/body_bits.h"
#include "core/vec_avx512.h"
#include "core/body_quantize.h"
#include "core/body_store.h"
#include "core/body_fixed.h"

constexpr int64_t kTileBlocks = 16;  // blocks in a weight tile: 64 inputs
constexpr int64_t kTileRows = 16;    // rows of activations in a tile
constexpr int64_t kFewRows = 4;      // up to here the vector body is as fast: both wait for memory

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t colsb[16] = {};
  uint8_t rows[16] = {};
  TileConfig() {
    for (int i = 0; i < 8; ++i) {
      colsb[i] = 64;
      rows[i] = 16;
    }
  }
};

// Tiles 0..3 accumulate, 4..5 hold activations, 6..7 weights. The tile number is an immediate of the instruction.
template <int kRows, int kTiles>
LOWBIT_INLINE void MultiplyTiles(const int8_t* x, int64_t stride, const uint8_t* const (&w)[kTiles], int64_t blocks) {
  _tile_zero(0);
  if constexpr (kRows * kTiles > 1) _tile_zero(1);
  if constexpr (kRows * kTiles > 2) {
    _tile_zero(2);
    _tile_zero(3);
  }
  auto step = [&](const int8_t* a, const uint8_t* const (&b)[kTiles]) {
    _tile_loadd(4, a, stride);
    if constexpr (kRows == 2) _tile_loadd(5, a + kTileRows * stride, stride);
    _tile_loadd(6, b[0], kBlockBytes);
    _tile_dpbsud(0, 4, 6);
    if constexpr (kRows == 2 && kTiles == 1) _tile_dpbsud(1, 5, 6);
    if constexpr (kRows == 2 && kTiles == 2) _tile_dpbsud(2, 5, 6);
    if constexpr (kTiles > 1) {
      _tile_loadd(7, b[1], kBlockBytes);
      _tile_dpbsud(1, 4, 7);
      if constexpr (kRows == 2) _tile_dpbsud(3, 5, 7);
    }
    if constexpr (kTiles == 4) {
      _tile_loadd(6, b[2], kBlockBytes);
      _tile_dpbsud(2, 4, 6);
      _tile_loadd(7, b[3], kBlockBytes);
      _tile_dpbsud(3, 4, 7);
    }
  };
  const int64_t whole = blocks / kTileBlocks, left = blocks % kTileBlocks;
  for (int64_t i = 0; i < whole; ++i) {
    const uint8_t* b[kTiles];
    for (int t = 0; t < kTiles; ++t) b[t] = w[t] + i * kTileBlocks * kBlockBytes;
    step(x + i * kTileBlocks * 4, b);
  }
  if (left > 0) {  // weights of zero cancel whatever activations the tile reads past the end
    alignas(64) uint8_t rest[kTiles][kTileBlocks * kBlockBytes] = {};
    const uint8_t* b[kTiles];
    for (int t = 0; t < kTiles; ++t) {
      __builtin_memcpy(rest[t], w[t] + whole * kTileBlocks * kBlockBytes, left * kBlockBytes);
      b[t] = rest[t];
    }
    asm volatile("" ::: "memory");  // GCC's tile load does not say that it reads memory
    step(x + whole * kTileBlocks * 4, b);
  }
}

template <int kCount>
LOWBIT_INLINE void StoreTiles(int32_t (*acc)[kTileRows * kLanes]) {
  _tile_stored(0, acc[0], kLanes * 4);
  if constexpr (kCount > 1) _tile_stored(1, acc[1], kLanes * 4);
  if constexpr (kCount > 2) {
    _tile_stored(2, acc[2], kLanes * 4);
    _tile_stored(3, acc[3], kLanes * 4);
  }
}

// 16 kRows rows from `row`, of which `valid` are stored, times kTiles tiles from `tile`.
template <int kRows, int kTiles>
__attribute__((noinline)) void AmxTile(const Matmul& p, int64_t row, int64_t valid, int64_t tile) {
  alignas(64) int32_t acc[kRows * kTiles][kTileRows * kLanes];
  alignas(64) float total[kRows * kTiles][kTileRows * kLanes];
  const int32_t zero = p.zero();
  int64_t first = 0;  // block
  for (int64_t g = 0; g < p.groups; ++g) {
    const int64_t blocks = p.blocks_of(g);
    const uint8_t* w[kTiles];
    for (int t = 0; t < kTiles; ++t) w[t] = p.w + ((tile + t) * p.blocks + first) * kBlockBytes;
    MultiplyTiles<kRows, kTiles>(p.codes + row * p.codes_stride + first * 4, p.codes_stride, w, blocks);
    StoreTiles<kRows * kTiles>(acc);
    first += blocks;
    for (int t = 0; t < kTiles; ++t) {
      const int64_t index = ((tile + t) * p.groups + g) * kLanes;
      const Vec::F scale = p.tail.fixed != nullptr ? Vec::SetF(0.0f) : LoadScales(p, index);
      const Vec::I column = ColumnTerm(p, index, zero);
      for (int r = 0; r < kRows; ++r) {
        Vec::I sums[kTileRows];
        for (int64_t i = 0; i < kTileRows && r * kTileRows + i < valid; ++i) {
          const int64_t m = row + r * kTileRows + i;
          const int at = r * kTiles + t;
          Vec::I sum = Vec::Add(Vec::Load(acc[at] + i * kLanes), Vec::Set(p.starts[g * p.padded_rows + m]));
          sum = Vec::Sub(sum, column);
          if (p.zeros != nullptr) {
            sum = Vec::Sub(sum, Vec::Mul(Vec::Load16(p.zeros + index), Vec::Set(p.sums[g * p.padded_rows + m])));
          }
          sums[i] = sum;
          if (p.tail.fixed != nullptr) continue;
          const Vec::F product = Vec::MulF(Vec::Convert(sum), scale);
          float* f = total[at] + i * kLanes;
          Vec::Store(f, g == 0 ? product : Vec::AddF(Vec::LoadF(f), product));
        }
        const int64_t left = valid - r * kTileRows;
        if (p.tail.fixed != nullptr && left > 0) {  // of one group
          StoreFixed<kTileRows>(p.tail, p.out, row + r * kTileRows, left, tile + t, sums);
        }
      }
    }
  }
  if (p.tail.fixed != nullptr) return;
  for (int r = 0; r < kRows; ++r) {
    for (int t = 0; t < kTiles; ++t) {
      for (int64_t i = 0; i < kTileRows && r * kTileRows + i < valid; ++i) {
        const int64_t m = row + r * kTileRows + i;
        FinishTile(p, m, tile + t, Vec::LoadF(total[r * kTiles + t] + i * kLanes));
      }
    }
  }
}

void MultiplyRange(const Matmul& p, int64_t row_begin, int64_t row_end, int64_t tile_begin, int64_t tile_end) {
  const bool suits = p.activation != Activation::kFloat && p.bits == 8 && p.group_blocks >= kTileBlocks;
  if (!suits || row_end - row_begin <= kFewRows) {
    return body_avx512vnni::kBody.matmul(p, row_begin, row_end, tile_begin, tile_end);
  }
  const TileConfig config;
  _tile_loadconfig(&config);
  int64_t tile = tile_begin;
  auto rows = [&](auto one, auto two) {
    int64_t row = row_begin;
    for (; row_end - row > kTileRows; row += 2 * kTileRows) two(row, row_end - row);
    if (row < row_end) one(row, row_end - row);
  };
  if (row_end - row_begin <= kTileRows) {  // one tile of rows: four of channels, to have four sums in flight
    for (; tile + 4 <= tile_end; tile += 4) AmxTile<1, 4>(p, row_begin, row_end - row_begin, tile);
  }
  for (; tile + 2 <= tile_end; tile += 2) {
    rows([&](int64_t row, int64_t left) { AmxTile<1, 2>(p, row, left, tile); },
         [&](int64_t row, int64_t left) { AmxTile<2, 2>(p, row, left, tile); });
  }
  if (tile < tile_end) {
    rows([&](int64_t row, int64_t left) { AmxTile<1, 1>(p, row, left, tile); },
         [&](int64_t row, int64_t left) { AmxTile<2, 1>(p, row, left, tile); });
  }
  _tile_release();
}

void Expand(const Matmul& p, int64_t tile, uint8_t* out, int32_t* sums) {
  body_avx512vnni::kBody.expand(p, tile, out, sums);
}
float ConvScale(const Conv& c, int64_t example) { return body_avx512vnni::kBody.conv_scale(c, example); }
void ConvQuantize(const Conv& c, int64_t begin, int64_t end) { body_avx512vnni::kBody.conv_quantize(c, begin, end); }
void ConvGather(const Conv& c, const Matmul& p, int64_t group, int64_t begin, int64_t end) {
  body_avx512vnni::kBody.conv_gather(c, p, group, begin, end);
}
void Depthwise(const Conv& c, int64_t begin, int64_t end) { body_avx512vnni::kBody.depthwise(c, begin, end); }
void DepthwiseCodes(const Conv& c, int64_t begin, int64_t end) {
  body_avx512vnni::kBody.depthwise_codes(c, begin, end);
}
void PairRows(const Pair& c, const Matmul& p, const float* x, int64_t begin, int64_t end) {
  body_avx512vnni::kBody.pair_rows(c, p, x, begin, end);
}
void PairColumns(const Pair& c, const float* w, int64_t tile, uint8_t* blocks, float* scales, int32_t* sums) {
  body_avx512vnni::kBody.pair_columns(c, w, tile, blocks, scales, sums);
}

}  // namespace

extern const Body kBody;
const Body kBody = {QuantizeRows, MultiplyRange, Expand, ConvScale, ConvQuantize, ConvGather, Depthwise, PairRows, PairColumns,
                    Vec::kSeen8, nullptr, nullptr, 2, 1, 1, DepthwiseCodes};

}  // namespace body_amx
}  // namespace lowbit
