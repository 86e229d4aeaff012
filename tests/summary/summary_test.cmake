# cmake -D summary=<this folder> -D work=<a folder to use> -D generator=<one that is there> -P summary_test.cmake
#
# Runs CTest over sample/ and compares what it ends with.

file(REMOVE_RECURSE "${work}")
execute_process(COMMAND ${CMAKE_COMMAND} -S "${summary}/sample" -B "${work}" -G "${generator}" OUTPUT_QUIET
                        COMMAND_ERROR_IS_FATAL ANY)
# One case is to fail, so CTest does.
execute_process(COMMAND ${CMAKE_CTEST_COMMAND} --test-dir "${work}" OUTPUT_VARIABLE output
                ERROR_VARIABLE errors)
file(READ "${summary}/sample/expected.txt" expected)
string(FIND "${output}" "${expected}" at)
if(at EQUAL -1)
  message(FATAL_ERROR "expected:\n${expected}\nin:\n${output}${errors}")
endif()
