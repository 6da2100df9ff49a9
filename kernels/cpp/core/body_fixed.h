// From int32 sums to codes in fixed point: round((sum + bias) * q * 2^-31 * 2^-right) + offset, within bounds. The arithmetic
// is lowbit/interpret/integer/fixed.py's, to the last bit. Include inside the body's namespace, after body_store.h.
#pragma once

constexpr int64_t kMostFixed = 1 << 30;  // products saturate here, far outside of every grid

// Half to even, or half up: once, of the true product, which has 62 bits and leaves room for the half.
LOWBIT_INLINE int64_t RoundedOnce(int32_t v, int32_t q, int32_t s, bool even) {
  const int64_t product = int64_t{v} * q, half = int64_t{1} << (s - 1);
  return (product + (even ? half - 1 + (product >> s & 1) : half)) >> s;
}

// Half up to 32 bits, then half away from zero.
LOWBIT_INLINE int64_t RoundedTwice(int32_t v, int32_t q, int32_t right) {
  const int left = right < 0 ? -right : 0, by = right > 0 ? right : 0;
  const int32_t most = INT32_MAX >> left;
  const int32_t bounded = v < -most ? -most : v > most ? most : v;
  const int64_t product = int64_t{bounded} * (int64_t{1} << left) * q;
  const int64_t high = (product >> 31) + (product >> 30 & 1);
  const int64_t mask = (int64_t{1} << by) - 1;
  return (high >> by) + ((high & mask) > (mask >> 1) + (high < 0 ? 1 : 0) ? 1 : 0);
}

LOWBIT_INLINE int32_t ShiftOf(int32_t right) { return (right < -30 ? -30 : right > 31 ? 31 : right) + 31; }  // 1 .. 62

// x / 2^k in 32 bits, as the rounding is named; 0 <= k <= 31.
template <Rounding kRounding>
LOWBIT_INLINE int32_t Shifted(int32_t x, int32_t k) {
  const int32_t floor = x >> k, before = k > 0 ? k - 1 : 0, half = k > 0 ? x >> before & 1 : 0;
  if constexpr (kRounding == Rounding::kSingle) return floor + half;
  if constexpr (kRounding == Rounding::kExact) {
    const int32_t below = (x & ((int32_t{1} << (before < 30 ? before : 30)) - 1)) != 0 ? 1 : 0;
    return floor + (half & (below | (floor & 1)));
  }
  const int32_t mask = k > 30 ? INT32_MAX : (int32_t{1} << k) - 1;
  return floor + ((x & mask) > (mask >> 1) + (x < 0 ? 1 : 0) ? 1 : 0);
}

template <Rounding kRounding, Join kJoin>
LOWBIT_INLINE void JoinLanes(const int32_t* n, int32_t* v, const int8_t* other) {
  const int32_t k = n[kJoinShift] < 0 ? 0 : n[kJoinShift] > 31 ? 31 : n[kJoinShift];
  const uint32_t own = static_cast<uint32_t>(n[kOwn]), by = static_cast<uint32_t>(n[kOther]);
  const uint32_t own_zero = static_cast<uint32_t>(n[kOwnZero]), zero = static_cast<uint32_t>(n[kOtherZero]);
#pragma GCC unroll 1
  for (int i = 0; i < kLanes; ++i) {  // modulo 2^32, as XLA's integers
    const uint32_t left = (static_cast<uint32_t>(v[i]) - own_zero) * own;
    const uint32_t right = (static_cast<uint32_t>(int32_t{other[i]}) - zero) * by;
    const int32_t a = static_cast<int32_t>(left), b = static_cast<int32_t>(right);
    const int32_t joined = kJoin == Join::kSum   ? static_cast<int32_t>(left + right)
                           : kJoin == Join::kMax ? (a > b ? a : b)
                                                 : (a < b ? a : b);
    const uint32_t shifted = static_cast<uint32_t>(Shifted<kRounding>(joined, k));
    int32_t c = static_cast<int32_t>(shifted + static_cast<uint32_t>(n[kJoinOffset]));
    c = c < n[kJoinLow] ? n[kJoinLow] : c;
    v[i] = c > n[kJoinHigh] ? n[kJoinHigh] : c;
  }
}
template <Rounding kRounding>
LOWBIT_INLINE void JoinLanes(const Tail& t, int32_t* v, const int8_t* other) {
  t.join == Join::kSum   ? JoinLanes<kRounding, Join::kSum>(t.joins, v, other)
  : t.join == Join::kMax ? JoinLanes<kRounding, Join::kMax>(t.joins, v, other)
                         : JoinLanes<kRounding, Join::kMin>(t.joins, v, other);
}

