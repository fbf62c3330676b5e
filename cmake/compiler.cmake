# Compiler settings for our own code. Targets of other projects (GoogleTest) never see the warning flags: those are
# set per layer by onerec_layer() through the interface library onerec_flags.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

if(NOT CMAKE_CXX_COMPILER_LAUNCHER)
  find_program(ONEREC_CCACHE ccache)
  mark_as_advanced(ONEREC_CCACHE)
  if(ONEREC_CCACHE)
    set(CMAKE_CXX_COMPILER_LAUNCHER "${ONEREC_CCACHE}")
  endif()
endif()

# Threads are our own; OpenMP is for `simd` loops and to keep the matrix library to the calling thread.
find_package(OpenMP REQUIRED COMPONENTS CXX)
find_package(Threads REQUIRED)

add_library(onerec_flags INTERFACE)
target_compile_options(onerec_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra>
  $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<BOOL:${ONEREC_WERROR}>>:-Werror>
  # The formulas of docs/numerics.md are bit-exact: a product and a sum become one rounding only where the source
  # says std::fma. errno of math functions is read nowhere, and keeping it would stop sqrt from being vectorised.
  $<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off -fno-math-errno>
  # __FILE__ in messages is relative to the project, wherever it was built.
  $<$<COMPILE_LANGUAGE:CXX>:-ffile-prefix-map=${PROJECT_SOURCE_DIR}/=>
  $<$<COMPILE_LANGUAGE:CXX>:-fvisibility=hidden -fvisibility-inlines-hidden>
  # Device asserts would put calls between matrix instructions, which ptxas then serialises. cmake/check_ptxas.sh fails
  # the build on what it reports.
  $<$<COMPILE_LANGUAGE:CUDA>:-DNDEBUG --expt-relaxed-constexpr -diag-suppress=177 -Xptxas=-warn-spills>
  $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-fvisibility=hidden,-fvisibility-inlines-hidden>)

if(ONEREC_SANITIZE)
  # ONEREC_SANITIZE empties the function-multiversioning macro of csrc/core: its dispatch (ifunc) runs before the
  # sanitizers' run-time is ready.
  target_compile_definitions(onerec_flags INTERFACE ONEREC_SANITIZE=1 _GLIBCXX_ASSERTIONS)
  target_compile_options(onerec_flags INTERFACE
    -O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all)
  target_link_options(onerec_flags INTERFACE -fsanitize=address,undefined)
endif()
