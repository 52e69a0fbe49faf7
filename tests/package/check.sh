#!/usr/bin/env bash
# One way of taking nvl into a program, from an empty folder: check.sh find_package|add_subdirectory|plain_include|components
# tests/package/CMakeLists.txt sets CXX, CMAKE, NVL_SOURCE, NVL_BUILD and NVL_SCRATCH.
set -euo pipefail
way=$1
scratch=$NVL_SCRATCH/$way
rm -rf "$scratch"
mkdir -p "$scratch"

fail() { echo "package $way: $*" >&2; exit 1; }

case $way in
  find_package)
    "$CMAKE" --install "$NVL_BUILD" --prefix "$scratch/prefix" > "$scratch/install.log"
    # Every header of the tree is installed, and nothing of the tests.
    diff <(cd "$NVL_SOURCE/include" && find . -name '*.hpp' -o -name '*.cuh' | sort) \
         <(cd "$scratch/prefix/include" && find . -type f | sort) || fail "the installed headers differ from include/"
    # The source folder is copied so that nothing is found through its place in the tree.
    cp -r "$NVL_SOURCE/examples/host_project" "$scratch/source"
    "$CMAKE" -S "$scratch/source" -B "$scratch/build" -DCMAKE_PREFIX_PATH="$scratch/prefix" -DCMAKE_BUILD_TYPE=Release
    "$CMAKE" --build "$scratch/build"
    "$scratch/build/host_project"
    ;;
  add_subdirectory)
    cat > "$scratch/CMakeLists.txt" <<EOF
cmake_minimum_required(VERSION 3.25)
project(outer LANGUAGES CXX)
add_subdirectory("$NVL_SOURCE" nvl)
foreach(name IN ITEMS NVL_BUILD_TESTS NVL_BUILD_EXAMPLES NVL_BUILD_BENCH NVL_BUILD_FUZZ NVL_INSTALL)
  if(\${name})
    message(FATAL_ERROR "\${name} is on in a project that only includes nvl")
  endif()
endforeach()
foreach(name IN ITEMS CMAKE_CXX_STANDARD CMAKE_CXX_FLAGS CMAKE_CXX_COMPILER_LAUNCHER CMAKE_RUNTIME_OUTPUT_DIRECTORY CMAKE_CUDA_ARCHITECTURES)
  if(NOT "\${\${name}}" STREQUAL "")
    message(FATAL_ERROR "nvl set \${name} for its host")
  endif()
endforeach()
get_directory_property(tests DIRECTORY "$NVL_SOURCE" TESTS)
if(tests)
  message(FATAL_ERROR "nvl added tests to its host")
endif()
foreach(target IN ITEMS nvl_core nvl_io nvl_net nvl_cuda nvl_nccl nvl_nvl)
  get_target_property(options \${target} INTERFACE_COMPILE_OPTIONS)
  if(options)
    message(FATAL_ERROR "\${target} pushes compile options on its host: \${options}")
  endif()
endforeach()
add_executable(host_project "$NVL_SOURCE/examples/host_project/main.cpp")
target_link_libraries(host_project PRIVATE nvl::core)
EOF
    env -u CXXFLAGS "$CMAKE" -S "$scratch" -B "$scratch/build" -DCMAKE_BUILD_TYPE=Release
    "$CMAKE" --build "$scratch/build"
    "$scratch/build/host_project"
    ;;
  plain_include)
    "$CXX" -std=c++20 -O2 -I "$NVL_SOURCE/include" "$NVL_SOURCE/examples/host_project/main.cpp" -o "$scratch/host_project" -pthread
    "$scratch/host_project"
    ;;
  components)
    # A component that is there is accepted; one that does not exist is refused by name.
    "$CMAKE" --install "$NVL_BUILD" --prefix "$scratch/prefix" > "$scratch/install.log"
    for component in core nonsense; do
      mkdir -p "$scratch/$component"
      cat > "$scratch/$component/CMakeLists.txt" <<EOF
cmake_minimum_required(VERSION 3.25)
project(outer LANGUAGES CXX)
find_package(nvl 0.1 REQUIRED COMPONENTS $component)
if(NOT TARGET nvl::core OR NOT TARGET nvl::nvl)
  message(FATAL_ERROR "find_package(nvl) defined no targets")
endif()
EOF
    done
    "$CMAKE" -S "$scratch/core" -B "$scratch/core/build" -DCMAKE_PREFIX_PATH="$scratch/prefix"
    if "$CMAKE" -S "$scratch/nonsense" -B "$scratch/nonsense/build" -DCMAKE_PREFIX_PATH="$scratch/prefix" 2> "$scratch/nonsense.log"; then
      fail "find_package accepted the component 'nonsense'"
    fi
    # vcpkg's manifest is plain data, so it cannot read the version from the header.
    version=$(sed -n 's/^#define NVL_VERSION_[A-Z]* //p' "$NVL_SOURCE/include/nvl/version.hpp" | paste -sd.)
    grep -q "\"version\": \"$version\"" "$NVL_SOURCE/cmake/vcpkg/nvl/vcpkg.json" || fail "cmake/vcpkg/nvl/vcpkg.json is not version $version"
    grep -q "is not a component of nvl" "$scratch/nonsense.log" || fail "the refusal does not name the reason"
    ;;
  *) fail "no such way" ;;
esac
