# Language level, warnings and sanitizers in one interface target, and how a folder becomes a library.

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

set(CADRE_SANITIZE "" CACHE STRING "Sanitizers for every target, e.g. address,undefined or thread")

add_library(cadre_settings INTERFACE)
target_compile_features(cadre_settings INTERFACE cxx_std_20)
target_compile_options(cadre_settings INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion -fno-math-errno>)
if(CADRE_SANITIZE)
  target_compile_options(cadre_settings INTERFACE -fsanitize=${CADRE_SANITIZE} -fno-omit-frame-pointer)
  target_link_options(cadre_settings INTERFACE -fsanitize=${CADRE_SANITIZE})
endif()

# cadre_add_library(NAME SOURCES...): the library cadre_NAME, known as cadre::NAME, includes rooted at the repository.
function(cadre_add_library name)
  add_library(cadre_${name} STATIC ${ARGN})
  add_library(cadre::${name} ALIAS cadre_${name})
  set_target_properties(cadre_${name} PROPERTIES EXPORT_NAME ${name} POSITION_INDEPENDENT_CODE ON)
  target_include_directories(cadre_${name} PUBLIC
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}> $<INSTALL_INTERFACE:include/cadre>)
  target_compile_features(cadre_${name} PUBLIC cxx_std_20)
  target_link_libraries(cadre_${name} PRIVATE $<BUILD_INTERFACE:cadre_settings>)
endfunction()
