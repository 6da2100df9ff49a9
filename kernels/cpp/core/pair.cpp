#include "core/pair.h"

#include <algorithm>

#include "core/tail_call.h"

namespace lowbit {
namespace {

constexpr int64_t kMostPairs = INT32_MAX / (255 * 255);  // products of two codes less their zero points that int32 sums

// Scratch of a thread, kept: the right operand's blocks and tables, and the left one's codes and what belongs to them.
struct Room {
  std::vector<uint8_t> bytes;
  uint8_t* At(int64_t size) {
    if (static_cast<int64_t>(bytes.size()) < size) bytes.resize(size);
    return bytes.data();
  }
};

void Run(const Pair& c, Isa isa, Pool* pool, int64_t threads) {
  const Body& body = BodyOf(isa);
  const int64_t tiles = CeilDivide(c.out, kLanes), blocks = CeilDivide(c.length, 4), batches = c.outer * c.inner;
  const int64_t stride = RoundUp(blocks * 4, 64) + 64;
  const int64_t available = pool == nullptr ? 1 : std::max<int64_t>(1, pool->threads());
  threads = threads <= 0 ? available : std::min(threads, available);
  if (Times(Times(batches, c.rows), Times(tiles, blocks)) < 1 << 15) threads = 1;  // multiplies: fewer are not worth waking one
  // Rows are cut where there are too few batches to feed every thread: each part writes the right operand's blocks anew.
  const int64_t parts = batches >= threads ? 1 : std::min(CeilDivide(threads, batches), CeilDivide(c.rows, 16));
  const int64_t chunk = RoundUp(CeilDivide(c.rows, parts), 16);
  ParallelFor(pool, threads, batches * parts, [&](int64_t i) {
    ScopedFlushSubnormals flush;
    const int64_t batch = i / parts, begin = i % parts * chunk, end = std::min(c.rows, begin + chunk);
    if (begin >= end) return;
    const int64_t a = batch / c.inner, b = batch % c.inner;
    const float* x = c.x + a * c.x_outer + b * c.x_inner;
    const float* w = c.w + a * c.w_outer + b * c.w_inner;
    const int64_t padded = RoundUp(end - begin, 16);
    thread_local Room room;
    const int64_t weights = tiles * blocks * kBlockBytes;
    auto* at = room.At(64 + weights + padded * stride + tiles * kLanes * 8 + padded * 12);
    at += (64 - reinterpret_cast<uintptr_t>(at) % 64) % 64;
    uint8_t* stored = at;
    at += weights;
    Matmul p;
    p.rows = end - begin, p.length = p.group = c.length, p.out = c.out, p.groups = 1;
    p.group_blocks = p.blocks = blocks;
    p.bits = 8;
    p.offset = 128 - c.right.shift() + c.right.zero;
    p.activation = Activation::kStatic;
    p.x_zero = c.left.zero, p.lo = c.left.lo, p.hi = c.left.hi;
    p.codes_stride = stride, p.padded_rows = padded;
    p.codes = reinterpret_cast<int8_t*>(at);
    at += padded * stride;
    float* scales = reinterpret_cast<float*>(at);
    int32_t* sums = reinterpret_cast<int32_t*>(scales + tiles * kLanes);
    p.starts = sums + tiles * kLanes;
    p.sums = p.starts + padded;
    p.row_scales = reinterpret_cast<float*>(p.sums + padded);
    for (int64_t t = 0; t < tiles; ++t) {
      body.pair_columns(c, w, t, stored + t * blocks * kBlockBytes, scales + t * kLanes, sums + t * kLanes);
    }
    body.pair_rows(c, p, x, begin, end);
    p.w = stored, p.scales = scales, p.column_sums = sums;
    p.tail.y = c.y + (batch * c.rows + begin) * c.out;
    p.tail.outer_stride = c.out;
    body.matmul(p, 0, p.rows, 0, tiles);
  });
}

// Whether every element of a product's operand lies inside its array: `counts` of axes that lie `strides` apart.
bool Fits(const View& v, const int64_t* counts, const int64_t* strides, int axes) {
  int64_t last = 0, all = 1;
  for (int i = 0; i < axes; ++i) {
    if (!IsExtent(counts[i]) || !IsExtent(strides[i])) return false;
    last = Plus(last, Times(std::max<int64_t>(counts[i] - 1, 0), strides[i]));
    all = Times(all, counts[i]);
  }
  return all == Elements(v) && (all == 0 || last < Elements(v));
}

const char* ReadPairGrid(const View& scale, const View& zero, int64_t lo, int64_t hi, int64_t dynamic, PairGrid* grid) {
  LOWBIT_REQUIRE(scale.type == Type::kF32 && HasShape(scale, 0, {1}), "a scale must be one f32");
  LOWBIT_REQUIRE(IsZeroType(zero.type) && HasShape(zero, 0, {1}), "a zero point must be one s32 or f32");
  if (const char* problem = CheckGrid(lo, hi, Type::kF32)) return problem;
  grid->scale = *static_cast<const float*>(scale.data);
  grid->zero = ReadZero(zero.type, zero.data);
  grid->lo = static_cast<int32_t>(lo), grid->hi = static_cast<int32_t>(hi);
  grid->dynamic = dynamic != 0;
  LOWBIT_REQUIRE(IsZeroPoint(grid->zero), "zero points must be whole numbers within 2^20");
  LOWBIT_REQUIRE(!grid->dynamic || (grid->zero == 0 && hi <= 127), "dynamic grids are signed, without a zero point");
  return nullptr;
}

}  // namespace

const char* Call(const PairCall& call, Pool* pool) {
  for (const View* each : {&call.x, &call.w, &call.x_scale, &call.x_zero, &call.w_scale, &call.w_zero, &call.y}) {
    if (const char* problem = CheckView(*each)) return problem;
  }
  LOWBIT_REQUIRE(call.x.type == Type::kF32 && call.w.type == Type::kF32 && call.y.type == Type::kF32, "x, w and y must be f32");
  LOWBIT_REQUIRE(call.y.rank == 4, "y must be (outer, inner, M, N)");
  LOWBIT_REQUIRE(call.length >= 1 && call.length <= kMostPairs, "K must lie in 1 .. 33025, so that sums fit in int32");
  if (const char* problem = CheckIsa(call.isa, call.threads)) return problem;
  Pair c;
  c.outer = call.y.dims[0], c.inner = call.y.dims[1], c.rows = call.y.dims[2], c.out = call.y.dims[3];
  c.length = call.length;
  const int64_t x_counts[] = {c.outer, c.inner, c.rows, c.length}, w_counts[] = {c.outer, c.inner, c.out, c.length};
  const int64_t x_strides[] = {call.x_strides[0], call.x_strides[1], call.x_strides[2], 1};
  LOWBIT_REQUIRE(Fits(call.x, x_counts, x_strides, 4), "x must hold (outer, inner, M, K) with these strides");
  LOWBIT_REQUIRE(Fits(call.w, w_counts, call.w_strides, 4), "w must hold (outer, inner, N, K) with these strides");
  LOWBIT_REQUIRE(call.w_strides[2] == 1 || call.w_strides[3] == 1, "w must lie side by side along N or K");
  if (const char* problem = ReadPairGrid(call.x_scale, call.x_zero, call.lo, call.hi, call.x_dynamic, &c.left)) return problem;
  if (const char* problem = ReadPairGrid(call.w_scale, call.w_zero, call.w_lo, call.w_hi, call.w_dynamic, &c.right)) return problem;
  if (Elements(call.y) == 0) return nullptr;
  c.x = static_cast<const float*>(call.x.data), c.w = static_cast<const float*>(call.w.data);
  c.y = static_cast<float*>(call.y.data);
  c.x_outer = x_strides[0], c.x_inner = x_strides[1], c.x_row = x_strides[2];
  c.w_outer = call.w_strides[0], c.w_inner = call.w_strides[1], c.w_column = call.w_strides[2], c.w_step = call.w_strides[3];
  c.keeps_nan = call.keeps_nan != 0;
  Run(c, call.isa < 0 ? BestIsa() : static_cast<Isa>(call.isa), pool, call.threads);
  return nullptr;
}

}  // namespace lowbit
