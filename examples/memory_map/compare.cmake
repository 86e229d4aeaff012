# Runs the example, and compares what it prints and draws with golden/. With VMSPACE_WRITE_GOLDEN=1 in the
# environment it writes golden/ instead, to be looked at in review.
#
# cmake -D PROGRAM=<memory_map, behind an emulator if it needs one> -D GOLDEN=<golden/> -D OUT=<directory> -P compare.cmake

if(DEFINED ENV{VMSPACE_WRITE_GOLDEN})
  set(OUT "${GOLDEN}")
endif()
file(MAKE_DIRECTORY "${OUT}")
execute_process(COMMAND ${PROGRAM} "${OUT}" OUTPUT_FILE "${OUT}/maps.txt" COMMAND_ERROR_IS_FATAL ANY)
foreach(file IN ITEMS maps.txt 4g.svg 12t.svg)
  execute_process(COMMAND ${CMAKE_COMMAND} -E compare_files "${OUT}/${file}" "${GOLDEN}/${file}"
                  RESULT_VARIABLE differs)
  if(differs)
    message(SEND_ERROR "${OUT}/${file} is not what ${GOLDEN}/${file} holds")
  endif()
endforeach()
