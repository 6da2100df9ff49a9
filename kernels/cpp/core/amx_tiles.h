// The tile registers of AMX: 0 to 3 hold sums, 4 and 5 activations, 6 and 7 weights. Include inside the body's namespace.
#pragma once

constexpr int64_t kTileRows = 16;     // rows of activations, or channels, in a tile
constexpr int64_t kTileBytes = 1024;  // of 16 rows of 64 bytes
constexpr int64_t kTileInputs = 64;   // codes of a row

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
  // Activations of `count` rows and `width` bytes a row: a product takes a cycle for each row.
  TileConfig(int64_t count, int64_t width) {
    for (int i = 0; i < 8; ++i) {
      const bool activations = i == 4 || i == 5, weights = i >= 6;
      bytes[i] = static_cast<uint16_t>(activations ? width : 64);
      rows[i] = static_cast<uint8_t>(weights ? width / 4 : count);
    }
  }
};

// While it lives the tiles are shaped so. What was written before is in memory when a tile is loaded.
class Tiles {
 public:
  LOWBIT_INLINE Tiles(int64_t rows, int64_t width) {
    const TileConfig config(rows, width);
    asm volatile("ldtilecfg %0" : : "m"(config) : "memory");
  }
  LOWBIT_INLINE ~Tiles() { asm volatile("tilerelease" : : : "memory"); }
};

template <int kTile>
LOWBIT_INLINE void ZeroTile() { asm volatile("tilezero %%tmm%c0" : : "i"(kTile)); }
template <int kTile>
LOWBIT_INLINE void LoadTile(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kTile));
}
template <int kTile>
LOWBIT_INLINE void StoreTileTo(void* to) {
  // What is written is said: that anything may be would drive sums that are in registers to memory.
  asm volatile("tilestored %%tmm%c3, (%1,%2,1)"
               : "=m"(*static_cast<uint8_t(*)[kTileBytes]>(to)) : "r"(to), "r"(int64_t{64}), "i"(kTile));
}
// The compiler keeps tile loads in order among themselves, not after writes to memory.
LOWBIT_INLINE void WritesBeforeTiles() { asm volatile("" : : : "memory"); }

enum class Dot { kSignedUnsigned, kUnsignedSigned, kSignedSigned, kFloats };
// Tile kSum += activations of tile kX times weights of tile kW.
template <Dot kDot, int kSum, int kX, int kW>
LOWBIT_INLINE void DotTiles() {
#define LOWBIT_DOT(name) asm volatile(name " %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kX), "i"(kW))
  if constexpr (kDot == Dot::kSignedUnsigned) LOWBIT_DOT("tdpbsud");
  if constexpr (kDot == Dot::kUnsignedSigned) LOWBIT_DOT("tdpbusd");
  if constexpr (kDot == Dot::kSignedSigned) LOWBIT_DOT("tdpbssd");
  if constexpr (kDot == Dot::kFloats) LOWBIT_DOT("tdpbf16ps");
#undef LOWBIT_DOT
}

// One step of kRows tiles of rows, `below` bytes apart, times kTiles tiles of weights: sums are in tiles row by row.
template <Dot kDot, int kRows, int kTiles>
LOWBIT_INLINE void StepTiles(const void* x, int64_t stride, int64_t below, const uint8_t* const (&w)[kTiles]) {
  LoadTile<4>(x, stride);
  LoadTile<6>(w[0], kBlockBytes);
  DotTiles<kDot, 0, 4, 6>();
  if constexpr (kRows == 2) {
    LoadTile<5>(static_cast<const uint8_t*>(x) + below, stride);
    DotTiles<kDot, kTiles, 5, 6>();
  }
  if constexpr (kTiles > 1) {
    LoadTile<7>(w[1], kBlockBytes);
    DotTiles<kDot, 1, 4, 7>();
    if constexpr (kRows == 2) DotTiles<kDot, 3, 5, 7>();
  }
  if constexpr (kTiles == 4) {
    LoadTile<6>(w[2], kBlockBytes);
    DotTiles<kDot, 2, 4, 6>();
    LoadTile<7>(w[3], kBlockBytes);
    DotTiles<kDot, 3, 4, 7>();
  }
}

template <int kCount>
LOWBIT_INLINE void ZeroSums() {
  ZeroTile<0>();
  if constexpr (kCount > 1) ZeroTile<1>();
  if constexpr (kCount > 2) ZeroTile<2>();
  if constexpr (kCount > 3) ZeroTile<3>();
}
template <int kCount>
LOWBIT_INLINE void StoreSums(void* to) {
  uint8_t* at = static_cast<uint8_t*>(to);
  StoreTileTo<0>(at);
  if constexpr (kCount > 1) StoreTileTo<1>(at + kTileBytes);
  if constexpr (kCount > 2) StoreTileTo<2>(at + 2 * kTileBytes);
  if constexpr (kCount > 3) StoreTileTo<3>(at + 3 * kTileBytes);
}
