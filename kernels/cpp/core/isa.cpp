#include "core/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace lowbit {
namespace {

#if defined(__x86_64__)
bool CpuidBit(unsigned leaf, unsigned subleaf, int reg, int bit) {
  unsigned r[4] = {0, 0, 0, 0};
  if (!__get_cpuid_count(leaf, subleaf, &r[0], &r[1], &r[2], &r[3])) return false;
  return (r[reg] >> bit) & 1;
}

bool Avx512() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

bool Avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && CpuidBit(1, 0, 2, 29);  // f16c
}

bool Amx() {
#if defined(__linux__)
  if (!Avx512() || !CpuidBit(7, 0, 3, 22) || !CpuidBit(7, 0, 3, 24) || !CpuidBit(7, 0, 3, 25)) return false;  // amx-bf16, -tile, -int8
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

bool Detect(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return true;
#if defined(__x86_64__)
    case Isa::kAmx:
      return Amx();
    case Isa::kAvx512Vnni:
      return Avx512();
    case Isa::kAvxVnni:
      return Avx2() && CpuidBit(7, 1, 0, 4);
    case Isa::kAvx2:
      return Avx2();
#endif
#if defined(__aarch64__)
    case Isa::kNeon:
#if defined(__linux__)
      return getauxval(AT_HWCAP) & (1ul << 20);  // asimddp, the dot product
#else
      return true;
#endif
#endif
    default:
      return false;
  }
}

}  // namespace

const char* IsaName(Isa isa) {
  static const char* const names[kIsaCount] = {"amx", "avx512vnni", "avxvnni", "avx2", "neon", "scalar"};
  return names[static_cast<int>(isa)];
}

bool IsaSupported(Isa isa) {
  struct Table {
    bool supported[kIsaCount];
    Table() {
      for (int i = 0; i < kIsaCount; ++i) supported[i] = Detect(static_cast<Isa>(i));
    }
  };
  static const Table table;
  return table.supported[static_cast<int>(isa)];
}

Isa BestIsa() {
  for (int i = 0; i < kIsaCount; ++i) {
    if (IsaSupported(static_cast<Isa>(i))) return static_cast<Isa>(i);
  }
  return Isa::kScalar;
}

#if defined(__x86_64__)
ScopedFlushSubnormals::ScopedFlushSubnormals() : saved_(_mm_getcsr()) {
  if ((saved_ & 0x8040) != 0x8040) _mm_setcsr(static_cast<unsigned>(saved_) | 0x8040);  // FTZ, DAZ: XLA's threads have both
}
ScopedFlushSubnormals::~ScopedFlushSubnormals() {
  if ((saved_ & 0x8040) != 0x8040) _mm_setcsr(static_cast<unsigned>(saved_));
}
#elif defined(__aarch64__)
ScopedFlushSubnormals::ScopedFlushSubnormals() {
  asm volatile("mrs %0, fpcr" : "=r"(saved_));
  asm volatile("msr fpcr, %0" ::"r"(saved_ | (1ull << 24)));  // FZ
}
ScopedFlushSubnormals::~ScopedFlushSubnormals() { asm volatile("msr fpcr, %0" ::"r"(saved_)); }
#else
ScopedFlushSubnormals::ScopedFlushSubnormals() : saved_(0) {}
ScopedFlushSubnormals::~ScopedFlushSubnormals() {}
#endif

}  // namespace lowbit
