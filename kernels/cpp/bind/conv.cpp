// The convolution as an XLA FFI handler: checks shapes, calls the core.
#include "bind/common.h"
#include "core/conv.h"

namespace lowbit {
namespace {

ffi::Error ConvImpl(ffi::ThreadPool thread_pool, ffi::AnyBuffer x, ffi::Buffer<ffi::F32> x_scale,
                    ffi::Buffer<ffi::S32> x_zero, ffi::Buffer<ffi::U8> weights, ffi::Buffer<ffi::F32> scales,
                    ffi::Buffer<ffi::S32> sums, ffi::Result<ffi::AnyBuffer> y,
                    ffi::Result<ffi::Buffer<ffi::U8>> scratch, ffi::Span<const int64_t> kernel,
                    ffi::Span<const int64_t> stride, ffi::Span<const int64_t> dilation,
                    ffi::Span<const int64_t> padding, int64_t depthwise, int64_t lo, int64_t hi, int64_t bits,
                    int64_t offset, int64_t isa, int64_t threads) {
  const auto xd = x.dimensions(), yd = y->dimensions();
  LOWBIT_CHECK(xd.size() == 4 && yd.size() == 4 && xd[0] == yd[0], "x and y must be NHWC of one batch size");
  LOWBIT_CHECK(kernel.size() == 2 && stride.size() == 2 && dilation.size() == 2 && padding.size() == 2,
               "kernel, stride, dilation and padding must be pairs");
  Conv c;
  c.batch = xd[0], c.height = xd[1], c.width = xd[2], c.channels = xd[3];
  c.out_height = yd[1], c.out_width = yd[2], c.out = yd[3];
  c.kernel_height = kernel[0], c.kernel_width = kernel[1];
  c.stride_height = stride[0], c.stride_width = stride[1];
  c.dilation_height = dilation[0], c.dilation_width = dilation[1];
  c.pad_top = padding[0], c.pad_left = padding[1];
  c.depthwise = depthwise != 0;
  c.lo = static_cast<int32_t>(lo), c.hi = static_cast<int32_t>(hi);
  c.bits = static_cast<int>(bits), c.offset = static_cast<int32_t>(offset);
  LOWBIT_CHECK(ReadType(x.element_type(), &c.x_type), "x must be f32, bf16, s8 or u8");
  Type type;
  LOWBIT_CHECK(ReadType(y->element_type(), &type) && (type == Type::kF32 || type == Type::kBF16),
               "y must be f32 or bf16");
  c.y_bf16 = type == Type::kBF16;
  LOWBIT_CHECK(x_scale.element_count() == 1 && x_zero.element_count() == 1, "activations take one scale and zero");
  c.x_scale = *x_scale.typed_data();
  c.x_zero = *x_zero.typed_data();
  if (const char* problem = Check(c)) return ffi::Error(ffi::ErrorCode::kInvalidArgument, problem);
  const int64_t tiles = (c.out + kLanes - 1) / kLanes;
  const int64_t expected = c.depthwise ? c.taps_count() * c.channels
                                       : tiles * c.taps_count() * (c.tap_inputs() / c.span()) * kBlockBytes;
  LOWBIT_CHECK(static_cast<int64_t>(weights.element_count()) == expected, "weights do not match the sizes");
  LOWBIT_CHECK(static_cast<int64_t>(scales.element_count()) == tiles * kLanes, "scales must be (tiles, 16)");
  LOWBIT_CHECK(c.depthwise || static_cast<int64_t>(sums.element_count()) == tiles * kLanes, "sums must be (tiles, 16)");
  LOWBIT_CHECK(scratch->size_bytes() >= ScratchBytes(c), "scratch is too small");
  const Isa chosen = isa < 0 ? BestIsa() : static_cast<Isa>(isa);
  LOWBIT_CHECK(isa < kIsaCount && IsaSupported(chosen), "this machine does not run that instruction set");
  c.x = x.untyped_data();
  c.w = weights.typed_data();
  c.taps = reinterpret_cast<const int8_t*>(weights.typed_data());
  c.scales = scales.typed_data();
  c.sums = sums.typed_data();
  c.y = y->untyped_data();
  ThreadPool pool(thread_pool);
  Run(c, scratch->untyped_data(), chosen, &pool, threads);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace lowbit

XLA_FFI_DEFINE_HANDLER_SYMBOL(LowbitConv, lowbit::ConvImpl,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::U8>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::U8>>()
                                  .Attr<xla::ffi::Span<const int64_t>>("kernel")
                                  .Attr<xla::ffi::Span<const int64_t>>("stride")
                                  .Attr<xla::ffi::Span<const int64_t>>("dilation")
                                  .Attr<xla::ffi::Span<const int64_t>>("padding")
                                  .Attr<int64_t>("depthwise")
                                  .Attr<int64_t>("lo")
                                  .Attr<int64_t>("hi")
                                  .Attr<int64_t>("bits")
                                  .Attr<int64_t>("offset")
                                  .Attr<int64_t>("isa")
                                  .Attr<int64_t>("threads"));
