// The matmul as an XLA FFI handler.
#include "bind/common.h"

namespace lowbit {
namespace {

ffi::Error MatmulImpl(ffi::ThreadPool thread_pool, ffi::AnyBuffer x, ffi::AnyBuffer x_scale, ffi::AnyBuffer x_zero, ffi::AnyBuffer blocks, ffi::AnyBuffer scales, ffi::AnyBuffer zeros, ffi::AnyBuffer column_sums, ffi::AnyBuffer codebook, ffi::AnyBuffer factors, ffi::AnyBuffer steps, ffi::AnyBuffer next_scale, ffi::AnyBuffer next_zero, ffi::Result<ffi::AnyBuffer> y, ffi::Result<ffi::AnyBuffer> codes, ffi::Result<ffi::AnyBuffer> marks, ffi::Result<ffi::AnyBuffer> scratch, ffi::Span<const int64_t> kinds, int64_t activation, int64_t lo, int64_t hi, int64_t bits, int64_t offset, int64_t length, int64_t group, int64_t x_columns, int64_t y_columns, int64_t next_lo, int64_t next_hi, int64_t keeps_nan, int64_t isa, int64_t threads) {
  MatmulCall c;
  c.x = ViewOf(x);
  c.x_scale = ViewOf(x_scale);
  c.x_zero = ViewOf(x_zero);
  c.blocks = ViewOf(blocks);
  c.scales = ViewOf(scales);
  c.zeros = ViewOf(zeros);
  c.column_sums = ViewOf(column_sums);
  c.codebook = ViewOf(codebook);
  c.factors = ViewOf(factors);
  c.tail.steps = ViewOf(steps);
  c.tail.next_scale = ViewOf(next_scale);
  c.tail.next_zero = ViewOf(next_zero);
  c.tail.y = ViewOf(*y);
  c.tail.codes = ViewOf(*codes);
  c.tail.marks = ViewOf(*marks);
  c.scratch = ViewOf(*scratch);
  c.tail.kinds = kinds.begin(), c.tail.kinds_count = kinds.size();
  c.activation = activation;
  c.lo = lo;
  c.hi = hi;
  c.bits = bits;
  c.offset = offset;
  c.length = length;
  c.group = group;
  c.x_columns = x_columns;
  c.y_columns = y_columns;
  c.tail.next_lo = next_lo;
  c.tail.next_hi = next_hi;
  c.keeps_nan = keeps_nan;
  c.isa = isa;
  c.threads = threads;
  ThreadPool pool(thread_pool);
  return Answer(Call(c, &pool));
}

}  // namespace
}  // namespace lowbit

XLA_FFI_DEFINE_HANDLER_SYMBOL(LowbitMatmul, lowbit::MatmulImpl,
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
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<xla::ffi::Span<const int64_t>>("kinds")
                                  .Attr<int64_t>("activation")
                                  .Attr<int64_t>("lo")
                                  .Attr<int64_t>("hi")
                                  .Attr<int64_t>("bits")
                                  .Attr<int64_t>("offset")
                                  .Attr<int64_t>("length")
                                  .Attr<int64_t>("group")
                                  .Attr<int64_t>("x_columns")
                                  .Attr<int64_t>("y_columns")
                                  .Attr<int64_t>("next_lo")
                                  .Attr<int64_t>("next_hi")
                                  .Attr<int64_t>("keeps_nan")
                                  .Attr<int64_t>("isa")
                                  .Attr<int64_t>("threads"));

// For lowbit_kernels/cpu/library.py, which reads it before any call.
extern "C" int lowbit_isa_supported(int isa) {
  return isa >= 0 && isa < lowbit::kIsaCount && lowbit::IsaSupported(static_cast<lowbit::Isa>(isa));
}
