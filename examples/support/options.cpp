#include "support/options.hpp"

#include <nvl/version.hpp>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <numeric>

namespace nvl_examples {
namespace {

constexpr std::size_t help_width = 110;       // [columns]
constexpr std::size_t help_text_column = 34;  // where the text of an option begins

std::string version_text() {
  return std::to_string(NVL_VERSION_MAJOR) + "." + std::to_string(NVL_VERSION_MINOR) + "." + std::to_string(NVL_VERSION_PATCH);
}

/// "--max-tokens" -> "NVL_MAX_TOKENS"
std::string env_name(std::string_view long_name) {
  std::string name = "NVL_";
  for (const char c : long_name.substr(2)) {
    name += c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  }
  return name;
}

/// Words of `text` in lines that start at column `indent`; the first line is there already and has `used` columns.
std::string wrap(std::string_view text, std::size_t indent, std::size_t used) {
  std::string out;
  std::size_t column = used;
  if (column >= indent) {
    out += '\n';
    column = 0;
  }
  out.append(indent - column, ' ');
  column = indent;
  bool first = true;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find(' '), text.size());
    const std::string_view word = text.substr(0, end);
    if (!first && column + 1 + word.size() > help_width) {
      out += '\n';
      out.append(indent, ' ');
      column = indent;
    } else if (!first) {
      out += ' ';
      ++column;
    }
    out += word;
    column += word.size();
    first = false;
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return out + '\n';
}

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i);
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t changed = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, changed}));
    }
  }
  return row.back();
}

}  // namespace

namespace detail {

std::int64_t parse_byte_count(std::string_view name, const std::string& text) {
  const char* const end = text.data() + text.size();
  std::int64_t count = 0;
  const auto [stopped, error] = std::from_chars(text.data(), end, count);
  int shift = -1;
  if (stopped == end) {
    shift = 0;
  } else if (stopped + 1 == end) {
    const std::size_t unit = std::string_view("KMGT").find(static_cast<char>(std::toupper(static_cast<unsigned char>(*stopped))));
    if (unit != std::string_view::npos) { shift = 10 * (static_cast<int>(unit) + 1); }
  }
  if (error != std::errc() || shift < 0 || count < 0 || count > (std::numeric_limits<std::int64_t>::max() >> shift)) {
    fail_value(name, text, "a number of bytes such as 536870912, 512M or 4G");
  }
  return count << shift;
}

}  // namespace detail

struct OptionParser::Impl {
  struct Entry {
    CLI::Option* option = nullptr;
    std::string name;       // main one, with dashes
    std::string word_name;  // with one dash and several letters, which CLI11 does not know; empty: none
    std::string metavar, help, group;
    bool repeatable = false;
    Setter setter;
  };

  Impl(std::string program_name, std::string about_text) : program(std::move(program_name)), about(std::move(about_text)) {}

  std::string program, about, title = "Options", footer_text, chosen;
  CLI::App own;
  CLI::App* app = &own;
  std::vector<Entry> entries;
  std::vector<std::unique_ptr<OptionParser>> commands;

  std::string command_names() const {
    std::string names;
    for (const auto& command : commands) { names += (names.empty() ? "" : " or ") + command->impl_->app->get_name(); }
    return names;
  }

  const Entry* find_by_word_name(std::string_view word) const {
    for (const Entry& entry : entries) {
      if (!entry.word_name.empty() && entry.word_name == word) { return &entry; }
    }
    for (const auto& command : commands) {
      if (const Entry* const found = command->impl_->find_by_word_name(word)) { return found; }
    }
    return nullptr;
  }

  /// True if the word behind `word` is its value.
  bool takes_value(const std::string& word) const {
    for (const Entry& entry : entries) {
      if (!entry.metavar.empty() && entry.option->check_name(word)) { return true; }
    }
    return std::ranges::any_of(commands, [&](const auto& command) { return command->impl_->takes_value(word); });
  }

