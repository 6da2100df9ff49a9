// The matmul: scratch size, and the run over a thread pool.
#pragma once

#include <cstddef>

#include "core/parallel.h"
#include "core/problem.h"

namespace lowbit {

// Bytes of scratch a matmul works in.
size_t ScratchBytes(const Matmul& p);

// Null, or what is wrong with the sizes. Pointers are not followed.
const char* Check(const Matmul& p);

// Computes y. `scratch` has ScratchBytes(p); `threads` limits the pool's, 0 takes all. The result of an integer
// activation does not depend on `isa` or `threads`: threads split rows and channels, never the sum.
void Run(Matmul p, void* scratch, Isa isa, Pool* pool, int64_t threads);

}  // namespace lowbit
