// The matmul as an XLA FFI handler: checks shapes, walks batch dimensions, calls the core.
#include "bind/common.h"
#include "core/matmul.h"

namespace lowbit {
namespace {

// Operand order and shapes are those of lowbit_kernels/cpu/matmul.py. Under vmap every operand has the same leading
// batch dimensions, of size 1 where it is not mapped.
ffi::Error MatmulImpl(ffi::ThreadPool thread_pool, ffi::AnyBuffer x, ffi::Buffer<ffi::F32> x_scale,
                      ffi::Buffer<ffi::S32> x_zero, ffi::Buffer<ffi::U8> blocks, ffi::AnyBuffer scales,
                      ffi::Buffer<ffi::S16> zeros, ffi::AnyBuffer column_sums, ffi::Buffer<ffi::F32> codebook,
                      ffi::Result<ffi::AnyBuffer> y, ffi::Result<ffi::Buffer<ffi::U8>> scratch, int64_t activation,
                      int64_t lo, int64_t hi, int64_t bits, int64_t offset, int64_t length, int64_t group, int64_t isa,
                      int64_t threads) {
  const auto out_dims = y->dimensions();
  LOWBIT_CHECK(out_dims.size() >= 2, "y must have rank 2 or more");
  const size_t batch_rank = out_dims.size() - 2;
  LOWBIT_CHECK(bits == 2 || bits == 4 || bits == 8, "bits must be 2, 4 or 8");
  LOWBIT_CHECK(length >= 1 && group >= 1 && group <= length, "group must lie in 1..K");
  LOWBIT_CHECK(activation >= 0 && activation <= 2, "activation must be 0, 1 or 2");

  Matmul p;
  p.rows = out_dims[batch_rank];
  p.out = out_dims[batch_rank + 1];
  p.length = length;
  p.group = group;
  p.groups = (length + group - 1) / group;
  p.bits = static_cast<int>(bits);
  p.group_blocks = (group + p.span() - 1) / p.span();
  p.blocks = (p.groups - 1) * p.group_blocks + (length - (p.groups - 1) * group + p.span() - 1) / p.span();
  p.offset = static_cast<int32_t>(offset);
  p.activation = static_cast<Activation>(activation);
  p.lo = static_cast<int32_t>(lo);
  p.hi = static_cast<int32_t>(hi);

  LOWBIT_CHECK(ReadType(x.element_type(), &p.x_type), "x must be f32, bf16, s8 or u8");
  Type type;
  LOWBIT_CHECK(ReadType(scales.element_type(), &type) && (type == Type::kF32 || type == Type::kBF16),
               "scales must be f32 or bf16");
  p.scales_bf16 = type == Type::kBF16;
  LOWBIT_CHECK(ReadType(y->element_type(), &type) && (type == Type::kF32 || type == Type::kBF16),
               "y must be f32 or bf16");
  p.y_bf16 = type == Type::kBF16;
  const bool sums16 = column_sums.element_type() == ffi::S16;
  LOWBIT_CHECK(sums16 || column_sums.element_type() == ffi::S32, "column sums must be s16 or s32");
  p.column_sums_16 = sums16;

  const int64_t tables = p.tiles() * p.groups * kLanes;
  const Batched bx(x, batch_rank), bscale(x_scale, batch_rank), bzero(x_zero, batch_rank), bw(blocks, batch_rank),
      bs(scales, batch_rank), bz(zeros, batch_rank), bc(column_sums, batch_rank), bbook(codebook, batch_rank);
  LOWBIT_CHECK(bx.size == p.rows * p.length, "x must be (M, K)");
  LOWBIT_CHECK(bw.size == p.tiles() * p.blocks * kBlockBytes, "blocks do not match K, N, bits and group");
  LOWBIT_CHECK(bs.size == tables, "scales must be (tiles, groups, 16)");
  LOWBIT_CHECK(bz.size == 0 || bz.size == tables, "zeros must be (tiles, groups, 16)");
  LOWBIT_CHECK(bc.size == 0 || bc.size == tables, "column sums must be (tiles, groups, 16)");
  LOWBIT_CHECK(bbook.size == 0 || (bbook.size >= 2 && bbook.size <= 256), "codebook must have 2 to 256 entries");
  LOWBIT_CHECK(bzero.size == 1, "x_zero must be one integer");
  if (p.activation == Activation::kStatic) {
    LOWBIT_CHECK(bscale.size == 1 || bscale.size == p.rows, "x_scale must be one number or one per row");
  }
  p.x_scale_stride = bscale.size == 1 ? 0 : 1;

  const ThreadPool pool(thread_pool);
  const Isa chosen = isa < 0 ? BestIsa() : static_cast<Isa>(isa);
  LOWBIT_CHECK(isa < kIsaCount && IsaSupported(chosen), "this machine does not run that instruction set");

  int64_t batch = 1;
  for (size_t i = 0; i < batch_rank; ++i) batch *= out_dims[i];
  const int64_t x_bytes = p.x_type == Type::kF32 ? 4 : p.x_type == Type::kBF16 ? 2 : 1;
  // Only x is mapped (or nothing): its batch is more rows of one matmul.
  if (batch > 1 && bx.count == batch && bw.count == 1 && bs.count == 1 && bz.count == 1 && bc.count == 1 &&
      bbook.count == 1 && bzero.count == 1 && bscale.count == 1 && p.x_scale_stride == 0) {
    p.rows *= batch;
    batch = 1;
  }
  LOWBIT_CHECK(scratch->size_bytes() >= ScratchBytes(p), "scratch is too small");
  for (int64_t b = 0; b < batch; ++b) {
    Matmul q = p;
    q.x = bx.At(x, out_dims, b, p.rows * p.length * x_bytes);
    q.x_scale = static_cast<const float*>(bscale.At(x_scale, out_dims, b, bscale.size * 4));
    q.x_zero = *static_cast<const int32_t*>(bzero.At(x_zero, out_dims, b, 4));
    q.w = static_cast<const uint8_t*>(bw.At(blocks, out_dims, b, bw.size));
    q.scales = bs.At(scales, out_dims, b, bs.size * (p.scales_bf16 ? 2 : 4));
    q.zeros = bz.size == 0 ? nullptr : static_cast<const int16_t*>(bz.At(zeros, out_dims, b, bz.size * 2));
    q.column_sums = bc.size == 0 ? nullptr : bc.At(column_sums, out_dims, b, bc.size * (sums16 ? 2 : 4));
    q.codebook = bbook.size == 0 ? nullptr : static_cast<const float*>(bbook.At(codebook, out_dims, b, bbook.size * 4));
    q.y = static_cast<uint8_t*>(y->untyped_data()) + b * p.rows * p.out * (p.y_bf16 ? 2 : 4);
    if (const char* problem = Check(q)) return ffi::Error(ffi::ErrorCode::kInvalidArgument, problem);
    Run(q, scratch->untyped_data(), chosen, const_cast<ThreadPool*>(&pool), threads);
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace lowbit

XLA_FFI_DEFINE_HANDLER_SYMBOL(LowbitMatmul, lowbit::MatmulImpl,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::U8>>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S16>>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::U8>>()
                                  .Attr<int64_t>("activation")
                                  .Attr<int64_t>("lo")
                                  .Attr<int64_t>("hi")
                                  .Attr<int64_t>("bits")
                                  .Attr<int64_t>("offset")
                                  .Attr<int64_t>("length")
                                  .Attr<int64_t>("group")
                                  .Attr<int64_t>("isa")
                                  .Attr<int64_t>("threads"));

// For lowbit_kernels/cpu/library.py, which reads it before any call.
extern "C" int lowbit_isa_supported(int isa) {
  return isa >= 0 && isa < lowbit::kIsaCount && lowbit::IsaSupported(static_cast<lowbit::Isa>(isa));
}
