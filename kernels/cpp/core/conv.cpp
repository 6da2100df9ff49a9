#include "core/conv.h"

#include <algorithm>
#include <vector>

#include "core/matmul.h"
#include "core/view.h"

namespace lowbit {
namespace {

int64_t Stride(const Conv& c) { return Plus(RoundUp(Times(c.blocks(), c.span()), 64), 64); }

int64_t PaddedBytes(const Conv& c, int64_t size) {  // of `size` bytes each; whole vectors are read at the end: 64 bytes more
  const int64_t positions = Times(Times(c.batch, c.padded_height()), c.padded_width());
  return Plus(RoundUp(Times(Times(positions, c.channels), size), 64), 64);
}

// Weights as words, written in every call: only as many as stay in L2, so that memory does not grow with weights.
constexpr int64_t kMostWordBytes = 1 << 18;

int64_t WordBytes(const Conv& c) { return Times(Times(Times(c.groups, c.group_tiles()), c.words_of(2)), 4 * kLanes); }

// Whether windows are read where they lie.
bool IsDirect(const Conv& c, const Body& body) {
  constexpr int64_t kManyCodes = 1 << 10;  // of one output position: inputs times tiles
  constexpr int64_t kFewRows = 16;
  if (c.depthwise || body.direct_rows == nullptr || WordBytes(c) > kMostWordBytes) return false;
  if (body.direct_inputs == 2) {  // codes of 4 bits and fewer multiply faster than steps of 16: gathering is then the smaller part
    return c.bits == 8 || Times(c.inputs(), c.group_tiles()) < kManyCodes;
  }
  const bool signed_codes = c.bits < 8 || c.offset == 128;  // others may not fit in 8 bits with a sign
  return signed_codes && c.rows() >= kFewRows;  // for fewer, rewriting weights costs as much as multiplying by them
}

// Whether a depthwise convolution reads x where it lies (body_depthwise.h).
bool IsStacked(const Conv& c, const Body& body) {
  return body.depthwise_codes != nullptr && c.tail.fixed != nullptr && c.tail.rounding != Rounding::kDouble &&
         c.x_type == Type::kS8 && !c.x_channels_first && c.dilation_height == 1 && c.dilation_width == 1 &&
         c.kernel_height == c.kernel_width && (c.kernel_width == 3 || c.kernel_width == 5) && c.stride_width <= 2;
}

// Of x that holds a NaN: where, position by position and feature group by group.
template <typename T>
std::vector<float> Marks(const Conv& c) {
  std::vector<float> marks(c.batch * c.height * c.width * c.groups, 0.0f);
  const T* x = static_cast<const T*>(c.x);
  const int64_t positions = c.height * c.width;
  for (int64_t b = 0; b < c.batch; ++b) {
    for (int64_t i = 0; i < positions * c.channels; ++i) {
      const T v = x[b * positions * c.channels + i];
      const bool nan = sizeof(T) == 4 ? (v & T(0x7fffffff)) > T(0x7f800000) : (v & T(0x7fff)) > T(0x7f80);
      if (!nan) continue;
      const int64_t position = c.x_channels_first ? i % positions : i / c.channels;
      const int64_t channel = c.x_channels_first ? i / positions : i % c.channels;
      marks[(b * positions + position) * c.groups + channel / c.group_channels()] = __builtin_nanf("");
    }
  }
  return marks;
}

}  // namespace

int64_t ScratchBytes(const Conv& c) {
  const int64_t rows = Times(Times(c.batch, c.out_height), c.out_width);
  if (rows == 0 || c.out == 0) return 0;
  if (c.depthwise) return Plus(64, PaddedBytes(c, 4));
  const int64_t gathered = Plus(PaddedBytes(c, 1), Times(RoundUp(rows, kRowPadding), Plus(Stride(c), 12)));
  const int64_t words = WordBytes(c);
  return Plus(64, words <= kMostWordBytes ? std::max(gathered, Plus(PaddedBytes(c, 2), words)) : gathered);
}

const char* Check(const Conv& c) {
  for (int64_t each : {c.batch, c.height, c.width, c.channels, c.out_height, c.out_width, c.out, c.kernel_height,
                       c.kernel_width, c.stride_height, c.stride_width, c.dilation_height, c.dilation_width, c.pad_top,
                       c.pad_left, c.groups}) {
    if (!IsExtent(each)) return "sizes, strides, dilations and padding must lie in 0 .. 2^31 - 1";
  }
  if (c.kernel_height < 1 || c.kernel_width < 1 || c.stride_height < 1 || c.stride_width < 1 ||
      c.dilation_height < 1 || c.dilation_width < 1 || c.channels < 1) {
    return "channels, kernel, stride and dilation must be positive";
  }
  if (Times(c.taps_count(), c.channels) > kMostExtent) return "a window has more inputs than int32 counts";
  if (c.groups < 1 || c.channels % c.groups != 0 || c.out % c.groups != 0) {
    return "feature groups must divide the channels and the outputs";
  }
  if (c.bits != 2 && c.bits != 4 && c.bits != 8) return "bits must be 2, 4 or 8";
  if (c.offset < 0 || c.offset > 1 << (c.bits - 1)) return "offset must lie in 0 .. 2^(bits - 1)";
  if (c.x_type != Type::kF32 && c.x_type != Type::kBF16 && c.x_type != Type::kS8 && c.x_type != Type::kU8) {
    return "x must be f32, bf16, s8 or u8";
  }
  if (const char* problem = CheckGrid(c.lo, c.hi, c.x_type)) return problem;
  if (c.dynamic && ((c.x_type != Type::kF32 && c.x_type != Type::kBF16) || c.x_zero != 0 || c.hi > 127)) {
    return "examples with scales of their own are floats, on a signed grid without a zero point";
  }
  if (c.x_zero < c.lo || c.x_zero > c.hi) return "the zero point must be a code: padding is made of it";
  if (c.depthwise && (c.out != c.channels || c.taps_count() > 258 || c.bits != 8)) {
    return "depthwise takes one input an output, codes of 8 bits, and at most 258 taps, so that sums stay below 2^24";
  }
  return nullptr;
}

namespace {

// Every window read where it lies. Images one after the other, each while its steps are in cache, where there are several
// for every thread; else lines are put on the grid first.
void RunDirect(Conv c, const Body& body, uint8_t* at, Pool* pool, int64_t threads) {
  const int64_t together = body.direct_inputs, size = 4 / together;
  c.words = at + PaddedBytes(c, size);
  const int64_t tiles = c.groups * c.group_tiles(), words = c.words_of(together), per_run = words / c.runs();
  std::vector<int64_t> offsets(words);
  for (int64_t i = 0; i < words; ++i) {
    const int64_t run = i / per_run, u = c.together() ? run : run / c.kernel_width, v = run - u * c.kernel_width;
    const int64_t tap = u * c.dilation_height * c.padded_width() + (c.together() ? 0 : v * c.dilation_width);
    offsets[i] = size * (tap * c.channels + i % per_run * together);
  }
  c.offsets = offsets.data();
  c.words_count = words;
  const bool many = tiles > 1 && Times(tiles, words) > 1 << 10;
  if (together == 4 && c.bits == 8 && c.run() % 4 == 0) {  // blocks are words already, of codes with an offset of 128
    c.words = const_cast<uint8_t*>(c.w);
    c.words_flip = 0x80808080u;
  } else {
    ParallelFor(pool, many ? threads : 1, tiles, [&](int64_t tile) { body.direct_expand(c, tile); });
  }

  // In cycles, or nearly: a multiply takes a word of 16 channels, and storing costs as much as 40 of them.
  const int64_t positions = c.out_height * c.out_width;
  const double image = static_cast<double>(positions * tiles) * static_cast<double>(words + 40);
  constexpr double kWorthwhile = 1 << 17;  // below, waking a thread costs more than it saves
  if (image * static_cast<double>(c.batch) < kWorthwhile) threads = 1;
  auto quantize = [&](int64_t begin, int64_t end) {
    ScopedFlushSubnormals flush;
    body.conv_quantize(c, begin, end);
  };
  auto multiply = [&](int64_t begin, int64_t end) {
    ScopedFlushSubnormals flush;
    for (int64_t g = 0; g < c.groups; ++g) {
      const Tail tail = c.tail.from(g * c.group_out(), g * c.group_tiles() * kLanes);
      body.direct_rows(c, tail, g, begin, end);
    }
  };
  auto by_lines = [&] {
    const int64_t chunk = std::max<int64_t>(64, RoundUp(c.rows() / (8 * threads), 64));
    ParallelFor(pool, threads, CeilDivide(c.rows(), chunk), [&](int64_t i) {
      multiply(i * chunk, std::min(c.rows(), (i + 1) * chunk));
    });
  };
  const int64_t lines = c.padded_height();
  if (c.batch >= 2 * threads) {
    const int64_t most = std::max<int64_t>(1, c.batch / (4 * threads));
    const int64_t count = std::max<int64_t>(1, std::min(most, static_cast<int64_t>(kWorthwhile / (image + 1))));
    ParallelFor(pool, threads, CeilDivide(c.batch, count), [&](int64_t i) {
      for (int64_t b = i * count; b < std::min(c.batch, (i + 1) * count); ++b) {
        quantize(b * lines, (b + 1) * lines);
        multiply(b * positions, (b + 1) * positions);
      }
    });
  } else {
    const int64_t all = c.batch * lines, chunk = std::max<int64_t>(1, (1 << 14) / (c.padded_width() * c.channels));
    ParallelFor(pool, threads, CeilDivide(all, chunk), [&](int64_t i) {
      quantize(i * chunk, std::min(all, (i + 1) * chunk));
    });
    by_lines();
  }
  if (*c.found == 0 || !c.keeps_nan) return;
  // Rare: x is read once more, and every result made again.
  const std::vector<float> marks = c.x_type == Type::kBF16 ? Marks<uint16_t>(c) : Marks<uint32_t>(c);
  c.x_marks = marks.data();
  c.mark_groups = c.groups;
  by_lines();
}

}  // namespace

void Run(const Conv& conv, void* scratch, Isa isa, Pool* pool, int64_t threads) {
  if (conv.rows() == 0 || conv.out == 0) return;
  Conv c = conv;
  const Body& body = BodyOf(isa);
  auto* at = Aligned(scratch);
  c.padded = at;
  const int64_t available = pool == nullptr ? 1 : std::max<int64_t>(1, pool->threads());
  threads = threads <= 0 ? available : std::min(threads, available);

  for (int64_t m = 0; c.tail.marks != nullptr && m < c.rows(); ++m) c.tail.marks[m] = c.tail.next_scale;

  std::vector<float> scales, marks;
  if (c.dynamic) {
    scales.resize(c.batch);
    ParallelFor(pool, c.height * c.width * c.channels * c.batch < 1 << 16 ? 1 : threads, c.batch, [&](int64_t b) {
      ScopedFlushSubnormals flush;
      scales[b] = body.conv_scale(c, b);
    });
    c.x_scales = scales.data();
  }
  uint32_t found = 0;
  c.found = &found;
  if (IsDirect(c, body)) return RunDirect(c, body, at, pool, threads);
  if (c.depthwise && IsStacked(c, body)) {
    const int64_t out_lines = c.batch * c.out_height, chunk = std::max<int64_t>(1, out_lines / (8 * threads));
    const bool small = Times(c.rows() * c.channels, c.taps_count()) < 1 << 19;  // waking a thread costs as much
    ParallelFor(pool, small ? 1 : threads, CeilDivide(out_lines, chunk), [&](int64_t i) {
      ScopedFlushSubnormals flush;
      body.depthwise_codes(c, i * chunk, std::min(out_lines, (i + 1) * chunk));
    });
    return;
  }
  at += PaddedBytes(c, c.depthwise ? 4 : 1);

  const int64_t lines = c.batch * c.padded_height(), line = c.padded_width() * c.channels;
  const int64_t line_chunk = std::max<int64_t>(1, (1 << 14) / line);
  ParallelFor(pool, lines * line < 1 << 15 ? 1 : threads, (lines + line_chunk - 1) / line_chunk, [&](int64_t i) {
    ScopedFlushSubnormals flush;
    body.conv_quantize(c, i * line_chunk, std::min(lines, (i + 1) * line_chunk));
  });

  if (found != 0 && c.keeps_nan) {  // rare: x is read once more
    marks = c.x_type == Type::kBF16 ? Marks<uint16_t>(c) : Marks<uint32_t>(c);
    c.x_marks = marks.data();
    c.mark_groups = c.groups;
  }

  if (c.depthwise) {
    const int64_t out_lines = c.batch * c.out_height;
    const int64_t chunk = std::max<int64_t>(1, out_lines / (8 * threads));
    const bool small = Times(c.rows() * c.channels, c.taps_count()) < 1 << 16;
    ParallelFor(pool, small ? 1 : threads, (out_lines + chunk - 1) / chunk, [&](int64_t i) {
      ScopedFlushSubnormals flush;
      body.depthwise(c, i * chunk, std::min(out_lines, (i + 1) * chunk));
    });
    return;
  }

  Matmul p;  // of one group: rows are output positions, inputs a window's taps times channels
  p.rows = c.rows();
  p.length = c.inputs();
  p.out = c.group_out();
  p.group = p.length;
  p.groups = 1;
  p.bits = c.bits;
  p.group_blocks = p.blocks = c.blocks();
  p.offset = c.offset;
  p.activation = Activation::kStatic;
  p.x_zero = c.x_zero;
  p.lo = c.lo;
  p.hi = c.hi;
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
  const bool small = Times(Times(p.rows, p.length), p.tiles() * c.groups) < 1 << 15;
  ParallelFor(pool, small ? 1 : threads, (p.rows + chunk - 1) / chunk, [&](int64_t i) {
    ScopedFlushSubnormals flush;
    const int64_t begin = i * chunk, end = std::min(p.rows, begin + chunk);
    for (int64_t g = 0; g < c.groups; ++g) {
      Matmul q = p;
      const int64_t tile = g * c.group_tiles();
      q.w = c.w + tile * p.blocks * kBlockBytes;
      if (c.scales != nullptr) q.scales = c.scales + tile * kLanes;
      q.column_sums = c.sums + tile * kLanes;
      q.tail = c.tail.from(g * p.out, tile * kLanes);
      body.conv_gather(c, q, g, begin, end);
      body.matmul(q, begin, end, 0, p.tiles());
    }
  });
}

}  // namespace lowbit
