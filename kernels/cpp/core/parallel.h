// Splitting work over a thread pool that others use too, without ever waiting for a task that has not started.
#pragma once

#include <atomic>
#include <chrono>
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
};

inline void Pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Chunks of work behind an atomic counter, each taken once.
struct Chunks {
  std::atomic<int64_t> next{0}, done{0};
  int64_t count = 0;
  const void* fn = nullptr;  // read only after taking a chunk: the caller is still here then
  void (*run)(const void*, int64_t) = nullptr;

  void Drain() {
    for (;;) {
      const int64_t i = next.fetch_add(1, std::memory_order_relaxed);
      if (i >= count) return;
      run(fn, i);
      done.fetch_add(1, std::memory_order_release);
    }
  }
};

// Threads that have just worked wait in seats for the next call, for some microseconds: to wake one that sleeps takes its caller
// 20 and itself 45 on a virtual machine, as long as many a layer computes. None is kept from its pool for longer than that.
class Seats {
 public:
  static constexpr std::chrono::microseconds kPatience{100};

  static Seats& Get() {
    static Seats* const seats = new Seats;  // threads may outlive what is destroyed at exit
    return *seats;
  }

  // How many threads wait.
  int64_t waiting() const { return waiting_.load(std::memory_order_relaxed); }

  // Hands `chunks` to a thread that waits; whether there was one.
  bool Offer(const std::shared_ptr<Chunks>& chunks) {
    if (waiting() == 0) return false;
    for (Seat& seat : seats_) {
      int expected = kWaiting;
      if (seat.state.load(std::memory_order_relaxed) != kWaiting) continue;
      if (!seat.state.compare_exchange_strong(expected, kTaken, std::memory_order_acquire)) continue;
      waiting_.fetch_sub(1, std::memory_order_relaxed);
      seat.chunks = chunks;
      seat.state.store(kOffered, std::memory_order_release);
      return true;
    }
    return false;
  }

  // What a thread of a pool does after its chunks; it returns at once where every seat is taken.
  void Wait() {
    for (Seat& seat : seats_) {
      int expected = kEmpty;
      if (seat.state.load(std::memory_order_relaxed) != kEmpty) continue;
      if (!seat.state.compare_exchange_strong(expected, kTaken, std::memory_order_acquire)) continue;
      while (Await(seat)) {
        seat.chunks->Drain();
        seat.chunks.reset();
      }
      return;
    }
  }

 private:
  enum : int { kEmpty, kTaken, kWaiting, kOffered };
  struct alignas(64) Seat {
    std::atomic<int> state{kEmpty};
    std::shared_ptr<Chunks> chunks;  // of whoever took the seat
  };
  static constexpr int kSeats = 16;

  // Whether chunks came before the thread's patience ended; if not, the seat is left.
  bool Await(Seat& seat) {
    seat.state.store(kWaiting, std::memory_order_release);
    waiting_.fetch_add(1, std::memory_order_relaxed);
    const auto end = std::chrono::steady_clock::now() + kPatience;
    for (;;) {
      for (int spins = 0; spins < 16; ++spins) {
        if (seat.state.load(std::memory_order_acquire) == kOffered) return true;
        Pause();
      }
      if (std::chrono::steady_clock::now() < end) {
        std::this_thread::yield();  // to whoever else wants this core
        continue;
      }
      int expected = kWaiting;
      if (!seat.state.compare_exchange_strong(expected, kEmpty, std::memory_order_release)) continue;
      waiting_.fetch_sub(1, std::memory_order_relaxed);
      return false;
    }
  }

  Seat seats_[kSeats];
  std::atomic<int64_t> waiting_{0};
};

// Threads for work of so many cycles or the like: all, where it is worth waking one; those that wait already, down to an eighth of that.
inline int64_t ThreadsFor(double work, double worth_waking, int64_t threads) {
  if (work >= worth_waking) return threads;
  if (threads <= 1 || 8 * work < worth_waking) return 1;
  const int64_t there = Seats::Get().waiting() + 1;
  return threads < there ? threads : there;
}

// Calls fn(0) .. fn(count - 1), each once, on this thread and on up to `threads - 1` others.
//
// The caller takes chunks like everybody else until none is left, and then waits only for chunks that a running worker has
// already taken. A worker that starts late finds nothing and leaves, touching only `chunks`, which it keeps alive. So the call
// ends even if no worker ever runs: it cannot deadlock in a busy pool.
template <typename Fn>
void ParallelFor(Pool* pool, int64_t threads, int64_t count, const Fn& fn) {
  if (threads > count) threads = count;
  if (pool == nullptr || threads <= 1) {
    for (int64_t i = 0; i < count; ++i) fn(i);
    return;
  }
  auto chunks = std::make_shared<Chunks>();
  chunks->count = count;
  chunks->fn = &fn;
  chunks->run = [](const void* f, int64_t i) { (*static_cast<const Fn*>(f))(i); };
  int64_t others = threads - 1;
  while (others > 0 && Seats::Get().Offer(chunks)) --others;
  for (; others > 0; --others) {
    pool->Schedule([chunks] {
      chunks->Drain();
      Seats::Get().Wait();
    });
  }
  chunks->Drain();
  for (int spins = 0; chunks->done.load(std::memory_order_acquire) < count; ++spins) {
    if (spins < 2000) {
      Pause();
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace lowbit
