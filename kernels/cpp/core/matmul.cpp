#include "core/matmul.h"

#include <algorithm>
#include <vector>

#include "core/view.h"

namespace lowbit {
namespace {

int64_t PaddedRows(const Matmul& p) { return RoundUp(p.rows, kRowPadding); }

// One row of codes or floats. 64 more bytes keep rows from falling on the same cache sets where K is a power of two.
int64_t Stride(const Matmul& p) { return Plus(RoundUp(Times(p.blocks, p.span()), 64), 64); }

int64_t CodeBytes(const Matmul& p) {
  return Times(Times(PaddedRows(p), Stride(p)), p.activation == Activation::kFloat ? 4 : 1);
}

// Float activations as sums of three bfloat16 numbers each, in whole tiles (amx_float.h).
int64_t TermBytes(const Matmul& p) {
  if (p.activation != Activation::kFloat) return 0;
  return Times(Times(PaddedRows(p), RoundUp(p.length, 32)), 3 * 2);
}

// Some rows of x, which lies in columns.
template <typename T>
void Transpose(const Matmul& p, int64_t row_begin, int64_t row_end) {
  const T* x = static_cast<const T*>(p.x);
  T* rows = static_cast<T*>(p.rows_of_x);
  for (int64_t k = 0; k < p.length; ++k) {
    for (int64_t m = row_begin; m < row_end; ++m) rows[m * p.length + k] = x[k * p.rows + m];
  }
}

// Integer scales of groups: from more rows than this on, a tile's codes times factors are written out as 8-bit codes once
// and read by every row; for fewer the groups' sums are multiplied.
constexpr int64_t kFewRows = 4;

// The accumulators' start where all groups are one.
void StartExpanded(const Matmul& p, const Body& body) {
  for (int64_t m = 0; m < p.rows; ++m) {
    uint32_t steps = 0;
    for (int64_t g = 0; g < p.groups; ++g) steps += static_cast<uint32_t>(p.sums[g * p.padded_rows + m]);
    const uint32_t codes = steps + static_cast<uint32_t>(p.zero()) * static_cast<uint32_t>(p.length);
    p.sums[m] = static_cast<int32_t>(steps);
    p.starts[m] = static_cast<int32_t>(static_cast<uint32_t>(body.seen8) * codes - 128 * steps);
  }
}

void MultiplyExpanded(const Matmul& p, const Body& body, int64_t row, int64_t row_end, int64_t tile, int64_t tile_end) {
  Matmul q = p;
  q.bits = 8;
  q.offset = 128;
  q.groups = 1;
  q.blocks = q.group_blocks = p.blocks * (8 / p.bits);
  q.group = q.length = q.blocks * 4;
  q.factors = nullptr;
  q.column_sums_16 = false;
  const int64_t count = tile_end - tile, bytes = q.blocks * kBlockBytes;
  thread_local std::vector<uint8_t> weights;
  int32_t sums[2 * kLanes];
  if (static_cast<int64_t>(weights.size()) < count * bytes) weights.resize(count * bytes);
  for (int64_t t = 0; t < count; ++t) body.expand(p, tile + t, weights.data() + t * bytes, sums + t * kLanes);
  q.w = weights.data();
  q.column_sums = sums;
  q.scales = static_cast<const uint8_t*>(p.scales) + tile * kLanes * (p.scales_bf16 ? 2 : 4);
  q.out = std::min(p.out - tile * kLanes, count * kLanes);
  q.tail = p.tail.from(tile * kLanes, tile * kLanes);
  body.matmul(q, row, row_end, 0, count);
}

}  // namespace

int64_t ScratchBytes(const Matmul& p) {
  const int64_t rows = PaddedRows(p);
  const int64_t columns = p.x_columns ? Times(Times(p.rows, p.length), SizeOf(p.x_type)) : 0;
  return Plus(Plus(64, Plus(CodeBytes(p), TermBytes(p))), Plus(Times(rows, Plus(Times(8, p.groups), 4)), columns));
}

const char* Check(const Matmul& p) {
  if (!IsExtent(p.length) || !IsExtent(p.out) || p.rows < 0 || p.length < 1) return "sizes must be positive";
  if (p.bits != 2 && p.bits != 4 && p.bits != 8) return "bits must be 2, 4 or 8";
  if (p.offset < 0 || p.offset > 1 << (p.bits - 1)) return "offset must lie in 0 .. 2^(bits - 1)";
  if (p.group < 1 || p.group > p.length) return "group must lie in 1..K";
  if (p.groups != CeilDivide(p.length, p.group)) return "groups must be ceil(K / group)";
  const int64_t span = p.span();
  const int64_t last = p.length - (p.groups - 1) * p.group;
  if (p.group_blocks != CeilDivide(p.group, span) ||
      p.blocks != (p.groups - 1) * p.group_blocks + CeilDivide(last, span)) {
    return "blocks do not match K and group";
  }
  const bool integer_x = p.x_type == Type::kS8 || p.x_type == Type::kU8;
  if (!integer_x && p.x_type != Type::kF32 && p.x_type != Type::kBF16) return "x must be f32, bf16, s8 or u8";
  if (integer_x && p.activation != Activation::kStatic) return "integer x needs a static activation";
  if (p.activation == Activation::kStatic) {
    if (const char* problem = CheckGrid(p.lo, p.hi, p.x_type)) return problem;
    if (p.column_sums == nullptr) return "static activations need column sums";
  }
  if (p.activation != Activation::kFloat && p.codebook != nullptr) return "a codebook needs float activations";
  if (p.activation == Activation::kFloat && p.factors != nullptr) return "integer scales need integer activations";
  return nullptr;
}

const char* CheckGrid(int64_t lo, int64_t hi, Type type) {
  const bool fits = (lo >= -128 && hi <= 127) || (lo >= 0 && hi <= 255);
  if (!(lo < hi && fits)) return "codes must lie in [-128, 127] or in [0, 255]";
  if ((type == Type::kU8 && lo < 0) || (type == Type::kS8 && hi > 127)) return "x holds other codes than its grid";
  return nullptr;
}

void Run(Matmul& p, void* scratch, Isa isa, Pool* pool, int64_t threads) {
  if (p.rows == 0 || p.out == 0) return;
  const Body& body = BodyOf(isa);
  const int64_t padded = PaddedRows(p);
  auto* at = Aligned(scratch);
  p.padded_rows = padded;
  p.codes_stride = Stride(p);
  p.codes = reinterpret_cast<int8_t*>(at);
  p.floats = reinterpret_cast<float*>(at);
  at += CodeBytes(p);
  p.terms = at;
  at += TermBytes(p);
  p.starts = reinterpret_cast<int32_t*>(at);
  p.sums = p.starts + padded * p.groups;
  p.row_scales = reinterpret_cast<float*>(p.sums + padded * p.groups);
  p.rows_of_x = p.row_scales + padded;
  for (int64_t m = 0; p.tail.marks != nullptr && m < p.rows; ++m) p.tail.marks[m] = p.tail.next_scale;

  const int64_t available = pool == nullptr ? 1 : std::max<int64_t>(1, pool->threads());
  threads = threads <= 0 ? available : std::min(threads, available);

  // Quantize: worth other threads only where a row block is more than a few microseconds of work.
  constexpr int64_t kRows = 8;
  const int64_t row_blocks = (p.rows + kRows - 1) / kRows;
  ParallelFor(pool, Times(p.rows, p.length) < 1 << 16 ? 1 : threads, row_blocks, [&](int64_t i) {
    ScopedFlushSubnormals flush;
    const int64_t begin = i * kRows, end = std::min(p.rows, begin + kRows);
    if (!p.x_columns) return body.quantize(p, begin, end);
    Matmul rows = p;
    rows.x = p.rows_of_x;
    const int64_t size = SizeOf(p.x_type);
    size == 4   ? Transpose<uint32_t>(p, begin, end)
    : size == 2 ? Transpose<uint16_t>(p, begin, end)
                : Transpose<uint8_t>(p, begin, end);
    body.quantize(rows, begin, end);
  });

  const bool expands = p.factors != nullptr && p.rows > kFewRows;
  if (expands) StartExpanded(p, body);

  // Multiply. Tiles outermost: a chunk reads its weights once and reuses them over its rows. Rows are cut only where
  // there are too few tiles to feed every thread.
  const int64_t tiles = p.tiles();
  // In cycles, roughly: reading a weight takes as long as multiplying it by one row. Fewer are not worth waking a thread.
  const int64_t rate = p.activation == Activation::kFloat ? body.floats_a_cycle : body.codes_a_cycle;
  const double cycles = std::max(1.0, static_cast<double>(p.rows) / static_cast<double>(rate)) *
                        static_cast<double>(p.length) * static_cast<double>(tiles);
  threads = ThreadsFor(cycles, 1 << 15, threads);
  // In tiles, rows whose codes stay in L2 are a chunk, with as many channels as leave some chunks to every thread.
  const int64_t row_bytes = p.activation == Activation::kFloat ? p.codes_stride / 2 : p.codes_stride;
  const int64_t cached = body.chunk_bytes == 0 ? p.rows : std::max<int64_t>(64, body.chunk_bytes / row_bytes / 32 * 32);
  const int64_t wanted = threads == 1 ? 1 : (body.chunk_bytes > 0 && p.rows > 64 ? 4 : 16) * threads;
  const int64_t together = p.rows == 1 ? 4 : 2;  // tiles that a body takes together
  const int64_t tile_chunk = std::max<int64_t>(together, RoundUp(tiles / wanted, together));
  const int64_t tile_chunks = (tiles + tile_chunk - 1) / tile_chunk;
  const int64_t row_splits = std::max<int64_t>(CeilDivide(p.rows, cached), std::min(wanted / tile_chunks, (p.rows + 15) / 16));
  const int64_t row_chunk = RoundUp((p.rows + row_splits - 1) / row_splits, p.rows > 64 ? 32 : 16);
  const int64_t row_chunks = (p.rows + row_chunk - 1) / row_chunk;
  ParallelFor(pool, threads, tile_chunks * row_chunks, [&](int64_t i) {
    ScopedFlushSubnormals flush;
    const int64_t tile = i % tile_chunks * tile_chunk, row = i / tile_chunks * row_chunk;
    const int64_t row_end = std::min(p.rows, row + row_chunk), tile_end = std::min(tiles, tile + tile_chunk);
    if (!expands) return body.matmul(p, row, row_end, tile, tile_end);
    for (int64_t t = tile; t < tile_end; t += 2) MultiplyExpanded(p, body, row, row_end, t, std::min(tile_end, t + 2));
  });
}

}  // namespace lowbit
