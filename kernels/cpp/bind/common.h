// What the handlers share: XLA's arrays as the core's, and its thread pool. All checks are the core's (core/calls.h).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "core/calls.h"
#include "xla/ffi/api/ffi.h"

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

inline Type TypeOf(ffi::DataType dtype) {
  switch (dtype) {
    case ffi::F32: return Type::kF32;
    case ffi::BF16: return Type::kBF16;
    case ffi::S8: return Type::kS8;
    case ffi::U8: return Type::kU8;
    case ffi::S16: return Type::kS16;
    case ffi::S32: return Type::kS32;
    default: return Type::kOther;
  }
}

inline View ViewOf(const ffi::AnyBuffer& buffer) {
  const auto dims = buffer.dimensions();
  return {TypeOf(buffer.element_type()), dims.begin(), dims.size(), buffer.untyped_data()};
}

inline ffi::Error Answer(const char* problem) {
  if (problem == nullptr) return ffi::Error::Success();
  return ffi::Error(ffi::ErrorCode::kInvalidArgument, std::string("lowbit_kernels: ") + problem);
}

}  // namespace lowbit
