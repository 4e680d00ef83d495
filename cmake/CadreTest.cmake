# cadre_add_test(FILE folder/unit_test.cpp [RANKS n...]): one executable a file. Its cases run in one process (ranks are
# threads there); with RANKS they also run under mpirun with each of these rank counts.
function(cadre_add_test)
  cmake_parse_arguments(arg "" "FILE" "RANKS" ${ARGN})
  get_filename_component(unit ${arg_FILE} NAME_WE)
  get_filename_component(folder ${arg_FILE} DIRECTORY)
  set(target ${folder}_${unit})
  add_executable(${target} ${arg_FILE})
  target_link_libraries(${target} PRIVATE cadre_test_support)
  add_test(NAME ${folder}/${unit} COMMAND ${target})
  set_tests_properties(${folder}/${unit} PROPERTIES TIMEOUT 300)
endfunction()
