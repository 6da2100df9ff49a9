// A product of two arrays of activations as an XLA FFI handler.
#include "bind/common.h"
#include "core/pair.h"

namespace lowbit {
namespace {

// Numbers shared with lowbit_kernels/cpu/pair.py: bits of the operands that are there, and what `config` holds.
enum Given { kLeft = 1, kRight = 2 };
enum Config { kGiven, kLength, kXStrides, kWStrides = kXStrides + 3, kLo = kWStrides + 4, kHi, kWLo, kWHi, kXDynamic, kWDynamic,
              kKeepsNan, kIsa, kThreads, kConfig };

ffi::Error PairImpl(ffi::ThreadPool thread_pool, ffi::RemainingArgs args, ffi::Result<ffi::AnyBuffer> y,
                    ffi::Span<const int64_t> config) {
  if (config.size() < kConfig) return Answer("config has another length: the library is of another version");
  const int64_t* a = config.begin();
  PairCall c;
  c.y = ViewOf(*y);
  Operands in(args, 0, a[kGiven], a + kConfig, config.end());
  c.x = in.Next();
  c.w = in.Next();
  c.x_scale = in.Next(kLeft, Type::kF32, {1});
  c.x_zero = in.Next(kLeft, Type::kS32, {1});
  c.w_scale = in.Next(kRight, Type::kF32, {1});
  c.w_zero = in.Next(kRight, Type::kS32, {1});
  if (const char* problem = in.problem()) return Answer(problem);
  c.length = a[kLength];
  for (int i = 0; i < 3; ++i) c.x_strides[i] = a[kXStrides + i];
  for (int i = 0; i < 4; ++i) c.w_strides[i] = a[kWStrides + i];
  c.lo = a[kLo], c.hi = a[kHi], c.w_lo = a[kWLo], c.w_hi = a[kWHi];
  c.x_dynamic = a[kXDynamic], c.w_dynamic = a[kWDynamic], c.keeps_nan = a[kKeepsNan];
  c.isa = a[kIsa], c.threads = a[kThreads];
  ThreadPool pool(thread_pool);
  return Answer(Call(c, &pool));
}

}  // namespace
}  // namespace lowbit

XLA_FFI_DEFINE_HANDLER_SYMBOL(LowbitPairCall, lowbit::PairImpl,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<xla::ffi::Span<const int64_t>>("config"));
