// Instruction sets: which bodies exist, which this machine runs, and the float mode they share.
#pragma once

#include <cstdint>

namespace lowbit {

// Order and numbers are shared with lowbit_kernels/cpu/library.py. Best first.
enum class Isa : int { kAmx = 0, kAvx512Vnni = 1, kAvxVnni = 2, kAvx2 = 3, kNeon = 4, kScalar = 5 };
constexpr int kIsaCount = 6;

const char* IsaName(Isa isa);

// True where this machine and operating system run the body. Asks Linux for the AMX tiles once.
bool IsaSupported(Isa isa);

// The best supported one.
Isa BestIsa();

// Flushes float32 subnormals to zero while it lives, as XLA's own CPU code does: without this a kernel on one of our
// threads and the reference compiled by XLA would differ on subnormal products.
class ScopedFlushSubnormals {
 public:
  ScopedFlushSubnormals();
  ~ScopedFlushSubnormals();
  ScopedFlushSubnormals(const ScopedFlushSubnormals&) = delete;
  ScopedFlushSubnormals& operator=(const ScopedFlushSubnormals&) = delete;

 private:
  uint64_t saved_;
};

}  // namespace lowbit
