// What the handlers share: XLA's arrays as the core's, and its thread pool. All checks are the core's (core/calls.h).
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
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

// The operands of a call in order, those that are not given as arrays of no elements, or of a zero or one.
class Operands {
 public:
  Operands(const ffi::RemainingArgs& args, size_t batch_rank, int64_t given)
      : args_(args), batch_rank_(batch_rank), given_(given) {
    if (batch_rank > kMostBatch) problem_ = "too many batch dimensions";
  }

  View Next() {
    auto buffer = args_.get<ffi::AnyBuffer>(at_++);
    if (buffer.has_value()) return ViewOf(*buffer);
    problem_ = "an operand is missing";
    return {};
  }
  View Next(int64_t bit, Type type, std::initializer_list<int64_t> absent) {
    if ((given_ & bit) != 0) return Next();
    if (problem_ != nullptr || held_ == kMostAbsent) return {};
    int64_t* dims = dims_[held_++];
    size_t rank = 0;
    while (rank < batch_rank_) dims[rank++] = 1;
    for (int64_t n : absent) dims[rank++] = n;
    static float one = 1.0f;
    static int32_t zero = 0;
    return {type, dims, rank, type == Type::kF32 ? static_cast<void*>(&one) : static_cast<void*>(&zero)};
  }
  const char* problem() const { return problem_ != nullptr ? problem_ : at_ == args_.size() ? nullptr : "too many operands"; }

 private:
  static constexpr size_t kMostBatch = 8, kMostAbsent = 12;
  const ffi::RemainingArgs& args_;
  size_t batch_rank_, at_ = 0, held_ = 0;
  int64_t given_, dims_[kMostAbsent][kMostBatch + 3];
  const char* problem_ = nullptr;
};

inline ffi::Error Answer(const char* problem) {
  if (problem == nullptr) return ffi::Error::Success();
  return ffi::Error(ffi::ErrorCode::kInvalidArgument, std::string("lowbit_kernels: ") + problem);
}

}  // namespace lowbit
