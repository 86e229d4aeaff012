# cmake -D project=... -D vmspace_source=... -D prefix=... -D work=... -D defines=... -P consume.cmake
#
# Configures, builds and runs the project in the folder `project`, which finds the installation in
# `prefix`, if it looks for one.

include("${CMAKE_CURRENT_LIST_DIR}/common.cmake")

file(REMOVE_RECURSE "${work}")
run(${CMAKE_COMMAND} -S "${CMAKE_CURRENT_LIST_DIR}/${project}" -B "${work}" ${common} --no-warn-unused-cli
    -D CMAKE_PREFIX_PATH=${prefix} -D vmspace_source=${vmspace_source})
run(${CMAKE_COMMAND} --build "${work}" -j 2)
run(${CMAKE_CTEST_COMMAND} --test-dir "${work}" --output-on-failure --no-tests=error)
