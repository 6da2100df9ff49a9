#include "core/matmul.h"

#include <algorithm>

namespace lowbit {
namespace {

int64_t RoundUp(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

int64_t PaddedRows(const Matmul& p) { return RoundUp(p.rows, kRowPadding); }

// One row of codes or floats. 64 more bytes keep rows from falling on the same cache sets where K is a power of two.
int64_t Stride(const Matmul& p) { return RoundUp(p.blocks * p.span(), 64) + 64; }

}  // namespace

size_t ScratchBytes(const Matmul& p) {
  const int64_t rows = PaddedRows(p);
  const int64_t element = p.activation == Activation::kFloat ? 4 : 1;
  return 64 + rows * Stride(p) * element + 2 * rows * p.groups * 4 + rows * 4;
}

const char* Check(const Matmul& p) {
  if (p.rows < 0 || p.length < 1 || p.out < 1) return "sizes must be positive";
  if (p.bits != 2 && p.bits != 4 && p.bits != 8) return "bits must be 2, 4 or 8";
  if (p.group < 1 || p.group > p.length) return "group must lie in 1..K";
  if (p.groups != (p.length + p.group - 1) / p.group) return "groups must be ceil(K / group)";
  const int64_t span = p.span();
  const int64_t last = p.length - (p.groups - 1) * p.group;
  if (p.group_blocks != (p.group + span - 1) / span ||
      p.blocks != (p.groups - 1) * p.group_blocks + (last + span - 1) / span) {
    return "blocks do not match K and group";
  }
  const bool integer_x = p.x_type == Type::kS8 || p.x_type == Type::kU8;
  if (integer_x && p.activation != Activation::kStatic) return "integer x needs a static activation";
  if (p.activation == Activation::kStatic && !(p.lo < p.hi && p.lo >= -128 && p.hi <= 255 && p.hi - p.lo <= 255)) {
    return "activation range must fit in 8 bits";
  }
  if (p.activation == Activation::kStatic && p.column_sums == nullptr) return "static activations need column sums";
  if (p.activation != Activation::kFloat && p.codebook != nullptr) return "a codebook needs float activations";
  return nullptr;
}

void Run(Matmul p, void* scratch, Isa isa, Pool* pool, int64_t threads) {
  if (p.rows == 0) return;
  const Body& body = BodyOf(isa);
  const int64_t padded = PaddedRows(p);
  auto* at = reinterpret_cast<uint8_t*>(RoundUp(reinterpret_cast<intptr_t>(scratch), 64));
  p.padded_rows = padded;
  p.codes_stride = Stride(p);
  p.codes = reinterpret_cast<int8_t*>(at);
  p.floats = reinterpret_cast<float*>(at);
  at += padded * p.codes_stride * (p.activation == Activation::kFloat ? 4 : 1);
  p.starts = reinterpret_cast<int32_t*>(at);
  p.sums = p.starts + padded * p.groups;
  p.row_scales = reinterpret_cast<float*>(p.sums + padded * p.groups);

  const int64_t available = pool == nullptr ? 1 : std::max<int64_t>(1, pool->threads());
  threads = threads <= 0 ? available : std::min(threads, available);

  // Quantize: worth other threads only where a row block is more than a few microseconds of work.
  constexpr int64_t kRows = 8;
  const int64_t row_blocks = (p.rows + kRows - 1) / kRows;
  ParallelFor(pool, p.rows * p.length < 1 << 16 ? 1 : threads, row_blocks, [&](int64_t i) {
    ScopedFlushSubnormals flush;
    body.quantize(p, i * kRows, std::min(p.rows, (i + 1) * kRows));
  });

  // Multiply. Tiles outermost: a chunk reads its weights once and reuses them over its rows. Rows are cut only where
  // there are too few tiles to feed every thread.
  const int64_t tiles = p.tiles();
  const double work = static_cast<double>(p.rows) * static_cast<double>(p.length) * static_cast<double>(tiles);
  if (work < 1 << 15) threads = 1;
  const int64_t wanted = threads == 1 ? 1 : 16 * threads;
  const int64_t tile_chunk = std::max<int64_t>(2, RoundUp(tiles / wanted, 2));
  const int64_t tile_chunks = (tiles + tile_chunk - 1) / tile_chunk;
  const int64_t row_splits = std::max<int64_t>(1, std::min(wanted / tile_chunks, (p.rows + 15) / 16));
  const int64_t row_chunk = RoundUp((p.rows + row_splits - 1) / row_splits, 16);
  const int64_t row_chunks = (p.rows + row_chunk - 1) / row_chunk;
  ParallelFor(pool, threads, tile_chunks * row_chunks, [&](int64_t i) {
    ScopedFlushSubnormals flush;
    const int64_t tile = i / row_chunks * tile_chunk, row = i % row_chunks * row_chunk;
    body.matmul(p, row, std::min(p.rows, row + row_chunk), tile, std::min(tiles, tile + tile_chunk));
  });
}

}  // namespace lowbit
