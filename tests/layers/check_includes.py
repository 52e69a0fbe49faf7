#!/usr/bin/env python3
"""Fails when a header of nvl includes a layer that it must not know, or when a .hpp reaches CUDA."""
import pathlib
import re
import sys
import tempfile

# folder -> the folders below it that it may include (its own is always allowed).
BELOW = {
    "core": set(),
    "kv": {"core"}, "parallel": {"core"}, "kernels": {"core"}, "io": {"core"}, "net": {"core", "parallel"},
    "sched": {"core", "kv"}, "attention": {"core", "kv", "kernels", "parallel", "ops"}, "ops": {"core", "kv", "kernels", "parallel"},
}
BELOW["model"] = {"core", "kv", "parallel", "kernels", "io", "sched", "attention", "ops"}
BELOW["engine"] = BELOW["model"] | {"model"}
ANYTHING = set(BELOW) | {"testing", ""}  # testing/ and the headers on top (nvl.hpp, llm.hpp) may include every layer
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]')
CUDA = re.compile(r"\.cuh$|^(cuda|cub/|thrust/|cublas|nccl|cooperative_groups|mma\.h)")


def violations(root):
    for header in sorted(p for p in root.glob("nvl/**/*") if p.suffix in (".hpp", ".cuh")):
        parts = header.relative_to(root / "nvl").parts
        layer = parts[0] if len(parts) > 1 else ""
        for number, line in enumerate(header.read_text(encoding="utf-8").splitlines(), 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            target, where = match[1], f"{header.relative_to(root)}:{number}"
            if header.suffix == ".hpp" and CUDA.search(target):
                yield f"{where}: a .hpp includes CUDA: {target}"
            if target.startswith("nvl/"):
                to = target.split("/")[1] if target.count("/") > 1 else ""
                if to == "" and target in ("nvl/version.hpp", "nvl/fwd.hpp"):
                    continue
                if to != layer and to not in (ANYTHING if layer in ("", "testing") else BELOW.get(layer, set())):
                    yield f"{where}: {layer} may not include {to or 'a top-level header'}: {target}"
                if not (root / target).is_file():
                    yield f"{where}: there is no {target}"
            elif '"' in line and not target.startswith("nvl/"):
                yield f"{where}: headers of nvl are included as <nvl/...>: {target}"


def self_test():
    cases = {  # header, its one include -> whether the check has to speak
        ("core/a.hpp", "<nvl/kv/b.hpp>"): True, ("kernels/a.hpp", "<nvl/ops/b.hpp>"): True, ("io/a.hpp", "<nvl/kv/b.hpp>"): True,
        ("sched/a.hpp", "<nvl/engine/b.hpp>"): True, ("model/a.hpp", "<nvl/testing/b.hpp>"): True, ("core/a.hpp", "<nvl/b.hpp>"): True,
        ("ops/a.hpp", "<nvl/kernels/b.cuh>"): True, ("ops/a.hpp", "<cuda_runtime.h>"): True, ("ops/a.hpp", "<cub/cub.cuh>"): True,
        ("core/a.hpp", "<nvl/core/missing.hpp>"): True, ("kv/a.hpp", '"b.hpp"'): True, ("newlayer/a.hpp", "<nvl/core/b.hpp>"): True,
        ("ops/a.cuh", "<cuda_runtime.h>"): False, ("engine/a.hpp", "<nvl/model/b.hpp>"): False, ("a.hpp", "<nvl/engine/b.hpp>"): False,
        ("kernels/a.cuh", "<nvl/ops/b.cuh>"): True, ("kernels/a.cuh", "<nvl/kv/b.hpp>"): True, ("core/a.cuh", "<nvl/kernels/b.cuh>"): True,
        ("engine/a.hpp", "<nvl/ops/b.cuh>"): True, ("a.hpp", "<nvl/ops/b.cuh>"): True, ("kernels/a.hpp", "<cuda_fp16.h>"): True,
        ("ops/a.cuh", "<nvl/kernels/b.cuh>"): False, ("kernels/a.cuh", "<nvl/core/b.hpp>"): False, ("a.cuh", "<nvl/engine/b.hpp>"): False,
        ("testing/a.hpp", "<nvl/engine/b.hpp>"): False, ("kv/a.hpp", "<nvl/core/b.hpp>"): False, ("core/a.hpp", "<cstdint>"): False,
    }
    for (name, include), expected in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            planted = root / "nvl" / name
            target = include.strip("<>")
            if target.startswith("nvl/") and "missing" not in target:
                (root / target).parent.mkdir(parents=True, exist_ok=True)
                (root / target).write_text("#pragma once\n")
            planted.parent.mkdir(parents=True, exist_ok=True)
            planted.write_text(f"#pragma once\n#include {include}\n")
            if bool(list(violations(root))) != expected:
                sys.exit(f"self test: {name} with {include}: expected {'a violation' if expected else 'none'}")
    print(f"{len(cases)} planted cases judged as they should be")


if __name__ == "__main__":
    if sys.argv[1:] == ["--self-test"]:
        self_test()
    else:
        found = list(violations(pathlib.Path(sys.argv[1])))
        print("\n".join(found) or "includes point downwards")
        sys.exit(bool(found))
