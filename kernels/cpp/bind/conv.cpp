// The convolution as an XLA FFI handler.
#include "bind/common.h"

namespace lowbit {
namespace {

ffi::Error ConvImpl(ffi::ThreadPool thread_pool, ffi::AnyBuffer x, ffi::AnyBuffer x_scale, ffi::AnyBuffer x_zero, ffi::AnyBuffer weights, ffi::AnyBuffer scales, ffi::AnyBuffer sums, ffi::AnyBuffer steps, ffi::AnyBuffer next_scale, ffi::AnyBuffer next_zero, ffi::Result<ffi::AnyBuffer> y, ffi::Result<ffi::AnyBuffer> codes, ffi::Result<ffi::AnyBuffer> marks, ffi::Result<ffi::AnyBuffer> scratch, ffi::Span<const int64_t> kinds, ffi::Span<const int64_t> kernel, ffi::Span<const int64_t> stride, ffi::Span<const int64_t> dilation, ffi::Span<const int64_t> padding, int64_t groups, int64_t depthwise, int64_t lo, int64_t hi, int64_t bits, int64_t offset, int64_t x_channels_first, int64_t y_channels_first, int64_t next_lo, int64_t next_hi, int64_t keeps_nan, int64_t dynamic, int64_t isa, int64_t threads) {
  ConvCall c;
  c.x = ViewOf(x);
  c.x_scale = ViewOf(x_scale);
  c.x_zero = ViewOf(x_zero);
  c.weights = ViewOf(weights);
  c.scales = ViewOf(scales);
  c.sums = ViewOf(sums);
  c.tail.steps = ViewOf(steps);
  c.tail.next_scale = ViewOf(next_scale);
  c.tail.next_zero = ViewOf(next_zero);
  c.tail.y = ViewOf(*y);
  c.tail.codes = ViewOf(*codes);
  c.tail.marks = ViewOf(*marks);
  c.scratch = ViewOf(*scratch);
  c.tail.kinds = kinds.begin(), c.tail.kinds_count = kinds.size();
  c.kernel = kernel.begin(), c.kernel_rank = kernel.size();
  c.stride = stride.begin(), c.stride_rank = stride.size();
  c.dilation = dilation.begin(), c.dilation_rank = dilation.size();
  c.padding = padding.begin(), c.padding_rank = padding.size();
  c.groups = groups;
  c.depthwise = depthwise;
  c.lo = lo;
  c.hi = hi;
  c.bits = bits;
  c.offset = offset;
  c.x_channels_first = x_channels_first;
  c.y_channels_first = y_channels_first;
  c.tail.next_lo = next_lo;
  c.tail.next_hi = next_hi;
  c.keeps_nan = keeps_nan;
  c.dynamic = dynamic;
  c.isa = isa;
  c.threads = threads;
  ThreadPool pool(thread_pool);
  return Answer(Call(c, &pool));
}

}  // namespace
}  // namespace lowbit

XLA_FFI_DEFINE_HANDLER_SYMBOL(LowbitConv, lowbit::ConvImpl,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<xla::ffi::Span<const int64_t>>("kinds")
                                  .Attr<xla::ffi::Span<const int64_t>>("kernel")
                                  .Attr<xla::ffi::Span<const int64_t>>("stride")
                                  .Attr<xla::ffi::Span<const int64_t>>("dilation")
                                  .Attr<xla::ffi::Span<const int64_t>>("padding")
                                  .Attr<int64_t>("groups")
                                  .Attr<int64_t>("depthwise")
                                  .Attr<int64_t>("lo")
                                  .Attr<int64_t>("hi")
                                  .Attr<int64_t>("bits")
                                  .Attr<int64_t>("offset")
                                  .Attr<int64_t>("x_channels_first")
                                  .Attr<int64_t>("y_channels_first")
                                  .Attr<int64_t>("next_lo")
                                  .Attr<int64_t>("next_hi")
                                  .Attr<int64_t>("keeps_nan")
                                  .Attr<int64_t>("dynamic")
                                  .Attr<int64_t>("isa")
                                  .Attr<int64_t>("threads"));
