# Chooses the library behind csrc/backends/cpu/gemm.h. Sets ONEREC_GEMM_SOURCE (the one file that implements it),
# ONEREC_GEMM_LIBRARY (its name, for build_info) and the target onerec_gemm.

if(NOT ONEREC_GEMM MATCHES "^(AUTO|ONEDNN|OPENBLAS)$")
  message(FATAL_ERROR "[build] ONEREC_GEMM is '${ONEREC_GEMM}', want AUTO, ONEDNN or OPENBLAS.")
endif()

# oneDNN multiplies bf16 and keeps rows independent of the batch, but its wheels exist for Linux on x86-64 only.
set(onerec_gemm_choice ${ONEREC_GEMM})
if(onerec_gemm_choice STREQUAL "AUTO")
  if(CMAKE_SYSTEM_NAME STREQUAL "Linux" AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
    set(onerec_gemm_choice ONEDNN)
  else()
    set(onerec_gemm_choice OPENBLAS)
  endif()
endif()

add_library(onerec_gemm INTERFACE)
if(onerec_gemm_choice STREQUAL "ONEDNN")
  include(onednn)
  set(ONEREC_GEMM_LIBRARY "oneDNN ${onerec_dnnl_version}")
  set(ONEREC_GEMM_SOURCE csrc/backends/cpu/gemm_onednn.cpp)
  target_link_libraries(onerec_gemm INTERFACE onerec_dnnl)
else()
  # Opened with dlopen on first use, because it starts its threads the moment it is loaded.
  set(ONEREC_GEMM_LIBRARY "OpenBLAS")
  set(ONEREC_GEMM_SOURCE csrc/backends/cpu/gemm_openblas.cpp)
  target_link_libraries(onerec_gemm INTERFACE ${CMAKE_DL_LIBS})
endif()
