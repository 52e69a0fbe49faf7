// Ranks that find each other, and every way in which they do not: all of them end, with the rank and the reason.

#include <nvl/net/rendezvous.hpp>

#include "support/expect_error.hpp"
#include "support/processes.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

namespace rendezvous_test {

using namespace nvl;
using namespace nvl_test;
using namespace std::chrono_literals;
using Catch::Matchers::ContainsSubstring;

namespace {

RendezvousOptions options_of(std::uint32_t rank, std::uint32_t size, const net::Endpoint& at) {
  RendezvousOptions options;
  options.rank = Rank{rank};
  options.world_size = size;
  options.address = at.address;
  options.port = at.port;
  options.secret = "a secret of the tests";
  options.config = "llama, tensor parallel 4";
  options.timeout = 20s;  // no test waits for it unless it fails
  options.door.patience = 1s;
  return options;
}

struct Outcome {
  std::optional<Meeting> meeting;
  std::string error;
};

/// All ranks at once, each on a thread of its own.
std::vector<Outcome> meet(const std::vector<RendezvousOptions>& ranks, const std::string& blob = {}) {
  std::vector<Outcome> outcomes(ranks.size());
  std::vector<std::jthread> threads;
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    threads.emplace_back([&, i] {
      contain(
          [&] {
            const bool is_host = index_of(ranks[i].rank) == 0;
            const std::span<const char> text = is_host ? std::span<const char>(blob) : std::span<const char>();
            outcomes[i].meeting.emplace(rendezvous(ranks[i], std::as_bytes(text)));
          },
          [&](const char* what) { outcomes[i].error = what; });
    });
  }
  threads.clear();
  return outcomes;
}

void check_says(const Outcome& outcome, const std::vector<std::string>& words) {
  for (const std::string& word : words) { CHECK_THAT(outcome.error, ContainsSubstring(word)); }
}
void check_all_say(const std::vector<Outcome>& outcomes, const std::vector<std::string>& words) {
  for (std::size_t i = 0; i < outcomes.size(); ++i) {
    CAPTURE(i);
    check_says(outcomes[i], words);
  }
}

std::vector<RendezvousOptions> world_of(std::uint32_t size) {
  std::vector<RendezvousOptions> ranks;
  const net::Endpoint at = own_endpoint();
  for (std::uint32_t r = 0; r < size; ++r) { ranks.push_back(options_of(r, size, at)); }
  return ranks;
}

}  // namespace

TEST_CASE("all ranks leave with the same table, blob and secret", "[parallel][host]") {
  for (const std::uint32_t size : {1u, 2u, 5u}) {
    CAPTURE(size);
    const std::string blob(size == 5 ? 256 : size - 1, 'x');
    const std::vector<RendezvousOptions> ranks = world_of(size);
    std::vector<Outcome> outcomes = meet(ranks, blob);
    for (std::uint32_t r = 0; r < size; ++r) {
      CAPTURE(r, outcomes[r].error);
      REQUIRE(outcomes[r].meeting);
      Meeting& meeting = *outcomes[r].meeting;
      CHECK(meeting.world_size() == size);
      CHECK(index_of(meeting.rank) == r);
      CHECK(meeting.peers == outcomes[0].meeting->peers);
      CHECK(std::string(reinterpret_cast<const char*>(meeting.blob.data()), meeting.blob.size()) == blob);
      if (size > 1) {
        CHECK(net::local_endpoint(meeting.listener) == meeting.peers[r]);
        CHECK(meeting.peers[r].address.starts_with("127."));  // nobody listens on other addresses
        CHECK(meeting.secret.prove("test", {}) == outcomes[0].meeting->secret.prove("test", {}));
        CHECK(meeting.secret.prove("test", {}) != net::Secret(ranks[0].secret).prove("test", {}));
      }
    }
  }
}

