# How nvl builds its own tests, examples and benchmarks. Nothing here reaches a host program.

set(CMAKE_CXX_EXTENSIONS OFF)
if(PROJECT_IS_TOP_LEVEL)
  set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
  if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
  endif()
  set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bin")
endif()

set(nvl_own_compile_options -Wall -Wextra -Wconversion -Wshadow)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # g++ 12 sees overlaps in std::string's operator+ and undefined registers in its own AVX-512 header, and there are none.
  list(APPEND nvl_own_compile_options -Wno-restrict -Wno-maybe-uninitialized)
endif()
set(nvl_own_link_options "")
if(NVL_WERROR)
  list(APPEND nvl_own_compile_options -Werror)
endif()
if(NVL_MARCH)
  list(APPEND nvl_own_compile_options -march=${NVL_MARCH})
endif()
if(NVL_SANITIZE)
  list(APPEND nvl_own_compile_options -fsanitize=${NVL_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  list(APPEND nvl_own_link_options -fsanitize=${NVL_SANITIZE})
  if(NVL_SANITIZE MATCHES "address")
    list(APPEND nvl_own_compile_options -fno-sanitize=null)  # AddressSanitizer reports the access itself; a fifth of the time to compile
  endif()
endif()
if(NVL_ENABLE_COVERAGE)
  # Counters that are atomic also compile in two thirds of the time: the optimiser leaves them alone.
  list(APPEND nvl_own_compile_options --coverage -fprofile-update=atomic)
  list(APPEND nvl_own_link_options --coverage)
endif()

# The host half of a .cu gets the same processor as the .cpp files that it is linked with: inline functions that hold vectors must
# be the same in both. -Wconversion and -Wshadow would speak of what nvcc itself makes of the code. CMake 3.25 knows no C++20 for
# nvcc, so it is given as an option. Line numbers cost no speed; profilers and compute-sanitizer show them.
set(nvl_own_cuda_options -std=c++20 -lineinfo -Xcompiler=-Wall,-Wextra)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  list(APPEND nvl_own_cuda_options -Xcompiler=-Wno-restrict,-Wno-maybe-uninitialized,-Wno-uninitialized)
endif()
if(NVL_MARCH)
  list(APPEND nvl_own_cuda_options -Xcompiler=-march=${NVL_MARCH})
endif()

# nvl_own_target(<target>): the flags above for one of nvl's own programs.
function(nvl_own_target target)
  target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:${nvl_own_compile_options}>"
                                           "$<$<COMPILE_LANGUAGE:CUDA>:${nvl_own_cuda_options}>")
  target_link_options(${target} PRIVATE ${nvl_own_link_options})
endfunction()

# ccache makes a second build of the same tree cheap. It takes -march=native for the same text on every machine, so what
# `native` means here is made part of the key: a cache that is carried to another processor must not be used there.
if(PROJECT_IS_TOP_LEVEL AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  find_program(NVL_CCACHE ccache)
  mark_as_advanced(NVL_CCACHE)
  if(NVL_CCACHE)
    set(nvl_cpu "${NVL_MARCH}")
    if(NVL_MARCH STREQUAL "native")
      execute_process(COMMAND "${CMAKE_CXX_COMPILER}" -march=native -dM -E -x c++ /dev/null OUTPUT_VARIABLE nvl_cpu)
      string(MD5 nvl_cpu "${nvl_cpu}")
    endif()
    set(CMAKE_CXX_COMPILER_LAUNCHER "${CMAKE_COMMAND}" -E env "CCACHE_NAMESPACE=nvl-${nvl_cpu}" "${NVL_CCACHE}")
    # By the text of all included files. Preprocessed text, which ccache compares otherwise, is the host's: it would call a file
    # unchanged in which only what stands under `#if __CUDA_ARCH__` has changed.
    if(NOT CMAKE_CUDA_COMPILER_LAUNCHER)
      set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER})
      list(INSERT CMAKE_CUDA_COMPILER_LAUNCHER 3 "CCACHE_DEPEND=1")
    endif()
  endif()
endif()
