// The tail of a call, and what all calls check alike.
#pragma once

#include "core/calls.h"
#include "core/matmul.h"

#define LOWBIT_REQUIRE(condition, message) \
  if (!(condition)) return message

namespace lowbit {

constexpr int64_t kMostElements = int64_t{1} << 38;
constexpr int64_t kMostZero = 1 << 20;  // zero points of grids are codes or near them; exact in float32

// Null, or why `v` is no array: a dimension out of range, or data missing.
inline const char* CheckView(const View& v) {
  for (size_t i = 0; i < v.rank; ++i) LOWBIT_REQUIRE(IsExtent(v.dims[i]), "an extent is out of range");
  LOWBIT_REQUIRE(Elements(v) <= kMostElements, "an array is too large");
  LOWBIT_REQUIRE(v.data != nullptr || Elements(v) == 0, "an array has no data");
  return nullptr;
}

inline const char* CheckIsa(int64_t isa, int64_t threads) {
  LOWBIT_REQUIRE(isa >= -1 && isa < kIsaCount, "isa must be -1 (the best) or the number of an instruction set");
  LOWBIT_REQUIRE(isa < 0 || IsaSupported(static_cast<Isa>(isa)), "this machine does not run that instruction set");
  LOWBIT_REQUIRE(threads >= 0 && threads <= kMostExtent, "threads must be 0 (all) or more");
  return nullptr;
}

inline bool IsZeroType(Type type) { return type == Type::kS32 || type == Type::kF32; }

// The zero point at `data`; one out of range where it is no whole number.
inline int32_t ReadZero(Type type, const void* data) {
  if (type == Type::kS32) return *static_cast<const int32_t*>(data);
  const float zero = *static_cast<const float*>(data);
  const bool fits = zero >= static_cast<float>(-kMostZero) && zero <= static_cast<float>(kMostZero);
  const int32_t whole = fits ? static_cast<int32_t>(zero) : INT32_MAX;
  return fits && static_cast<float>(whole) == zero ? whole : INT32_MAX;
}

// The parts that do not depend on the batch: which steps, which types. `tiles` counts the channels' blocks of 16.
inline const char* ReadTail(const TailCall& call, size_t batch_rank, int64_t tiles, bool channels_last, Tail* tail) {
  LOWBIT_REQUIRE(call.kinds_count <= kMostSteps, "at most 8 steps follow a product");
  LOWBIT_REQUIRE(call.numbers_count == call.kinds_count, "there must be a number for every step");
  tail->count = static_cast<int>(call.kinds_count);
  int64_t rows = 0, residuals = 0;
  for (size_t i = 0; i < call.kinds_count; ++i) {
    LOWBIT_REQUIRE(call.kinds[i] >= 0 && call.kinds[i] <= kResidualKind,
                   "a step must be 0 (add), 1 (mul), 2 (max) or 3 (min), or that and 4, or 8 (the sum with an array)");
    const bool residual = call.kinds[i] == kResidualKind;
    tail->kinds[i] = residual ? Step::kResidual : static_cast<Step>(call.kinds[i] % kStepKinds);
    tail->one[i] = call.kinds[i] >= kStepKinds;
    residuals += residual ? 1 : 0;
    tail->numbers[i] = call.numbers[i];
    rows += tail->one[i] ? 0 : 1;
  }
  const View& like = Elements(call.y) > 0 ? call.y : call.codes;
  bool fits = call.other.type == Type::kF32 && call.other.rank == like.rank;
  for (size_t i = batch_rank; fits && i < like.rank; ++i) {
    const bool fewer = channels_last && i + 1 == like.rank && call.other.dims[i] <= like.dims[i];
    fits = fewer || call.other.dims[i] == like.dims[i];
  }
  LOWBIT_REQUIRE(residuals == 0 || (residuals == 1 && fits), "one array is added, f32 in the shape of the result");
  if (residuals > 0) tail->residual_channels = call.other.dims[like.rank - 1];
  tail->step_stride = tiles * kLanes;
  LOWBIT_REQUIRE(call.steps.type == Type::kF32 && HasShape(call.steps, batch_rank, {rows, tiles, kLanes}),
                 "steps must be f32 (rows, tiles, 16)");
  LOWBIT_REQUIRE(call.y.type == Type::kF32 || call.y.type == Type::kBF16, "y must be f32 or bf16");
  tail->y_bf16 = call.y.type == Type::kBF16;
  LOWBIT_REQUIRE(!tail->y_bf16 || (tail->count == 0 && Elements(call.codes) == 0),
                 "steps and codes follow a float32 product");
  if (const char* problem = CheckGrid(call.next_lo, call.next_hi, call.codes.type)) return problem;
  LOWBIT_REQUIRE(call.codes.type == (call.next_hi > 127 ? Type::kU8 : Type::kS8), "codes must be s8, or u8 above 127");
  tail->next_lo = static_cast<int32_t>(call.next_lo);
  tail->next_hi = static_cast<int32_t>(call.next_hi);
  LOWBIT_REQUIRE(call.marks.type == Type::kF32, "marks must be f32");
  LOWBIT_REQUIRE(call.next_scale.type == Type::kF32 && HasShape(call.next_scale, batch_rank, {1}),
                 "the next scale must be one f32");
  LOWBIT_REQUIRE(IsZeroType(call.next_zero.type) && HasShape(call.next_zero, batch_rank, {1}),
                 "the next zero must be one s32 or f32");
  return nullptr;
}

// Whether codes are made in fixed point: then `*tail` is read whole, but for where its arrays are.
inline const char* ReadFixed(const TailCall& call, size_t batch_rank, int64_t tiles, bool* is_fixed, Tail* tail) {
  *is_fixed = HasShape(call.fixed, batch_rank, {kFixedRows, tiles, kLanes});
  LOWBIT_REQUIRE(call.fixed.type == Type::kS32 && (*is_fixed || HasShape(call.fixed, batch_rank, {0, tiles, kLanes})),
                 "the numbers of fixed point must be s32 (7, tiles, 16)");
  if (!*is_fixed) return nullptr;
  LOWBIT_REQUIRE(call.rounding >= 0 && call.rounding < kRoundings, "the rounding must be 0 (exact), 1 (single) or 2 (double)");
  LOWBIT_REQUIRE(call.kinds_count == 0 && Elements(call.y) == 0, "nothing but codes is made in fixed point");
  LOWBIT_REQUIRE(call.join >= 0 && call.join < kJoins, "the join must be 0 (sum), 1 (maximum) or 2 (minimum)");
  const bool joins = HasShape(call.joins, batch_rank, {kJoinNumbers});
  LOWBIT_REQUIRE(call.joins.type == Type::kS32 && (joins || HasShape(call.joins, batch_rank, {0})),
                 "the numbers of a join must be s32 (8) or (0)");
  LOWBIT_REQUIRE(call.other.type == Type::kS8 && call.other.rank == call.codes.rank, "what is joined must be s8, as codes are");
  for (size_t i = joins ? batch_rank : call.codes.rank; i < call.codes.rank; ++i) {
    LOWBIT_REQUIRE(call.other.dims[i] == call.codes.dims[i], "what is joined must have the shape of codes");
  }
  tail->join = static_cast<Join>(call.join);
  tail->rounding = static_cast<Rounding>(call.rounding);
  tail->fixed_stride = tiles * kLanes;
  return nullptr;
}

// The zero point of x, of `at`, where numbers of fixed point begin.
inline int32_t InputZero(const void* at, const Tail& tail) {
  return static_cast<const int32_t*>(at)[kInputZero * tail.fixed_stride];
}

// No sum of so many products of 8-bit codes, less their zero point, and weights' is larger; their own zero points are codes.
inline int64_t MostSum(int64_t count, int bits, int32_t offset) {
  return Times(Times(count, 255), offset > 0 ? int64_t{1} << (bits - 1) : 255);
}

inline void FillMarks(void* marks, int64_t count, float scale) {
  for (int64_t i = 0; i < count; ++i) static_cast<float*>(marks)[i] = scale;
}

inline bool IsZeroPoint(int32_t zero) { return zero >= -kMostZero && zero <= kMostZero; }

}  // namespace lowbit
