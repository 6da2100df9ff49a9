// Splitting work over a thread pool that others use too, without ever waiting for a task that has not started.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lowbit {

// What the kernels need of a pool. XLA's is one; the unit tests bring their own.
class Pool {
 public:
  virtual ~Pool() = default;
  virtual int64_t threads() const = 0;
  virtual void Schedule(std::function<void()> task) = 0;
  // Whether a thread is awake and takes a task at once.
  virtual bool is_warm() const { return false; }
};

// A moment of a loop that waits.
inline void Pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Threads for work of so many cycles, or nearly: one where it is less than what handing over a part of it costs, which of a
// thread that sleeps is `asleep` cycles.
inline int64_t ThreadsFor(const Pool* pool, int64_t threads, double cycles, double asleep) {
  constexpr double kAwake = 1 << 13;
  return pool == nullptr || cycles < (pool->is_warm() ? kAwake : asleep) ? 1 : threads;
}

// Calls fn(0) .. fn(count - 1), each once, on this thread and on up to `threads - 1` others.
//
// Chunks lie behind an atomic counter. The caller takes chunks like everybody else until none is left, and then waits
// only for chunks that a running worker has already taken. A worker that starts late finds nothing and leaves, touching
// only `state`, which it keeps alive. So the call ends even if no worker ever runs: it cannot deadlock in a busy pool.
template <typename Fn>
void ParallelFor(Pool* pool, int64_t threads, int64_t count, const Fn& fn) {
  if (threads > count) threads = count;
  if (pool == nullptr || threads <= 1) {
    for (int64_t i = 0; i < count; ++i) fn(i);
    return;
  }
  struct State {
    std::atomic<int64_t> next{0};
    std::atomic<int64_t> done{0};
    int64_t count;
    const Fn* fn;  // read only after taking a chunk: the caller is still here then
  };
  auto state = std::make_shared<State>();
  state->count = count;
  state->fn = &fn;
  auto drain = [](State& s) {
    for (;;) {
      const int64_t i = s.next.fetch_add(1, std::memory_order_relaxed);
      if (i >= s.count) return;
      (*s.fn)(i);
      s.done.fetch_add(1, std::memory_order_release);
    }
  };
  for (int64_t t = 1; t < threads; ++t) {
    pool->Schedule([state, drain] { drain(*state); });
  }
  drain(*state);
  for (int spins = 0; state->done.load(std::memory_order_acquire) < count; ++spins) {
    if (spins < 2000) {
      Pause();
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace lowbit
