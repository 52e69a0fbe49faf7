#include <nvl/sched/step_work.hpp>

#include <catch2/catch_test_macros.hpp>

namespace step_work_test {

using namespace nvl;

TEST_CASE("the work of a step is counted by hand", "[sched][host]") {
  Sequence decode, chunk, prompt;
  ScheduledBatch batch;
  CHECK(work_of(batch) == StepWork{});
  batch.seqs.push_back({.seq = &decode, .first_position = 99, .num_tokens = 1, .needs_sample = true});
  batch.seqs.push_back({.seq = &chunk, .first_position = 10, .num_tokens = 3, .needs_sample = false});
  batch.seqs.push_back({.seq = &prompt, .first_position = 0, .num_tokens = 4, .needs_sample = true});
  batch.num_tokens = 8;
  batch.copies.resize(2);
  batch.swap_out.resize(3);
  batch.swap_in.resize(4);
  const StepWork work = work_of(batch);
  CHECK(work.num_seqs == 3);
  CHECK(work.num_tokens == 8);
  CHECK(work.num_samples == 2);
  CHECK(work.num_decodes == 1);
  CHECK(work.num_prefill_tokens() == 7);
  CHECK(work.decode_kv_tokens == 100);
  CHECK(work.prefill_kv_tokens == 13 + 4);
  CHECK(work.prefill_pairs == (11 + 12 + 13) + (1 + 2 + 3 + 4));
  CHECK(work.num_copies == 2);
  CHECK(work.num_transfers == 7);
}

}  // namespace step_work_test
