// Products of codes that end in codes, in fixed point, as XLA FFI handlers: a matmul and a convolution.
#include "bind/common.h"

namespace lowbit {
namespace {

// Numbers shared with lowbit_kernels/cpu/fixed.py: bits of the operands that are there, and what `config` holds.
enum Given { kZeros = 1, kSums = 2, kJoined = 4, kScale = 8 };
enum MatmulConfig { kMatmulGiven, kMatmulBits, kMatmulOffset, kLength, kMatmulRounding, kMatmulJoin, kMatmulLo, kMatmulHi, kMatmulIsa,
                    kMatmulThreads, kMatmulConfig };
enum ConvConfig { kConvGiven, kGroups, kDepthwise, kConvBits, kConvOffset, kFirst, kConvRounding, kConvJoin, kConvLo, kConvHi, kConvIsa,
                  kConvThreads, kKernel, kStride = kKernel + 2, kDilation = kStride + 2, kPadding = kDilation + 2,
                  kConvConfig = kPadding + 2 };

constexpr size_t kMostRank = 12;

// What a call in fixed point has none of: arrays without elements, of the batch of `codes` and these dimensions.
class Absent {
 public:
  Absent(const View& codes, size_t tail) : batch_(codes.rank < tail ? 0 : codes.rank - tail) {}
  bool fits() const { return batch_ + 4 <= kMostRank; }
  size_t batch() const { return batch_; }
  View Of(const View& codes, Type type, std::initializer_list<int64_t> shape, bool is_result) {
    int64_t* dims = dims_[count_++];
    size_t rank = 0;
    for (; rank < batch_; ++rank) dims[rank] = is_result ? codes.dims[rank] : 1;
    for (int64_t n : shape) dims[rank++] = n;
    static float one = 1.0f;
    static int32_t zero = 0;
    return {type, dims, rank, type == Type::kF32 ? static_cast<void*>(&one) : static_cast<void*>(&zero)};
  }

