#pragma once
/// A progress bar on standard error, drawn only where that is a terminal. It is gone when the work is done.

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>

namespace nvl_examples {

/// Whether `file` is a terminal that understands control sequences.
inline bool is_terminal(std::FILE* file) {
  const char* const term = std::getenv("TERM");
  return ::isatty(::fileno(file)) != 0 && term != nullptr && std::string_view(term) != "dumb";
}

/// Whether text on `file` may be coloured: a terminal whose user did not set NO_COLOR (no-color.org).
inline bool may_color(std::FILE* file) {
  const char* const no_color = std::getenv("NO_COLOR");
  return is_terminal(file) && (no_color == nullptr || *no_color == '\0');
}

/// A line on standard error beside the program's real output: dim where that is possible.
inline void print_note(const std::string& text) {
  const bool dim = may_color(stderr);
  std::fprintf(stderr, "%s%s%s\n", dim ? "\033[2m" : "", text.c_str(), dim ? "\033[0m" : "");
}

class Progress {
 public:
  explicit Progress(std::string label) : label_(std::move(label)), on_(is_terminal(stderr)) {}
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress() { clear(); }

  /// \param fraction what is done, 0 to 1. \param detail shown behind the bar
  void update(double fraction, std::string_view detail = {}) {
    if (!on_) { return; }
    const int percent = static_cast<int>(100 * std::clamp(fraction, 0.0, 1.0));
    if (percent == percent_ && detail == detail_) { return; }
    percent_ = percent;
    detail_ = detail;
    std::string bar(static_cast<std::size_t>(percent / 4), '#');
    bar.resize(25, '.');
    std::fprintf(stderr, "\r\033[K%s [%s] %3d%% %s", label_.c_str(), bar.c_str(), percent, detail_.c_str());
    std::fflush(stderr);
  }

  /// Takes the bar away.
  void clear() {
    if (on_ && percent_ >= 0) {
      std::fputs("\r\033[K", stderr);
      std::fflush(stderr);
    }
    percent_ = -1;
  }

 private:
  std::string label_, detail_;
  bool on_;
  int percent_ = -1;
};

}  // namespace nvl_examples
