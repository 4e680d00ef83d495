# SPDX-License-Identifier: Apache-2.0
# What `cmake --install` lays down, and the package that makes find_package(cadre) work there: the libraries cadre::comm,
# cadre::layers, cadre::runtime with their headers under include/cadre, the program, its configurations, schemas and scripts.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/cadre")
get_property(libraries GLOBAL PROPERTY CADRE_LIBRARIES)
install(TARGETS ${libraries} EXPORT cadreTargets FILE_SET HEADERS DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/cadre")
install(TARGETS cadre)
install(DIRECTORY launch/configs launch/schemas launch/mpirun launch/slurm DESTINATION "${CMAKE_INSTALL_DATADIR}/cadre"
        OPTIONAL USE_SOURCE_PERMISSIONS)

install(EXPORT cadreTargets NAMESPACE cadre:: DESTINATION "${package_dir}")
configure_package_config_file(cmake/cadreConfig.cmake.in "${PROJECT_BINARY_DIR}/cadreConfig.cmake"
                              INSTALL_DESTINATION "${package_dir}")
write_basic_package_version_file("${PROJECT_BINARY_DIR}/cadreConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/cadreConfig.cmake" "${PROJECT_BINARY_DIR}/cadreConfigVersion.cmake"
              cmake/FindOneDNN.cmake cmake/FindNCCL.cmake
        DESTINATION "${package_dir}")
