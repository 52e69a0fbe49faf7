#!/usr/bin/env python3
"""Checks what the documents take from the code.

Every ```cpp block of README.md and docs/**/*.md that holds `int main` is compiled as it stands. A block that says
`// from <file>` in its first line is an excerpt: each of its other lines has to stand in that file, in this order. One that says
`// all of <file>` has to be that file, which the build compiles, so it is not compiled again.

A table under a line `<!-- table of <header> -->` has to be one of the tables in that header's comments.

--update writes these programs and tables anew from the files that they are of.
"""
import argparse
import pathlib
import re
import subprocess
import sys
import tempfile

BLOCK = re.compile(r"^```(?:cpp|c\+\+)[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
EXCERPT = re.compile(r"//\s*from\s+(\S+)")
TABLE = re.compile(r"^<!-- table of (\S+) -->\n((?:\|.*\n)+)", re.MULTILINE)
WHOLE = re.compile(r"//\s*all of\s+(\S+)")


def compile_problem(code, root, compiler):
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "block.cpp"
        source.write_text(code)
        done = subprocess.run([compiler, "-std=c++20", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{root / 'include'}", source],
                              capture_output=True, text=True)
        return done.stderr if done.returncode else None


def excerpt_problem(code, file):
    if not file.is_file():
        return f"there is no {file}"
    lines = iter([" ".join(line.split()) for line in file.read_text(encoding="utf-8").splitlines()])
    for wanted in (" ".join(line.split()) for line in code.splitlines()[1:]):
        if wanted and wanted not in ("...", "// ...") and wanted not in lines:  # `in` moves the iterator: the order counts
            return f"this line is not in {file.name}, or not in this order: {wanted}"
    return None


def whole_problem(code, file):
    if not file.is_file():
        return f"there is no {file}"
    block, source = code.split("\n", 1)[1].splitlines(), file.read_text(encoding="utf-8").splitlines()
    for number, (wanted, found) in enumerate(zip(block + [""], source + [""]), 1):
        if wanted != found:
            return f"the block is not all of {file.name}: line {number} there is `{found}`, here it is `{wanted}`"
    return None if len(block) == len(source) else f"the block is not all of {file.name}: other number of lines"


def table_rows(lines):
    """Rows of cells; a row without a first cell goes on with the one before it. The row of dashes is left out."""
    rows = []
    for line in lines:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if all(set(cell) <= set("-:") for cell in cells) and "-" in line:
            continue
        if rows and not cells[0]:
            rows[-1] = [f"{a} {b}".strip() for a, b in zip(rows[-1], cells)]
        else:
            rows.append(cells)
    return rows


def header_tables(text):
    """The tables in the comments of a header, told apart by what stands between them."""
    tables, lines = [], []
    for line in text.splitlines() + [""]:
        if line.lstrip().startswith("/// |"):
            lines.append(line.lstrip()[4:])
        elif lines:
            tables.append(table_rows(lines))
            lines = []
    return tables


def table_problem(rows, file):
    if not file.is_file():
        return f"there is no {file}"
    tables = header_tables(file.read_text(encoding="utf-8"))
    if rows in tables:
        return None
    known = [row for table in tables for row in table]
    other = next((row for row in rows if row not in known), rows[0])
    return f"no table of {file.name} is this one; see the row | {' | '.join(other)} |"


def check(root, compiler):
    """Problems, and the number of blocks that were checked."""
    problems, checked = [], 0
    for document in [root / "README.md", *sorted((root / "docs").glob("**/*.md"))]:
        text = document.read_text(encoding="utf-8") if document.is_file() else ""
        for match in BLOCK.finditer(text):
            code, line = match[1], text[: match.start()].count("\n") + 2
            excerpt, whole = EXCERPT.match(code), WHOLE.match(code)
            if whole:
                problem, checked = whole_problem(code, root / whole[1]), checked + 1
                if problem:
                    problems.append(f"{document.relative_to(root)}:{line}: {problem}")
                continue
            problem = None
            if excerpt:
                problem, checked = excerpt_problem(code, root / excerpt[1]), checked + 1
            if not problem and re.search(r"\bint main\b", code):
                problem, checked = compile_problem(code, root, compiler), checked + 1
            if problem:
                problems.append(f"{document.relative_to(root)}:{line}: {problem}")
        for match in TABLE.finditer(text):
            line, checked = text[: match.start()].count("\n") + 1, checked + 1
            if problem := table_problem(table_rows(match[2].splitlines()), root / match[1]):
                problems.append(f"{document.relative_to(root)}:{line}: {problem}")
    return problems, checked


def update(root):
    """Takes the whole programs and the tables of the documents from their files again. Yields the documents that it wrote."""
    def program(match):
        whole = WHOLE.match(match[1])
        source = root / whole[1] if whole else None
        if not whole or not source.is_file():
            return match[0]
        text = match[1].splitlines()[0] + "\n" + source.read_text(encoding="utf-8")
        return match[0][: match.start(1) - match.start()] + text + match[0][match.end(1) - match.start() :]

    def table(match):
        rows = table_rows(match[2].splitlines())
        tables = header_tables((root / match[1]).read_text(encoding="utf-8")) if (root / match[1]).is_file() else []
        best = max(tables, key=lambda candidate: sum(row in rows for row in candidate), default=[])
        if not any(row in rows for row in best):
            return match[0]
        lines = ["| " + " | ".join(row) + " |" for row in best]
        return "\n".join([f"<!-- table of {match[1]} -->", lines[0], "|" + "---|" * len(best[0]), *lines[1:], ""])

    for document in [root / "README.md", *sorted((root / "docs").glob("**/*.md"))]:
        text = document.read_text(encoding="utf-8")
        new = TABLE.sub(table, BLOCK.sub(program, text))
        if new != text:
            document.write_text(new, encoding="utf-8")
            yield document


def self_test(compiler):
    program = "#include <vector>\nint main() {\n  return std::vector<int>().size() == 0 ? 0 : 1;\n}\n"
    comment = "/// | a | b     |\n/// |---|---------|\n/// | 1 | two     |\n/// |   | words   |\n"
    cases = [  # text of the README, number of problems, number of blocks checked
        (f"# A\n```cpp\n{program}```\n", 0, 1),
        (f"```cpp\n{program.replace('vector>', 'nothing>')}```\n", 1, 1),
        ("```cpp\nengine.submit(...);\n```\n", 0, 0),
        ("```cpp\n// from a.cpp\nint main() {\n}\n```\n", 0, 2),
        ("```cpp\n// from a.cpp\n  return 7;\n```\n", 1, 1),
        ("```cpp\n// from a.cpp\n}\nint twice(int);\n```\n", 1, 1),
        ("```cpp\n// from none.cpp\nint x;\n```\n", 1, 1),
        (f"```cpp\n// all of a.cpp\nint twice(int);\n{program}{comment}```\n", 0, 1),
        (f"```cpp\n// all of a.cpp\n{program}```\n", 1, 1),
        ("```cpp\n// all of a.cpp\nint twice(int);\n```\n", 1, 1),
        (f"```cpp\n// all of a.cpp\nint twice(int);\n{program}{comment}// more\n```\n", 1, 1),
    ]
    table = "<!-- table of a.cpp -->\n| a | b |\n|---|---|\n| 1 | two words |\n"
    cases += [(table, 0, 1), (table + "| 2 | three |\n", 1, 1), (table.replace("two", "too"), 1, 1), (table.replace("a.cpp", "b.cpp"), 1, 1)]
    for text, problems, checked in cases:
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            (root / "README.md").write_text(text)
            (root / "a.cpp").write_text("int twice(int);\n" + program + comment)
            found = check(root, compiler)
            if (len(found[0]), found[1]) != (problems, checked):
                sys.exit(f"self test: {found} for\n{text}")
            (root / "docs").mkdir()
            list(update(root))
            if not problems and (root / "README.md").read_text() != text:
                sys.exit(f"self test: --update changed what is right:\n{text}")
            if "a.cpp -->" in text or "all of a.cpp" in text:
                update_problems = check(root, compiler)[0]
                if update_problems:
                    sys.exit(f"self test: after --update {update_problems} for\n{text}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiler", default="c++")
    parser.add_argument("--self-test", action="store_true")
    parser.add_argument("--update", action="store_true")
    parser.add_argument("root", nargs="?", type=pathlib.Path)
    args = parser.parse_args()
    if args.update:
        for document in update(args.root):
            print(f"written: {document}")
        return
    if args.self_test:
        self_test(args.compiler)
        return
    problems, checked = check(args.root, args.compiler)
    print("\n".join(problems) or f"{checked} blocks are right")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
