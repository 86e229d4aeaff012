# cmake -D consumer=... -D vmspace_source=... -D vmspace_build=... -D work=... -P consume.cmake
#
# Installs vmspace below `work`, then configures, builds and runs the project in `consumer`.

function(run)
  execute_process(COMMAND ${ARGV} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

file(REMOVE_RECURSE "${work}")
set(common -G "${generator}" -D CMAKE_CXX_COMPILER=${compiler}
    -D CMAKE_CXX_COMPILER_LAUNCHER=${launcher} -D CMAKE_BUILD_TYPE=Debug ${defines})

if(consumer STREQUAL "allocator_only")
  run(${CMAKE_COMMAND} -S "${vmspace_source}" -B "${work}/vmspace" ${common}
      -D VMSPACE_ALLOCATOR_ONLY=ON)
  run(${CMAKE_COMMAND} --build "${work}/vmspace")
  run(${CMAKE_COMMAND} --install "${work}/vmspace" --prefix "${work}/prefix")
elseif(NOT consumer STREQUAL "add_subdirectory")
  run(${CMAKE_COMMAND} --install "${vmspace_build}" --prefix "${work}/prefix")
endif()

run(${CMAKE_COMMAND} -S "${CMAKE_CURRENT_LIST_DIR}/${consumer}" -B "${work}/build" ${common}
    --no-warn-unused-cli -D CMAKE_PREFIX_PATH=${work}/prefix -D vmspace_source=${vmspace_source})
run(${CMAKE_COMMAND} --build "${work}/build" -j 2)
run(${CMAKE_CTEST_COMMAND} --test-dir "${work}/build" --output-on-failure --no-tests=error)
