# SPDX-License-Identifier: Apache-2.0
# Tests of the tree itself: one script each in cmake/guards, run as guard/<name>. Exit code 77 means skipped, with the
# reason printed. guard/self-test plants an offence for each of them and demands that it be found.

foreach(guard layering files includes names state return-codes format shellcheck)
  add_test(NAME guard/${guard} COMMAND "${PROJECT_SOURCE_DIR}/cmake/guards/${guard}" "${PROJECT_SOURCE_DIR}")
endforeach()
# Every formula that `tests/campaign mutate` breaks stands in the file that it names.
add_test(NAME guard/mutations COMMAND "${PROJECT_SOURCE_DIR}/tests/campaigns/mutate.sh" --check
  WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
add_test(NAME guard/self-test COMMAND "${PROJECT_SOURCE_DIR}/cmake/guards/self-test")

# Target cadre_headers: each header is compiled alone, but for what is in the precompiled header. guard/includes finds by text
# what that would, in a second.
file(GLOB_RECURSE headers CONFIGURE_DEPENDS RELATIVE "${PROJECT_SOURCE_DIR}" "${PROJECT_SOURCE_DIR}/launch/*.hpp")
get_property(libraries GLOBAL PROPERTY CADRE_LIBRARIES)
foreach(library IN LISTS libraries)
  get_target_property(of_library ${library} HEADER_SET)
  foreach(header IN LISTS of_library)
    cmake_path(RELATIVE_PATH header BASE_DIRECTORY "${PROJECT_SOURCE_DIR}")
    list(APPEND headers "${header}")
  endforeach()
endforeach()
add_library(cadre_headers OBJECT EXCLUDE_FROM_ALL)
foreach(header IN LISTS headers)
  file(CONFIGURE OUTPUT "${PROJECT_BINARY_DIR}/headers/${header}.cpp" CONTENT "#include \"${header}\"\n")
  target_sources(cadre_headers PRIVATE "${PROJECT_BINARY_DIR}/headers/${header}.cpp")
endforeach()
target_link_libraries(cadre_headers PRIVATE cadre::runtime Boost::program_options GTest::gtest cadre_test_settings)
target_precompile_headers(cadre_headers REUSE_FROM cadre_test_support)
set_tests_properties(guard/layering guard/files guard/includes guard/names guard/state guard/return-codes guard/format guard/shellcheck
  guard/self-test guard/mutations PROPERTIES TIMEOUT 60 LABELS guard SKIP_RETURN_CODE 77)

# Installs into the build folder, then builds and runs a project that knows Cadre only through find_package. Sanitized
# libraries would force their flags on that project, so the other presets prove it.
if(CADRE_INSTALL AND NOT CADRE_SANITIZE)
  set(prefix "${PROJECT_BINARY_DIR}/consumer/prefix")
  add_test(NAME guard/install COMMAND "${CMAKE_COMMAND}" --install "${PROJECT_BINARY_DIR}" --prefix "${prefix}")
  add_test(NAME guard/consumer COMMAND "${CMAKE_CTEST_COMMAND}"
    --build-and-test "${PROJECT_SOURCE_DIR}/tests/consumer" "${PROJECT_BINARY_DIR}/consumer/build"
    --build-generator "${CMAKE_GENERATOR}"
    --build-options "-DCMAKE_PREFIX_PATH=${prefix}" "-DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER}"
    --test-command consumer)
  set_tests_properties(guard/install PROPERTIES TIMEOUT 60 LABELS guard FIXTURES_SETUP installed)
  set_tests_properties(guard/consumer PROPERTIES TIMEOUT 300 LABELS guard FIXTURES_REQUIRED installed
    ENVIRONMENT "OMPI_ALLOW_RUN_AS_ROOT=1;OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1")
endif()

# Doxygen finds nothing to warn of in the headers.
if(CADRE_INSTALL AND CADRE_DOXYGEN)
  add_test(NAME guard/html COMMAND "${CMAKE_COMMAND}" --build "${PROJECT_BINARY_DIR}" --target cadre_html)
  set_tests_properties(guard/html PROPERTIES TIMEOUT 300 LABELS guard RUN_SERIAL ON)
endif()
