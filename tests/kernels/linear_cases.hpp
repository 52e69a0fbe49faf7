#pragma once
/// Shapes of linear layers: odd ones that the tests check, and those of models, which the bench times.

#include <array>
#include <string_view>
#include <vector>

namespace nvl_test {

/// out[num_rows, out_features] = x[num_rows, in_features] w[out_features, in_features]^T
struct LinearShape {
  int num_rows, out_features, in_features;
};

/// Rows around every tile size, outputs that end within a tile, K that ends within a step of 64 or is shorter than one, more
/// splits of K than steps, and more tiles than a GPU has multiprocessors.
inline std::vector<LinearShape> odd_linear_shapes() {
  std::vector<LinearShape> shapes;
  for (const int rows :
       {1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 79, 81, 96, 127, 128, 129, 255, 256, 257}) {
    shapes.push_back({rows, 72, 200});
    shapes.push_back({rows, 133, 64});
  }
  for (const int rows : {1, 9, 63, 130}) {
    shapes.push_back({rows, 1, 8});
    shapes.push_back({rows, 64, 64});
    shapes.push_back({rows, 65, 136});
    shapes.push_back({rows, 200, 1536});
    shapes.push_back({rows, 500, 520});
    shapes.push_back({rows, 260, 3072});
    shapes.push_back({rows, 97, 4104});
  }
  shapes.push_back({1, 7000, 256});
  shapes.push_back({5, 20011, 136});
  shapes.push_back({40, 10007, 136});
  shapes.push_back({700, 200, 264});
  return shapes;
}

/// A few of these, for tools that are slow.
inline std::vector<LinearShape> few_linear_shapes() {
  return {{1, 72, 200}, {9, 133, 64}, {17, 65, 136}, {63, 200, 1536}, {65, 97, 264}, {130, 260, 520}};
}

/// A weight matrix of a model, timed for each number of tokens.
struct LayerShape {
  std::string_view model, name;
  int out_features, in_features;
  bool in_layer;  // one of the four products of a decoder layer, whose chain is timed as well
};

inline constexpr std::array<LayerShape, 10> layer_shapes{{{"Qwen3-0.6B", "qkv", 4096, 1024, true},
                                                          {"Qwen3-0.6B", "o", 1024, 2048, true},
                                                          {"Qwen3-0.6B", "gate_up", 6144, 1024, true},
                                                          {"Qwen3-0.6B", "down", 1024, 3072, true},
                                                          {"Qwen3-0.6B", "lm_head", 151936, 1024, false},
                                                          {"Qwen3-8B", "qkv", 6144, 4096, true},
                                                          {"Qwen3-8B", "o", 4096, 4096, true},
                                                          {"Qwen3-8B", "gate_up", 24576, 4096, true},
                                                          {"Qwen3-8B", "down", 4096, 12288, true},
                                                          {"Qwen3-8B", "lm_head", 151936, 4096, false}}};

}  // namespace nvl_test
