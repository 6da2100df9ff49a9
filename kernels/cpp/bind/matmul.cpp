// The matmul as an XLA FFI handler. An operand that a call has no use for is left out: every buffer costs time in a call.
#include "bind/common.h"

namespace lowbit {
namespace {

// Numbers shared with lowbit_kernels/cpu/matmul.py: bits of the operands that are there, and what `config` holds.
enum Given { kScale = 1, kZeros = 2, kSums = 4, kBook = 8, kFactors = 16, kSteps = 32, kNext = 64, kResidual = 128 };
enum Config { kGiven, kActivation, kLo, kHi, kBits, kOffset, kLength, kGroup, kXColumns, kYColumns, kKeepsNan, kNextLo,
              kNextHi, kIsa, kThreads, kConfig };

ffi::Error MatmulImpl(ffi::ThreadPool thread_pool, ffi::RemainingArgs args, ffi::Result<ffi::AnyBuffer> y, ffi::Result<ffi::AnyBuffer> codes, ffi::Result<ffi::AnyBuffer> marks, ffi::Result<ffi::AnyBuffer> scratch, ffi::Span<const int64_t> config, ffi::Span<const int64_t> kinds, ffi::Span<const float> numbers) {
  if (config.size() < kConfig) return Answer("config has another length: the library is of another version");
  const int64_t* a = config.begin();
  MatmulCall c;
  c.tail.y = ViewOf(*y);
  c.tail.codes = ViewOf(*codes);
  c.tail.marks = ViewOf(*marks);
  c.scratch = ViewOf(*scratch);
  Operands in(args, c.tail.y.rank < 2 ? 0 : c.tail.y.rank - 2, a[kGiven], a + kConfig, config.end());
  const int64_t tiles = c.tail.y.rank < 2 ? 0 : CeilDivide(c.tail.y.dims[c.tail.y.rank - (a[kYColumns] != 0 ? 2 : 1)], kLanes);
  c.x = in.Next();
  c.x_scale = in.Next(kScale, Type::kF32, {0});
  c.x_zero = in.Next(kScale, Type::kS32, {1});
  c.blocks = in.Next();
  c.scales = in.Next();
  c.zeros = in.Next(kZeros, Type::kS16, {0});
  c.column_sums = in.Next(kSums, Type::kS16, {0});
  c.codebook = in.Next(kBook, Type::kF32, {0});
  c.factors = in.Next(kFactors, Type::kS8, {0});
  c.tail.steps = in.Next(kSteps, Type::kF32, {0, tiles, kLanes});
  c.tail.next_scale = in.Next(kNext, Type::kF32, {1});
  c.tail.next_zero = in.Next(kNext, Type::kS32, {1});
  c.tail.fixed = in.Next(0, Type::kS32, {0, tiles, kLanes});
  c.tail.other = in.Next(kResidual, Type::kS8, {0, 0});
  c.tail.joins = in.Next(0, Type::kS32, {0});
  if (const char* problem = in.problem()) return Answer(problem);
  c.tail.kinds = kinds.begin(), c.tail.kinds_count = kinds.size();
  c.tail.numbers = numbers.begin(), c.tail.numbers_count = numbers.size();
  c.activation = a[kActivation], c.lo = a[kLo], c.hi = a[kHi], c.bits = a[kBits], c.offset = a[kOffset];
  c.length = a[kLength], c.group = a[kGroup], c.x_columns = a[kXColumns], c.y_columns = a[kYColumns];
  c.keeps_nan = a[kKeepsNan], c.tail.next_lo = a[kNextLo], c.tail.next_hi = a[kNextHi];
  c.isa = a[kIsa], c.threads = a[kThreads];
  ThreadPool pool(thread_pool);
  return Answer(Call(c, &pool));
}

}  // namespace
}  // namespace lowbit

XLA_FFI_DEFINE_HANDLER_SYMBOL(LowbitMatmulCall, lowbit::MatmulImpl,
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

// For lowbit_kernels/cpu/library.py, which reads all three before any call.
extern "C" int lowbit_reads_arena() { return 1; }
extern "C" int lowbit_adds_residuals() { return 1; }
extern "C" int lowbit_isa_supported(int isa) {
  return isa >= 0 && isa < lowbit::kIsaCount && lowbit::IsaSupported(static_cast<lowbit::Isa>(isa));
}
