// Codes to codes in fixed point: every body this machine runs against 128-bit integers written out here. Needs neither XLA nor
// Python; run under the sanitizers and under qemu-user.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "core/conv.h"
#include "core/isa.h"
#include "core/matmul.h"
#include "core/view.h"

using namespace lowbit;

namespace {

using Wide = __int128;

std::mt19937 engine(7);
int Uniform(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine); }
int32_t Wrapped(int64_t v) { return static_cast<int32_t>(static_cast<uint32_t>(v)); }

// v / 2^k, as the rounding is named; the second step of kDouble.
Wide Rounded(Wide v, int k, Rounding rounding) {
  const Wide whole = Wide{1} << k, floor = v >> k, twice = 2 * (v - floor * whole);
  const bool up = rounding == Rounding::kExact ? floor & 1 : rounding == Rounding::kSingle ? true : v >= 0;
  return floor + (twice > whole || (twice == whole && up) ? 1 : 0);
}

int32_t Code(int32_t sum, const int32_t* n, int64_t stride, Rounding rounding) {
  const int32_t v = Wrapped(int64_t{sum} + n[kBias * stride]), q = n[kMultiplier * stride], right = n[kRight * stride];
  Wide code = 0;
  if (rounding == Rounding::kDouble) {
    const int left = right < 0 ? -right : 0;
    const Wide most = INT32_MAX >> left, bounded = v > most ? most : v < -most ? -most : v;
    const Wide high = Rounded(bounded * (Wide{1} << left) * q, 31, Rounding::kSingle);
    code = Rounded(high, right > 0 ? right : 0, Rounding::kDouble);
  } else {
    code = Rounded(Wide{v} * q, right + 31, rounding);
  }
  const Wide most = 1 << 30;
  code = (code > most ? most : code < -most ? -most : code) + n[kOffset * stride];
  code = code < n[kLow * stride] ? n[kLow * stride] : code;
  return static_cast<int32_t>(code > n[kHigh * stride] ? n[kHigh * stride] : code);
}

int32_t Joined(int32_t code, int32_t other, const int32_t* n, Join join, Rounding rounding) {
  const Wide left = Wide{code - n[kOwnZero]} * n[kOwn], right = Wide{other - n[kOtherZero]} * n[kOther];
  const Wide v = join == Join::kSum ? left + right : (join == Join::kMax) == (left > right) ? left : right;
  const Wide c = Rounded(v, n[kJoinShift], rounding) + n[kJoinOffset];
  return static_cast<int32_t>(c < n[kJoinLow] ? n[kJoinLow] : c > n[kJoinHigh] ? n[kJoinHigh] : c);
}

// Numbers of channels: some far from the grid, ties, the largest multiplier, and biases that make sums wrap.
std::vector<int32_t> Numbers(int64_t tiles, int64_t length, int32_t zero) {
  std::vector<int32_t> n(kFixedRows * tiles * kLanes);
  for (int64_t i = 0; i < tiles * kLanes; ++i) {
    auto at = [&](int row) -> int32_t& { return n[row * tiles * kLanes + i]; };
    at(kBias) = i % 7 == 2 ? INT32_MAX - Uniform(0, 9) : Uniform(-90000, 90000);
    at(kMultiplier) = (Uniform(0, 1) * 2 - 1) * (i % 5 == 0 ? 1 << 30 : Uniform(1 << 30, INT32_MAX));
    at(kRight) = i % 11 == 3 ? Uniform(-30, 31) : i % 5 == 0 ? Uniform(0, 8) : 6 + Uniform(0, length > 64 ? 6 : 3);
    if (i % 13 == 4) at(kMultiplier) = i % 2 == 0 ? 0 : INT32_MAX;
    at(kOffset) = Uniform(-40, 40), at(kLow) = Uniform(-128, -60), at(kHigh) = Uniform(60, 127), at(kInputZero) = zero;
  }
  return n;
}

struct Joining {
  std::vector<int8_t> other;
  std::vector<int32_t> numbers;
  Join join = Join::kSum;
};
Joining MakeJoin(int64_t count, int k) {
  Joining j;
  j.other.resize(count);
  for (int8_t& each : j.other) each = static_cast<int8_t>(Uniform(-128, 127));
  const int32_t one = 1 << k;
  j.numbers = {one - one / 4, -(one / 2 + 1), k, 3, -100, 110, -7, 30};
  j.join = static_cast<Join>(k % kJoins);
  return j;
}

template <typename Problem, typename Fn>
void Everywhere(Problem p, int64_t count, const Fn& expected) {
  for (int k = 0; k < kIsaCount; ++k) {
    const Isa isa = static_cast<Isa>(k);
    if (!IsaSupported(isa)) continue;
    Problem q = p;
    std::vector<uint8_t> scratch(ScratchBytes(q));
    std::vector<int8_t> codes(count, 99);
    q.tail.codes = codes.data();
    Run(q, scratch.data(), isa, nullptr, 1);
    for (int64_t i = 0; i < count; ++i) {
      if (codes[i] == expected(i)) continue;
      std::fprintf(stderr, "%s: code %lld is %d, expected %d\n", IsaName(isa), static_cast<long long>(i), codes[i], expected(i));
      std::exit(1);
    }
  }
}

