// The arguments of a matmul in plain C++, and the table of functions that one instruction set provides.
#pragma once

#include <cstdint>

#include "core/isa.h"

// Bodies are compiled with different instruction sets and linked together. A shared inline function that is not inlined
// would be kept once, from whichever body the linker likes: always inline what bodies share.
#define LOWBIT_INLINE inline __attribute__((always_inline))

namespace lowbit {

constexpr int64_t kLanes = 16;       // output channels in a block
constexpr int64_t kBlockBytes = 64;  // 16 channels of 4 bytes
constexpr int64_t kRowPadding = 16;  // rows of scratch are padded to this, so that a tile may read past the last

enum class Type : int { kF32, kBF16, kS8, kU8, kS16, kS32, kOther };
enum class Activation : int { kFloat = 0, kDynamic = 1, kStatic = 2 };

// A step of the tail: one float32 operation with a number of each channel; or the sum with an array that lies as the result
// does. kMul saturates as `rounded_product` does.
enum class Step : int8_t { kAdd = 0, kMul = 1, kMax = 2, kMin = 3, kResidual = 4 };
constexpr int kStepKinds = 4;                  // with a number
constexpr int kResidualKind = 2 * kStepKinds;  // of a call: after those with a number of each channel, and with one number
constexpr int kMostSteps = 8;

// How a product of an int32 sum and a multiplier is cut back to an integer, by its name in lowbit: half to even; half up; or
// twice, half up to 32 bits and then half away from zero.
enum class Rounding : int8_t { kExact = 0, kSingle = 1, kDouble = 2 };
constexpr int kRoundings = 3;

// Of every channel, the numbers that make a code of its sum (body_fixed.h), and the zero point of x, the same for all.
enum FixedRow { kBias, kMultiplier, kRight, kOffset, kLow, kHigh, kInputZero, kFixedRows };

// A code and that of another array become one: in steps that are a power of two finer than those of the result, summed, or
// the larger or the smaller taken, and rounded.
enum class Join : int8_t { kSum = 0, kMax = 1, kMin = 2 };
constexpr int kJoins = 3;
enum JoinNumber { kOwn, kOther, kJoinShift, kJoinOffset, kJoinLow, kJoinHigh, kOwnZero, kOtherZero, kJoinNumbers };

// What is done with a row of results before it is stored, and where it goes.
struct Tail {
  int count = 0;  // steps
  Step kinds[kMostSteps] = {};
  bool one[kMostSteps] = {};         // the step's operand is a number; otherwise the next row of `steps`
  float numbers[kMostSteps] = {};
  const float* steps = nullptr;  // (rows, step_stride): padded channels
  int64_t step_stride = 0;
  const float* residual = nullptr;  // of kResidual: an array like the result; channels last, it may have fewer, and zeros after them
  int64_t residual_channels = 0;

  // Value and code of row m and channel n lie at m / inner * outer_stride + m % inner * row_stride + n * channel_stride.
  int64_t inner = 1, outer_stride = 0, row_stride = 0, channel_stride = 1;
  void* y = nullptr;  // or null
  bool y_bf16 = false;

  int8_t* codes = nullptr;  // of the next grid, or null
  float* marks = nullptr;   // with codes: (rows), next_scale, or NaN where a value of the row is NaN
  // Which channels those are, a bit each: word `channel / 32` of row m is at m of its plane, (rows) each. Or null.
  uint32_t* bits = nullptr;
  int64_t rows = 0, first_channel = 0;
  float next_scale = 1.0f;
  int32_t next_zero = 0, next_lo = -128, next_hi = 127;

  // Or codes are made in integers alone: (kFixedRows, fixed_stride) of padded channels. No steps then, no y and no marks.
  const int32_t* fixed = nullptr;
  int64_t fixed_stride = 0;
  Rounding rounding = Rounding::kExact;
  int64_t most_sum = int64_t{1} << 40;  // no sum, before the bias, is larger
  const int8_t* other = nullptr;  // joined with those codes, one of the same place; or null
  const int32_t* joins = nullptr;  // kJoinNumbers
  Join join = Join::kSum;

  LOWBIT_INLINE bool plain() const { return count == 0 && codes == nullptr; }
  LOWBIT_INLINE int64_t at(int64_t m) const {
    return inner == 1 ? m * outer_stride : m / inner * outer_stride + m % inner * row_stride;
  }
  // The tail of channels from `n` on.
  LOWBIT_INLINE Tail from(int64_t n, int64_t padded_n) const {
    Tail t = *this;
    t.first_channel += n;
    if (y != nullptr) t.y = static_cast<uint8_t*>(y) + n * channel_stride * (y_bf16 ? 2 : 4);
    if (codes != nullptr) t.codes += n * channel_stride;
    if (other != nullptr) t.other += n * channel_stride;
    if (steps != nullptr) t.steps += padded_n;
    if (fixed != nullptr) t.fixed += padded_n;
    return t;
  }
};

// One matmul y = x @ W. The order of the weight's bytes is drawn in lowbit_kernels/cpu/prepare.py.
struct Matmul {
  // Sizes.
  int64_t rows = 0, length = 0, out = 0;  // M, K, N
  int64_t group = 0, groups = 0;          // inputs that share a scale; G
  int64_t group_blocks = 0, blocks = 0;   // blocks of a whole group; of all groups
  int bits = 0;                           // stored: 2, 4, 8
  int32_t offset = 0;                     // stored code - logical code, where there are no zeros

