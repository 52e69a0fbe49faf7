#pragma once
/// Messages between the process that has the engine, rank 0 of the group of processes, and those that follow it.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/parallel/group.hpp>
#include <nvl/parallel/step_message.hpp>

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <type_traits>
#include <vector>

namespace nvl::inline NVL_ABI {

/// One process's end. Messages are numbered from each sender to each receiver and carry digests. What is not the next message, or
/// was changed, ends the group for all, with this rank and the reason.
///
/// Whoever waits has the group's deadline, however long there is nothing to do: a thread sends `alive` where nothing else was sent
/// for `pulse`. The engine's process does so as long as the channel lives, the others until `stop_pulse`.
template <EagerRankGroup Group>
class ControlChannel {
 public:
  /// \param processes outlives this; used by it alone until then
  ControlChannel(Group& processes, std::chrono::milliseconds pulse)
      : processes_(processes),
        pulse_(pulse),
        num_sent_(processes.size(), 0),
        num_received_(processes.size(), 0) {
    if (size() > 1) { start_pulse(); }
  }
  ControlChannel(const ControlChannel&) = delete;
  ControlChannel& operator=(const ControlChannel&) = delete;
  ~ControlChannel() { stop_pulse(); }

  std::uint32_t rank() const noexcept { return index_of(processes_.rank()); }
  std::uint32_t size() const noexcept { return processes_.size(); }

  /// \param body of header.body_bytes
  void send(std::uint32_t to, MessageHeader header, std::span<const std::byte> body = {}) {
    header.body_digest = digest_of(body);
    const std::lock_guard lock(mutex_);
    send_sealed(to, header, body);
  }
  /// To all others.
  void send_all(MessageHeader header, std::span<const std::byte> body = {}) {
    header.body_digest = digest_of(body);
    const std::lock_guard lock(mutex_);
    for (std::uint32_t to = 0; to < size(); ++to) {
      if (to != rank()) { send_sealed(to, header, body); }
    }
  }

  /// The next message of `from`, `alive` too; its body is then to be received.
  MessageHeader receive_any(std::uint32_t from) {
    MessageHeader header;
    {
      const std::lock_guard lock(mutex_);
      processes_.recv(reinterpret_cast<std::byte*>(&header), std::int64_t{sizeof(header)}, Rank{from});
    }
    const std::string problem = problem_of(header, num_received_[from]++);
    if (!problem.empty()) { fail("message of rank " + std::to_string(from) + " " + problem); }
    return header;
  }
  /// The next message of `from` that says something.
  MessageHeader receive(std::uint32_t from) {
    for (;;) {
      const MessageHeader header = receive_any(from);
      if (header.command != Command::alive) { return header; }
    }
  }
  /// \param body of header.body_bytes, which the caller has checked
  void receive_body(std::uint32_t from, const MessageHeader& header, std::span<std::byte> body) {
    if (!body.empty()) {
      const std::lock_guard lock(mutex_);
      processes_.recv(body.data(), static_cast<std::int64_t>(body.size()), Rank{from});
    }
    if (digest_of(std::span<const std::byte>(body)) != header.body_digest) {
      fail("message of rank " + std::to_string(from) + " (" + text_of(header.command) +
           ") was changed on its way: its data has another digest");
    }
  }

  /// For a body that is one plain struct.
  template <class T>
  T receive_struct(std::uint32_t from, const MessageHeader& header) {
    static_assert(std::is_trivially_copyable_v<T>);
    T value{};
    if (header.body_bytes != sizeof(T)) {
      fail(text_of(header.command) + " of rank " + std::to_string(from) + " has " + std::to_string(header.body_bytes) +
           " bytes where " + std::to_string(sizeof(T)) + " are expected: it is another version of the program");
    }
    receive_body(from, header, {reinterpret_cast<std::byte*>(&value), sizeof(T)});
    return value;
  }
  void expect(std::uint32_t from, const MessageHeader& header, Command command) {
    if (header.command != command) {
      fail("rank " + std::to_string(from) + " sent " + text_of(header.command) + " where " + text_of(command) + " comes next");
    }
  }

  /// This process does not go on, because of `why`: nobody waits for it. From any thread.
  void abort(std::string_view why) noexcept { processes_.abort(why); }

  /// The same for all others; throws here.
  [[noreturn]] void fail(const std::string& why) {
    abort(why);
    raise(Error("rank " + std::to_string(rank()) + " gave up: " + why));
  }

  /// From now on only what is sent says that this process lives.
  void stop_pulse() noexcept {
    if (!thread_.joinable()) { return; }
    {
      const std::lock_guard lock(mutex_);
      is_stopping_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

 private:
  using Clock = std::chrono::steady_clock;

  void send_sealed(std::uint32_t to, MessageHeader& header, std::span<const std::byte> body) {
    header.sequence = num_sent_[to]++;
    header.digest = digest_of(header);
    processes_.send(reinterpret_cast<const std::byte*>(&header), std::int64_t{sizeof(header)}, Rank{to});
    if (!body.empty()) { processes_.send(body.data(), static_cast<std::int64_t>(body.size()), Rank{to}); }
    last_sent_ = Clock::now();
  }

  void start_pulse() {
#if defined(__cpp_exceptions)
    try {
      thread_ = std::thread([this] { keep_alive(); });
    } catch (const std::system_error& error) {
      raise(
          OutOfMemory(std::string("the system could not start the thread that tells other ranks of this one: ") + error.what()));
    }
#else
    thread_ = std::thread([this] { keep_alive(); });
#endif
  }

  void keep_alive() {
    std::unique_lock lock(mutex_);
    while (!changed_.wait_for(lock, pulse_, [&] { return is_stopping_; })) {
      if (Clock::now() < last_sent_ + pulse_) { continue; }
      MessageHeader header{.command = Command::alive};
      header.body_digest = digest_of(std::span<const std::byte>());
      bool is_dead = false;
      contain(
          [&] {
            if (rank() != 0) { return send_sealed(0, header, {}); }
            for (std::uint32_t to = 1; to < size(); ++to) { send_sealed(to, header, {}); }
          },
          [&](const char*) { is_dead = true; });
      if (is_dead) { return; }  // the group knows why, and says so to the next who uses it
    }
  }

  Group& processes_;
  const std::chrono::milliseconds pulse_;
  std::mutex mutex_;  // of the group, which the thread of the pulse uses as well
  std::condition_variable changed_;
  std::vector<std::uint64_t> num_sent_, num_received_;
  Clock::time_point last_sent_ = Clock::now();
  bool is_stopping_ = false;
  std::thread thread_;
};

}  // namespace nvl::inline NVL_ABI