// 16 codes of one row, and what they are joined with, of which `count` are there.
__attribute__((noinline)) void JoinRow(const Tail& t, int64_t at, int64_t count, int32_t* v) {
  int8_t other[kLanes] = {};
  StoreSpan(other, 1, t.other + at, t.channel_stride == 1 ? count : 0);
  for (int64_t i = 0; t.channel_stride != 1 && i < count; ++i) other[i] = t.other[at + i * t.channel_stride];
  t.rounding == Rounding::kExact    ? JoinLanes<Rounding::kExact>(t, v, other)
  : t.rounding == Rounding::kSingle ? JoinLanes<Rounding::kSingle>(t, v, other)
                                    : JoinLanes<Rounding::kDouble>(t, v, other);
}

// The numbers of a tile in registers, of a body that has 64-bit lanes; not of the rounding that rounds twice.
template <typename V>
struct FixedNumbers {
  const int32_t* at;
  typename V::I bias;
  typename V::Single single;
  bool by_singles, are_small, even;  // small: no sum is too large for that
  LOWBIT_INLINE FixedNumbers(const Tail& t, int64_t tile)
      : at(t.fixed + tile * kLanes), even(t.rounding == Rounding::kExact) {
    const int64_t stride = t.fixed_stride;
    bias = V::Load(at + kBias * stride);
    by_singles = even && V::SingleOf(V::Load(at + kMultiplier * stride), Right(t), V::Load(at + kOffset * stride),
                                     V::Load(at + kLow * stride), V::Load(at + kHigh * stride), &single);
    are_small = t.most_sum <= V::kMostSingle / 2 && V::IsWithin(bias, V::kMostSingle / 2);
  }
  LOWBIT_INLINE typename V::I Right(const Tail& t) const {
    return V::Between(V::Load(at + kRight * t.fixed_stride), V::Set(-30), V::Set(31));
  }
};

// Codes of sums with their bias, where floats do not hold the products: by doubles, or in 64 bits.
template <typename V>
__attribute__((noinline)) typename V::I FixedLanes(const Tail& t, const FixedNumbers<V>& n, typename V::I v) {
  const int64_t stride = t.fixed_stride;
  const typename V::I q = V::Load(n.at + kMultiplier * stride), offset = V::Load(n.at + kOffset * stride);
  const typename V::I low = V::Load(n.at + kLow * stride), high = V::Load(n.at + kHigh * stride);
  typename V::Real real;
  if (V::RealOf(q, n.Right(t), offset, low, high, &real) && n.even && V::IsSmall(v)) return V::Add(V::MultipliedReal(v, real), offset);
  const auto multiplier = V::MultiplierOf(q, V::Add(n.Right(t), V::Set(31)), n.even);
  return V::Between(V::Add(V::Multiplied(v, multiplier), offset), low, high);
}

// Joins codes with what lies at their place, and writes them, `count` of them.
template <typename V>
__attribute__((noinline)) void FixedJoin(const Tail& t, int64_t at, int64_t count, typename V::I v, bool even) {
  if (t.channel_stride == 1) {
    if (t.other != nullptr) v = V::Joined(v, V::LoadBytes(t.other + at, count), V::JoinerOf(t.joins, even), t.join);
    return V::StoreBytes(t.codes + at, v, count);
  }
  alignas(64) int32_t lanes[kLanes];
  V::StoreI(lanes, v);
  if (t.other != nullptr) JoinRow(t, at, count, lanes);
  for (int64_t i = 0; i < count; ++i) t.codes[at + i * t.channel_stride] = static_cast<int8_t>(lanes[i]);
}