TEST_CASE("rank 0 may come last", "[parallel][host]") {
  const std::vector<RendezvousOptions> ranks = world_of(3);
  std::vector<Outcome> guests;
  std::jthread early([&] { guests = meet({ranks[1], ranks[2]}); });
  std::this_thread::sleep_for(50ms);
  const std::vector<Outcome> host = meet({ranks[0]});
  early.join();
  CHECK(host[0].error.empty());
  for (const Outcome& guest : guests) { CHECK(guest.error.empty()); }
}

TEST_CASE("two processes meet", "[parallel][host]") {
  const std::vector<RendezvousOptions> ranks = world_of(2);
  const ChildProcess guest([&] {
    const Meeting meeting = rendezvous(ranks[1]);
    if (meeting.blob.size() != 3) { raise(Error("another blob")); }
  });
  const std::string blob = "abc";
  const Meeting meeting = rendezvous(ranks[0], std::as_bytes(std::span<const char>(blob)));
  CHECK(guest.report() == "");
  CHECK(meeting.world_size() == 2);
  CHECK(meeting.num_dropped == 0);
}

TEST_CASE("a rank that never comes ends the rendezvous for all", "[parallel][host]") {
  std::vector<RendezvousOptions> ranks = world_of(4);
  ranks.erase(ranks.begin() + 2);
  ranks.back().timeout = 300ms;  // the shortest counts
  check_all_say(meet(ranks), {"rank 2 did not come in time"});
}

TEST_CASE("without rank 0 each rank says whom it did not reach", "[parallel][host]") {
  std::vector<RendezvousOptions> ranks = world_of(2);
  ranks[1].timeout = 200ms;
  check_all_say(meet({ranks[1]}), {"rank 1 did not reach rank 0 at " + ranks[0].address, "refused"});
}

TEST_CASE("a rank that was started for another world ends the rendezvous for all", "[parallel][host]") {
  std::vector<RendezvousOptions> ranks = world_of(3);
  ranks[2].world_size = 8;
  check_all_say(meet(ranks), {"rank 2 (", "for a world of 8 ranks, rank 0 for 3"});
}

TEST_CASE("a rank that comes twice ends the rendezvous for all", "[parallel][host]") {
  std::vector<RendezvousOptions> ranks = world_of(3);
  ranks[2].rank = Rank{1};
  check_all_say(meet(ranks), {"rank 1 came twice, from "});
}

TEST_CASE("a rank of another configuration ends the rendezvous for all", "[parallel][host]") {
  std::vector<RendezvousOptions> ranks = world_of(3);
  ranks[1].config = "llama, tensor parallel 2";
  check_all_say(meet(ranks), {"rank 1 (", "has another configuration than rank 0"});
}

TEST_CASE("a second rank 0 cannot listen where the first does", "[parallel][host]") {
  const std::vector<RendezvousOptions> ranks = world_of(2);
  const net::Socket first = net::listen_on(ranks[0].address, ranks[0].port, 1);
  check_all_say(meet({ranks[0]}), {"cannot listen on " + ranks[0].address, "in use"});
}

TEST_CASE("a rank with another secret learns it at once, the others that it is missing", "[parallel][host]") {
  std::vector<RendezvousOptions> ranks = world_of(3);
  ranks[1].secret = "another secret of the tests";
  ranks[0].timeout = 400ms;
  const std::vector<Outcome> outcomes = meet(ranks);
  for (const std::size_t waiting : {0u, 2u}) {
    check_says(outcomes[waiting], {"rank 1 did not come in time", "called itself rank 1 and has another secret", "dropped: 1"});
  }
  check_says(outcomes[1], {"has another secret", "this is rank 1"});
  for (const Outcome& outcome : outcomes) { CHECK(outcome.error.find("of the tests") == std::string::npos); }
}

