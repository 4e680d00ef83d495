# SPDX-License-Identifier: Apache-2.0
# What `cmake --install` lays down, and what makes find_package(Cadre) and pkg-config work there: the libraries cadre::comm,
# cadre::layers, cadre::runtime with their headers under include/cadre, <cadre/moe.hpp>, the program, its configurations,
# schemas, scripts and examples.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/cadre")
get_property(libraries GLOBAL PROPERTY CADRE_LIBRARIES)
install(TARGETS ${libraries} EXPORT cadreTargets FILE_SET HEADERS DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/cadre"
        INCLUDES DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
# Headers with a stable name; all others lie as in the source tree.
foreach(header layers/facade/moe.hpp layers/router/plugin.hpp)
  cmake_path(GET header FILENAME name)
  file(CONFIGURE OUTPUT "${PROJECT_BINARY_DIR}/${name}" CONTENT
    "// SPDX-License-Identifier: Apache-2.0\n#pragma once\n\n#include \"${header}\"\n")
  install(FILES "${PROJECT_BINARY_DIR}/${name}" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/cadre")
endforeach()
install(TARGETS cadre)
install(DIRECTORY launch/configs launch/examples launch/schemas launch/mpirun launch/slurm DESTINATION "${CMAKE_INSTALL_DATADIR}/cadre"
        OPTIONAL USE_SOURCE_PERMISSIONS)

install(EXPORT cadreTargets NAMESPACE cadre:: DESTINATION "${package_dir}")
configure_package_config_file(cmake/cadre-config.cmake.in "${PROJECT_BINARY_DIR}/cadre-config.cmake"
                              INSTALL_DESTINATION "${package_dir}")
write_basic_package_version_file("${PROJECT_BINARY_DIR}/cadre-config-version.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/cadre-config.cmake" "${PROJECT_BINARY_DIR}/cadre-config-version.cmake"
              cmake/FindOneDNN.cmake cmake/FindNCCL.cmake
        DESTINATION "${package_dir}")

# cadre.pc: what the libraries link to that has a pkg-config file by its name, all else by its path.
set(CADRE_PC_REQUIRES fmt openblas libhwy libxxhash oniguruma tomlplusplus)
if(sentencepiece_FOUND)
  list(APPEND CADRE_PC_REQUIRES sentencepiece)
endif()
list(JOIN CADRE_PC_REQUIRES ", " CADRE_PC_REQUIRES)
list(TRANSFORM MPI_CXX_INCLUDE_DIRS PREPEND "-I" OUTPUT_VARIABLE CADRE_PC_CFLAGS)
set(CADRE_PC_LIBS ${MPI_CXX_LIBRARIES})
if(CADRE_HAS_LIBBACKTRACE)
  list(APPEND CADRE_PC_LIBS -lbacktrace)
endif()
if(OneDNN_FOUND)
  list(APPEND CADRE_PC_LIBS "${OneDNN_LIBRARY}")
endif()
if(OpenMP_CXX_FOUND)
  list(APPEND CADRE_PC_LIBS ${OpenMP_CXX_FLAGS})
endif()
if(CADRE_CUDA_BACK_END)
  list(APPEND CADRE_PC_LIBS "-L${CUDAToolkit_LIBRARY_DIR}" -lcudart -lcublasLt)
  if(NCCL_FOUND)
    list(APPEND CADRE_PC_LIBS "${NCCL_LIBRARY}")
  endif()
endif()
list(APPEND CADRE_PC_LIBS -pthread -ldl)
list(JOIN CADRE_PC_CFLAGS " " CADRE_PC_CFLAGS)
list(JOIN CADRE_PC_LIBS " " CADRE_PC_LIBS)
file(RELATIVE_PATH CADRE_PC_PREFIX "/prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/prefix")
configure_file(cmake/cadre.pc.in "${PROJECT_BINARY_DIR}/cadre.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/cadre.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
