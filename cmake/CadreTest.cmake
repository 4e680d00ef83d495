# SPDX-License-Identifier: Apache-2.0
# How a test file becomes tests, on one host and on several, and the check that no test file is forgotten.

# Ranks of a test share the cores of one machine: they must yield while they wait and keep their libraries single-threaded.
# All tests of a build take one choice of products, also where the home folder cannot be written.
set(CADRE_TEST_ENVIRONMENT OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 "XDG_CACHE_HOME=${PROJECT_BINARY_DIR}/cache")
set(CADRE_MPI_ENVIRONMENT CADRE_TEST_MPI=1
    OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_rmaps_base_oversubscribe=1)
if(CADRE_SANITIZE)
  # Open MPI holds memory until the process ends, in plug-ins that no suppression can name; so leaks are looked for where
  # ranks are threads.
  list(APPEND CADRE_MPI_ENVIRONMENT ASAN_OPTIONS=detect_leaks=0)
  list(APPEND CADRE_TEST_ENVIRONMENT UBSAN_OPTIONS=print_stacktrace=1
    "TSAN_OPTIONS=halt_on_error=1:suppressions=${PROJECT_SOURCE_DIR}/tests/support/thread_sanitizer.supp")
endif()
if(MPI_CXX_LIBRARY_VERSION_STRING MATCHES "Open MPI")
  set(CADRE_MPIEXEC_FLAGS --oversubscribe --bind-to none)
endif()

# cadre_test_program(VARIABLE FOLDER LABELS): the program of a folder's tests, made at its first use.
function(cadre_test_program variable folder labels)
  set(target ${folder}_tests)
  if("gpu" IN_LIST labels)
    set(target ${folder}_gpu_tests)
  endif()
  set(${variable} ${target} PARENT_SCOPE)
  if(TARGET ${target})
    return()
  endif()
  add_executable(${target})
  target_link_libraries(${target} PRIVATE cadre_test_support cadre_test_settings)
  target_precompile_headers(${target} REUSE_FROM cadre_test_support)
  cadre_compile_together(${target})
  if(TARGET cadre::${folder})
    target_link_libraries(${target} PRIVATE cadre::${folder})
  endif()
  if("gpu" IN_LIST labels)
    add_dependencies(gpu_tests ${target})
  endif()
endfunction()

# cadre_add_test(FILE folder/unit_test.cpp [RANKS n...] [LABELS label...]): adds the file to the program folder_tests, or with
# label gpu to folder_gpu_tests. Its tests run as test folder/unit in one process (ranks are threads there) and, with RANKS, as
# folder/unit.mpi<n> under mpirun -n <n>. The thread sanitizer cannot see Open MPI's locks, so its preset has the first kind
# only. Files of a program are compiled in batches: the code of a file lies in a namespace of the file's name.
function(cadre_add_test)
  cmake_parse_arguments(arg "" "FILE" "RANKS;LABELS" ${ARGN})
  cmake_path(GET arg_FILE PARENT_PATH folder)
  string(REGEX REPLACE "_test\\.cpp$" "" name "${arg_FILE}")
  cadre_test_program(target "${folder}" "${arg_LABELS}")
  target_sources(${target} PRIVATE ${arg_FILE})
  set_property(GLOBAL PROPERTY "CADRE_TEST_PROGRAM ${arg_FILE}" ${target})
  set_property(GLOBAL APPEND PROPERTY CADRE_TEST_FILES "${CMAKE_CURRENT_SOURCE_DIR}/${arg_FILE}")

  add_test(NAME ${name} COMMAND ${target} ${name})
  set_tests_properties(${name} PROPERTIES
    TIMEOUT 300 LABELS "${arg_LABELS}" ENVIRONMENT "${CADRE_TEST_ENVIRONMENT}")
  if(CADRE_SANITIZE STREQUAL "thread")
    return()
  endif()
  foreach(ranks IN LISTS arg_RANKS)
    add_test(NAME ${name}.mpi${ranks} COMMAND
      ${MPIEXEC_EXECUTABLE} ${MPIEXEC_NUMPROC_FLAG} ${ranks} ${CADRE_MPIEXEC_FLAGS} $<TARGET_FILE:${target}> ${name})
    set_tests_properties(${name}.mpi${ranks} PROPERTIES
      TIMEOUT 300 PROCESSORS ${ranks} LABELS "mpi;${arg_LABELS}"
      ENVIRONMENT "${CADRE_TEST_ENVIRONMENT};${CADRE_MPI_ENVIRONMENT}")
  endforeach()
