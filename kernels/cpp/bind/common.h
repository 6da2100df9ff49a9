// What the handlers share: types, batch dimensions under vmap, and XLA's thread pool as the core's.
#pragma once

#include <cstdint>
#include <functional>
#include <utility>

#include "core/parallel.h"
#include "core/problem.h"
#include "xla/ffi/api/ffi.h"

#define LOWBIT_CHECK(condition, message) \
  if (!(condition)) return ffi::Error(ffi::ErrorCode::kInvalidArgument, "lowbit_kernels: " message)

namespace lowbit {

namespace ffi = xla::ffi;

class ThreadPool : public Pool {
 public:
  explicit ThreadPool(ffi::ThreadPool& pool) : pool_(pool) {}
  int64_t threads() const override { return pool_.num_threads(); }
  void Schedule(std::function<void()> task) override { pool_.Schedule(std::move(task)); }

 private:
  ffi::ThreadPool& pool_;
};

inline bool ReadType(ffi::DataType dtype, Type* type) {
  switch (dtype) {
    case ffi::F32: *type = Type::kF32; return true;
    case ffi::BF16: *type = Type::kBF16; return true;
    case ffi::S8: *type = Type::kS8; return true;
    case ffi::U8: *type = Type::kU8; return true;
    default: return false;
  }
}

// An operand with leading batch dimensions, each of full size or 1.
struct Batched {
  int64_t count = 1;  // its own batches
  int64_t size = 1;   // elements of one
  size_t rank;

  template <typename Buffer>
  Batched(const Buffer& buffer, size_t batch_rank) : rank(batch_rank) {
    const auto dims = buffer.dimensions();
    for (size_t i = 0; i < dims.size(); ++i) (i < batch_rank ? count : size) *= dims[i];
  }

  // Where this operand's part of batch `index` (of the result, row-major) begins.
  template <typename Buffer, typename Dims>
  const void* At(const Buffer& buffer, const Dims& out_dims, int64_t index, int64_t bytes) const {
    const auto dims = buffer.dimensions();
    int64_t at = 0, step = 1;
    for (size_t i = rank; i-- > 0;) {
      if (dims[i] != 1) {
        at += index % out_dims[i] * step;
        step *= dims[i];
      }
      index /= out_dims[i];
    }
    return static_cast<const uint8_t*>(buffer.untyped_data()) + at * bytes;
  }
};

}  // namespace lowbit