// Codes of sums.
template <typename V>
LOWBIT_INLINE typename V::I Fixed(const Tail& t, const FixedNumbers<V>& n, typename V::I sum) {
  const typename V::I v = V::Add(sum, n.bias);
  if (__builtin_expect(n.by_singles && (n.are_small || V::IsWithin(v, V::kMostSingle)), 1)) return V::MultipliedSingle(v, n.single);
  return FixedLanes<V>(t, n, v);
}

// 16 codes of one row, of which `count` are there, to `at`.
template <typename V>
LOWBIT_INLINE void FixedRow(const Tail& t, const FixedNumbers<V>& n, int64_t at, int64_t count, typename V::I sum) {
  const typename V::I v = Fixed<V>(t, n, sum);
  if (t.channel_stride == 1 && t.other == nullptr) {
    V::StoreBytes(t.codes + at, v, count);
  } else {
    FixedJoin<V>(t, at, count, v, n.even);
  }
}

template <int kRows, typename V>
LOWBIT_INLINE void FixedRows(const Tail& t, const FixedNumbers<V>& numbers, int64_t m, int64_t valid, int64_t tile, int64_t count,
                             const typename V::I* sums) {
  const int64_t first = tile * kLanes * t.channel_stride;
  if (t.channel_stride != 1 || t.other == nullptr) {
    for (int r = 0; r < kRows && r < valid; ++r) FixedRow<V>(t, numbers, t.at(m + r) + first, count, sums[r]);
    return;
  }
  const auto joiner = V::JoinerOf(t.joins, numbers.even);
  for (int r = 0; r < kRows && r < valid; ++r) {
    const int64_t at = t.at(m + r) + first;
    const typename V::I v = Fixed<V>(t, numbers, sums[r]);
    V::StoreBytes(t.codes + at, V::Joined(v, V::LoadBytes(t.other + at, count), joiner, t.join), count);
  }
}

// Codes [m .. m + valid, 16 tile ..] of a problem with `out` channels. Sums wrap modulo 2^32, as XLA's do.
template <int kRows>
__attribute__((noinline)) void StoreFixed(const Tail& t, int64_t out, int64_t m, int64_t valid, int64_t tile,
                                          const Vec::I (&sums)[kRows]) {
  const int32_t* numbers = t.fixed + tile * kLanes;
  const int64_t stride = t.fixed_stride, left = out - tile * kLanes, count = left < kLanes ? left : kLanes;
  if constexpr (Vec::kFixes) {
    if (t.rounding != Rounding::kDouble) return FixedRows<kRows, Vec>(t, FixedNumbers<Vec>(t, tile), m, valid, tile, count, sums);
  }
  for (int r = 0; r < kRows && r < valid; ++r) {
    alignas(64) int32_t v[kLanes];
    int8_t codes[kLanes];
    Vec::StoreI(v, Vec::Add(sums[r], Vec::Load(numbers + kBias * stride)));
    for (int i = 0; i < kLanes; ++i) {
      const int32_t q = numbers[kMultiplier * stride + i], s = ShiftOf(numbers[kRight * stride + i]);
      int64_t code = t.rounding == Rounding::kDouble ? RoundedTwice(v[i], q, s - 31)
                                                     : RoundedOnce(v[i], q, s, t.rounding == Rounding::kExact);
      code = code < -kMostFixed ? -kMostFixed : code > kMostFixed ? kMostFixed : code;
      // Modulo 2^32, then within the bounds, the upper one last.
      int32_t c = static_cast<int32_t>(static_cast<uint32_t>(code) + static_cast<uint32_t>(numbers[kOffset * stride + i]));
      const int32_t low = numbers[kLow * stride + i], high = numbers[kHigh * stride + i];
      c = c < low ? low : c;
      v[i] = c > high ? high : c;
    }
    const int64_t at = t.at(m + r) + tile * kLanes * t.channel_stride;
    if (t.other != nullptr) JoinRow(t, at, count, v);
    for (int i = 0; i < kLanes; ++i) codes[i] = static_cast<int8_t>(v[i]);
    StoreSpan(t.codes + at, t.channel_stride, codes, count);
  }
}