endfunction()

# cadre_add_hosts_test(FILE folder/unit_test.cpp HOSTS h RANKS_PER_HOST r): the executable of cadre_add_test, run as test
# folder/unit.hosts<h>x<r> on h hosts that tests/support/hosts.sh makes; skipped where that cannot make them.
function(cadre_add_hosts_test)
  cmake_parse_arguments(arg "" "FILE;HOSTS;RANKS_PER_HOST" "" ${ARGN})
  if(CADRE_SANITIZE STREQUAL "thread")
    return()
  endif()
  get_property(target GLOBAL PROPERTY "CADRE_TEST_PROGRAM ${arg_FILE}")
  string(REGEX REPLACE "_test\\.cpp$" "" unit "${arg_FILE}")
  set(name "${unit}.hosts${arg_HOSTS}x${arg_RANKS_PER_HOST}")
  math(EXPR ranks "${arg_HOSTS} * ${arg_RANKS_PER_HOST}")

  add_test(NAME ${name} COMMAND "${PROJECT_SOURCE_DIR}/tests/support/hosts.sh" ${arg_HOSTS} ${arg_RANKS_PER_HOST} --
    $<TARGET_FILE:${target}> ${unit})
  set_tests_properties(${name} PROPERTIES
    TIMEOUT 300 PROCESSORS ${ranks} LABELS "mpi;hosts" SKIP_RETURN_CODE 77
    ENVIRONMENT
    "${CADRE_TEST_ENVIRONMENT};${CADRE_MPI_ENVIRONMENT};CADRE_TEST_HOSTS=${arg_HOSTS};MPIEXEC=${MPIEXEC_EXECUTABLE}")
endfunction()

# cadre_add_cpu_tests(FILES folder/unit_test.cpp ...): the executables of cadre_add_test, run as tests folder/unit.<kind> as on
# the lesser CPUs of tests/support/cpu.sh; skipped where this one cannot be such a CPU.
function(cadre_add_cpu_tests)
  cmake_parse_arguments(arg "" "" "FILES" ${ARGN})
  foreach(file IN LISTS arg_FILES)
    string(REGEX REPLACE "_test\\.cpp$" "" name "${file}")
    get_property(target GLOBAL PROPERTY "CADRE_TEST_PROGRAM ${file}")
    foreach(kind avx2 avx512 avx512_bf16)
      add_test(NAME ${name}.${kind}
        COMMAND "${PROJECT_SOURCE_DIR}/tests/support/cpu.sh" ${kind} $<TARGET_FILE:${target}> ${name})
      set_tests_properties(${name}.${kind} PROPERTIES
        TIMEOUT 300 LABELS cpus SKIP_RETURN_CODE 77 ENVIRONMENT "${CADRE_TEST_ENVIRONMENT}")
    endforeach()
  endforeach()
endfunction()

# Complains about a tests/**/*_test.cpp that no cadre_add_test names. A warning while one writes; an error under
# `cmake -Werror=dev`, which tests/run uses.
function(cadre_require_registered_tests)
  file(GLOB_RECURSE files CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/tests/*_test.cpp")
  get_property(registered GLOBAL PROPERTY CADRE_TEST_FILES)
  list(REMOVE_ITEM files ${registered})
  foreach(file IN LISTS files)
    cmake_path(RELATIVE_PATH file BASE_DIRECTORY "${PROJECT_SOURCE_DIR}/tests")
    message(AUTHOR_WARNING "tests/${file} never runs: add cadre_add_test(FILE ${file}) to tests/CMakeLists.txt")
  endforeach()
endfunction()
