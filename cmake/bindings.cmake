# The Python module onerec_engine._C, and what lies beside it in the package.

set(PYBIND11_FINDPYTHON ON)
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)
if(NOT pybind11_DIR)
  # A plain CMake build finds pybind11 through the interpreter; scikit-build-core adds the path itself.
  execute_process(COMMAND "${Python_EXECUTABLE}" -m pybind11 --cmakedir
                  OUTPUT_VARIABLE pybind11_cmake_dir OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
find_package(pybind11 3.0 CONFIG REQUIRED HINTS "${pybind11_cmake_dir}")

file(GLOB onerec_bindings_sources CONFIGURE_DEPENDS csrc/bindings/*.cpp)
# NO_EXTRAS: no link-time optimisation (nothing hot is in the bindings) and no stripping (the installer does that).
pybind11_add_module(_C MODULE NO_EXTRAS ${onerec_bindings_sources})
target_link_libraries(_C PRIVATE onerec_flags onerec_engine_core onerec_backend)
set_target_properties(_C PROPERTIES INSTALL_RPATH "$ORIGIN")
if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
  # A compiler that links its C++ library statically would otherwise let the module's copy and the one that comes with the matrix library
  # share symbols, and crash.
  target_link_options(_C PRIVATE "LINKER:--exclude-libs,ALL")
endif()

install(TARGETS _C LIBRARY DESTINATION onerec_engine)
if(ONEREC_DNNL_COPY)
  install(PROGRAMS "${ONEREC_DNNL_COPY}" DESTINATION onerec_engine)
  install(FILES ${ONEREC_DNNL_LICENSES} DESTINATION onerec_engine/licenses/onednn)
endif()
