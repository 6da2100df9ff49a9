#include "core/conv.h"

#include <algorithm>

namespace lowbit {
namespace {

int64_t RoundUp(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

int64_t Rows(const Conv& c) { return c.batch * c.out_height * c.out_width; }

int64_t Stride(const Conv& c) { return RoundUp(c.taps_count() * c.tap_inputs(), 64) + 64; }

int64_t PaddedBytes(const Conv& c) {  // depthwise reads a whole vector at the last channels: 64 bytes more
  return RoundUp(c.batch * c.padded_height() * c.padded_width() * c.channels * (c.depthwise ? 4 : 1), 64) + 64;
}

}  // namespace

size_t ScratchBytes(const Conv& c) {
  const int64_t rows = RoundUp(Rows(c), kRowPadding);
  return 64 + PaddedBytes(c) + (c.depthwise ? 0 : rows * (Stride(c) + 12));
}

const char* Check(const Conv& c) {
  if (c.batch < 0 || c.height < 1 || c.width < 1 || c.channels < 1 || c.out_height < 0 || c.out_width < 0 || c.out < 1) {
    return "sizes must be positive";
  }
  if (c.kernel_height < 1 || c.kernel_width < 1 || c.stride_height < 1 || c.stride_width < 1 ||
      c.dilation_height < 1 || c.dilation_width < 1 || c.pad_top < 0 || c.pad_left < 0) {
    return "kernel, stride and dilation must be positive, padding not negative";
  }
  if (c.bits != 2 && c.bits != 4 && c.bits != 8) return "bits must be 2, 4 or 8";
  if (!(c.lo < c.hi && c.lo >= -128 && c.hi <= 255 && c.hi - c.lo <= 255)) return "activation range must fit in 8 bits";
  if (c.x_zero < c.lo || c.x_zero > c.hi) return "the zero point must be a code: padding is made of it";
  if (c.depthwise && (c.out != c.channels || c.taps_count() > 258)) {
    return "depthwise takes one input an output and at most 258 taps, so that sums stay below 2^24";
  }
  return nullptr;
}

void Run(const Conv& conv, void* scratch, Isa isa, Pool* pool, int64_t threads) {
  if (Rows(conv) == 0) return;
  Conv c = conv;
  const Body& body = BodyOf(isa);
  auto* at = reinterpret_cast<uint8_t*>(RoundUp(reinterpret_cast<intptr_t>(scratch), 64));
  c.padded = at;
  at += PaddedBytes(c);
  const int64_t available = pool == nullptr ? 1 : std::max<int64_t>(1, pool->threads());
  threads = threads <= 0 ? available : std::min(threads, available);

  const int64_t lines = c.batch * c.padded_height(), line = c.padded_width() * c.channels;
  const int64_t line_chunk = std::max<int64_t>(1, (1 << 14) / line);
  ParallelFor(pool, lines * line < 1 << 15 ? 1 : threads, (lines + line_chunk - 1) / line_chunk, [&](int64_t i) {
    ScopedFlushSubnormals flush;
    body.conv_quantize(c, i * line_chunk, std::min(lines, (i + 1) * line_chunk));
  });

  if (c.depthwise) {
    const int64_t out_lines = c.batch * c.out_height;
    const int64_t chunk = std::max<int64_t>(1, out_lines / (8 * threads));
    const bool small = Rows(c) * c.channels * c.taps_count() < 1 << 16;
    ParallelFor(pool, small ? 1 : threads, (out_lines + chunk - 1) / chunk, [&](int64_t i) {
      ScopedFlushSubnormals flush;
      body.depthwise(c, i * chunk, std::min(out_lines, (i + 1) * chunk));
    });
    return;
  }

  Matmul p;  // rows are output positions, inputs are taps times padded channels
  p.rows = Rows(c);
  p.length = c.taps_count() * c.tap_inputs();
  p.out = c.out;
  p.group = p.length;
  p.groups = 1;
  p.bits = c.bits;
  p.group_blocks = p.blocks = p.length / c.span();
  p.offset = c.offset;
  p.activation = Activation::kStatic;
  p.x_zero = c.x_zero;
  p.lo = c.lo;
  p.hi = c.hi;
  p.w = c.w;
  p.scales = c.scales;
  p.column_sums = c.sums;
  p.y = c.y;
  p.y_bf16 = c.y_bf16;
  const int64_t padded = RoundUp(p.rows, kRowPadding);
  p.padded_rows = padded;
  p.codes_stride = Stride(c);
  p.codes = reinterpret_cast<int8_t*>(at);
  p.starts = reinterpret_cast<int32_t*>(at + padded * p.codes_stride);
  p.sums = p.starts + padded;
  p.row_scales = reinterpret_cast<float*>(p.sums + padded);

  // A chunk gathers its windows and multiplies them while they are in cache. 32 rows: a tile of every body divides it.
  const int64_t chunk = std::max<int64_t>(32, std::min<int64_t>(RoundUp((1 << 16) / p.codes_stride, 32),
                                                                RoundUp(p.rows / (8 * threads), 32)));
  const bool small = p.rows * p.length * p.tiles() < 1 << 15;
  ParallelFor(pool, small ? 1 : threads, (p.rows + chunk - 1) / chunk, [&](int64_t i) {
    ScopedFlushSubnormals flush;
    const int64_t begin = i * chunk, end = std::min(p.rows, begin + chunk);
    body.conv_gather(c, p, begin, end);
    body.matmul(p, begin, end, 0, p.tiles());
  });
}

}  // namespace lowbit
