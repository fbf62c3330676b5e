# CUTLASS (headers only), which the CUDA backend's matrix products are made of. Sets ONEREC_CUTLASS_INCLUDES.
#
# Taken from ONEREC_CUTLASS_ROOT, a checkout or an unpacked source folder, where that is set; else from the wheel
# nvidia-cutlass, which pip downloads once into the build folder. The wheel is unpacked and not installed: as a package
# it would bring the CUDA bindings for Python and SciPy along.

set(ONEREC_CUTLASS_ROOT "" CACHE PATH "CUTLASS sources (the folder that holds include/cutlass); empty: download them")
set(onerec_cutlass_version 4.2.0.0)

if(ONEREC_CUTLASS_ROOT)
  set(onerec_cutlass_source "${ONEREC_CUTLASS_ROOT}")
else()
  set(onerec_cutlass_folder "${PROJECT_BINARY_DIR}/cutlass-${onerec_cutlass_version}")
  set(onerec_cutlass_source "${onerec_cutlass_folder}/cutlass_library/source")
  if(NOT EXISTS "${onerec_cutlass_source}/include/cutlass/cutlass.h")
    find_package(Python 3.10 REQUIRED COMPONENTS Interpreter)
    message(STATUS "Downloading the headers of CUTLASS ${onerec_cutlass_version}")
    execute_process(
      COMMAND "${Python_EXECUTABLE}" -m pip --disable-pip-version-check download --quiet --no-deps
              --dest "${onerec_cutlass_folder}" "nvidia-cutlass==${onerec_cutlass_version}"
      RESULT_VARIABLE onerec_pip_status ERROR_VARIABLE onerec_pip_error)
    file(GLOB onerec_cutlass_wheel "${onerec_cutlass_folder}/nvidia_cutlass-*.whl")
    if(NOT onerec_pip_status EQUAL 0 OR NOT onerec_cutlass_wheel)
      message(FATAL_ERROR "[build] could not download nvidia-cutlass==${onerec_cutlass_version}. "
                          "Set ONEREC_CUTLASS_ROOT to a CUTLASS 4.2 checkout.\n${onerec_pip_error}")
    endif()
    file(ARCHIVE_EXTRACT INPUT "${onerec_cutlass_wheel}" DESTINATION "${onerec_cutlass_folder}"
         PATTERNS "cutlass_library/source/include/*" "cutlass_library/source/tools/util/include/*" "*/licenses/*")
    file(REMOVE "${onerec_cutlass_wheel}")
  endif()
endif()

if(NOT EXISTS "${onerec_cutlass_source}/include/cutlass/cutlass.h")
  message(FATAL_ERROR "[build] ONEREC_CUTLASS_ROOT is '${ONEREC_CUTLASS_ROOT}', want a folder that holds "
                      "include/cutlass/cutlass.h.")
endif()
set(ONEREC_CUTLASS_INCLUDES "${onerec_cutlass_source}/include" "${onerec_cutlass_source}/tools/util/include")
