#include "core/conv.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "core/matmul.h"
#include "core/view.h"

namespace lowbit {
namespace {

int64_t Stride(const Conv& c) { return Plus(RoundUp(Times(c.blocks(), c.span()), 64), 64); }

// Weights as words, written in every call: only as many as stay in L2, so that memory does not grow with weights.
constexpr int64_t kMostWordBytes = 1 << 18;

int64_t WordBytes(const Conv& c) { return Times(Times(Times(c.groups, c.group_tiles()), c.words_of(2)), 4 * kLanes); }

// Output lines are computed some at a time, each chunk with the lines of x that it reads in a slot of scratch that stays in
// cache: as many slots as threads run at once.
constexpr int64_t kMostSlots = 16, kChunkBytes = 1 << 18;

int64_t Lines(const Conv& c) { return Times(c.batch, c.out_height); }

int64_t Slots(const Conv& c) { return std::min(kMostSlots, Lines(c)); }

int64_t LineBytes(const Conv& c) {  // of a padded line of x, in the widest form that a body reads
  const int64_t size = c.depthwise ? 4 : WordBytes(c) <= kMostWordBytes ? 2 : 1;
  return Times(Times(c.padded_width(), c.channels), size);
}

// Output lines of a chunk, at most.
int64_t MostLines(const Conv& c) {
  return std::min(Lines(c), std::max<int64_t>(1, kChunkBytes / std::max<int64_t>(1, Times(LineBytes(c), c.stride_height))));
}

// Rows that are gathered together. 32: a tile of every body divides it.
int64_t GatheredRows(const Conv& c) {
  const int64_t fits = std::max<int64_t>(32, RoundUp((1 << 16) / Stride(c), 32));
  return std::min(fits, RoundUp(Times(MostLines(c), c.out_width), 32));
}

// Lines of x that a chunk reads, and gathered rows. Whole vectors are read at the end: 64 bytes more.
int64_t PaddedBytes(const Conv& c) {
  const int64_t most = MostLines(c), again = std::max<int64_t>(0, c.window_lines() - c.stride_height);
  const int64_t more = Times(most / c.out_height + 1, again);  // of every image, at most
  const int64_t lines = Plus(Plus((most - 1) * c.stride_height, c.window_lines()), more);
  const int64_t held = c.depthwise ? c.window_lines() : std::min(lines, Times(c.batch, c.padded_height()));
  return Plus(RoundUp(Times(held, LineBytes(c)), 64), 64);
}

int64_t SlotBytes(const Conv& c) {
  const int64_t gathered = Times(GatheredRows(c) + kRowPadding, Plus(Stride(c), 12));
  return RoundUp(Plus(PaddedBytes(c), c.depthwise ? 0 : gathered), 64);
}

// Calls fn(c, slot, begin, end) for chunks of output lines, `padded` of each in a slot of its own.
template <typename Fn>
void ForLines(const Conv& conv, uint8_t* slots, Pool* pool, int64_t threads, const Fn& fn) {
  const int64_t lines = Lines(conv), slot = SlotBytes(conv);
  threads = std::min(threads, Slots(conv));
  // Windows that overlap are read by two chunks: longer ones where they do; but every thread has some.
  const int64_t again = std::max<int64_t>(0, conv.window_lines() - conv.stride_height);
  const int64_t least = std::max(CeilDivide(64, conv.out_width), CeilDivide(4 * again, conv.stride_height));
  int64_t chunk = std::max(CeilDivide(lines, 8 * threads), least);
  chunk = std::min({chunk, MostLines(conv), CeilDivide(lines, threads)});
  if (conv.depthwise) chunk = std::max(CeilDivide(lines, 8 * threads), std::min(least, CeilDivide(lines, threads)));
  std::atomic<uint32_t> taken{0};
  ParallelFor(pool, threads, CeilDivide(lines, chunk), [&](int64_t i) {
    uint32_t seen = taken.load(std::memory_order_relaxed);
    while (!taken.compare_exchange_weak(seen, seen | (seen + 1), std::memory_order_acquire)) {
    }
    const uint32_t own = ~seen & (seen + 1);  // the lowest that was free
    Conv c = conv;
    c.padded = slots + __builtin_ctz(own) * slot;
    fn(c, static_cast<uint8_t*>(c.padded) + PaddedBytes(conv), i * chunk, std::min(lines, (i + 1) * chunk));
    taken.fetch_and(~own, std::memory_order_release);
  });
}

// Puts the lines that output lines [begin, end) read on the grid.
void Quantize(Conv* c, const Body& body, int64_t begin, int64_t end) {
  const auto first = [&](int64_t i) { return i / c->out_height * c->padded_height() + i % c->out_height * c->stride_height; };
  c->first_line = first(begin);
  body.conv_quantize(*c, c->first_line, first(end - 1) + c->window_lines());
}

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
  const bool ends = c.tail.fixed != nullptr ? c.tail.rounding != Rounding::kDouble : c.x_marks == nullptr && !c.dynamic;
  return body.depthwise_codes != nullptr && ends && c.x_type == Type::kS8 && !c.x_channels_first && c.dilation_height == 1 && c.dilation_width == 1 &&
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

// Of codes that hold a NaN: the same, of bits of channels.
std::vector<float> MarksOfBits(const Conv& c) {
  const int64_t positions = c.batch * c.height * c.width, each = c.group_channels();
  std::vector<float> marks(positions * c.groups, 0.0f);
  for (int64_t m = 0; m < positions; ++m) {
    if (c.x_marks[m] == c.x_marks[m]) continue;
    for (int64_t n = 0; n < c.channels; ++n) {
      if (c.x_bits[n / 32 * positions + m] >> n % 32 & 1) marks[m * c.groups + n / each] = __builtin_nanf("");
    }
  }
  return marks;
}

}  // namespace

int64_t ScratchBytes(const Conv& c) {
  if (c.rows() == 0 || c.out == 0) return 0;
  const int64_t words = c.depthwise ? 0 : WordBytes(c);
  return Plus(64, Plus(Times(Slots(c), SlotBytes(c)), words <= kMostWordBytes ? words : 0));
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

// Every window read where it lies.
void RunDirect(Conv c, const Body& body, uint8_t* at, Pool* pool, int64_t threads) {
  const int64_t together = body.direct_inputs, size = together == 2 ? 2 : 1;
  c.words = at + Slots(c) * SlotBytes(c);
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

  // In cycles, or nearly: a multiply takes a word of 16 channels, and storing costs as much as 40 of them; in tiles as 10.
  const int64_t positions = c.out_height * c.out_width, storing = together > 4 ? 10 : 40;
  const double image = static_cast<double>(positions * tiles) * static_cast<double>(words + storing);
  constexpr double kWorthwhile = 1 << 17;  // below, waking a thread costs more than it saves
  threads = ThreadsFor(image * static_cast<double>(c.batch), kWorthwhile, threads);
  auto run = [&] {
    ForLines(c, at, pool, threads, [&](Conv& own, uint8_t*, int64_t begin, int64_t end) {
      ScopedFlushSubnormals flush;
      Quantize(&own, body, begin, end);
      for (int64_t g = 0; g < c.groups; ++g) {
        const Tail tail = c.tail.from(g * c.group_out(), g * c.group_tiles() * kLanes);
        body.direct_rows(own, tail, g, begin * c.out_width, end * c.out_width);
      }
    });
  };
  run();
  if (*c.found == 0 || !c.keeps_nan) return;
  // Rare: x is read once more, and every result made again.
  const std::vector<float> marks = c.x_type == Type::kBF16 ? Marks<uint16_t>(c) : Marks<uint32_t>(c);
  c.x_marks = marks.data();
  c.mark_groups = c.groups;
  run();
}

void RunOnce(const Conv& conv, void* scratch, Isa isa, Pool* pool, int64_t threads) {
  Conv c = conv;
  const Body& best = BodyOf(isa);
  const Body& body = best.narrow != nullptr && 2 * (c.run() + 1) < best.direct_inputs ? *best.narrow : best;
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
  if (c.x_marks != nullptr && c.x_bits != nullptr && !c.depthwise && c.groups > 1) {
    marks = MarksOfBits(c);
    c.x_marks = marks.data();
    c.mark_groups = c.groups;
  }
  if (IsDirect(c, body)) return RunDirect(c, body, at, pool, threads);

  if (c.depthwise && IsStacked(c, body)) {
    const int64_t out_lines = c.batch * c.out_height, chunk = std::max<int64_t>(1, out_lines / (8 * threads));
    const double work = static_cast<double>(Times(c.rows() * c.channels, c.taps_count()));
    ParallelFor(pool, ThreadsFor(work, 1 << 19, threads), CeilDivide(out_lines, chunk), [&](int64_t i) {
      ScopedFlushSubnormals flush;
      body.depthwise_codes(c, i * chunk, std::min(out_lines, (i + 1) * chunk));
    });
    return;
  }
  if (c.depthwise) {
    c.ring = c.window_lines();
    const bool small = Times(c.rows() * c.channels, c.taps_count()) < 1 << 16;
    ForLines(c, at, pool, small ? 1 : threads, [&](const Conv& own, uint8_t*, int64_t begin, int64_t end) {
      ScopedFlushSubnormals flush;
      body.depthwise(own, begin, end);
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
  p.padded_rows = p.rows;
  p.codes_stride = Stride(c);

  // A chunk gathers its windows, some at a time, and multiplies them while they are in cache.
  const int64_t most = GatheredRows(c), held = most + kRowPadding;
  const bool small = Times(Times(p.rows, p.length), p.tiles() * c.groups) < 1 << 15;
  auto run = [&] {
    ForLines(c, at, pool, small ? 1 : threads, [&](Conv& own, uint8_t* slot, int64_t line_begin, int64_t line_end) {
      ScopedFlushSubnormals flush;
      Quantize(&own, body, line_begin, line_end);
      for (int64_t begin = line_begin * c.out_width; begin < line_end * c.out_width; begin += most) {
        const int64_t end = std::min(line_end * c.out_width, begin + most);
        Matmul part = p;  // rows are counted as those of the result are: what is held of them begins at `begin`
        part.codes = reinterpret_cast<int8_t*>(slot) - begin * p.codes_stride;
        part.starts = reinterpret_cast<int32_t*>(slot + held * p.codes_stride) - begin;
        part.sums = part.starts + held;
        part.row_scales = reinterpret_cast<float*>(part.sums + held);
        for (int64_t g = 0; g < c.groups; ++g) {
          Matmul q = part;
          const int64_t tile = g * c.group_tiles();
          q.w = c.w + tile * p.blocks * kBlockBytes;
          if (c.scales != nullptr) q.scales = c.scales + tile * kLanes;
          q.column_sums = c.sums + tile * kLanes;
          q.tail = c.tail.from(g * p.out, tile * kLanes);
          body.conv_gather(own, q, g, begin, end);
          body.matmul(q, begin, end, 0, p.tiles());
        }
      }
    });
  };
  run();
  if (found == 0 || !c.keeps_nan) return;
  // Rare: x is read once more, and every result made again.
  marks = c.x_type == Type::kBF16 ? Marks<uint16_t>(c) : Marks<uint32_t>(c);
  c.x_marks = marks.data();
  c.mark_groups = c.groups;
  run();
}

}  // namespace

void Run(const Conv& conv, void* scratch, Isa isa, Pool* pool, int64_t threads) {
  if (conv.rows() == 0 || conv.out == 0) return;
  Conv c = conv;
  c.tail.bits = nullptr;
  RunOnce(c, scratch, isa, pool, threads);
  if (conv.tail.bits == nullptr) return;
  bool found = false;
  for (int64_t m = 0; m < c.rows(); ++m) found |= c.tail.marks[m] != c.tail.marks[m];
  if (!found) return;
  // Rare: bits are looked at only where a mark is NaN, and are written only where there is one; every result is made again.
  c.tail.bits = conv.tail.bits;
  std::fill_n(c.tail.marks + c.rows(), c.rows(), c.tail.next_scale);
  std::fill_n(c.tail.bits, CeilDivide(c.out, 32) * c.rows(), 0u);
  RunOnce(c, scratch, isa, pool, threads);
}

}  // namespace lowbit
