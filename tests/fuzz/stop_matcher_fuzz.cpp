// Stop strings and text from the input: the stream must show the text up to the first match, and at no time anything else.
// Input: number of stop strings, then each as length and bytes; then tokens as length and bytes.
#include <nvl/core/error.hpp>
#include <nvl/core/sampling_params.hpp>
#include <nvl/core/token_text.hpp>
#include <nvl/core/utf8.hpp>
#include <nvl/engine/stop_matcher.hpp>
#include <nvl/engine/text_stream.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

namespace {

struct Pieces : nvl::TokenText {
  std::vector<std::string> pieces;
  std::string_view bytes(nvl::TokenId id) const noexcept override { return pieces[static_cast<std::size_t>(id)]; }
  bool is_special(nvl::TokenId) const noexcept override { return false; }
};

void require(bool holds) {
  if (!holds) { std::abort(); }
}

/// First end at which a stop string ends, and where the longest one that ends there begins; npos: none.
struct Match {
  std::size_t begin = std::string::npos, end = std::string::npos;
};

Match first_match(const std::vector<std::string>& stops, std::string_view text) {
  for (std::size_t end = 1; end <= text.size(); ++end) {
    Match match;
    for (const std::string& stop : stops) {
      if (text.substr(0, end).ends_with(stop)) { match = {std::min(match.begin, end - stop.size()), end}; }
    }
    if (match.end != std::string::npos) { return match; }
  }
  return {};
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size > 4096) { return 0; }  // the oracle is quadratic
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  const auto take = [&](std::size_t longest) {
    if (rest.empty()) { return std::string(); }
    const std::size_t wanted = static_cast<std::uint8_t>(rest.front()) % (longest + 1);
    rest.remove_prefix(1);
    std::string part(rest.substr(0, wanted));
    rest.remove_prefix(part.size());
    return part;
  };
  const std::size_t options = rest.empty() ? 0 : static_cast<std::uint8_t>(rest.front());
  rest.remove_prefix(rest.empty() ? 0 : 1);
  std::vector<std::string> stops;
  for (std::size_t i = 0; i < options % 8; ++i) {
    if (std::string stop = take(32); !stop.empty()) { stops.push_back(std::move(stop)); }
  }
  Pieces vocabulary;
  std::string raw;
  while (!rest.empty()) {
    vocabulary.pieces.push_back(take(16));
    raw += vocabulary.pieces.back();
  }

  // The automaton takes any bytes.
  const nvl::StopMatcher matcher(stops);
  const Match in_bytes = first_match(stops, raw);
  nvl::StopMatcher::State state{};
  for (std::size_t i = 0; i < raw.size(); ++i) {
    state = matcher.next(state, raw[i]);
    require(matcher.held_bytes(state) <= i + 1);
    const std::int32_t found = matcher.match(state);
    if (found != nvl::StopMatcher::no_match) {
      require(i + 1 == in_bytes.end && in_bytes.end - stops[static_cast<std::size_t>(found)].size() == in_bytes.begin);
      break;
    }
    require(i + 1 != in_bytes.end);
  }

  // The stream takes UTF-8 stop strings and shows UTF-8.
  nvl::SamplingParams params;
  params.stop = stops;
  params.include_stop_str_in_output = (options & 8) != 0;
  const bool usable = std::all_of(stops.begin(), stops.end(), [](const std::string& s) { return nvl::is_valid_utf8(s); });
  try {
    nvl::TextStream stream(vocabulary, params);
    require(usable);
    const std::string text = nvl::replace_invalid_utf8(raw);
    const Match match = first_match(stops, text);
    const std::string expected = text.substr(0, params.include_stop_str_in_output ? match.end : match.begin);
    std::string shown;
    for (std::size_t i = 0; i < vocabulary.pieces.size(); ++i) {
      shown += stream.push(static_cast<nvl::TokenId>(i));
      require(nvl::is_valid_utf8(shown) && expected.starts_with(shown));
    }
    shown += stream.finish();
    require(shown == expected && stream.stopped() == (match.end != std::string::npos));
  } catch (const nvl::InvalidArgument&) { require(!usable); }
  return 0;
}
