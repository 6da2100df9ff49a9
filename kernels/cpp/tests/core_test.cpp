// Unit tests of the core with plain asserts: every body this machine runs against a slow loop written out here, the
// thread splitting, and the float mode. Needs neither XLA nor Python; run under the sanitizers and under qemu-user.
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "core/conv.h"
#include "core/isa.h"
#include "core/matmul.h"
#include "core/parallel.h"
#include "core/view.h"
#include "pools.h"

using namespace lowbit;

namespace {

struct Case {
  int64_t rows, length, out, group;
  int bits;
  bool affine;
  Activation activation;
  int32_t x_zero, lo, hi;
};

struct Data {
  std::vector<float> x, scales, table;
  std::vector<uint8_t> codes, blocks;  // codes: (K, N), stored
  std::vector<int16_t> zeros;
  std::vector<int32_t> sums;
  float x_scale = 0.037f;
  Matmul p;
};

Data Make(const Case& c, unsigned seed) {
  Data d;
  std::mt19937 random(seed);
  Matmul& p = d.p;
  p.rows = c.rows, p.length = c.length, p.out = c.out, p.group = c.group, p.bits = c.bits;
  p.groups = (c.length + c.group - 1) / c.group;
  p.group_blocks = (c.group + p.span() - 1) / p.span();
  p.blocks = (p.groups - 1) * p.group_blocks + (c.length - (p.groups - 1) * c.group + p.span() - 1) / p.span();
  p.offset = 1 << (c.bits - 1);
  p.activation = c.activation, p.lo = c.lo, p.hi = c.hi, p.x_zero = c.x_zero;
  auto uniform = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  std::student_t_distribution<float> heavy(3);
  d.x.resize(c.rows * c.length);
  for (float& v : d.x) v = heavy(random);
  d.codes.resize(c.length * c.out);
  for (uint8_t& v : d.codes) v = static_cast<uint8_t>(uniform(0, (1 << c.bits) - 1));
  const int64_t tables = p.tiles() * p.groups * kLanes;
  d.scales.assign(tables, 0.0f), d.sums.assign(tables, 0), d.zeros.assign(tables, 0);
  d.blocks.assign(p.tiles() * p.blocks * kBlockBytes, 0);
  const int per = 8 / c.bits;
  for (int64_t n = 0; n < c.out; ++n) {
    for (int64_t g = 0; g < p.groups; ++g) {
      const int64_t at = (n / kLanes * p.groups + g) * kLanes + n % kLanes;
      d.scales[at] = heavy(random);
      d.zeros[at] = static_cast<int16_t>(uniform(0, (1 << c.bits) - 1));
      for (int64_t i = 0; i < p.group_size(g); ++i) {
        const uint8_t code = d.codes[(g * c.group + i) * c.out + n];
        d.sums[at] += code;
        const int64_t block = g * p.group_blocks + i / p.span(), k = i % p.span();
        d.blocks[(n / kLanes * p.blocks + block) * kBlockBytes + n % kLanes * 4 + k / per] |=
            static_cast<uint8_t>(code << (c.bits * (k % per)));
      }
    }
  }
  p.x = d.x.data(), p.x_scale = &d.x_scale, p.w = d.blocks.data(), p.scales = d.scales.data();
  p.column_sums = d.sums.data();
  if (c.affine) p.zeros = d.zeros.data();
  return d;
}

// The contract, written out for one element.
float Expected(const Data& d, int64_t m, int64_t n) {
  const Matmul& p = d.p;
  const float* x = d.x.data() + m * p.length;
  float scale = d.x_scale;
  int32_t zero = p.x_zero;
  if (p.activation == Activation::kDynamic) {
    float absmax = 0;
    for (int64_t k = 0; k < p.length; ++k) absmax = std::fmax(absmax, std::fabs(x[k]));
    scale = absmax * static_cast<float>(1.0 / 127.0), zero = 0;
  }
  const volatile float inverse = 1.0f / scale;
  volatile float total = 0;
  for (int64_t g = 0; g < p.groups; ++g) {
    const int64_t at = (n / kLanes * p.groups + g) * kLanes + n % kLanes;
    int64_t acc = 0;
    for (int64_t i = 0; i < p.group_size(g); ++i) {
      const int64_t k = g * p.group + i;
      float q = std::nearbyint(x[k] * inverse) + static_cast<float>(zero);
      q = std::fmin(std::fmax(q, static_cast<float>(p.lo)), static_cast<float>(p.hi));
      const int32_t w = d.codes[k * p.out + n] - (p.zeros ? d.zeros[at] : p.offset);
      acc += static_cast<int64_t>(static_cast<int32_t>(q) - zero) * w;
    }
    const volatile float product = static_cast<float>(static_cast<int32_t>(acc)) * d.scales[at];
    total = g == 0 ? product : total + product;
  }
  return total * scale;
}

void TestBodies(Pool* pool) {
  const Case cases[] = {
      {1, 64, 16, 32, 4, false, Activation::kDynamic, 0, -128, 127},
      {19, 100, 37, 44, 4, true, Activation::kDynamic, 0, -128, 127},
      {9, 70, 50, 70, 4, false, Activation::kStatic, 11, -128, 127},
      {3, 37, 5, 12, 2, true, Activation::kStatic, 130, 0, 255},
      {33, 96, 48, 96, 2, false, Activation::kDynamic, 0, -128, 127},
      {1, 513, 33, 513, 8, false, Activation::kDynamic, 0, -128, 127},
      {40, 200, 70, 72, 8, true, Activation::kStatic, 99, 0, 255},
      {17, 333, 90, 333, 8, false, Activation::kStatic, -5, -128, 127},
      {70, 256, 100, 128, 8, true, Activation::kStatic, 3, -8, 7},
      // What tiles take: groups in whole steps of 32 or 64, the last one short, and one group of fewer bits.
      {13, 192, 40, 32, 4, false, Activation::kDynamic, 0, -128, 127},
      {37, 300, 33, 64, 4, true, Activation::kStatic, 77, 0, 255},
      {50, 330, 47, 32, 4, false, Activation::kStatic, -9, -128, 127},
      {21, 500, 20, 96, 2, true, Activation::kDynamic, 0, -128, 127},
      {35, 333, 50, 333, 4, true, Activation::kStatic, 5, -128, 127},
      {100, 640, 80, 64, 8, false, Activation::kStatic, 40, -128, 127},
  };
  unsigned seed = 0;
  for (const Case& c : cases) {
    Data d = Make(c, ++seed);
    std::vector<float> expected(c.rows * c.out);
    for (int64_t m = 0; m < c.rows; ++m) {
      for (int64_t n = 0; n < c.out; ++n) expected[m * c.out + n] = Expected(d, m, n);
    }
    for (int i = 0; i < kIsaCount; ++i) {
      const Isa isa = static_cast<Isa>(i);
      if (!IsaSupported(isa)) continue;
      for (int64_t threads : {1, 3}) {
        Matmul p = d.p;
        EXPECT(Check(p) == nullptr);
        std::vector<uint8_t> scratch(ScratchBytes(p));
        std::vector<float> y(c.rows * c.out, NAN);
        p.tail.y = y.data(), p.tail.outer_stride = p.out;
        Run(p, scratch.data(), isa, pool, threads);
        for (size_t j = 0; j < y.size(); ++j) {
          if (y[j] != expected[j]) {
            std::fprintf(stderr, "%s, case %u, element %zu: %.9g, expected %.9g\n", IsaName(isa), seed, j, y[j], expected[j]);
            std::exit(1);
          }
        }
        if (threads == 1) std::printf("  case %u %s: %zu elements exact\n", seed, IsaName(isa), y.size());
      }
    }
  }
}

// `odd` puts numbers into x that are no sum of bfloat16 numbers: too small, and infinite where the expected sum is too.
void TestWeightOnly(Pool* pool, int64_t rows, int64_t length, int64_t group, bool odd) {
  for (int bits : {2, 4, 8}) {
    for (bool book : {false, true}) {
      Data d = Make({rows, length, 21, group, bits, !book && bits != 2, Activation::kFloat, 0, -128, 127}, 77);
      for (size_t i = 0; odd && i < d.x.size(); i += 7) d.x[i] *= 1e-33f;
      if (odd) d.x[d.x.size() - 1] = INFINITY;
      std::vector<float> table(1 << bits);
      for (size_t i = 0; i < table.size(); ++i) table[i] = std::sin(static_cast<float>(i));
      Matmul& p = d.p;
      if (book) p.codebook = table.data();
      for (int i = 0; i < kIsaCount; ++i) {
        const Isa isa = static_cast<Isa>(i);
        if (!IsaSupported(isa)) continue;
        std::vector<uint8_t> scratch(ScratchBytes(p));
        std::vector<float> y(p.rows * p.out, NAN);
        p.tail.y = y.data(), p.tail.outer_stride = p.out;
        Run(p, scratch.data(), isa, pool, 2);
        for (int64_t m = 0; m < p.rows; ++m) {
          for (int64_t n = 0; n < p.out; ++n) {
            double sum = 0, magnitude = 0;
            for (int64_t k = 0; k < p.length; ++k) {
              const int64_t at = (n / kLanes * p.groups + k / p.group) * kLanes + n % kLanes;
              const int code = d.codes[k * p.out + n];
              const double level = book ? table[code] : code - (p.zeros ? d.zeros[at] : p.offset);
              const double term = static_cast<double>(d.x[m * p.length + k]) * level * d.scales[at];
              sum += term, magnitude += std::fabs(term);
            }
            if (!std::isfinite(sum)) {
              EXPECT(std::isnan(sum) ? std::isnan(y[m * p.out + n]) : y[m * p.out + n] == static_cast<float>(sum));
              continue;
            }
            // 4 eps sqrt(K) of the sum of magnitudes
            EXPECT(std::fabs(y[m * p.out + n] - sum) <= 4 * 1.2e-7 * std::sqrt(static_cast<double>(length)) * magnitude + 1e-30);
          }
        }
      }
    }
  }
}

// The largest codes there are, of either sign, over more inputs than any body sums in fewer bits than 32.
void TestExtremes(Pool* pool) {
  for (int bits : {2, 4, 8}) {
    for (int top : {0, 1}) {
      Matmul p;
      p.rows = 6, p.length = p.group = 1040, p.out = 16, p.groups = 1, p.bits = bits, p.offset = 1 << (bits - 1);
      p.blocks = p.group_blocks = CeilDivide(p.length, p.span());
      p.activation = Activation::kStatic, p.x_type = Type::kS8;
      const int32_t x_code = top == 0 ? -128 : 127, code = top == 0 ? p.offset - 1 : -p.offset;
      std::vector<int8_t> x(p.rows * p.length, static_cast<int8_t>(x_code));
      std::vector<uint8_t> w(p.blocks * kBlockBytes, top == 0 ? 0xff : 0x00);
      const std::vector<float> scales(kLanes, 1.0f);
      const std::vector<int32_t> sums(kLanes, static_cast<int32_t>((code + p.offset) * p.length));
      const float x_scale = 1.0f;
      p.x = x.data(), p.w = w.data(), p.scales = scales.data(), p.column_sums = sums.data(), p.x_scale = &x_scale;
      for (int i = 0; i < kIsaCount; ++i) {
        if (!IsaSupported(static_cast<Isa>(i))) continue;
        std::vector<uint8_t> scratch(ScratchBytes(p));
        std::vector<float> y(p.rows * p.out, NAN);
        p.tail.y = y.data(), p.tail.outer_stride = p.out;
        EXPECT(Check(p) == nullptr);
        Run(p, scratch.data(), static_cast<Isa>(i), pool, 1);
        for (float each : y) EXPECT(each == static_cast<float>(x_code * code * p.length));
      }
    }
  }
}

// A convolution of small integers: x on a grid of step 1 is its own code, so the expected sums are exact.
void TestConv(Pool* pool) {
  // Few images and many, of five channels and of one; and of so many that a body takes them 64 inputs at a time.
  for (int kind = 0; kind < 10; ++kind) {
    const bool depthwise = kind % 2 == 1 && kind < 6, wide = kind >= 6;
    Conv c;
    c.batch = kind < 2 || wide ? 2 : 9, c.height = 6, c.width = 7, c.channels = wide ? 40 : kind < 4 ? 5 : 1;
    c.out = depthwise ? c.channels : 19, c.kernel_height = 3, c.kernel_width = 2, c.stride_height = wide ? 1 : 2, c.dilation_width = 2, c.pad_top = 1, c.pad_left = 1;
    c.out_height = wide ? 5 : 3, c.out_width = 6, c.depthwise = depthwise, c.offset = 128, c.x_zero = 4;
    if (kind > 6) c.dilation_width = 1, c.out_width = 7;
    if (kind > 7) c.width = 41, c.stride_width = kind == 8 ? 2 : 1, c.out_width = kind == 8 ? 21 : 41;
    const int64_t tap = c.channels, tiles = (c.out + kLanes - 1) / kLanes, inputs = depthwise ? 1 : c.channels;
    std::mt19937 random(5);
    auto uniform = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
    std::vector<float> x(c.batch * c.height * c.width * c.channels), scales(tiles * kLanes, 1.0f);
    for (float& v : x) v = static_cast<float>(uniform(-100, 100));
    std::vector<int8_t> codes(c.taps_count() * inputs * c.out);
    for (int8_t& v : codes) v = static_cast<int8_t>(uniform(-128, 127));
    const int64_t blocks = c.blocks();
    std::vector<uint8_t> w(tiles * blocks * kBlockBytes, 77);  // padded inputs meet code 0: any weight will do
    std::vector<int32_t> sums(tiles * kLanes, 0);
    for (int64_t t = 0; t < c.taps_count() && !depthwise; ++t) {
      for (int64_t k = 0; k < inputs; ++k) {
        for (int64_t n = 0; n < c.out; ++n) {
          const int stored = codes[(t * inputs + k) * c.out + n] + 128;
          const int64_t row = t * tap + k;
          w[(n / kLanes * blocks + row / 4) * kBlockBytes + n % kLanes * 4 + row % 4] = static_cast<uint8_t>(stored);
          sums[n] += stored;
        }
      }
    }
    c.x = x.data(), c.w = w.data(), c.taps = codes.data(), c.scales = scales.data(), c.sums = sums.data();
    EXPECT(Check(c) == nullptr);
    for (int i = 0; i < kIsaCount; ++i) {
      if (!IsaSupported(static_cast<Isa>(i))) continue;
      std::vector<uint8_t> scratch(ScratchBytes(c));
      std::vector<float> y(c.batch * c.out_height * c.out_width * c.out, NAN);
      c.tail.y = y.data(), c.tail.outer_stride = c.out;
      Run(c, scratch.data(), static_cast<Isa>(i), pool, 2);
      size_t at = 0;
      for (int64_t b = 0; b < c.batch; ++b) {
        for (int64_t p = 0; p < c.out_height * c.out_width; ++p) {
          for (int64_t n = 0; n < c.out; ++n, ++at) {
            double sum = 0;
            for (int64_t t = 0; t < c.taps_count(); ++t) {
              const int64_t h = p / c.out_width * c.stride_height + t / 2 - 1;
              const int64_t v = p % c.out_width * c.stride_width + t % 2 * c.dilation_width - 1;
              if (h < 0 || h >= c.height || v < 0 || v >= c.width) continue;
              for (int64_t k = 0; k < inputs; ++k) {
                const int64_t channel = depthwise ? n : k;
                sum += x[((b * c.height + h) * c.width + v) * c.channels + channel] * codes[(t * inputs + k) * c.out + n];
              }
            }
            EXPECT(y[at] == static_cast<float>(sum));
          }
        }
      }
    }
  }
}

void TestFlush() {
  volatile float tiny = 1e-38f;
  EXPECT(tiny * 0.1f != 0.0f);
  {
    ScopedFlushSubnormals flush;
    volatile float flushed = tiny * 0.1f;
    EXPECT(flushed == 0.0f);
  }
  EXPECT(tiny * 0.1f != 0.0f);
}

}  // namespace

int main() {
  std::printf("best instruction set: %s\n", IsaName(BestIsa()));
  TestFlush();
  Workers pool(3);
  TestBodies(&pool);
  TestWeightOnly(&pool, 7, 90, 40, false);
  TestWeightOnly(&pool, 50, 1100, 96, false);  // in tiles, of weights unpacked in two parts
  TestWeightOnly(&pool, 20, 70, 70, true);
  TestExtremes(&pool);
  TestConv(&pool);
  std::printf("all passed\n");
  return 0;
}
