// The matmul: scratch size, and the run over a thread pool.
#pragma once

#include <cstddef>

#include "core/parallel.h"
#include "core/problem.h"

namespace lowbit {

// Bytes of scratch a matmul works in, kTooLarge (view.h) where they do not fit in 64 bits.
int64_t ScratchBytes(const Matmul& p);

// `scratch` moved up to where it is aligned: scratch has 64 bytes for that.
inline uint8_t* Aligned(void* scratch) {
  return reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(scratch) + 63) / 64 * 64);
}

// Null, or what is wrong with the range of codes, or with codes of this type on it.
const char* CheckGrid(int64_t lo, int64_t hi, Type type);

// Null, or what is wrong with the sizes. Pointers are not followed.
const char* Check(const Matmul& p);

// Computes y, and leaves in `p` where its scratch lies. `scratch` has ScratchBytes(p); `threads` limits the pool's, 0 takes all. The result of an integer
// activation does not depend on `isa` or `threads`: threads split rows and channels, never the sum.
void Run(Matmul& p, void* scratch, Isa isa, Pool* pool, int64_t threads);

}  // namespace lowbit
