# Finds oneDNN and makes the imported target onerec_dnnl from one stripped copy of libdnnl.so.3 in the build folder,
# which is also what the wheel carries. (The PyPI wheel holds the same 52 MB three times: it has no symbolic links.)
#
# Looked for in ONEREC_DNNL_ROOT, then where the Python interpreter has `onednn-cpu-gomp` and `onednn-devel-cpu-gomp`.
# The interpreter is asked by package metadata and not by prefix: under pip's build isolation the packages lie in an
# overlay that sys.prefix does not name.

function(onerec_find_onednn_root out)
  if(ONEREC_DNNL_ROOT)
    set(${out} "${ONEREC_DNNL_ROOT}" PARENT_SCOPE)
    return()
  endif()
  find_package(Python 3.10 COMPONENTS Interpreter)
  if(NOT Python_Interpreter_FOUND)
    set(${out} "" PARENT_SCOPE)
    return()
  endif()
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c [=[
from importlib.metadata import PackageNotFoundError, files
try:
    headers = [f for f in files("onednn-devel-cpu-gomp") if f.name == "dnnl_version.h"]
    found = [f for f in files("onednn-cpu-gomp") if f.name == "libdnnl.so.3"]
    assert headers
    print(found[0].locate().resolve().parent.parent, end="")
except PackageNotFoundError:
    pass
]=]
    OUTPUT_VARIABLE root)
  set(${out} "${root}" PARENT_SCOPE)
endfunction()

onerec_find_onednn_root(onerec_dnnl_root)
set(onerec_dnnl_library "${onerec_dnnl_root}/lib/libdnnl.so.3")
set(onerec_dnnl_version_header "${onerec_dnnl_root}/include/oneapi/dnnl/dnnl_version.h")
if(NOT onerec_dnnl_root OR NOT EXISTS "${onerec_dnnl_library}" OR NOT EXISTS "${onerec_dnnl_version_header}")
  message(FATAL_ERROR
    "[build] oneDNN was not found (looked in: '${onerec_dnnl_root}'). Install onednn-cpu-gomp and "
    "onednn-devel-cpu-gomp into the active Python environment, or set ONEREC_DNNL_ROOT to a folder with include/ and "
    "lib/libdnnl.so.3, or choose ONEREC_GEMM=OPENBLAS.")
endif()

set(onerec_dnnl_version "")
foreach(part MAJOR MINOR PATCH)
  file(STRINGS "${onerec_dnnl_version_header}" line REGEX "^#define DNNL_VERSION_${part} ")
  string(REGEX MATCH "[0-9]+$" number "${line}")
  list(APPEND onerec_dnnl_version "${number}")
endforeach()
list(JOIN onerec_dnnl_version "." onerec_dnnl_version)

set(ONEREC_DNNL_COPY "${PROJECT_BINARY_DIR}/onednn/libdnnl.so.3")
if(NOT EXISTS "${ONEREC_DNNL_COPY}" OR "${onerec_dnnl_library}" IS_NEWER_THAN "${ONEREC_DNNL_COPY}")
  get_filename_component(onerec_dnnl_real "${onerec_dnnl_library}" REALPATH)
  configure_file("${onerec_dnnl_real}" "${ONEREC_DNNL_COPY}" COPYONLY)
  if(CMAKE_STRIP)
    execute_process(COMMAND "${CMAKE_STRIP}" --strip-unneeded "${ONEREC_DNNL_COPY}" COMMAND_ERROR_IS_FATAL ANY)
  endif()
endif()

# The licence travels with the library.
file(GLOB ONEREC_DNNL_LICENSES
     "${onerec_dnnl_root}/share/doc/onednn/LICENSE" "${onerec_dnnl_root}/share/doc/onednn/THIRD-PARTY-PROGRAMS")

add_library(onerec_dnnl SHARED IMPORTED GLOBAL)
set_target_properties(onerec_dnnl PROPERTIES
  IMPORTED_LOCATION "${ONEREC_DNNL_COPY}"
  IMPORTED_SONAME libdnnl.so.3
  INTERFACE_INCLUDE_DIRECTORIES "${onerec_dnnl_root}/include")
