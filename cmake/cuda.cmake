# Decides whether the CUDA backend is built. Sets ONEREC_HAS_CUDA and, where it is off, ONEREC_CUDA_REASON: the
# sentence that build_info() and every refusal of device="cuda" repeat.
#
# AUTO builds it where the sources, nvcc and a GPU of compute capability 9.0 are all there. ON does without the GPU (a
# build machine need not have one) but not without the rest.

function(onerec_find_cuda_obstacle out)
  set(${out} "" PARENT_SCOPE)
  if(ONEREC_CUDA STREQUAL "OFF")
    set(${out} "turned off when this package was built (ONEREC_CUDA=OFF)" PARENT_SCOPE)
    return()
  endif()

  if(NOT IS_DIRECTORY "${PROJECT_SOURCE_DIR}/csrc/backends/cuda")
    set(${out} "this version has no CUDA backend" PARENT_SCOPE)
    return()
  endif()

  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(${out} "no nvcc found when this package was built" PARENT_SCOPE)
    return()
  endif()

  if(ONEREC_CUDA STREQUAL "AUTO")
    find_program(ONEREC_NVIDIA_SMI nvidia-smi)
    mark_as_advanced(ONEREC_NVIDIA_SMI)
    set(capabilities "")
    if(ONEREC_NVIDIA_SMI)
      execute_process(COMMAND "${ONEREC_NVIDIA_SMI}" --query-gpu=compute_cap --format=csv,noheader
                      OUTPUT_VARIABLE capabilities ERROR_QUIET)
    endif()
    if(NOT "${capabilities}" MATCHES "(^|\n)9\\.0")
      set(${out} "no GPU of compute capability 9.0 visible when this package was built" PARENT_SCOPE)
    endif()
  endif()
endfunction()

if(NOT ONEREC_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "[build] ONEREC_CUDA is '${ONEREC_CUDA}', want AUTO, ON or OFF.")
endif()

onerec_find_cuda_obstacle(ONEREC_CUDA_REASON)
if(ONEREC_CUDA_REASON)
  if(ONEREC_CUDA STREQUAL "ON")
    message(FATAL_ERROR "[build] ONEREC_CUDA=ON cannot be met: ${ONEREC_CUDA_REASON}. "
                        "Use ONEREC_CUDA=AUTO to build for the CPU alone.")
  endif()
  set(ONEREC_HAS_CUDA OFF)
  set(onerec_cuda_because " (${ONEREC_CUDA_REASON})")
else()
  set(ONEREC_HAS_CUDA ON)
  set(onerec_cuda_because "")
  # The kernels use instructions of sm_90a that later architectures do not have.
  set(CMAKE_CUDA_ARCHITECTURES 90a-real)
  if(NOT CMAKE_CUDA_COMPILER_LAUNCHER)
    set(CMAKE_CUDA_COMPILER_LAUNCHER "${PROJECT_SOURCE_DIR}/cmake/check_ptxas.sh" ${CMAKE_CXX_COMPILER_LAUNCHER})
  endif()
  enable_language(CUDA)
  # CMake 3.24 and 3.25 do not know that nvcc has had C++20 since CUDA 12.
  foreach(kind STANDARD EXTENSION)
    if(NOT CMAKE_CUDA20_${kind}_COMPILE_OPTION)
      set(CMAKE_CUDA20_${kind}_COMPILE_OPTION "-std=c++20")
    endif()
  endforeach()
  set(CMAKE_CUDA_STANDARD 20)
  find_package(CUDAToolkit REQUIRED)
  include(cutlass)  # ONEREC_CUTLASS_INCLUDES

  # A CUTLASS source takes up to 6 GiB to compile: no more at once than the memory holds.
  set(ONEREC_CUDA_JOBS "" CACHE STRING "CUDA sources compiled at a time; empty: one per 6 GiB of memory")
  cmake_host_system_information(RESULT onerec_memory_mib QUERY TOTAL_PHYSICAL_MEMORY)
  if(EXISTS /sys/fs/cgroup/memory.max)
    file(READ /sys/fs/cgroup/memory.max onerec_memory_limit)
    string(STRIP "${onerec_memory_limit}" onerec_memory_limit)
    if(onerec_memory_limit MATCHES "^[0-9]+$")
      math(EXPR onerec_memory_limit "${onerec_memory_limit} / 1048576")
      if(onerec_memory_limit LESS onerec_memory_mib)
        set(onerec_memory_mib ${onerec_memory_limit})
      endif()
    endif()
  endif()
  math(EXPR onerec_cuda_jobs "${onerec_memory_mib} / 6144")
  if(onerec_cuda_jobs LESS 1)
    set(onerec_cuda_jobs 1)
  endif()
  if(ONEREC_CUDA_JOBS)
    set(onerec_cuda_jobs "${ONEREC_CUDA_JOBS}")
  endif()
  set_property(GLOBAL APPEND PROPERTY JOB_POOLS onerec_cuda=${onerec_cuda_jobs})
endif()
