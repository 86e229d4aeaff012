# Tests on lesser hosts: without privileges, in a container, on an older kernel or one built without some of
# what the library uses. `<host>.<test>` is each test of what makes system calls, run by `ctest -C lesser` (the
# preset lesser) alone. What is missing there is an error that says so, and a test that needs it skips with that
# reason.

set(lesser_hosts linux-6.1 linux-5.14 small-kernel container unprivileged)

add_executable(lesser_host lesser/lesser_host.cpp)
vmspace_own_target(lesser_host)

add_custom_target(lesser_tests)
add_dependencies(lesser_tests lesser_host)

# vmspace_lesser(<test> <program> SOURCES <source>...)
function(vmspace_lesser name program)
  cmake_parse_arguments(PARSE_ARGV 2 arg "" "" "SOURCES")
  cmake_path(GET CMAKE_CURRENT_SOURCE_DIR FILENAME folder)
  if(NOT folder MATCHES "^(host|memory|snapshot|vmm|virtio|faults)$")
    return()
  endif()
  add_dependencies(lesser_tests ${program})
  foreach(host IN LISTS lesser_hosts)
    add_test(
      NAME ${host}.${name}
      COMMAND lesser_host ${host} $<TARGET_FILE:${program}> ${arg_SOURCES}
      CONFIGURATIONS lesser)
    set_tests_properties(${host}.${name} PROPERTIES LABELS lesser TIMEOUT ${vmspace_test_timeout} SKIP_RETURN_CODE 77)
  endforeach()
endfunction()
