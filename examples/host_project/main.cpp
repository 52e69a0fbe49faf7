// What a program outside nvl's tree sees: a header, a typed error, nothing to link.
#include <nvl/core/error.hpp>

#include <cstdio>

int main() {
  try {
    const int num_blocks = 0;
    NVL_EXPECTS(num_blocks > 0, "num_blocks", num_blocks, "at least 1");
  } catch (const nvl::InvalidArgument& error) {
    std::printf("nvl %d.%d.%d says: %s\n", NVL_VERSION_MAJOR, NVL_VERSION_MINOR, NVL_VERSION_PATCH, error.what());
    return 0;
  }
  return 1;
}
