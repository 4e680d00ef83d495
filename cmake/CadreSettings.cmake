# SPDX-License-Identifier: Apache-2.0
# Language level, warnings and sanitizers in one interface target, and how a folder becomes a library.

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

# Release is CMake's own -O3 -DNDEBUG: the plain loops around the GEMMs gain from the vectoriser that g++ 12 holds back
# at -O2. There is no -march anywhere: one build must start on every node of a mixed cluster, and the kernels that matter
# (Highway, OpenBLAS, oneDNN) choose their instruction set at run time.

set(CADRE_SANITIZE "" CACHE STRING "Sanitizers for every target, e.g. address,undefined or thread")

# ccache caches what uses a precompiled header only when it may ignore the header's own time and its macros.
find_program(CADRE_CCACHE ccache)
mark_as_advanced(CADRE_CCACHE)
if(CADRE_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER
    "${CMAKE_COMMAND}" -E env CCACHE_SLOPPINESS=pch_defines,time_macros "${CADRE_CCACHE}")
endif()

set(CADRE_BATCH 6 CACHE STRING "Sources compiled at once; more build the whole sooner and one edited source later, 1: each alone")
mark_as_advanced(CADRE_BATCH)

add_library(cadre_settings INTERFACE)
target_compile_features(cadre_settings INTERFACE cxx_std_20)
target_compile_options(cadre_settings INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion -fno-math-errno>)
if(CADRE_SANITIZE)
  target_compile_options(cadre_settings INTERFACE
    -fsanitize=${CADRE_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(cadre_settings INTERFACE -fsanitize=${CADRE_SANITIZE})
endif()
if(CADRE_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "CADRE_FUZZ needs clang: cmake --preset fuzz (launch/install-packages --fuzz)")
  endif()
  target_compile_options(cadre_settings INTERFACE -fsanitize=fuzzer-no-link)
endif()

# cadre_compile_together(TARGET): sources of a target in batches.
function(cadre_compile_together target)
  if(CADRE_BATCH GREATER 1)
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE ${CADRE_BATCH})
    # A type of an anonymous namespace in a source that another one includes: GCC takes that for a header.
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-subobject-linkage>)
  endif()
endfunction()

# cadre_add_library(NAME SOURCES...): the library cadre_NAME, known as cadre::NAME, from the sources given and all headers
# of the folder; includes are rooted at the repository.
function(cadre_add_library name)
  file(GLOB_RECURSE headers CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/*.hpp")
  add_library(cadre_${name} STATIC ${ARGN})
  add_library(cadre::${name} ALIAS cadre_${name})
  set_target_properties(cadre_${name} PROPERTIES EXPORT_NAME ${name} POSITION_INDEPENDENT_CODE ON)
  target_sources(cadre_${name} PUBLIC FILE_SET HEADERS BASE_DIRS "${PROJECT_SOURCE_DIR}" FILES ${headers})
  target_compile_features(cadre_${name} PUBLIC cxx_std_20)
  target_link_libraries(cadre_${name} PRIVATE $<BUILD_INTERFACE:cadre_settings>)
  cadre_compile_together(cadre_${name})
  set_property(GLOBAL APPEND PROPERTY CADRE_LIBRARIES cadre_${name})
endfunction()