  /// The command line in CLI11's terms: "-dp 4" and "-dp=4" become "--data-parallel-size 4".
  std::vector<std::string> words(int argc, const char* const* argv) const {
    std::vector<std::string> result(argv, argv + argc);
    for (std::size_t i = 1; i < result.size(); ++i) {
      if (takes_value(result[i - 1])) { continue; }
      const std::string given = result[i].substr(0, result[i].find('='));
      if (const Entry* const entry = find_by_word_name(given)) { result[i].replace(0, given.size(), entry->name); }
    }
    return result;
  }

  /// Unknown words are collected, not thrown, so that the message can suggest what was meant.
  void require_nothing_left() const {
    const std::vector<std::string> extras = app->remaining();
    if (extras.empty()) { return; }
    const std::string& word = extras.front();
    if (!word.starts_with("-")) {
      throw UsageError("\"" + word + "\" is no " + (commands.empty() ? "option" : "command: must be " + command_names()) +
                       " (see --help)");
    }
    const std::string name = word.substr(0, word.find('='));
    if (!commands.empty()) {
      throw UsageError("unknown option " + name + ": options stand behind the command, " + command_names() + " (see --help)");
    }
    std::string nearest;
    std::size_t best = 4;
    for (const Entry& entry : entries) {
      for (const std::string& known : entry.option->get_lnames()) {
        const std::size_t distance = edit_distance(name, "--" + known);
        if (distance < best) {
          best = distance;
          nearest = "--" + known;
        }
      }
    }
    throw UsageError("unknown option " + name +
                     (nearest.empty() || name.size() < 4 ? " (see --help)" : ": did you mean " + nearest + "?"));
  }

  void apply() const {
    require_nothing_left();
    for (const Entry& entry : entries) {
      if (entry.option->count() > 0) {
        const std::vector<std::string> given = entry.option->results();
        for (std::size_t i = entry.repeatable ? 0 : given.size() - 1; i < given.size(); ++i) {
          entry.setter(entry.name, given[i]);
        }
        continue;
      }
      const std::string twin = env_name(entry.name);
      const char* const text = std::getenv(twin.c_str());
      if (text != nullptr && *text != '\0') { entry.setter(twin, text); }
    }
  }
};

OptionParser::OptionParser(std::string program, std::string about)
    : impl_(std::make_unique<Impl>(std::move(program), std::move(about))) {
  impl_->app->set_help_flag("-h,--help");
  impl_->app->allow_extras();
}
OptionParser::OptionParser(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
OptionParser::~OptionParser() = default;

void OptionParser::group(std::string title) { impl_->title = std::move(title); }
void OptionParser::footer(std::string text) { impl_->footer_text = std::move(text); }
const std::string& OptionParser::chosen_command() const noexcept { return impl_->chosen; }

void OptionParser::add(const std::string& names, std::string metavar, std::string help, bool repeatable, Setter setter) {
  Impl::Entry entry;
  std::string known;  // to CLI11
  for (std::string_view rest = names; !rest.empty();) {
    const std::string_view name = rest.substr(0, rest.find(','));
    rest.remove_prefix(std::min(name.size() + 1, rest.size()));
    if (name.size() > 2 && name[1] != '-') {
      entry.word_name = name;
    } else {
      known += (known.empty() ? "" : ",") + std::string(name);
    }
  }
  if (metavar.empty()) {
    entry.option = impl_->app->add_flag(known);
  } else {
    entry.option = impl_->app->add_option(known, CLI::callback_t([](const CLI::results_t&) { return true; }));
    entry.option->expected(1)->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)->allow_extra_args(false);
  }
  entry.name = "--" + entry.option->get_lnames().at(0);
  entry.metavar = std::move(metavar);
  entry.help = std::move(help);
  entry.group = impl_->title;
  entry.repeatable = repeatable;
  entry.setter = std::move(setter);
  impl_->entries.push_back(std::move(entry));
}

OptionParser& OptionParser::command(std::string name, std::string about) {
  auto impl = std::make_unique<Impl>(impl_->program + " " + name, std::move(about));
  impl->app = impl_->app->add_subcommand(name);
  impl->app->set_help_flag("-h,--help");
  impl->app->allow_extras();
  impl_->commands.push_back(std::unique_ptr<OptionParser>(new OptionParser(std::move(impl))));
  return *impl_->commands.back();
}