TEST_CASE("a rank that is killed while it waits ends the rendezvous for all", "[parallel][host]") {
  std::vector<RendezvousOptions> ranks = world_of(4);
  ranks[0].timeout = 700ms;
  const ChildProcess victim([&] { rendezvous(ranks[2]); });
  const ChildProcess survivor([&] { rendezvous(ranks[1]); });
  const ChildProcess killer([&] {
    std::this_thread::sleep_for(300ms);
    victim.signal(SIGKILL);
  });
  check_all_say(meet({ranks[0]}), {"rank 2 went away"});  // rank 3 never comes
  CHECK_THAT(survivor.report(), ContainsSubstring("rank 2 went away"));
}

TEST_CASE("a rank that comes after the rendezvous has failed still hears why", "[parallel][host]") {
  std::vector<RendezvousOptions> ranks = world_of(3);
  ranks[1].config = "another";
  std::vector<Outcome> first;
  std::jthread others([&] { first = meet({ranks[0], ranks[1]}); });
  std::this_thread::sleep_for(100ms);
  check_all_say(meet({ranks[2]}), {"rank 1 (", "another configuration"});
  others.join();
  check_all_say(first, {"rank 1 (", "another configuration"});
}

TEST_CASE("when rank 0 is killed the others say so", "[parallel][host]") {
  const std::vector<RendezvousOptions> ranks = world_of(3);
  const ChildProcess host([&] { rendezvous(ranks[0]); });
  const ChildProcess killer([&] {
    std::this_thread::sleep_for(300ms);
    host.signal(SIGKILL);
  });
  check_all_say(meet({ranks[1]}), {"rank 0 at " + ranks[0].address});
}

TEST_CASE("garbage, silence and scans on the port are dropped and counted, and delay nobody", "[parallel][host]") {
  std::vector<RendezvousOptions> ranks = world_of(2);
  ranks[0].door.patience = 200ms;
  ranks[0].door.max_callers = 4;
  std::vector<Outcome> host;
  std::jthread rank_0([&] { host = meet({ranks[0]}); });

  std::string why;
  const auto call = [&](const std::string& text) {
    net::Socket socket;
    while (!socket) { socket = net::try_connect(ranks[0].address, ranks[0].port, net::Clock::now() + 10s, why); }
    net::send_all(socket, text.data(), text.size(), net::Clock::now() + 1s);
    return socket;
  };
  std::vector<net::Socket> open;
  open.push_back(call("GET / HTTP/1.1\r\nHost: here\r\n\r\n"));
  open.push_back(call(std::string(4096, '\0')));
  call("");  // closed at once
  net::Join foreign;
  foreign.version = 99;
  open.push_back(call(std::string(net::bytes_of(foreign))));
  foreign.version = net::wire_version;
  open.push_back(call(std::string(net::bytes_of(foreign))));  // no proof
  for (int i = 0; i < 6; ++i) { open.push_back(call("")); }   // silence, more than may wait inside

  const std::vector<Outcome> guest = meet({ranks[1]});
  rank_0.join();
  CHECK(guest[0].error.empty());
  REQUIRE(host[0].error.empty());
  CHECK(host[0].meeting->num_dropped >= 5);
}

TEST_CASE("a proof cannot be used again, nor for anything else", "[parallel][host]") {
  const net::Secret secret("a secret of the tests");
  net::Challenge challenge{.nonce = net::random_nonce()}, later{.nonce = net::random_nonce()};
  net::Join join{.rank = 1, .world_size = 2, .nonce = net::random_nonce()};
  join.proof = net::proof_of(secret, challenge, join);
  CHECK(net::are_equal(join.proof, net::proof_of(secret, challenge, join)));
  CHECK(!net::are_equal(join.proof, net::proof_of(secret, later, join)));
  CHECK(!net::are_equal(join.proof, net::proof_of(net::Secret("another secret of the tests"), challenge, join)));
  CHECK(!net::are_equal(join.proof, net::proof_of(secret, challenge, join, net::Verdict{}, {})));
  net::Join other_rank = join;
  other_rank.rank = 2;
  CHECK(!net::are_equal(join.proof, net::proof_of(secret, challenge, other_rank)));
  // The known answer is from the command line: printf 'nvl test\0what do ya want for nothing?' |
  // openssl dgst -sha256 -hmac 'Jefe Jefe Jefe Jefe'
  const net::Digest known = net::Secret("Jefe Jefe Jefe Jefe").prove("nvl test", {"what do ya want for nothing?"});
  std::string hex;
  for (const unsigned char byte : known) {
    for (const int digit : {byte >> 4, byte & 15}) { hex += "0123456789abcdef"[digit]; }
  }
  CHECK(hex == "b2374814da66a13d549820b2b6f0394ff8fe8b0a7f3e27193cc9096ba9629b5e");
}