  // Activations.
  Activation activation = Activation::kFloat;
  const void* x = nullptr;  // (rows, length), or (length, rows)
  bool x_columns = false;
  Type x_type = Type::kF32;
  const float* x_scale = nullptr;  // static: one, or one per row
  int64_t x_scale_stride = 0;      // 0 or 1
  int32_t x_zero = 0;              // static
  int32_t lo = -128, hi = 127;
  bool keeps_nan = false;          // static, of floats: a row of x that holds NaN gives NaN, not the code of 0.0

  // Weights.
  const uint8_t* w = nullptr;         // (tiles, blocks, 64)
  const void* scales = nullptr;       // (tiles, groups, 16)
  bool scales_bf16 = false;
  const int16_t* zeros = nullptr;     // (tiles, groups, 16) or null
  const void* column_sums = nullptr;  // (tiles, groups, 16) or null, of stored codes
  bool column_sums_16 = false;
  const float* codebook = nullptr;  // 1 << bits entries, or null
  const int8_t* factors = nullptr;  // (tiles, groups, 16) or null: integer scales; then `scales` has one group

  Tail tail;

  // Scratch, carved by Plan().
  int64_t codes_stride = 0;   // bytes (integers) or floats (weight-only) from row to row
  int8_t* codes = nullptr;    // (padded rows, codes_stride), order of the blocks
  float* floats = nullptr;    // the same for weight-only
  uint8_t* terms = nullptr;   // of those, as tiles of bfloat16 numbers (amx_float.h)
  int64_t padded_rows = 0;
  int32_t* starts = nullptr;  // (groups, padded rows): where the accumulator starts
  int32_t* sums = nullptr;    // (groups, padded rows): sum of (code - zero)
  float* row_scales = nullptr;
  void* rows_of_x = nullptr;  // (rows, length) of x, where it comes in columns

  LOWBIT_INLINE int64_t tiles() const { return (out + kLanes - 1) / kLanes; }
  LOWBIT_INLINE int64_t span() const { return 4 * (8 / bits); }  // inputs in a block
  LOWBIT_INLINE int64_t group_size(int64_t g) const { return g + 1 < groups ? group : length - (groups - 1) * group; }
  LOWBIT_INLINE int64_t blocks_of(int64_t g) const { return g + 1 < groups ? group_blocks : blocks - (groups - 1) * group_blocks; }
  // Activations are held as int8: uint8 codes are moved down by this, and so is their zero.
  LOWBIT_INLINE int32_t shift() const { return hi > 127 ? 128 : 0; }
  LOWBIT_INLINE int32_t zero() const { return activation == Activation::kStatic ? x_zero - shift() : 0; }
};

struct Conv;
struct Pair;

// What an instruction set provides. Ranges are [begin, end).
struct Body {
  // Fills codes (or floats), starts, sums and row_scales of some rows.
  void (*quantize)(const Matmul&, int64_t row_begin, int64_t row_end);
  // Computes y for some rows and tiles of 16 channels.
  void (*matmul)(const Matmul&, int64_t row_begin, int64_t row_end, int64_t tile_begin, int64_t tile_end);
  // With factors: a tile's codes times factors as stored 8-bit codes (blocks * per * 64), and their 16 column sums.
  void (*expand)(const Matmul&, int64_t tile, uint8_t* out, int32_t* sums);
  // The scale of an example of a convolution's x that is quantized by its own largest magnitude.
  float (*conv_scale)(const Conv&, int64_t example);
  // Puts some lines (batch and padded height) of a convolution's x on its grid.
  void (*conv_quantize)(const Conv&, int64_t line_begin, int64_t line_end);
  // Gathers the windows of some output positions, of one group's channels, as rows of a matmul.
  void (*conv_gather)(const Conv&, const Matmul&, int64_t group, int64_t row_begin, int64_t row_end);
  // Computes some output lines (batch and height) of a depthwise convolution.
  void (*depthwise)(const Conv&, int64_t line_begin, int64_t line_end);
  // A product of activations (pair.h): rows of the left operand as rows of a matmul, and a tile of the right one as weights.
  void (*pair_rows)(const Pair&, const Matmul&, const float* x, int64_t row_begin, int64_t row_end);
  void (*pair_columns)(const Pair&, const float* w, int64_t tile, uint8_t* blocks, float* scales, int32_t* sums);
  // What the dot product of this body takes off stored 8-bit codes.
  int32_t seen8;
  // A convolution without gathered windows, or null where the dot products of codes are faster: a tile of its weights as
  // words, and some output positions of one feature group.
  void (*direct_expand)(const Conv&, int64_t tile) = nullptr;
  void (*direct_rows)(const Conv&, const Tail&, int64_t group, int64_t row_begin, int64_t row_end) = nullptr;
  // Inputs that a word of it holds: 2 steps of 16 bits, or 4 codes of 8; or of a tile of words, 64.
  int64_t direct_inputs = 2;
  // Multiplies of 16 channels by an input in a cycle, roughly: of codes, and of floats.
  int64_t codes_a_cycle = 1, floats_a_cycle = 1;
  // The same as `depthwise` of int8 codes, none of them NaN, without scratch (body_depthwise.h); or null.
  void (*depthwise_codes)(const Conv&, int64_t line_begin, int64_t line_end) = nullptr;
  // Multiplies in tiles, which use weights for all rows of a chunk: rows whose codes take so many bytes, or 0 for all.
  int64_t chunk_bytes = 0;
  // The body that takes convolutions whose runs fill less than half of a word of `direct_inputs`; or null.
  const Body* narrow = nullptr;
};

const Body& BodyOf(Isa isa);

}  // namespace lowbit
