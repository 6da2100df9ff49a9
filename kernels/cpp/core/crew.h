// Threads that stay awake for a moment after their work: the calls of a network follow one another within microseconds, and
// waking a thread that sleeps costs its caller some 20, twice that until it runs.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "core/parallel.h"

namespace lowbit {

// A pool whose threads look for work for some time before they sleep, yielding to whatever else runs on their core.
class Crew : public Pool {
 public:
  Crew() = default;
  explicit Crew(int64_t threads) { Grow(threads - 1); }
  ~Crew() override;
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  // That of the process, which is never destroyed: its threads end with it.
  static Crew& OfProcess();

  // Starts threads until there are so many.
  void Grow(int64_t workers);

  int64_t threads() const override { return count_.load(std::memory_order_relaxed) + 1; }
  bool is_warm() const override {
    return looking_.load(std::memory_order_relaxed) > 0 && waiting_.load(std::memory_order_relaxed) == 0;
  }
  // Drops the task where many wait already: in a forked process, which has no threads, nobody takes them.
  void Schedule(std::function<void()> task) override;

 private:
  void Work();

  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<std::function<void()>> tasks_;
  std::vector<std::thread> workers_;
  std::atomic<int64_t> count_{0}, waiting_{0}, looking_{0};  // workers, tasks, workers that look for one
  bool stop_ = false;
};

}  // namespace lowbit
