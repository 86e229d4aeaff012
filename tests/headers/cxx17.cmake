# cmake -D compiler=... -D include=... -D dependencies=... -P cxx17.cmake
#
# A program that is compiled as C++17 is told so, once, whichever umbrella it includes first.

list(TRANSFORM dependencies PREPEND -I)
file(GLOB umbrellas "${include}/vmspace/*.hpp")
foreach(umbrella IN LISTS umbrellas)
  execute_process(
    COMMAND "${compiler}" -std=c++17 -fsyntax-only "-I${include}" ${dependencies} -x c++ "${umbrella}"
    RESULT_VARIABLE result
    ERROR_VARIABLE output)
  string(REGEX MATCHALL "error: [^\n]*" errors "${output}")
  list(FILTER errors EXCLUDE REGEX "vmspace needs C\\+\\+20")
  if(result EQUAL 0 OR errors OR NOT output MATCHES "error: (#error )?\"vmspace needs C\\+\\+20: compile with")
    message(SEND_ERROR "${umbrella}, as C++17:\n${output}")
  endif()
endforeach()
