// A convolution as a caller asks for it: everything is checked, then it runs.
#include "core/conv.h"
#include "core/tail_call.h"

namespace lowbit {

const char* Call(const ConvCall& call, Pool* pool) {
  const View& y = call.tail.y;
  const View& codes = call.tail.codes;
  for (const View* each : {&call.x, &call.x_scale, &call.x_zero, &call.weights, &call.scales, &call.sums,
                           &call.tail.steps, &call.tail.next_scale, &call.tail.next_zero, &call.tail.fixed, &call.tail.other, &call.tail.joins, &y, &codes, &call.tail.marks,
                           &call.scratch}) {
    if (const char* problem = CheckView(*each)) return problem;
  }
  LOWBIT_REQUIRE(call.x.rank == 4 && y.rank == 4 && codes.rank == 4, "x, y and codes must have rank 4");
  LOWBIT_REQUIRE(call.kernel_rank == 2 && call.stride_rank == 2 && call.dilation_rank == 2 && call.padding_rank == 2,
                 "kernel, stride, dilation and padding must be pairs");
  LOWBIT_REQUIRE(call.bits == 2 || call.bits == 4 || call.bits == 8, "bits must be 2, 4 or 8");
  LOWBIT_REQUIRE(call.offset >= 0 && call.offset <= 128, "offset must lie in 0 .. 2^(bits - 1)");
  if (const char* problem = CheckIsa(call.isa, call.threads)) return problem;
  if (const char* problem = CheckGrid(call.lo, call.hi, call.x.type)) return problem;

  Conv c;
  c.x_channels_first = call.x_channels_first != 0;
  const bool first = c.x_channels_first, y_first = call.y_channels_first != 0;
  c.batch = call.x.dims[0], c.channels = call.x.dims[first ? 1 : 3];
  c.height = call.x.dims[first ? 2 : 1], c.width = call.x.dims[first ? 3 : 2];
  // The result's sizes are those of y or of codes, whichever is asked for.
  const bool wants_y = Elements(y) > 0, wants_codes = Elements(codes) > 0;
  const View& sized = wants_y || !wants_codes ? y : codes;
  LOWBIT_REQUIRE(sized.dims[0] == c.batch || Elements(sized) == 0, "y and codes must have the batch of x");
  c.out_height = sized.dims[y_first ? 2 : 1], c.out_width = sized.dims[y_first ? 3 : 2];
  c.out = sized.dims[y_first ? 1 : 3];
  LOWBIT_REQUIRE(!wants_y || !wants_codes ||
                     HasShape(codes, 0, {y.dims[0], y.dims[1], y.dims[2], y.dims[3]}),
                 "codes must have the shape of y, or have no elements");
  c.kernel_height = call.kernel[0], c.kernel_width = call.kernel[1];
  c.stride_height = call.stride[0], c.stride_width = call.stride[1];
  c.dilation_height = call.dilation[0], c.dilation_width = call.dilation[1];
  c.pad_top = call.padding[0], c.pad_left = call.padding[1];
  c.groups = call.groups, c.depthwise = call.depthwise != 0;
  c.lo = static_cast<int32_t>(call.lo), c.hi = static_cast<int32_t>(call.hi);
  c.bits = static_cast<int>(call.bits), c.offset = static_cast<int32_t>(call.offset);
  c.x_type = call.x.type;
  const int64_t tiles = c.depthwise ? CeilDivide(c.out, kLanes)
                        : c.groups < 1 ? kTooLarge : Times(c.groups, CeilDivide(c.out / c.groups, kLanes));
  LOWBIT_REQUIRE(IsExtent(tiles), "feature groups must divide the channels and the outputs");
  bool fixed = false;
  if (const char* problem = ReadFixed(call.tail, 0, tiles, &fixed, &c.tail)) return problem;
  LOWBIT_REQUIRE(!fixed || call.dynamic == 0, "fixed point takes a static grid");
  LOWBIT_REQUIRE(IsZeroType(call.x_zero.type) && HasShape(call.x_zero, 0, {1}), "x_zero must be one s32 or f32");
  c.x_zero = !fixed       ? ReadZero(call.x_zero.type, call.x_zero.data)
             : tiles == 0 ? c.lo
                          : InputZero(call.tail.fixed.data, c.tail);
  c.keeps_nan = call.keeps_nan != 0 && (c.x_type == Type::kF32 || c.x_type == Type::kBF16);
  c.dynamic = call.dynamic != 0;
  if (const char* problem = Check(c)) return problem;

  const int64_t planes = 2 + CeilDivide(c.channels, 32), x_rows = Times(Times(c.batch, c.height), c.width);
  const bool bits = HasShape(call.x_scale, 0, {planes, c.batch, c.height, c.width});
  const bool map = bits || HasShape(call.x_scale, 0, {c.batch, c.height, c.width});
  LOWBIT_REQUIRE(call.x_scale.type == Type::kF32 && (map || HasShape(call.x_scale, 0, {1})),
                 "x_scale must be one f32, or one a position, or that and bits of channels");
  LOWBIT_REQUIRE(call.weights.type == Type::kU8, "weights must be u8");
  if (c.depthwise) {
    LOWBIT_REQUIRE(HasShape(call.weights, 0, {c.taps_count(), c.channels}), "weights must be (taps, C)");
  } else {
    LOWBIT_REQUIRE(HasShape(call.weights, 0, {tiles, c.blocks(), kBlockBytes}), "weights must be (tiles, blocks, 64)");
    LOWBIT_REQUIRE(call.sums.type == Type::kS32 && HasShape(call.sums, 0, {tiles, kLanes}), "sums must be (tiles, 16)");
  }
  LOWBIT_REQUIRE(fixed || (call.scales.type == Type::kF32 && HasShape(call.scales, 0, {tiles, kLanes})),
                 "scales must be f32 (tiles, 16)");
  if (const char* problem = ReadTail(call.tail, 0, tiles, !y_first, &c.tail)) return problem;
  const int64_t marks = Elements(call.tail.marks);
  const int64_t next_planes = 2 + CeilDivide(c.out, 32);
  const bool next_bits = HasShape(call.tail.marks, 0, {next_planes, c.batch, c.out_height, c.out_width});
  LOWBIT_REQUIRE((!fixed && (next_bits || HasShape(call.tail.marks, 0, {c.batch, c.out_height, c.out_width}))) ||
                     ((fixed || !wants_codes) && marks == 0),
                 "marks must be one a position of codes");
  LOWBIT_REQUIRE(call.scratch.type == Type::kU8 && Elements(call.scratch) >= ScratchBytes(c), "scratch is too small");
  c.tail.next_zero = ReadZero(call.tail.next_zero.type, call.tail.next_zero.data);
  LOWBIT_REQUIRE(IsZeroPoint(c.tail.next_zero), "zero points must be whole numbers within 2^20");
  c.tail.next_scale = *static_cast<const float*>(call.tail.next_scale.data);
  if (!wants_codes) FillMarks(call.tail.marks.data, marks, c.tail.next_scale);  // of no channels
  if (!wants_y && !wants_codes) return nullptr;

  c.tail.most_sum = MostSum(c.inputs(), c.bits, c.offset);
  const int64_t positions = c.out_height * c.out_width;
  c.tail.inner = y_first ? positions : 1;
  c.tail.outer_stride = y_first ? c.out * positions : c.out;
  c.tail.row_stride = y_first ? 1 : 0;
  c.tail.channel_stride = y_first ? positions : 1;
  c.tail.steps = static_cast<const float*>(call.tail.steps.data);
  if (call.tail.other.type == Type::kF32) c.tail.residual = static_cast<const float*>(call.tail.other.data);
  c.tail.y = wants_y ? y.data : nullptr;
  c.tail.codes = wants_codes ? static_cast<int8_t*>(codes.data) : nullptr;
  if (fixed) c.tail.fixed = static_cast<const int32_t*>(call.tail.fixed.data);
  if (fixed && Elements(call.tail.joins) > 0) {
    c.tail.other = static_cast<const int8_t*>(call.tail.other.data);
    c.tail.joins = static_cast<const int32_t*>(call.tail.joins.data);
  }
  c.tail.marks = wants_codes && !fixed ? static_cast<float*>(call.tail.marks.data) : nullptr;
  c.tail.rows = c.rows();
  if (next_bits && c.tail.marks != nullptr) c.tail.bits = reinterpret_cast<uint32_t*>(c.tail.marks + 2 * c.rows());
  c.x = call.x.data;
  const float* scales = static_cast<const float*>(call.x_scale.data);
  const int64_t count = map ? x_rows : 1;
  c.x_scale = count == 0 ? 1.0f : scales[0];  // of no positions: padding alone, and no scale to multiply it by is needed
  uint32_t nan = 0;  // one scale; the others say only whether the position holds a NaN
  for (int64_t i = 0; i < count; ++i) nan |= scales[i] != scales[i] ? 1u : 0u;
  if (map && nan != 0) {
    c.x_marks = scales;
    if (bits) c.x_bits = reinterpret_cast<const uint32_t*>(scales + 2 * x_rows);
    for (int64_t i = 0; i < count; ++i) c.x_scale = scales[i] == scales[i] ? scales[i] : bits ? scales[x_rows + i] : c.x_scale;
  }
  c.w = static_cast<const uint8_t*>(call.weights.data);
  c.taps = static_cast<const int8_t*>(call.weights.data);
  c.scales = fixed ? nullptr : static_cast<const float*>(call.scales.data);
  c.sums = static_cast<const int32_t*>(call.sums.data);
  Run(c, call.scratch.data, call.isa < 0 ? BestIsa() : static_cast<Isa>(call.isa), pool, call.threads);
  return nullptr;
}

}  // namespace lowbit
