// Steps and results as messages: what goes in comes out, and nothing that was changed or is too large is read.

#include <nvl/core/error.hpp>
#include <nvl/core/step.hpp>
#include <nvl/core/step_limits.hpp>
#include <nvl/parallel/step_message.hpp>

#include "support/expect_error.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <vector>

namespace step_message_test {

using namespace nvl;
using Catch::Matchers::ContainsSubstring;
using nvl_test::expect_error;

namespace {

constexpr StepLimits limits{.num_blocks = 20,
                            .num_host_blocks = 5,
                            .block_size = 16,
                            .max_num_tokens = 64,
                            .max_num_seqs = 8,
                            .max_model_len = 100,
                            .max_logit_bias = 3,
                            .max_banned = 4,
                            .max_logprobs = 6};

constexpr StepShape some_shape{.num_tokens = 30,
                               .num_seqs = 5,
                               .max_blocks_per_seq = 7,
                               .num_samples = 4,
                               .num_logit_bias = 6,
                               .num_banned = 3,
                               .num_history = 77,
                               .num_copies = 2,
                               .num_swap_out = 5,
                               .num_swap_in = 1};

void fill(StepInput& in) {
  std::mt19937 random(3);
  in.step = 41;
  in.min_query_len = 2;
  in.max_query_len = 9;
  for (std::byte& byte : body_of(in)) { byte = static_cast<std::byte>(random()); }
}

/// As its sender seals it.
MessageHeader sealed(MessageHeader header, std::uint64_t sequence, std::span<const std::byte> body) {
  header.sequence = sequence;
  header.body_digest = digest_of(body);
  header.digest = digest_of(header);
  return header;
}

bool are_equal(const StepInput& a, const StepInput& b) {
  const std::span<const std::byte> bytes = body_of(a), others = body_of(b);
  return std::ranges::equal(bytes, others) && a.step == b.step && a.min_query_len == b.min_query_len &&
         a.max_query_len == b.max_query_len && a.max_blocks_per_seq == b.max_blocks_per_seq &&
         a.block_tables.size() == b.block_tables.size() && a.history.size() == b.history.size();
}

StepOutput some_output() {
  StepOutput output;
  output.step = 12;
  output.sampled = {{.token = 5, .logprob = -0.5f, .finite = true, .top_logprobs = {{5, -0.5f}, {9, -2.0f}}},
                    {.token = 0, .finite = false, .top_logprobs = {}},
                    {.token = 198, .logprob = -7.0f, .finite = true, .top_logprobs = {{1, -1.0f}}}};
  return output;
}

}  // namespace

TEST_CASE("a step that is laid out from its header and filled with its bytes is the same step", "[parallel][host]") {
  StepBuffer from, to;
  for (const StepShape& shape : {some_shape, StepShape{.num_tokens = 1, .num_seqs = 1, .max_blocks_per_seq = 1},
                                 StepShape{.num_copies = 20}, largest_step(limits), some_shape}) {
    StepInput& in = from.layout(shape);
    fill(in);
    const MessageHeader header = sealed(header_of(Command::launch, in), 7, body_of(in));
    CHECK(problem_of(header, 7).empty());
    StepInput& out = lay_out(header, limits, to);
    REQUIRE(body_of(out).size() == header.body_bytes);
    std::ranges::copy(body_of(std::as_const(in)), body_of(out).begin());
    CHECK(digest_of(body_of(std::as_const(out))) == header.body_digest);
    CHECK(are_equal(in, out));
  }
}

TEST_CASE("every bit of a header and of a body counts", "[parallel][host]") {
  StepBuffer buffer;
  StepInput& in = buffer.layout(some_shape);
  fill(in);
  const MessageHeader header = sealed(header_of(Command::launch, in), 7, body_of(in));
  for (std::size_t bit = 0; bit < 8 * sizeof(header); ++bit) {
    MessageHeader changed = header;
    reinterpret_cast<unsigned char*>(&changed)[bit / 8] ^= static_cast<unsigned char>(1u << bit % 8);
    REQUIRE_FALSE(problem_of(changed, 7).empty());
  }
  const std::span<std::byte> body = body_of(in);
  for (std::byte& byte : body) {
    const std::byte kept = byte;
    byte ^= std::byte{16};
    REQUIRE(digest_of(body) != header.body_digest);
    byte = kept;
  }
}

TEST_CASE("a header says what is wrong with it", "[parallel][host]") {
  const MessageHeader good = sealed({.command = Command::collect}, 3, {});
  CHECK(problem_of(good, 3).empty());
  CHECK_THAT(problem_of(good, 4), ContainsSubstring("is number 3 where 4 comes next"));
  MessageHeader other = good;
  other.magic = 1;
  CHECK_THAT(problem_of(other, 3), ContainsSubstring("is no message of nvl"));
  other = good;
  other.version = 9;
  CHECK_THAT(problem_of(other, 3), ContainsSubstring("has version 9, this rank has 1"));
  other = good;
  other.step = 1;
  CHECK_THAT(problem_of(other, 3), ContainsSubstring("was changed on its way"));
  CHECK(text_of(Command::hello) == "hello");
  CHECK(text_of(Command::end) == "end");
  CHECK(text_of(Command{77}) == "an unknown command");
}

TEST_CASE("a step beyond the limits is refused before there is room for it", "[parallel][host]") {
  StepBuffer buffer, other;
  fill(buffer.layout(some_shape));
  const MessageHeader good = header_of(Command::launch, buffer.input());
  lay_out(good, limits, other);
  const std::size_t before = other.size_bytes();
  const std::vector<std::string> names{"tokens",       "sequences",     "blocks of a sequence", "sampled rows",
                                       "logit biases", "banned tokens", "tokens of history",    "copies",
                                       "moved out",    "moved in"};
  for (std::size_t i = 0; i < names.size(); ++i) {
    MessageHeader header = good;
    header.counts[i] = 1'000'000;
    expect_error<InvalidArgument>([&] { lay_out(header, limits, other); }, {names[i], "1000000", "as planned"});
  }
  MessageHeader header = good;
  --header.body_bytes;
  expect_error<InvalidArgument>([&] { lay_out(header, limits, other); }, {"size of a message in bytes"});
  CHECK(other.size_bytes() == before);
}

TEST_CASE("an answer that is written is the one that is read", "[parallel][host]") {
  std::vector<std::byte> buffer(max_answer_bytes(limits));
  const StepOutput output = some_output();
  const MessageHeader header = write_answer(output, buffer);
  StepOutput read;
  read.sampled.resize(8);  // of a step before
  read_answer(header, std::span(buffer).first(header.body_bytes), limits, read);
  CHECK(read.step == output.step);
  REQUIRE(read.sampled.size() == output.sampled.size());
  for (std::size_t i = 0; i < output.sampled.size(); ++i) {
    const SampledToken &a = output.sampled[i], &b = read.sampled[i];
    CHECK(a.token == b.token);
    CHECK(a.logprob == b.logprob);
    CHECK(a.finite == b.finite);
    REQUIRE(a.top_logprobs.size() == b.top_logprobs.size());
    for (std::size_t k = 0; k < a.top_logprobs.size(); ++k) {
      CHECK(a.top_logprobs[k].token == b.top_logprobs[k].token);
      CHECK(a.top_logprobs[k].logprob == b.top_logprobs[k].logprob);
    }
  }
}

TEST_CASE("an answer of another size or with more than was planned is refused", "[parallel][host]") {
  std::vector<std::byte> buffer(max_answer_bytes(limits));
  const MessageHeader header = write_answer(some_output(), buffer);
  const auto body = std::span(buffer).first(header.body_bytes);
  StepOutput output;
  for (const std::size_t size : {std::size_t{0}, std::size_t{47}, body.size() - 1}) {
    expect_error<InvalidArgument>([&] { read_answer(header, body.first(size), limits, output); }, {"size of a message in bytes"});
  }
  const auto longer = std::span(buffer).first(header.body_bytes + 1);
  expect_error<InvalidArgument>([&] { read_answer(header, longer, limits, output); }, {"size of a message in bytes"});
  StepLimits fewer = limits;
  fewer.max_num_seqs = 2;
  expect_error<InvalidArgument>([&] { read_answer(header, body, fewer, output); }, {"sampled rows", "3", "at most 2"});
  fewer = limits;
  fewer.max_logprobs = 1;
  expect_error<InvalidArgument>([&] { read_answer(header, body, fewer, output); }, {"likely tokens", "2", "at most 1"});
}

}  // namespace step_message_test
