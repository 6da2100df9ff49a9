// Measurements of the machine that the benchmark states its numbers against. Plain C symbols, called by ctypes.
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include "core/isa.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <typename Fn>
double OnThreads(int threads, const Fn& fn) {
  const double start = Seconds();
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(fn, t);
  fn(0);
  for (auto& thread : others) thread.join();
  return Seconds() - start;
}

volatile uint64_t sink;

}  // namespace

// Seconds to read `bytes` at `data` once with `threads` threads.
extern "C" double lowbit_probe_read(const uint64_t* data, int64_t bytes, int threads) {
  const int64_t words = bytes / 8 / threads / 32 * 32;
  return OnThreads(threads, [=](int t) {
    const uint64_t* p = data + t * words;
    uint64_t sums[32] = {};
    for (int64_t i = 0; i < words; i += 32) {
      for (int j = 0; j < 32; ++j) sums[j] ^= p[i + j];
    }
    uint64_t sum = 0;
    for (uint64_t each : sums) sum ^= each;
    sink = sum;
  });
}

// Seconds for `count` rounds of 16 independent 512-bit VNNI dot products (1024 multiply-adds) on each thread, or -1.
#if defined(__x86_64__)
__attribute__((target("avx512f,avx512vnni"))) static void DotLoop(int64_t count) {
  __m512i acc[16], a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(2);
  for (auto& each : acc) each = _mm512_setzero_si512();
  for (int64_t i = 0; i < count; ++i) {
#pragma GCC unroll 16
    for (auto& each : acc) asm volatile("vpdpbusd %2, %1, %0" : "+v"(each) : "v"(a), "v"(b));
  }
  sink = static_cast<uint64_t>(_mm512_reduce_add_epi32(acc[0]));
}
#endif

// Seconds for `count` rounds of four independent AMX products of 16 x 64 x 16 codes (65536 multiply-adds) on each thread, or -1.
#if defined(__x86_64__)
static void TileLoop(int64_t count) {
  struct alignas(64) {
    uint8_t palette = 1, rest[15] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  for (int i = 0; i < 8; ++i) config.bytes[i] = 64, config.rows[i] = 16;
  asm volatile("ldtilecfg %0" : : "m"(config) : "memory");
  for (int64_t i = 0; i < count; ++i) {
    asm volatile("tdpbssd %tmm6, %tmm4, %tmm0\n\ttdpbssd %tmm7, %tmm4, %tmm1\n\t"
                 "tdpbssd %tmm6, %tmm5, %tmm2\n\ttdpbssd %tmm7, %tmm5, %tmm3");
  }
  asm volatile("tilerelease");
}
#endif

extern "C" double lowbit_probe_amx(int64_t count, int threads) {
#if defined(__x86_64__)
  if (lowbit::IsaSupported(lowbit::Isa::kAmx)) return OnThreads(threads, [=](int) { TileLoop(count); });
#endif
  return static_cast<double>(count < 0 && threads < 0) - 1.0;
}

extern "C" double lowbit_probe_vnni(int64_t count, int threads) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512vnni")) return OnThreads(threads, [=](int) { DotLoop(count); });
#endif
  return static_cast<double>(count < 0 && threads < 0) - 1.0;
}
