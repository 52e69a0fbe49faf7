#!/usr/bin/env python3
"""Runs one compile-fail case.

A case is a .cpp file with one or more lines `// EXPECT: words`. It must fail to compile, every line of words must stand in the
compiler's messages, and it must compile once NVL_FIXED is defined: so it fails for its own reason and not for a typing error.
"""
import argparse
import pathlib
import re
import subprocess
import sys
import tempfile


def problem(source, compiler, include_dirs):
    """What is wrong with the case, or None."""
    text = source.read_text(encoding="utf-8")
    expected = re.findall(r"^\s*// EXPECT: (.+?)\s*$", text, re.MULTILINE)
    if not expected:
        return "no line `// EXPECT: words`"
    command = [compiler, "-std=c++20", "-fsyntax-only", *(f"-I{folder}" for folder in include_dirs)]
    fixed = subprocess.run([*command, "-DNVL_FIXED", source], capture_output=True, text=True)
    if fixed.returncode != 0:
        return "does not compile even with NVL_FIXED:\n" + fixed.stderr
    broken = subprocess.run([*command, source], capture_output=True, text=True)
    if broken.returncode == 0:
        return "compiles, and should not"
    # The compiler quotes source lines; the EXPECT line itself must not count as a message.
    messages = "\n".join(line for line in broken.stderr.splitlines() if "// EXPECT:" not in line)
    for words in expected:
        if words not in messages:
            return f"the messages do not say: {words}\n{messages}"
    return None


def self_test(compiler):
    good = "// EXPECT: four bytes\n#ifdef NVL_FIXED\nint x;\n#else\nstatic_assert(sizeof(char) == 4, \"four bytes\");\n#endif\n"
    cases = {
        "good": (good, True),
        "no expectation": (good.replace("// EXPECT: four bytes", ""), False),
        "other words": (good.replace("// EXPECT: four bytes", "// EXPECT: five bytes"), False),
        "compiles": ("// EXPECT: four bytes\nint x;\n", False),
        "fails for another reason": (good.replace("int x;", "int x"), False),
    }
    for name, (text, sound) in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            source = pathlib.Path(folder) / "case.cpp"
            source.write_text(text)
            if (problem(source, compiler, []) is None) != sound:
                sys.exit(f"self test: the case '{name}' was judged wrongly")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiler", default="c++")
    parser.add_argument("-I", dest="include_dirs", action="append", default=[])
    parser.add_argument("--self-test", action="store_true")
    parser.add_argument("source", nargs="?", type=pathlib.Path)
    args = parser.parse_args()
    if args.self_test:
        self_test(args.compiler)
    else:
        found = problem(args.source, args.compiler, args.include_dirs)
        if found:
            sys.exit(f"{args.source.name}: {found}")


if __name__ == "__main__":
    main()