TEST_CASE("a rank does not believe who does not know the secret", "[parallel][host]") {
  // Somebody listens where rank 0 should be, and says that all is well.
  const std::vector<RendezvousOptions> ranks = world_of(2);
  const net::Socket listener = net::listen_on(ranks[0].address, ranks[0].port, 4);
  std::jthread thief([&] {
    std::array<pollfd, 1> fds{{{.fd = listener.fd(), .events = POLLIN, .revents = 0}}};
    net::wait_for_any(fds, net::Clock::now() + 10s);
    bool is_exhausted = false;
    const net::Socket socket = net::try_accept(listener, is_exhausted);
    const net::Challenge challenge{.nonce = net::random_nonce()};
    net::Join join;
    net::send_all(socket, &challenge, sizeof(challenge), net::Clock::now() + 5s);
    net::recv_all(socket, &join, sizeof(join), net::Clock::now() + 5s);
    const net::Verdict verdict{.is_ok = 1};
    const std::vector<net::Place> places(2);
    net::send_all(socket, &verdict, sizeof(verdict), net::Clock::now() + 5s);
    net::send_all(socket, places.data(), sizeof(net::Place) * 2, net::Clock::now() + 5s);
  });
  check_all_say(meet({ranks[1]}), {"rank 0 at", "has another secret"});
}

TEST_CASE("options out of their range are refused by name", "[parallel][host]") {
  const net::Endpoint at{"127.0.0.1", 1};
  const auto refuse = [&](const std::string& field, auto&& change) {
    RendezvousOptions options = options_of(0, 2, at);
    change(options);
    expect_error<InvalidArgument>([&] { rendezvous(options); }, {field});
  };
  refuse("world_size", [](RendezvousOptions& o) { o.world_size = 0; });
  refuse("world_size", [](RendezvousOptions& o) { o.world_size = 4097; });
  refuse("rank", [](RendezvousOptions& o) { o.rank = Rank{2}; });
  refuse("port", [](RendezvousOptions& o) { o.port = 0; });
  refuse("timeout", [](RendezvousOptions& o) { o.timeout = 0ms; });
  refuse("patience", [](RendezvousOptions& o) { o.door.patience = 0ms; });
  refuse("max_callers", [](RendezvousOptions& o) { o.door.max_callers = 0; });
  refuse("length of the secret is 5", [](RendezvousOptions& o) { o.secret = "short"; });
  refuse("not all of them", [](RendezvousOptions& o) { o.address = "0.0.0.0"; });
  refuse("not all of them", [](RendezvousOptions& o) { o.address = "::"; });
  const std::vector<std::byte> blob(257);
  expect_error<InvalidArgument>([&] { rendezvous(options_of(0, 2, at), blob); }, {"blob", "257"});
}

TEST_CASE("rank 0 at an address that is not this host's says so", "[parallel][host]") {
  RendezvousOptions options = options_of(0, 2, {"192.0.2.1", 29500});  // RFC 5737: nobody's
  expect_error<Error>([&] { rendezvous(options); }, {"cannot listen on 192.0.2.1:29500"});
  options.address = "no-such-host.invalid";
  expect_error<Error>([&] { rendezvous(options); }, {"cannot listen on no-such-host.invalid"});
}

}  // namespace rendezvous_test