void TestMatmul(int64_t rows, int64_t length, int64_t out, Rounding rounding, bool joins) {
  Matmul p;
  p.rows = rows, p.length = p.group = length, p.out = out, p.groups = 1, p.bits = 8, p.offset = 128;
  p.blocks = p.group_blocks = CeilDivide(length, 4);
  p.activation = Activation::kStatic, p.x_type = Type::kS8, p.x_zero = Uniform(-128, 127);
  std::vector<int8_t> x(rows * length), w(length * out);
  for (int8_t& each : x) each = static_cast<int8_t>(Uniform(-128, 127));
  for (int8_t& each : w) each = static_cast<int8_t>(Uniform(-128, 127));
  std::vector<uint8_t> blocks(p.tiles() * p.blocks * kBlockBytes);
  std::vector<int32_t> sums(p.tiles() * kLanes);
  for (int64_t k = 0; k < length; ++k) {
    for (int64_t n = 0; n < out; ++n) {
      const int stored = w[k * out + n] + 128;
      blocks[(n / kLanes * p.blocks + k / 4) * kBlockBytes + n % kLanes * 4 + k % 4] = static_cast<uint8_t>(stored);
      sums[n] += stored;
    }
  }
  const std::vector<int32_t> numbers = Numbers(p.tiles(), length, p.x_zero);
  const Joining j = MakeJoin(rows * out, Uniform(0, 21));
  const float one = 1.0f;
  p.x = x.data(), p.x_scale = &one, p.w = blocks.data(), p.column_sums = sums.data();
  p.tail.fixed = numbers.data(), p.tail.fixed_stride = p.tiles() * kLanes, p.tail.rounding = rounding;
  p.tail.outer_stride = out;
  if (joins) p.tail.other = j.other.data(), p.tail.joins = j.numbers.data(), p.tail.join = j.join;
  Everywhere(p, rows * out, [&](int64_t i) {
    int64_t sum = 0;
    for (int64_t k = 0; k < length; ++k) sum += int64_t{x[i / out * length + k] - p.x_zero} * w[k * out + i % out];
    const int32_t code = Code(Wrapped(sum), numbers.data() + i % out, p.tail.fixed_stride, rounding);
    return joins ? Joined(code, j.other[i], j.numbers.data(), j.join, rounding) : code;
  });
}

// Windows of an image of one channel a group, channels last or first; what they are joined with, or nothing.
void TestDepthwise(int64_t channels, Rounding rounding, bool first, int64_t kernel, int64_t stride, int64_t width) {
  Conv c;
  c.batch = 2, c.height = 5, c.width = width, c.channels = c.out = c.groups = channels;
  c.kernel_height = c.kernel_width = kernel, c.stride_height = c.stride_width = stride;
  c.pad_top = Uniform(0, 2), c.pad_left = Uniform(0, 2);
  c.out_height = (5 + 3 - kernel) / stride + 1, c.out_width = (width + 3 - kernel) / stride + 1;  // 3 of padding in all, uneven
  c.depthwise = true, c.x_type = Type::kS8, c.x_channels_first = first, c.x_zero = Uniform(-128, 127);
  const int64_t inside = 5 * width, positions = c.out_height * c.out_width, tiles = CeilDivide(channels, kLanes);
  const int64_t count = c.batch * positions * channels;
  std::vector<int8_t> x(c.batch * inside * channels), taps(kernel * kernel * channels);
  for (int8_t& each : x) each = static_cast<int8_t>(Uniform(-128, 127));
  for (int8_t& each : taps) each = static_cast<int8_t>(Uniform(-128, 127));
  const std::vector<int32_t> numbers = Numbers(tiles, kernel * kernel, c.x_zero);
  const Joining j = MakeJoin(count, Uniform(0, 21));
  const bool joins = Uniform(0, 1) == 1;
  c.x = x.data(), c.taps = taps.data(), c.w = reinterpret_cast<const uint8_t*>(taps.data());
  Tail& t = c.tail;
  t.fixed = numbers.data(), t.fixed_stride = tiles * kLanes, t.rounding = rounding;
  if (joins) t.other = j.other.data(), t.joins = j.numbers.data(), t.join = j.join;
  t.inner = first ? positions : 1, t.outer_stride = first ? channels * positions : channels;
  t.row_stride = first ? 1 : 0, t.channel_stride = first ? positions : 1;
  auto at = [&](int64_t b, int64_t p, int64_t n) { return first ? (b * channels + n) * inside + p : (b * inside + p) * channels + n; };
  Everywhere(c, count, [&](int64_t i) {
    const int64_t b = i / (positions * channels);
    const int64_t n = first ? i / positions % channels : i % channels, p = first ? i % positions : i / channels % positions;
    int32_t sum = 0;
    for (int64_t tap = 0; tap < kernel * kernel; ++tap) {
      const int64_t h = p / c.out_width * stride + tap / kernel - c.pad_top, v = p % c.out_width * stride + tap % kernel - c.pad_left;
      if (h < 0 || h >= 5 || v < 0 || v >= width) continue;
      sum += (x[at(b, h * width + v, n)] - c.x_zero) * taps[tap * channels + n];
    }
    const int32_t code = Code(sum, numbers.data() + n, t.fixed_stride, rounding);
    return joins ? Joined(code, j.other[i], j.numbers.data(), j.join, rounding) : code;
  });
}

}  // namespace

int main() {
  for (int r = 0; r < kRoundings; ++r) {
    const Rounding rounding = static_cast<Rounding>(r);
    for (bool joins : {false, true}) {
      TestMatmul(1, 16, 16, rounding, joins);
      TestMatmul(13, 37, 50, rounding, joins);
      TestMatmul(40, 300, 33, rounding, joins);
    }
    for (int64_t kernel : {1, 3, 5}) {
      for (int64_t stride : {1, 2}) {
        for (int64_t width : {5, 13}) {
          TestDepthwise(21, rounding, false, kernel, stride, width), TestDepthwise(32, rounding, true, kernel, stride, width);
        }
      }
    }
  }
  std::printf("all passed\n");
  return 0;
}
