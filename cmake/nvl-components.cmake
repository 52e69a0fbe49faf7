# What each component of nvl needs. Used by nvl's own build and, installed, by nvl-config.cmake.

set(nvl_components core io net cuda nccl)

set(nvl_core_packages Threads xxHash)
set(nvl_io_packages PCRE2 nlohmann_json utf8proc)
set(nvl_net_packages OpenSSL)
set(nvl_cuda_packages CUDAToolkit)
set(nvl_nccl_packages NCCL)

set(nvl_core_links Threads::Threads xxHash::xxHash)
set(nvl_io_links PCRE2::8BIT nlohmann_json::nlohmann_json utf8proc::utf8proc)
set(nvl_net_links OpenSSL::Crypto)
set(nvl_cuda_links CUDA::cudart CUDA::cublasLt)
set(nvl_nccl_links NCCL::NCCL)

set(nvl_io_parents core)
set(nvl_net_parents core)
set(nvl_cuda_parents core)
set(nvl_nccl_parents cuda)

# nvl_find_component(<name> [QUIET]): sets nvl_<name>_FOUND and, when it is false, nvl_<name>_missing ("needs PCRE2").
# A macro: find_package leaves variables that its caller has to see.
macro(nvl_find_component name)
  set(nvl_${name}_FOUND TRUE)
  foreach(nvl_parent IN LISTS nvl_${name}_parents)
    if(NOT nvl_${nvl_parent}_FOUND)
      set(nvl_${name}_FOUND FALSE)
      set(nvl_${name}_missing "${nvl_${nvl_parent}_missing}")
    endif()
  endforeach()
  if(nvl_${name}_FOUND)
    foreach(nvl_package IN LISTS nvl_${name}_packages)
      find_package(${nvl_package} ${ARGN})
      if(NOT ${nvl_package}_FOUND)
        set(nvl_${name}_FOUND FALSE)
        set(nvl_${name}_missing "needs ${nvl_package}")
        break()
      endif()
    endforeach()
  endif()
endmacro()
