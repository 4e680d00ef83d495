# SPDX-License-Identifier: Apache-2.0
# What a package has beside libraries and headers: man pages, completion of shells, scripts, a modulefile; and the .deb that
# `cpack` makes of it all.
include(GNUInstallDirs)

# Man pages and completion come from the tables of the program.
set(reference_dir "${PROJECT_BINARY_DIR}/reference")
add_custom_command(OUTPUT "${reference_dir}/man/man1/cadre.1"
  COMMAND cadre reference "${reference_dir}"
  DEPENDS cadre
  COMMENT "Writing man pages and completion")
if(NOT CADRE_SANITIZE)  # a sanitized program reports leaks of MPI
  add_custom_target(cadre_reference ALL DEPENDS "${reference_dir}/man/man1/cadre.1")
endif()
install(DIRECTORY "${reference_dir}/" DESTINATION "${CMAKE_INSTALL_DATADIR}" OPTIONAL)

install(PROGRAMS launch/quickstart launch/supervise launch/compare-routers launch/make-conversations launch/metrics-to-wandb.py
        DESTINATION "${CMAKE_INSTALL_DATADIR}/cadre")
install(FILES launch/program.sh DESTINATION "${CMAKE_INSTALL_DATADIR}/cadre")
install(DIRECTORY launch/containers DESTINATION "${CMAKE_INSTALL_DATADIR}/cadre")
install(FILES launch/modulefile DESTINATION "${CMAKE_INSTALL_DATADIR}/cadre/modulefiles/cadre" RENAME "${PROJECT_VERSION}")

set(CMAKE_SKIP_INSTALL_ALL_DEPENDENCY ON)  # cpack packs what is built
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME cadre)
set(CPACK_PACKAGE_CONTACT "The Cadre authors")
set(CPACK_PACKAGE_VENDOR Cadre)
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_RESOURCE_FILE_LICENSE "${PROJECT_SOURCE_DIR}/LICENSE")
set(CPACK_STRIP_FILES ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_DEPENDS openmpi-bin)
set(CPACK_DEBIAN_PACKAGE_RECOMMENDS fortunes)
set(CPACK_DEBIAN_PACKAGE_SUGGESTS "libopenmpi-dev, libfmt-dev, libopenblas-pthread-dev, slurm-client")
include(CPack)

# The HTML reference of the headers; a warning of Doxygen fails it.
find_program(CADRE_DOXYGEN doxygen)
mark_as_advanced(CADRE_DOXYGEN)
if(CADRE_DOXYGEN)
  configure_file(cmake/Doxyfile.in "${PROJECT_BINARY_DIR}/Doxyfile" @ONLY)
  file(MAKE_DIRECTORY "${reference_dir}/doc/cadre")
  add_custom_target(cadre_html COMMAND "${CADRE_DOXYGEN}" "${PROJECT_BINARY_DIR}/Doxyfile" COMMENT "Writing the HTML reference")
endif()
