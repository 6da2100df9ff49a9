// An array as a caller describes it, and arithmetic on sizes that cannot overflow. No XLA, no Python.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "core/problem.h"

namespace lowbit {

// A dense row-major array. Results are written through `data`, operands are only read.
struct View {
  Type type = Type::kOther;
  const int64_t* dims = nullptr;
  size_t rank = 0;
  void* data = nullptr;
};

// Sizes are products and sums of numbers that a caller chose. What does not fit stays at the largest integer, which no
// buffer has as its size: comparing with a buffer's size then refuses it.
constexpr int64_t kTooLarge = INT64_MAX;
// No single extent or attribute is larger than this, so that a product of two, and a sum of two of those, fit in 64 bits.
constexpr int64_t kMostExtent = (int64_t{1} << 31) - 1;

inline int64_t Times(int64_t a, int64_t b) {
  int64_t product;
  return __builtin_mul_overflow(a, b, &product) ? kTooLarge : product;
}
inline int64_t Plus(int64_t a, int64_t b) {
  int64_t sum;
  return __builtin_add_overflow(a, b, &sum) ? kTooLarge : sum;
}
inline int64_t CeilDivide(int64_t n, int64_t by) { return n / by + (n % by != 0); }
inline int64_t RoundUp(int64_t n, int64_t to) { return Times(CeilDivide(n, to), to); }

inline bool IsExtent(int64_t n) { return n >= 0 && n <= kMostExtent; }

inline int64_t Elements(const View& v) {
  int64_t count = 1;
  for (size_t i = 0; i < v.rank; ++i) count = Times(count, v.dims[i]);
  return count;
}

// Whether the dimensions of `v` from `skip` on are these.
inline bool HasShape(const View& v, size_t skip, std::initializer_list<int64_t> dims) {
  if (v.rank != skip + dims.size()) return false;
  for (int64_t each : dims) {
    if (v.dims[skip++] != each) return false;
  }
  return true;
}

inline int64_t SizeOf(Type type) {
  switch (type) {
    case Type::kF32: case Type::kS32: return 4;
    case Type::kBF16: case Type::kS16: return 2;
    default: return 1;
  }
}

}  // namespace lowbit
