# cmake -D vmspace_source=... -D build=... -D work=... -D defines=... -P install.cmake
#
# Installs vmspace to `work`/all/prefix from the build tree `build`, or from one that is made here,
# and looks at what was installed.

include("${CMAKE_CURRENT_LIST_DIR}/common.cmake")

file(REMOVE_RECURSE "${work}")
if(NOT build)
  set(build "${work}/build")
  run(${CMAKE_COMMAND} -S "${vmspace_source}" -B "${build}" ${common})
  run(${CMAKE_COMMAND} --build "${build}" -j 2)
endif()

# install_to(<folder> <flag>...): as for a package, below `work`/<folder>; sets `<folder>_files`.
macro(install_to folder)
  run(${CMAKE_COMMAND} -E env "DESTDIR=${work}/${folder}" ${CMAKE_COMMAND} --install "${build}" --prefix
      /prefix ${ARGN})
  set(prefix "${work}/${folder}/prefix")
  file(GLOB_RECURSE ${folder}_files RELATIVE "${prefix}" "${prefix}/*")
endmacro()

install_to(all)
install_to(runtime --component vmspace_Runtime)
install_to(allocator --component vmspace_Allocator)
install_to(development --component vmspace_Development)

foreach(file IN LISTS runtime_files)
  if(NOT file MATCHES "/libvmspace\\.so\\.[0-9.]+$")
    message(SEND_ERROR "programs do not need ${file}, which is in the runtime component")
  endif()
endforeach()
foreach(file IN LISTS allocator_files)
  if(file IN_LIST development_files)
    message(SEND_ERROR "${file} is in two components")
  elseif(file MATCHES "\\.hpp$" AND NOT file MATCHES "^include/vmspace/(base|allocator|text)[/.]"
         AND NOT file MATCHES "^include/vmspace/[a-z_]+\\.hpp$")
    message(SEND_ERROR "the allocator does not need ${file}")
  endif()
endforeach()
foreach(file IN LISTS allocator_files development_files)
  if(file MATCHES "^include/" AND NOT file MATCHES "\\.hpp$")
    message(SEND_ERROR "${file} is not a header")
  endif()
endforeach()
foreach(page README.md LICENSE CHANGELOG.md)
  if(NOT "share/doc/vmspace/${page}" IN_LIST allocator_files)
    message(SEND_ERROR "${page} is not installed")
  endif()
endforeach()
list(REMOVE_ITEM all_files ${runtime_files} ${allocator_files} ${development_files})
if(all_files)
  message(SEND_ERROR "in no component: ${all_files}")
endif()
