// A matmul and a convolution as a caller asks for them: arrays and integers that nobody has checked. Each is checked
// whole before anything is read, so that no call, however wrong, reads or writes outside its arrays.
#pragma once

#include "core/parallel.h"
#include "core/view.h"

namespace lowbit {

// What follows the product, in order; and the grid of the codes that are emitted.
struct TailCall {
  View steps;                // f32 (rows, tiles, 16): the other operands of the steps that have one a channel, in order
  View next_scale;           // f32 (1): of the grid of the emitted codes
  View next_zero;            // s32 or f32 (1), a whole number
  View y;                    // f32 or bf16; no rows where only codes are asked for
  View codes;                // s8, or u8 where next_hi > 127; no rows where none are asked for
  View marks;                // f32, one a row of `codes`: next_scale, or NaN where a value of the row is NaN
  const int64_t* kinds = nullptr;  // enum Step, plus 4 where the other operand is one number; 8 of kResidual
  size_t kinds_count = 0;
  const float* numbers = nullptr;  // of every step: that number, or anything
  size_t numbers_count = 0;
  int64_t next_lo = -128, next_hi = 127;
  View fixed;                // s32 (kFixedRows, tiles, 16), or no rows: codes in fixed point, without scales and all of the above
  int64_t rounding = 0;      // enum Rounding
  View other;                // with `fixed`, s8 in the shape of `codes` that is joined with them; of kResidual, f32 in that of y or `codes`,
                             // channels last with fewer of those
  View joins;                // s32 (kJoinNumbers), or (0)
  int64_t join = 0;          // enum Join
};

// Shapes are those of lowbit_kernels/cpu/matmul.py. Under vmap every array has the same number of leading batch
// dimensions: those of the results whole, those of the operands whole or 1.
struct MatmulCall {
  View x;            // (M, K), or (K, M) with `x_columns`
  View x_scale;      // f32 (0), (1) or (M)
  View x_zero;       // s32 or f32 (1), a whole number
  View blocks;       // u8 (tiles, blocks, 64)
  View scales;       // f32 or bf16 (tiles, groups, 16); not looked at in fixed point
  View zeros;        // s16, the same, or (0)
  View column_sums;  // s16 or s32, the same, or (0)
  View codebook;     // f32 (2^bits), or (0)
  View factors;      // s8 (tiles, groups, 16): integer scales of groups, or (0)
  TailCall tail;     // y, codes: (M, N), or (N, M) with `y_columns`; marks: (M)
  View scratch;      // u8, any shape
  int64_t activation = 0, lo = -128, hi = 127, bits = 8, offset = 0, length = 0, group = 0;
  int64_t x_columns = 0, y_columns = 0, keeps_nan = 0, isa = -1, threads = 0;
};

struct ConvCall {
  View x;        // (B, H, W, C), or (B, C, H, W) with `x_channels_first`
  View x_scale;  // f32 (1), or (B, H, W) or (2 + ceil(C / 32), B, H, W): the marks of emitted codes; not looked at with `dynamic`
  View x_zero;   // s32 or f32 (1), a whole number
  View weights;  // u8 (tiles, blocks, 64) with ceil(O / groups / 16) tiles a group; depthwise: (taps, C)
  View scales;   // f32 (tiles, 16); not looked at in fixed point
  View sums;     // s32 (tiles, 16)
  // y, codes: (B, OH, OW, O), or (B, O, OH, OW) with `y_channels_first`; marks: (B, OH, OW), or (2 + ceil(O / 32), B, OH, OW):
  // then, of a position whose mark is NaN, next_scale, and which channels are NaN, a bit each; of others those are not written.
  TailCall tail;
  View scratch;
  const int64_t *kernel = nullptr, *stride = nullptr, *dilation = nullptr, *padding = nullptr;
  size_t kernel_rank = 0, stride_rank = 0, dilation_rank = 0, padding_rank = 0;
  int64_t groups = 1, depthwise = 0, lo = -128, hi = 127, bits = 8, offset = 0;
  int64_t x_channels_first = 0, y_channels_first = 0, keeps_nan = 0, dynamic = 0, isa = -1, threads = 0;
};

// Null, or what is wrong: then nothing was read or written.
const char* Call(const MatmulCall& call, Pool* pool);
const char* Call(const ConvCall& call, Pool* pool);

}  // namespace lowbit
