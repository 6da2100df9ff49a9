// A matmul as a caller asks for it: everything is checked, then the batch is walked.
#include <algorithm>

#include "core/tail_call.h"

namespace lowbit {
namespace {

// An array with leading batch dimensions, each of the results' size or 1.
struct Batched {
  const View* view = nullptr;
  int64_t stride = 0;  // bytes of one batch
  bool single = true;  // one part for all batches

  // The part of batch `index` of the results, row-major.
  void* At(const int64_t* batch_dims, size_t batch_rank, int64_t index) const {
    int64_t at = 0, step = 1;
    for (size_t i = batch_rank; i-- > 0;) {
      if (view->dims[i] != 1) {
        at += index % batch_dims[i] * step;
        step *= view->dims[i];
      }
      index /= batch_dims[i];
    }
    return static_cast<uint8_t*>(view->data) + at * stride;
  }
};

const char* ReadBatched(const View& view, const View& y, size_t batch_rank, bool result, Batched* out) {
  if (const char* problem = CheckView(view)) return problem;
  LOWBIT_REQUIRE(view.rank > batch_rank, "an array has fewer dimensions than the batch");
  out->view = &view;
  out->stride = SizeOf(view.type);
  out->single = true;
  if (batch_rank == 0) return nullptr;
  for (size_t i = 0; i < view.rank; ++i) {
    if (i >= batch_rank) {
      out->stride = Times(out->stride, view.dims[i]);
      continue;
    }
    LOWBIT_REQUIRE(view.dims[i] == y.dims[i] || (!result && view.dims[i] == 1),
                   "batch dimensions must be those of the results, or 1");
    out->single &= view.dims[i] == 1;
  }
  return nullptr;
}

constexpr int64_t kMostSummed = 1 << 23;  // inputs; one more bit would not fit codes of 8 bits in int32

bool IsEmpty(const View& v, size_t batch_rank) { return HasShape(v, batch_rank, {0}); }

}  // namespace

const char* Call(const MatmulCall& call, Pool* pool) {
  const View& y = call.tail.y;
  const View& codes = call.tail.codes;
  LOWBIT_REQUIRE(y.rank >= 2, "y must have rank 2 or more");
  const size_t r = y.rank - 2;
  enum { kX, kScale, kZero, kBlocks, kScales, kZeros, kSums, kBook, kFactors, kSteps, kNextScale, kNextZero, kFixed, kOther, kJoins, kOperands };
  enum { kY, kCodes, kMarks, kScratch, kResults };
  const View* operands[kOperands] = {&call.x, &call.x_scale, &call.x_zero, &call.blocks, &call.scales, &call.zeros,
                                     &call.column_sums, &call.codebook, &call.factors, &call.tail.steps,
                                     &call.tail.next_scale, &call.tail.next_zero, &call.tail.fixed, &call.tail.other,
                                     &call.tail.joins};
  const View* results[kResults] = {&y, &codes, &call.tail.marks, &call.scratch};
  Batched in[kOperands], to[kResults];
  for (int i = 0; i < kOperands; ++i) {
    if (const char* problem = ReadBatched(*operands[i], y, r, false, &in[i])) return problem;
  }
  for (int i = 0; i < kResults; ++i) {
    if (const char* problem = ReadBatched(*results[i], y, r, true, &to[i])) return problem;
  }

  LOWBIT_REQUIRE(call.bits == 2 || call.bits == 4 || call.bits == 8, "bits must be 2, 4 or 8");
  LOWBIT_REQUIRE(call.length >= 1 && call.length <= kMostExtent, "K must lie in 1 .. 2^31 - 1");
  LOWBIT_REQUIRE(call.group >= 1 && call.group <= call.length, "group must lie in 1..K");
  LOWBIT_REQUIRE(call.activation >= 0 && call.activation <= 2, "activation must be 0, 1 or 2");
  LOWBIT_REQUIRE(call.activation == 0 || call.group <= kMostSummed, "a group's sums must fit in int32");
  LOWBIT_REQUIRE(call.lo >= -128 && call.hi <= 255, "codes must lie in [-128, 127] or in [0, 255]");
  LOWBIT_REQUIRE(call.offset >= 0 && call.offset <= 128, "offset must lie in 0 .. 2^(bits - 1)");
  if (const char* problem = CheckIsa(call.isa, call.threads)) return problem;

  Matmul p;
  p.length = call.length, p.group = call.group, p.bits = static_cast<int>(call.bits);
  p.x_columns = call.x_columns != 0;
  const bool y_columns = call.y_columns != 0;
  LOWBIT_REQUIRE(call.x.rank == r + 2 && call.x.dims[r + (p.x_columns ? 0 : 1)] == p.length, "x must be (M, K)");
  p.rows = call.x.dims[r + (p.x_columns ? 1 : 0)];
  p.out = y.dims[r + (y_columns ? 0 : 1)];
  p.groups = CeilDivide(p.length, p.group);
  p.group_blocks = CeilDivide(p.group, p.span());
  p.blocks = (p.groups - 1) * p.group_blocks + CeilDivide(p.length - (p.groups - 1) * p.group, p.span());
  p.offset = static_cast<int32_t>(call.offset);
  p.activation = static_cast<Activation>(call.activation);
  p.lo = static_cast<int32_t>(std::max<int64_t>(call.lo, -128));
  p.hi = static_cast<int32_t>(std::min<int64_t>(call.hi, 255));
  p.x_type = call.x.type;
  p.keeps_nan = call.keeps_nan != 0 && p.activation == Activation::kStatic;

  const int64_t tiles = p.tiles(), out = p.out;
  const bool factored = !IsEmpty(call.factors, r);
  LOWBIT_REQUIRE(!factored || call.length <= kMostSummed, "a channel's sums must fit in int32");
  const int64_t scale_groups = factored ? 1 : p.groups;
  LOWBIT_REQUIRE(call.blocks.type == Type::kU8 && HasShape(call.blocks, r, {tiles, p.blocks, kBlockBytes}),
                 "blocks must be u8 (tiles, blocks, 64) for K, N, bits and group");
  Tail& t = p.tail;
  bool fixed = false;
  if (const char* problem = ReadFixed(call.tail, r, tiles, &fixed, &t)) return problem;
  LOWBIT_REQUIRE(!fixed || (p.activation == Activation::kStatic && p.groups == 1 && !factored),
                 "fixed point takes a static grid, and weights without groups");
  LOWBIT_REQUIRE(fixed || ((call.scales.type == Type::kF32 || call.scales.type == Type::kBF16) &&
                           HasShape(call.scales, r, {tiles, scale_groups, kLanes})),
                 "scales must be f32 or bf16 (tiles, groups, 16)");
  p.scales_bf16 = call.scales.type == Type::kBF16;
  const bool has_zeros = !IsEmpty(call.zeros, r), has_sums = !IsEmpty(call.column_sums, r);
  LOWBIT_REQUIRE(call.zeros.type == Type::kS16 && (!has_zeros || HasShape(call.zeros, r, {tiles, p.groups, kLanes})),
                 "zeros must be s16 (tiles, groups, 16) or (0)");
  p.column_sums_16 = call.column_sums.type == Type::kS16;
  LOWBIT_REQUIRE((p.column_sums_16 || call.column_sums.type == Type::kS32) &&
                     (!has_sums || HasShape(call.column_sums, r, {tiles, p.groups, kLanes})),
                 "column sums must be s16 or s32 (tiles, groups, 16) or (0)");
  const bool has_book = !IsEmpty(call.codebook, r);
  LOWBIT_REQUIRE(call.codebook.type == Type::kF32 && (!has_book || HasShape(call.codebook, r, {int64_t{1} << p.bits})),
                 "codebook must be f32 (2^bits) or (0)");
  LOWBIT_REQUIRE(call.factors.type == Type::kS8 &&
                     (!factored || (HasShape(call.factors, r, {tiles, p.groups, kLanes}) && !has_zeros && p.bits < 8)),
                 "factors must be s8 (tiles, groups, 16) of symmetric codes of 2 or 4 bits, or (0)");
  LOWBIT_REQUIRE(IsZeroType(call.x_zero.type) && HasShape(call.x_zero, r, {1}), "x_zero must be one s32 or f32");
  LOWBIT_REQUIRE(call.x_scale.type == Type::kF32 && call.x_scale.rank == r + 1, "x_scale must be f32 (1) or (M)");
  const int64_t x_scales = call.x_scale.dims[r];
  LOWBIT_REQUIRE(p.activation != Activation::kStatic || x_scales == 1 || x_scales == p.rows,
                 "x_scale must be one number or one a row");
  p.x_scale_stride = x_scales == 1 ? 0 : 1;

  if (const char* problem = ReadTail(call.tail, r, tiles, !y_columns, &t)) return problem;
  const bool wants_y = Elements(y) > 0, wants_codes = Elements(codes) > 0;
  for (const View* each : {&y, &codes}) {  // (M, N) as asked for, or nothing
    const int64_t rows = each->rank == r + 2 ? each->dims[r + (y_columns ? 1 : 0)] : -1;
    LOWBIT_REQUIRE((rows == p.rows || rows == 0) && each->dims[r + (y_columns ? 0 : 1)] == out,
                   "y and codes must be (M, N), or have no rows");
  }
  LOWBIT_REQUIRE(HasShape(call.tail.marks, r, {fixed ? 0 : codes.dims[r + (y_columns ? 1 : 0)]}), "marks must be one a row of codes");
  t.outer_stride = y_columns ? 1 : out;
  t.channel_stride = y_columns ? p.rows : 1;

  t.most_sum = MostSum(p.length, p.bits, has_zeros ? 0 : p.offset);
  const char* anything = "";  // stands for an array that is there: Check() follows no pointer
  if (has_sums) p.column_sums = anything;
  if (has_book) p.codebook = reinterpret_cast<const float*>(anything);
  if (factored) p.factors = reinterpret_cast<const int8_t*>(anything);
  if (const char* problem = Check(p)) return problem;

  int64_t batch = 1;
  for (size_t i = 0; i < r; ++i) batch = Times(batch, y.dims[i]);
  const int64_t* batch_dims = y.dims;
  for (int64_t b = 0; b < batch && out == 0; ++b) {  // rows of no channels
    const float scale = *static_cast<const float*>(in[kNextScale].At(batch_dims, r, b));
    FillMarks(to[kMarks].At(batch_dims, r, b), call.tail.marks.dims[r], scale);
  }
  if (batch == 0 || p.rows == 0 || out == 0 || (!wants_y && !wants_codes)) return nullptr;
  for (int64_t b = 0; b < batch; ++b) {
    if (in[kZero].single && in[kNextZero].single && in[kFixed].single && b > 0) break;
    const int32_t zero = fixed ? InputZero(in[kFixed].At(batch_dims, r, b), t)
                               : ReadZero(call.x_zero.type, in[kZero].At(batch_dims, r, b));
    LOWBIT_REQUIRE(IsZeroPoint(zero) &&
                       IsZeroPoint(ReadZero(call.tail.next_zero.type, in[kNextZero].At(batch_dims, r, b))),
                   "zero points must be whole numbers within 2^20");
  }
  // Only x is mapped (or nothing): its batch is more rows of one matmul.
  bool rows_only = batch > 1 && !in[kX].single && p.x_scale_stride == 0 && !p.x_columns && !y_columns;
  for (int i = kX + 1; i < kOperands; ++i) rows_only &= in[i].single;
  for (size_t i = 0; i < r; ++i) rows_only &= call.x.dims[i] == y.dims[i];
  if (rows_only) p.rows *= batch, batch = 1;

  const int64_t scratch_bytes = ScratchBytes(p), scratch_size = Elements(call.scratch);
  LOWBIT_REQUIRE(call.scratch.type == Type::kU8 && scratch_size >= scratch_bytes, "scratch is too small");
  const Isa isa = call.isa < 0 ? BestIsa() : static_cast<Isa>(call.isa);
  auto run = [&](Matmul& q, int64_t b, int64_t scratch, Pool* workers) {
    auto at = [&](const Batched& a) { return r == 0 ? a.view->data : a.At(batch_dims, r, b); };
    q.x = at(in[kX]);
    q.x_scale = static_cast<const float*>(at(in[kScale]));
    q.x_zero = fixed ? InputZero(at(in[kFixed]), t) : ReadZero(call.x_zero.type, at(in[kZero]));
    if (fixed) q.tail.fixed = static_cast<const int32_t*>(at(in[kFixed]));
    if (fixed && Elements(call.tail.joins) > 0) {
      q.tail.other = static_cast<const int8_t*>(at(in[kOther]));
      q.tail.joins = static_cast<const int32_t*>(at(in[kJoins]));
    }
    q.w = static_cast<const uint8_t*>(at(in[kBlocks]));
    q.scales = at(in[kScales]);
    if (has_zeros) q.zeros = static_cast<const int16_t*>(at(in[kZeros]));
    if (has_sums) q.column_sums = at(in[kSums]);
    if (has_book) q.codebook = static_cast<const float*>(at(in[kBook]));
    if (factored) q.factors = static_cast<const int8_t*>(at(in[kFactors]));
    q.tail.steps = static_cast<const float*>(at(in[kSteps]));
    if (call.tail.other.type == Type::kF32) q.tail.residual = static_cast<const float*>(at(in[kOther]));
    q.tail.next_scale = *static_cast<const float*>(at(in[kNextScale]));
    q.tail.next_zero = ReadZero(call.tail.next_zero.type, at(in[kNextZero]));
    q.tail.y = wants_y ? at(to[kY]) : nullptr;
    q.tail.codes = wants_codes ? static_cast<int8_t*>(at(to[kCodes])) : nullptr;
    q.tail.marks = wants_codes && !fixed ? static_cast<float*>(at(to[kMarks])) : nullptr;
    Run(q, static_cast<uint8_t*>(call.scratch.data) + scratch * scratch_bytes, isa, workers, call.threads);
  };
  // Many small matmuls (heads, experts, members of an ensemble) go to a thread each, where each has scratch of its own.
  const int64_t work = Times(Times(p.rows, p.length), out);
  const int64_t threads = pool == nullptr ? 1 : std::max<int64_t>(1, pool->threads());
  const int64_t wanted = call.threads == 0 ? threads : std::min(threads, call.threads);
  if (batch > 1 && work < 1 << 22 && Times(batch, scratch_bytes) <= scratch_size) {
    ParallelFor(pool, Times(batch, work) < 1 << 15 ? 1 : wanted, batch, [&](int64_t b) {
      Matmul q = p;
      run(q, b, b, nullptr);
    });
  } else {
    for (int64_t b = 0; b < batch; ++b) run(p, b, 0, pool);  // which sets everything that depends on b
  }
  return nullptr;
}

}  // namespace lowbit
