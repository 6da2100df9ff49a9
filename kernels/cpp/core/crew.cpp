#include "core/crew.h"

#include <chrono>

namespace lowbit {
namespace {

constexpr std::chrono::microseconds kLooks{50};  // longer than what lies between two calls of a network
constexpr int kPauses = 32;                       // between two looks at the clock, some 2 us

}  // namespace

Crew& Crew::OfProcess() {
  static Crew* crew = new Crew;
  return *crew;
}

Crew::~Crew() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    waiting_.store(1, std::memory_order_relaxed);
  }
  ready_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void Crew::Grow(int64_t workers) {
  if (count_.load(std::memory_order_relaxed) >= workers) return;
  std::lock_guard<std::mutex> lock(mutex_);
  while (static_cast<int64_t>(workers_.size()) < workers) workers_.emplace_back([this] { Work(); });
  count_.store(static_cast<int64_t>(workers_.size()), std::memory_order_relaxed);
}

void Crew::Schedule(std::function<void()> task) {
  bool wakes;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (tasks_.size() >= 4 * workers_.size()) return;
    tasks_.push_back(std::move(task));
    const auto size = static_cast<int64_t>(tasks_.size());
    waiting_.store(size, std::memory_order_release);
    wakes = size > looking_.load(std::memory_order_relaxed);
  }
  if (wakes) ready_.notify_one();
}

void Crew::Work() {
  for (;;) {
    looking_.fetch_add(1, std::memory_order_relaxed);
    const auto until = std::chrono::steady_clock::now() + kLooks;
    for (int i = 1; waiting_.load(std::memory_order_acquire) == 0; ++i) {
      Pause();
      if (i % kPauses != 0) continue;
      if (std::chrono::steady_clock::now() > until) break;
      std::this_thread::yield();
    }
    looking_.fetch_sub(1, std::memory_order_relaxed);
    std::function<void()> task;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      ready_.wait(lock, [this] { return stop_ || !tasks_.empty(); });
      if (stop_) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
      waiting_.store(static_cast<int64_t>(tasks_.size()), std::memory_order_relaxed);
    }
    task();
  }
}

}  // namespace lowbit
