// A hundred thousand requests with 20 % aborts through an engine, alone and behind its thread: no block, sequence, thread, file
// descriptor or memory is left over.

#include "support/sim_device.hpp"
#include "support/sim_requests.hpp"

#include <nvl/engine/async_engine.hpp>
#include <nvl/sched/swap_preemption.hpp>
#include <nvl/sched/token_budget_scheduler.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <future>
#include <iterator>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

namespace soak_test {

using namespace nvl;
using namespace nvl_test;

namespace {

std::ptrdiff_t entries_of(const char* folder) {
  const std::filesystem::directory_iterator first(folder);
  return std::distance(begin(first), end(first));
}
std::ptrdiff_t num_threads() { return entries_of("/proc/self/task"); }
std::ptrdiff_t num_files() { return entries_of("/proc/self/fd"); }

/// [bytes] of resident memory
double resident() {
  std::ifstream file("/proc/self/statm");
  double total = 0, pages = 0;
  file >> total >> pages;
  return pages * static_cast<double>(::sysconf(_SC_PAGESIZE));
}

/// Least-squares slope of the last half of `samples`, per sample: the first half warms up.
double slope(const std::vector<double>& samples) {
  const std::size_t first = samples.size() / 2;
  const auto n = static_cast<double>(samples.size() - first);
  double mean_x = 0, mean_y = 0, xy = 0, xx = 0;
  for (std::size_t i = first; i < samples.size(); ++i) {
    mean_x += static_cast<double>(i) / n;
    mean_y += samples[i] / n;
  }
  for (std::size_t i = first; i < samples.size(); ++i) {
    const double x = static_cast<double>(i) - mean_x;
    xy += x * (samples[i] - mean_y);
    xx += x * x;
  }
  return xy / xx;
}

/// One in `share` requests is made long enough to be aborted before it ends.
bool doom(Request& request, std::mt19937& random, unsigned share) {
  if (random() % share != 0) { return false; }
  request.sampling.ignore_eos = true;
  request.sampling.stop_token_ids.clear();
  request.sampling.max_tokens = 30;
  return true;
}

template <class Engine>
void check_that_nothing_is_left(const Engine& engine, int num_requests) {
  const EngineStats stats = engine.stats();
  CHECK(stats.num_submitted == static_cast<std::uint64_t>(num_requests));
  CHECK(stats.num_free_blocks == stats.num_blocks);
  CHECK(stats.num_free_host_blocks == stats.num_host_blocks);
  CHECK(stats.num_waiting + stats.num_running + stats.num_queued == 0);
  CHECK(stats.queued_tokens == 0);
  std::uint64_t num_finished = 0;
  for (const std::uint64_t count : stats.num_finished) { num_finished += count; }
  CHECK(num_finished == stats.num_submitted);
  CHECK(stats.num_preemptions > 0);
}

template <class Engine>
void soak(int num_requests, bool check_memory) {
  const std::ptrdiff_t files = num_files();
  Engine engine(sim_config(), sim_weights(), sim_options(30, 20));
  std::mt19937 random(1);
  Ledger ledger;
  std::vector<double> memory;
  const int interval = std::max(num_requests / 100, 1);
  for (int num_submitted = 0; num_submitted < num_requests || engine.has_work();) {
    while (num_submitted < num_requests && ledger.open.size() < 24) {
      Request request = random_request(random);
      const bool is_doomed = doom(request, random, 5);
      RequestCallbacks callbacks = ledger.callbacks();
      if (is_doomed) {  // at one of the first tokens
        const auto last = static_cast<std::int32_t>(1 + random() % 8);
        callbacks.on_token = [&engine, last, num_tokens = 0](const TokenEvent& event) mutable {
          if (++num_tokens == last) { engine.abort(event.request); }
        };
      }
      const RequestId id = engine.submit(request, std::move(callbacks));
      ledger.open.emplace(id, std::move(request));
      if (is_doomed && random() % 4 == 0) { engine.abort(id); }
      if (++num_submitted % interval == 0) { memory.push_back(resident()); }
    }
    engine.step();
  }
  CHECK(ledger.wrong.empty());
  CHECK(ledger.num_ended == num_requests);
  CHECK(ledger.num_aborted > num_requests * 18 / 100);
  check_that_nothing_is_left(engine, num_requests);
  CHECK(num_files() == files);
  if (check_memory) {
    const double per_request = slope(memory) / interval;
    std::printf("memory of %d requests: %.3f MiB per 10,000 in the last half\n", num_requests, per_request * 1e4 / (1 << 20));
    CHECK(per_request * 1e4 < (1 << 20));
  }
}

/// The same from four threads, by callbacks, futures and streams, with aborts from anywhere.
template <class Engine>
void soak_async(int num_requests, bool check_memory) {
  using namespace std::chrono_literals;
  std::thread([] {}).join();  // the first thread may start one that the system or a sanitizer keeps
  const std::ptrdiff_t files = num_files(), threads_before = num_threads();
  std::atomic<int> num_wrong{0}, num_aborted{0}, num_ended{0}, num_refused{0};
  std::vector<double> memory;
  constexpr int num_clients = 4;
  {
    AsyncEngine engine(std::make_unique<Engine>(sim_config(), sim_weights(), sim_options(30, 20)), {.max_num_queued_reqs = 16});
    const auto judge = [&](const Request& request, const Completion& done) {
      const bool is_aborted = was_aborted(done);
      num_wrong += is_right(request, done) && (is_aborted || done.error.empty()) ? 0 : 1;
      num_aborted += is_aborted ? 1 : 0;
      const int ended = ++num_ended;
      if (ended % std::max(num_requests / 100, 1) == 0) {
        static std::mutex mutex;
        const std::lock_guard lock(mutex);
        memory.push_back(resident());
      }
    };
    const auto accepted = [&](auto&& submit) {
      while (true) {
        if (auto answer = submit()) { return answer; }
        ++num_refused;
        std::this_thread::yield();
      }
    };
    std::vector<std::thread> clients;
    for (int c = 0; c < num_clients; ++c) {
      clients.emplace_back([&, c] {
        std::mt19937 random(static_cast<unsigned>(c));
        for (int i = 0; i < num_requests / num_clients; ++i) {
          Request request = random_request(random);
          const bool is_doomed = doom(request, random, 4);  // some aborts come too late
          const auto how = random() % 8;
          if (how == 0) {
            auto answer = accepted([&] { return engine.submit_for_result(request); });
            if (is_doomed) { engine.abort(answer.request); }
            judge(request, answer.completion.get());
          } else if (how == 1) {
            auto answer = accepted([&] { return engine.submit_for_stream(request); });
            std::vector<TokenId> tokens;
            while (const auto token = answer.tokens.next()) {
              tokens.push_back(token->sampled.token);
              if (is_doomed) { answer.tokens.cancel(); }
            }
            judge(request, answer.tokens.result());
          } else {
            const auto answer = accepted([&] {
              return engine.submit(request, {.on_token =
                                                 [&engine, is_doomed, how](const TokenEvent& event) {
                                                   if (is_doomed && how % 3 != 0) { engine.abort(event.request); }
                                                 },
                                             .on_finish = [&judge, request](const Completion& done) { judge(request, done); }});
            });
            if (is_doomed && how % 3 == 0) {
              if (how == 6) { std::this_thread::yield(); }
              engine.abort(answer.request);
            }
          }
        }
      });
    }
    for (std::thread& client : clients) { client.join(); }
    CHECK(engine.drain(10min));
    CHECK(num_ended == num_requests);
    CHECK(engine.num_open() == 0);
    check_that_nothing_is_left(engine, num_requests);
    CHECK(engine.failure().empty());
  }
  CHECK(num_wrong == 0);
  CHECK(num_aborted > num_requests / 10);
  CHECK(num_threads() == threads_before);
  CHECK(num_files() == files);
  if (check_memory) {
    const double per_request = slope(memory) / std::max(num_requests / 100, 1);
    std::printf("memory of %d requests through the thread: %.3f MiB per 10,000 in the last half, %d aborted, %d refused\n",
                num_requests, per_request * 1e4 / (1 << 20), num_aborted.load(), num_refused.load());
    CHECK(per_request * 1e4 < (1 << 20));
  }
}

using Engines = std::tuple<SimEngine<PrefillFirstScheduler, PrefixCacheAllocator>,
                           SimEngine<TokenBudgetScheduler<FcfsOrder, SwapPreemption>, PrefixCacheAllocator, true>>;

}  // namespace

TEMPLATE_LIST_TEST_CASE("two thousand requests with aborts leave nothing behind", "[faults][host]", Engines) {
  soak<TestType>(2000, false);
  soak_async<TestType>(2000, false);
}

TEMPLATE_LIST_TEST_CASE("a hundred thousand requests with 20 % aborts leave nothing behind", "[faults][host][slow]", Engines) {
  soak<TestType>(100'000, true);
}

TEMPLATE_LIST_TEST_CASE("a hundred thousand requests from four threads leave nothing behind", "[faults][host][slow]", Engines) {
  soak_async<TestType>(100'000, true);
}

}  // namespace soak_test
