#!/usr/bin/env python3
"""Fails on things in the sources that the project does not want, whatever the compiler says."""
import pathlib
import re
import sys

# (what, pattern of a line, paths it applies to)
HEADERS, CODE = re.compile(r"^include/"), re.compile(r"^(include|examples|bench|tests)/.*\.(hpp|cuh|cpp|cu)$")
RULES = [
    ("unfinished work", re.compile(r"\b(TODO|FIXME|XXX|HACK)\b"), CODE),
    ("std::regex: backtracks without limits", re.compile(r"std::regex|<regex>"), CODE),
    ("<iostream> in a header", re.compile(r"#\s*include\s*<iostream>"), HEADERS),
    ("using namespace in a header", re.compile(r"^\s*using\s+namespace\b"), HEADERS),
    ("an unnamed namespace in a header", re.compile(r"^\s*namespace\s*\{"), HEADERS),
    ("a macro without the prefix NVL_", re.compile(r"^\s*#\s*define\s+(?!NVL_|XXH_INLINE_ALL\b|PCRE2_CODE_UNIT_WIDTH\b)"), HEADERS),
    ("exit or abort in a library", re.compile(r"\b(std::)?(exit|_exit|quick_exit)\s*\("), HEADERS),
    ("rand() instead of the keyed generator", re.compile(r"\b(std::)?s?rand\s*\("), CODE),
    ("a tab", re.compile(r"\t"), CODE),
]
MAX_LINES = 600


def violations(root):
    for path in sorted(p for top in ("include", "examples", "bench", "tests") for p in (root / top).glob("**/*") if p.is_file()):
        name = path.relative_to(root).as_posix()
        if not CODE.match(name):
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, 1):
            for what, pattern, where in RULES:
                if where.match(name) and pattern.search(line):
                    yield f"{name}:{number}: {what}"
        if HEADERS.match(name):
            if not lines or lines[0].strip() != "#pragma once":
                yield f"{name}:1: a header starts with #pragma once"
            if len(lines) > MAX_LINES:
                yield f"{name}: {len(lines)} lines, more than {MAX_LINES}: usually two headers in one"


def self_test():
    import tempfile
    cases = {"#include <iostream>": 1, "using namespace std;": 1, "namespace {": 1, "#define MAX 3": 1, "#define NVL_MAX 3": 0,
             "// TO" + "DO later": 1, "std::reg" + "ex r;": 1, "exit(1);": 1, "int x;": 0, "int xs[3];  // exits in order": 0,
             "\tint x;": 1}
    for line, expected in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            header = pathlib.Path(folder) / "include" / "nvl" / "a.hpp"
            header.parent.mkdir(parents=True)
            header.write_text(f"#pragma once\n{line}\n")
            found = list(violations(pathlib.Path(folder)))
            if len(found) != expected:
                sys.exit(f"self test: {line!r}: {found}")


if __name__ == "__main__":
    if sys.argv[1:] == ["--self-test"]:
        self_test()
    else:
        found = list(violations(pathlib.Path(sys.argv[1])))
        print("\n".join(found) or "nothing unwanted")
        sys.exit(bool(found))