bool OptionParser::parse(int argc, const char* const* argv) {
  bool wants_version = false;
  impl_->app->add_flag("--version", wants_version);
  const OptionParser* chosen = this;
  const auto find_chosen = [&] {
    for (const auto& command : impl_->commands) {
      if (command->impl_->app->parsed()) {
        chosen = command.get();
        impl_->chosen = command->impl_->app->get_name();
      }
    }
  };
  try {
    const std::vector<std::string> words = impl_->words(argc, argv);
    std::vector<const char*> pointers;
    for (const std::string& word : words) { pointers.push_back(word.c_str()); }
    impl_->app->parse(argc, pointers.data());
    find_chosen();
  } catch (const CLI::CallForHelp&) {
    find_chosen();
    std::fputs(chosen->help().c_str(), stdout);
    return false;
  } catch (const CLI::ArgumentMismatch& error) {
    // "--model: 1 required TEXT missing"
    const std::string text = error.what();
    throw UsageError(text.substr(0, text.find(':')) + " needs a value");
  } catch (const CLI::ParseError& error) { throw UsageError(one_line(error.what())); }
  if (wants_version) {
    std::printf("%s %s\n", impl_->program.c_str(), version_text().c_str());
    return false;
  }
  impl_->apply();
  if (chosen != this) {
    chosen->impl_->apply();
  } else if (!impl_->commands.empty()) {
    throw UsageError("no command was given: must be " + impl_->command_names() + " (see --help)");
  }
  return true;
}

std::string OptionParser::help() const {
  const Impl& p = *impl_;
  std::string out = p.about + "\n\nUsage: " + p.program + (p.commands.empty() ? " [options]\n" : " <command> [options]\n");
  if (!p.commands.empty()) {
    out += "\nCommands:\n";
    for (const auto& command : p.commands) {
      const std::string head = "  " + command->impl_->app->get_name();
      out += head + wrap(command->impl_->about, help_text_column, head.size());
    }
    out += "\n" + p.program + " <command> --help shows the options of a command.\n";
  }
  std::string title;
  for (const Impl::Entry& entry : p.entries) {
    if (entry.group != title) {
      title = entry.group;
      out += "\n" + title + ":\n";
    }
    std::string head;
    for (const std::string& name : entry.option->get_snames()) { head += (head.empty() ? "-" : ", -") + name; }
    if (!entry.word_name.empty()) { head += (head.empty() ? "" : ", ") + entry.word_name; }
    if (head.empty()) {
      head = "   ";
    } else {
      head += ",";
    }
    head = "  " + head + " " + entry.name + (entry.metavar.empty() ? "" : " " + entry.metavar);
    std::string text = entry.help;
    const std::vector<std::string>& long_names = entry.option->get_lnames();
    for (std::size_t i = 1; i < long_names.size(); ++i) { text += (i == 1 ? " (also --" : ", --") + long_names[i]; }
    if (long_names.size() > 1) { text += ")"; }
    out += head + wrap(text, help_text_column, head.size());
  }
  out += "\nOther:\n  -h, --help" + wrap("Shows this.", help_text_column, 12) + "      --version" +
         wrap("Shows the version.", help_text_column, 15);
  if (!p.entries.empty()) {
    out += "\nAn option that is not given is read from the environment: " + p.entries.front().name + " from " +
           env_name(p.entries.front().name) + ", and so on.\n";
  }
  if (!p.footer_text.empty()) { out += "\n" + p.footer_text + "\n"; }
  return out;
}

std::string one_line(std::string_view text) {
  std::string out(text);
  std::replace_if(
      out.begin(), out.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }, ' ');
  return out;
}

int run_program(const std::string& program, const std::function<int()>& body) {
  const auto fail = [&](std::string_view what) {
    std::fflush(stdout);
    std::fprintf(stderr, "%s: error: %s\n", program.c_str(), one_line(what).c_str());
    return 1;
  };
  try {
    const int status = body();
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
      return fail(std::string("standard output cannot be written: ") + std::strerror(errno));
    }
    return status;
  } catch (const std::bad_alloc&) { return fail("out of memory"); } catch (const std::exception& error) {
    return fail(error.what());
  } catch (...) { return fail("an exception that is not a std::exception"); }
}

}  // namespace nvl_examples
