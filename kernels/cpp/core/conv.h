// A 2-D convolution on integer codes: per-tensor static activations, per-channel scales, feature groups.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "core/parallel.h"
#include "core/problem.h"

namespace lowbit {

// y[b, i, j, n] = s_x * s_w[n] * sum over taps and inputs of (q_x - z_x) q_w. A position outside x counts as z_x.
// The inputs of a window lie side by side, taps first, then the channels of its group: (taps * group_channels) along K.
struct Conv {
  int64_t batch = 0, height = 0, width = 0, channels = 0;        // of x
  int64_t out_height = 0, out_width = 0, out = 0;                // of y
  int64_t kernel_height = 0, kernel_width = 0;
  int64_t stride_height = 1, stride_width = 1, dilation_height = 1, dilation_width = 1;
  int64_t pad_top = 0, pad_left = 0;
  int bits = 8;            // stored: 2, 4, 8 (depthwise: 8)
  int32_t offset = 0;      // stored code - logical code
  int64_t groups = 1;      // dense: each has its own tiles
  bool depthwise = false;  // out == channels, one input each: a body of its own

  const void* x = nullptr;  // NHWC, or NCHW
  bool x_channels_first = false;
  Type x_type = Type::kF32;
  float x_scale = 1.0f;
  const float* x_scales = nullptr;  // (B): one an example, or null
  bool dynamic = false;             // x_scales are the examples' own, found here
  bool keeps_nan = false;           // of floats: what sums over a NaN is NaN
  const float* x_marks = nullptr;   // (B, H, W, mark_groups): NaN where a position holds one, or null where none does
  int64_t mark_groups = 1;          // 1, or the feature groups
  // Of codes, where x_marks is NaN: (ceil(C / 32), B, H, W), of every channel a bit, set where the value was NaN; or null.
  const uint32_t* x_bits = nullptr;
  uint32_t* found = nullptr;        // scratch: set where x holds a NaN
  int32_t x_zero = 0, lo = -128, hi = 127;
  const uint8_t* w = nullptr;      // dense: (tiles, blocks, 64), a window padded to whole blocks
  const int8_t* taps = nullptr;    // depthwise: codes (taps, channels)
  const float* scales = nullptr;   // (groups * tiles, 16)
  const int32_t* sums = nullptr;   // dense: (groups * tiles, 16), sums of stored codes over taps and inputs
  Tail tail;  // rows are output positions

  // Scratch: some lines of x on its grid, with the padding that the kernel reads. int8 codes; or steps (q_x - z_x), float for
  // depthwise. Where windows are read where they lie (body_direct.h): steps in int16, or codes and 128 in uint8.
  void* padded = nullptr;
  int64_t first_line = 0;  // of those lines
  int64_t ring = 0;        // or, where this is not 0, line i is at i modulo it

  // Scratch of the latter: weights as words of 2 steps in int16 or of 4 in int8, (groups * tiles, words_count, 64 bytes), or
  // null; and where in a window each word begins, in bytes.
  uint8_t* words = nullptr;
  const int64_t* offsets = nullptr;
  int64_t words_count = 0;
  uint32_t words_flip = 0;  // bits of words that are flipped when they are read: where they are the stored codes themselves

  LOWBIT_INLINE float scale_of(int64_t b) const { return x_scales == nullptr ? x_scale : x_scales[b]; }
  LOWBIT_INLINE int64_t window_lines() const { return (kernel_height - 1) * dilation_height + 1; }
  LOWBIT_INLINE int64_t padded_height() const { return (out_height - 1) * stride_height + window_lines(); }
  // Where a padded line of all images lies in `padded`, in positions.
  LOWBIT_INLINE int64_t line_at(int64_t line) const {
    return (ring != 0 ? line % ring : line - first_line) * padded_width();
  }
  LOWBIT_INLINE int64_t padded_width() const {
    return (out_width - 1) * stride_width + (kernel_width - 1) * dilation_width + 1;
  }
  LOWBIT_INLINE int64_t taps_count() const { return kernel_height * kernel_width; }
  LOWBIT_INLINE int64_t span() const { return 4 * (8 / bits); }
  LOWBIT_INLINE int64_t group_channels() const { return channels / groups; }
  LOWBIT_INLINE int64_t group_out() const { return out / groups; }
  LOWBIT_INLINE int64_t group_tiles() const { return (group_out() + kLanes - 1) / kLanes; }
  LOWBIT_INLINE int64_t inputs() const { return taps_count() * group_channels(); }
  LOWBIT_INLINE int64_t blocks() const { return (inputs() + span() - 1) / span(); }
  LOWBIT_INLINE int64_t rows() const { return batch * out_height * out_width; }
  // Inputs of a window that lie side by side are a run: a line of taps where those of all channels are together, else a tap.
  LOWBIT_INLINE bool together() const { return groups == 1 && dilation_width == 1; }
  LOWBIT_INLINE int64_t runs() const { return together() ? kernel_height : taps_count(); }
  LOWBIT_INLINE int64_t run() const { return together() ? kernel_width * channels : group_channels(); }
  LOWBIT_INLINE int64_t words_of(int64_t inputs) const { return runs() * ((run() + inputs - 1) / inputs); }
  LOWBIT_INLINE int32_t shift() const { return hi > 127 ? 128 : 0; }
  LOWBIT_INLINE int32_t zero() const { return x_zero - shift(); }
};

// As those of matmul.h.
int64_t ScratchBytes(const Conv& c);
const char* Check(const Conv& c);
void Run(const Conv& c, void* scratch, Isa isa, Pool* pool, int64_t threads);

}  // namespace lowbit
