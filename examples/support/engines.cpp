#include "support/engines.hpp"

namespace nvl::inline NVL_ABI {

NVL_EXAMPLE_ENGINE(, float, Checkpoint);
NVL_EXAMPLE_ENGINE(, bf16, Checkpoint);
NVL_EXAMPLE_ENGINE(, float, RandomWeights);
NVL_EXAMPLE_ENGINE(, bf16, RandomWeights);

}  // namespace nvl::inline NVL_ABI
