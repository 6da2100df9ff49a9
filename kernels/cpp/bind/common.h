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

// The operands of a call in order, those that are not given as arrays of no elements, or of a zero or one. Some may lie in an
// arena, the last operand: of each `places` holds its position, where it begins, its type, its rank and its shape.
class Operands {
 public:
  Operands(const ffi::RemainingArgs& args, size_t batch_rank, int64_t given, const int64_t* places, const int64_t* end)
      : args_(args), batch_rank_(batch_rank), count_(args.size()), given_(given), places_(places), end_(end) {
    if (batch_rank > kMostBatch) problem_ = "too many batch dimensions";
    if (places == end || problem_ != nullptr) return;
    auto buffer = count_ > 0 ? args.get<ffi::AnyBuffer>(count_ - 1) : args.get<ffi::AnyBuffer>(0);
    if (!buffer.has_value()) {
      problem_ = "the arena is missing";
      return;
    }
    arena_ = ViewOf(*buffer);
    --count_;
    bool flat = arena_.type == Type::kU8 && arena_.rank == batch_rank + 1;
    for (size_t i = 0; flat && i < batch_rank; ++i) flat = arena_.dims[i] == 1;
    if (!flat) problem_ = "the arena must be u8 (bytes), the same for a whole batch";
  }

  View Next() {
    const int64_t slot = slot_++;
    if (problem_ != nullptr) return {};
    if (places_ != end_ && *places_ == slot) return Placed();
    if (at_ < count_) {
      auto buffer = args_.get<ffi::AnyBuffer>(at_++);
      if (buffer.has_value()) return ViewOf(*buffer);
    }
    problem_ = "an operand is missing";
    return {};
  }
  View Next(int64_t bit, Type type, std::initializer_list<int64_t> absent) {
    if ((given_ & bit) != 0) return Next();
    ++slot_;
    if (problem_ != nullptr || held_ == kMostHeld) return {};
    int64_t* dims = dims_[held_++];
    size_t rank = 0;
    while (rank < batch_rank_) dims[rank++] = 1;
    for (int64_t n : absent) dims[rank++] = n;
    static float one = 1.0f;
    static int32_t zero = 0;
    return {type, dims, rank, type == Type::kF32 ? static_cast<void*>(&one) : static_cast<void*>(&zero)};
  }
  const char* problem() const {
    return problem_ != nullptr ? problem_ : at_ == count_ && places_ == end_ ? nullptr : "too many operands";
  }

 private:
  static constexpr size_t kMostBatch = 8, kMostHeld = 15, kMostRank = 3;

  View Placed() {
    problem_ = "a place in the arena lies outside it";
    if (end_ - places_ < 4 || held_ == kMostHeld) return {};
    const int64_t offset = places_[1], type = places_[2], rank = places_[3];
    if (type < 0 || type >= static_cast<int64_t>(Type::kOther) || rank < 0 || rank > static_cast<int64_t>(kMostRank)) return {};
    if (end_ - places_ < 4 + rank) return {};
    int64_t* dims = dims_[held_++];
    for (size_t i = 0; i < batch_rank_; ++i) dims[i] = 1;
    for (int64_t i = 0; i < rank; ++i) dims[batch_rank_ + i] = places_[4 + i];
    places_ += 4 + rank;
    const View view{static_cast<Type>(type), dims, batch_rank_ + rank, nullptr};
    for (size_t i = 0; i < view.rank; ++i) {
      if (!IsExtent(dims[i])) return {};
    }
    const int64_t bytes = Times(Elements(view), SizeOf(view.type)), size = arena_.dims[batch_rank_];
    if (offset < 0 || offset % SizeOf(view.type) != 0 || bytes > size || offset > size - bytes) return {};
    problem_ = nullptr;
    return {view.type, dims, view.rank, static_cast<uint8_t*>(arena_.data) + offset};
  }

  const ffi::RemainingArgs& args_;
  size_t batch_rank_, count_, at_ = 0, held_ = 0;
  int64_t given_, slot_ = 0, dims_[kMostHeld][kMostBatch + 3];
  const int64_t *places_, *end_;
  View arena_;
  const char* problem_ = nullptr;
};

inline ffi::Error Answer(const char* problem) {
  if (problem == nullptr) return ffi::Error::Success();
  return ffi::Error(ffi::ErrorCode::kInvalidArgument, std::string("lowbit_kernels: ") + problem);
}

}  // namespace lowbit