 private:
  size_t batch_, count_ = 0;
  int64_t dims_[12][kMostRank];
};

void NoTail(const View& codes, Absent* absent, int64_t tiles, TailCall* tail) {
  tail->codes = codes;
  tail->steps = absent->Of(codes, Type::kF32, {0, tiles, kLanes}, false);
  tail->next_scale = absent->Of(codes, Type::kF32, {1}, false);
  tail->next_zero = absent->Of(codes, Type::kS32, {1}, false);
}

ffi::Error FixedMatmul(ffi::ThreadPool thread_pool, ffi::RemainingArgs args, ffi::Result<ffi::AnyBuffer> codes, ffi::Result<ffi::AnyBuffer> scratch, ffi::Span<const int64_t> config) {
  if (config.size() < kMatmulConfig) return Answer("config has another length: the library is of another version");
  const int64_t* a = config.begin();
  MatmulCall c;
  const View to = ViewOf(*codes);
  Absent absent(to, 2);
  if (to.rank < 2 || !absent.fits()) return Answer("codes must be (M, N), with few batch dimensions");
  c.scratch = ViewOf(*scratch);
  Operands in(args, absent.batch(), a[kMatmulGiven], a + kMatmulConfig, config.end());
  c.x = in.Next();
  c.blocks = in.Next();
  c.column_sums = in.Next();
  c.tail.fixed = in.Next();
  c.zeros = in.Next(kZeros, Type::kS16, {0});
  c.tail.other = in.Next(kJoined, Type::kS8, {0, 0});
  c.tail.joins = in.Next(kJoined, Type::kS32, {0});
  c.x_scale = in.Next(kScale, Type::kF32, {1});
  if (const char* problem = in.problem()) return Answer(problem);
  NoTail(to, &absent, CeilDivide(to.dims[to.rank - 1], kLanes), &c.tail);
  c.tail.y = absent.Of(to, Type::kF32, {0, to.dims[to.rank - 1]}, true);
  c.tail.marks = absent.Of(to, Type::kF32, {0}, true);
  c.x_zero = absent.Of(to, Type::kS32, {1}, false);
  c.scales = c.codebook = absent.Of(to, Type::kF32, {0}, false);
  c.factors = absent.Of(to, Type::kS8, {0}, false);
  c.activation = static_cast<int64_t>(Activation::kStatic), c.lo = a[kMatmulLo], c.hi = a[kMatmulHi];
  c.bits = a[kMatmulBits], c.offset = a[kMatmulOffset], c.length = c.group = a[kLength];
  c.tail.rounding = a[kMatmulRounding], c.tail.join = a[kMatmulJoin], c.isa = a[kMatmulIsa], c.threads = a[kMatmulThreads];
  ThreadPool pool(thread_pool);
  return Answer(Call(c, &pool));
}

ffi::Error FixedConv(ffi::ThreadPool thread_pool, ffi::RemainingArgs args, ffi::Result<ffi::AnyBuffer> codes, ffi::Result<ffi::AnyBuffer> scratch, ffi::Span<const int64_t> config) {
  if (config.size() < kConvConfig) return Answer("config has another length: the library is of another version");
  const int64_t* a = config.begin();
  ConvCall c;
  const View to = ViewOf(*codes);
  Absent absent(to, to.rank);
  if (to.rank != 4) return Answer("codes must have rank 4");
  c.scratch = ViewOf(*scratch);
  Operands in(args, 0, a[kConvGiven], a + kConvConfig, config.end());
  c.x = in.Next();
  c.weights = in.Next();
  c.tail.fixed = in.Next();
  c.sums = in.Next(kSums, Type::kS32, {0});
  c.tail.other = in.Next(kJoined, Type::kS8, {0, 0, 0, 0});
  c.tail.joins = in.Next(kJoined, Type::kS32, {0});
  c.x_scale = in.Next(kScale, Type::kF32, {1});
  if (const char* problem = in.problem()) return Answer(problem);
  const bool first = a[kFirst] != 0;
  NoTail(to, &absent, c.tail.fixed.rank > 1 ? c.tail.fixed.dims[1] : 0, &c.tail);
  c.tail.y = absent.Of(to, Type::kF32, {0, to.dims[1], to.dims[2], to.dims[3]}, true);
  c.tail.marks = absent.Of(to, Type::kF32, {0, 0, 0}, true);
  c.x_zero = absent.Of(to, Type::kS32, {1}, false);
  c.scales = absent.Of(to, Type::kF32, {0}, false);
  c.kernel = a + kKernel, c.stride = a + kStride, c.dilation = a + kDilation, c.padding = a + kPadding;
  c.kernel_rank = c.stride_rank = c.dilation_rank = c.padding_rank = 2;
  c.groups = a[kGroups], c.depthwise = a[kDepthwise], c.bits = a[kConvBits];
  c.offset = a[kConvOffset], c.x_channels_first = c.y_channels_first = first;
  c.tail.rounding = a[kConvRounding], c.tail.join = a[kConvJoin], c.lo = a[kConvLo], c.hi = a[kConvHi], c.isa = a[kConvIsa], c.threads = a[kConvThreads];
  ThreadPool pool(thread_pool);
  return Answer(Call(c, &pool));
}

}  // namespace
}  // namespace lowbit

#define LOWBIT_FIXED(Symbol, Handler)                           \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(Symbol, Handler,                \
                                xla::ffi::Ffi::Bind()           \
                                    .Ctx<xla::ffi::ThreadPool>() \
                                    .RemainingArgs()            \
                                    .Ret<xla::ffi::AnyBuffer>() \
                                    .Ret<xla::ffi::AnyBuffer>() \
                                    .Attr<xla::ffi::Span<const int64_t>>("config"))

LOWBIT_FIXED(LowbitFixedMatmulCall, lowbit::FixedMatmul);
LOWBIT_FIXED(LowbitFixedConvCall, lowbit::FixedConv);
