// The AMX body: integer sums, and those of float activations, in tiles; few rows, and everything else, as avx512vnni does them.
#include <immintrin.h>

#include <optional>
#include <vector>

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
#include "core/body_conv.h"
#include "core/amx_tiles.h"
#include "core/amx_integer.h"
#include "core/amx_float.h"
#include "core/amx_conv.h"

constexpr const Body& kVectors = body_avx512vnni::kBody;
// From so many rows on tiles are faster: bytes are tiles already, or wait for memory; codes of fewer bits and floats are unpacked first.
constexpr int64_t kRowsOfBytes = 5, kRowsOfCodes = 13, kRowsOfFloats = 13;

void QuantizeOrSplitRows(const Matmul& p, int64_t row_begin, int64_t row_end) {
  QuantizeRows(p, row_begin, row_end);
  if (p.activation != Activation::kFloat || p.rows < kRowsOfFloats || !SuitsFloatTiles(p)) return;
  for (int64_t m = row_begin; m < row_end; ++m) p.row_scales[m] = SplitRow(p, m) ? 1.0f : 0.0f;
}

void MultiplyRange(const Matmul& p, int64_t row_begin, int64_t row_end, int64_t tile_begin, int64_t tile_end) {
  const auto run = [&](auto fn) { fn(p, row_begin, row_end, tile_begin, tile_end); };
  if (p.activation == Activation::kFloat) {
    // Of the whole, not of this range: sums of floats are not to depend on how threads share the rows.
    bool suits = p.rows >= kRowsOfFloats && SuitsFloatTiles(p);
    for (int64_t m = 0; suits && m < p.rows; ++m) suits = p.row_scales[m] != 0.0f;
    return suits ? run(MultiplyFloats) : run(kVectors.matmul);
  }
  const int64_t rows = row_end - row_begin;
  if (p.factors != nullptr || rows < (p.bits == 8 ? kRowsOfBytes : kRowsOfCodes)) return run(kVectors.matmul);
  if (p.groups == 1) return run(MultiplyOneGroup);
  StepOfGroups(p) > 0 ? run(MultiplyGroups) : run(kVectors.matmul);
}

void Expand(const Matmul& p, int64_t tile, uint8_t* out, int32_t* sums) { kVectors.expand(p, tile, out, sums); }
void DepthwiseCodes(const Conv& c, int64_t begin, int64_t end) { kVectors.depthwise_codes(c, begin, end); }
void PairRows(const Pair& c, const Matmul& p, const float* x, int64_t begin, int64_t end) {
  kVectors.pair_rows(c, p, x, begin, end);
}
void PairColumns(const Pair& c, const float* w, int64_t tile, uint8_t* blocks, float* scales, int32_t* sums) {
  kVectors.pair_columns(c, w, tile, blocks, scales, sums);
}

}  // namespace

extern const Body kBody;
const Body kBody = {QuantizeOrSplitRows, MultiplyRange, Expand, ConvScale, ConvQuantize, ConvGather, Depthwise, PairRows, PairColumns,
                    Vec::kSeen8, DirectExpand, DirectRows, kTileInputs, 64, 12, DepthwiseCodes, 1 << 20, &body_avx512vnni::kBody};

}  // namespace body_amx
}  // namespace lowbit
