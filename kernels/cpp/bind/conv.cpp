// The convolution as an XLA FFI handler.
#include "bind/common.h"

namespace lowbit {
namespace {

// Numbers shared with lowbit_kernels/cpu/conv.py.
enum Given { kScale = 1, kSums = 2, kSteps = 4, kNext = 8, kResidual = 16 };
enum Config { kGiven, kGroups, kDepthwise, kLo, kHi, kBits, kOffset, kXFirst, kYFirst, kKeepsNan, kDynamic, kNextLo, kNextHi,
              kIsa, kThreads, kKernel, kStride = kKernel + 2, kDilation = kStride + 2, kPadding = kDilation + 2,
              kConfig = kPadding + 2 };

ffi::Error ConvImpl(ffi::ThreadPool thread_pool, ffi::RemainingArgs args, ffi::Result<ffi::AnyBuffer> y, ffi::Result<ffi::AnyBuffer> codes, ffi::Result<ffi::AnyBuffer> marks, ffi::Result<ffi::AnyBuffer> scratch, ffi::Span<const int64_t> config, ffi::Span<const int64_t> kinds, ffi::Span<const float> numbers) {
  if (config.size() < kConfig) return Answer("config has another length: the library is of another version");
  const int64_t* a = config.begin();
  ConvCall c;
  c.tail.y = ViewOf(*y);
  c.tail.codes = ViewOf(*codes);
  c.tail.marks = ViewOf(*marks);
  c.scratch = ViewOf(*scratch);
  Operands in(args, 0, a[kGiven], a + kConfig, config.end());
  c.x = in.Next();
  c.x_scale = in.Next(kScale, Type::kF32, {1});
  c.x_zero = in.Next(kScale, Type::kS32, {1});
  c.weights = in.Next();
  c.scales = in.Next();
  c.sums = in.Next(kSums, Type::kS32, {0});
  c.tail.steps = in.Next(kSteps, Type::kF32, {0, c.scales.rank > 0 ? c.scales.dims[0] : 0, kLanes});
  c.tail.next_scale = in.Next(kNext, Type::kF32, {1});
  c.tail.next_zero = in.Next(kNext, Type::kS32, {1});
  c.tail.fixed = in.Next(0, Type::kS32, {0, c.scales.rank > 0 ? c.scales.dims[0] : 0, kLanes});
  c.tail.other = in.Next(kResidual, Type::kS8, {0, 0, 0, 0});
  c.tail.joins = in.Next(0, Type::kS32, {0});
  if (const char* problem = in.problem()) return Answer(problem);
  c.tail.kinds = kinds.begin(), c.tail.kinds_count = kinds.size();
  c.tail.numbers = numbers.begin(), c.tail.numbers_count = numbers.size();
  c.kernel = a + kKernel, c.stride = a + kStride, c.dilation = a + kDilation, c.padding = a + kPadding;
  c.kernel_rank = c.stride_rank = c.dilation_rank = c.padding_rank = 2;
  c.groups = a[kGroups], c.depthwise = a[kDepthwise], c.lo = a[kLo], c.hi = a[kHi], c.bits = a[kBits];
  c.offset = a[kOffset], c.x_channels_first = a[kXFirst], c.y_channels_first = a[kYFirst];
  c.keeps_nan = a[kKeepsNan], c.dynamic = a[kDynamic], c.tail.next_lo = a[kNextLo], c.tail.next_hi = a[kNextHi];
  c.isa = a[kIsa], c.threads = a[kThreads];
  ThreadPool pool(thread_pool);
  return Answer(Call(c, &pool));
}

}  // namespace
}  // namespace lowbit

XLA_FFI_DEFINE_HANDLER_SYMBOL(LowbitConvCall, lowbit::ConvImpl,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<xla::ffi::Span<const int64_t>>("config")
                                  .Attr<xla::ffi::Span<const int64_t>>("kinds")
                                  .Attr<xla::ffi::Span<const float>>("numbers"));

// That the scratch of a convolution holds some lines at a time, which cpu/library.py looks for.
extern "C" int lowbit_holds_lines() { return 1; }
