# Install rules, the CMake package and the pkg-config files.
#
# Each component has an export set of its own, so that finding one does not ask for what another
# needs: `COMPONENTS allocator` works where there is neither fmt nor Boost.
#
# What is installed is in three components of `cmake --install --component`: vmspace_Runtime, which is
# the shared library; vmspace_Allocator, the header-only allocator; and vmspace_Development, all else, for
# which the other two are needed.

include(CMakePackageConfigHelpers)

set(vmspace_package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/vmspace")

# vmspace_install_target(<target> <component of find_package> <component of the installation>)
function(vmspace_install_target target component where)
  install(
    TARGETS ${target}
    EXPORT vmspace-${component}-targets
    ARCHIVE COMPONENT ${where}
    LIBRARY COMPONENT vmspace_Runtime NAMELINK_COMPONENT ${where})
  install(
    EXPORT vmspace-${component}-targets
    NAMESPACE vmspace::
    DESTINATION ${vmspace_package_dir}
    COMPONENT ${where})
endfunction()

# The allocator: two folders, and of the others what knows nothing but these.
vmspace_install_target(vmspace_allocator allocator vmspace_Allocator)
set(vmspace_not_allocator "") # what DIRECTORY below leaves out
foreach(folder base allocator)
  install(
    DIRECTORY "${PROJECT_SOURCE_DIR}/include/vmspace/${folder}"
    DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/vmspace"
    COMPONENT vmspace_Allocator
    FILES_MATCHING PATTERN "*.hpp")
  list(APPEND vmspace_not_allocator PATTERN "include/vmspace/${folder}" EXCLUDE)
endforeach()
foreach(header base allocator text text/base text/allocator exit_on_error ostream format testing)
  cmake_path(GET header PARENT_PATH folder)
  install(
    FILES "${PROJECT_SOURCE_DIR}/include/vmspace/${header}.hpp"
    DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/vmspace/${folder}"
    COMPONENT vmspace_Allocator)
  list(APPEND vmspace_not_allocator PATTERN "include/vmspace/${header}.hpp" EXCLUDE)
endforeach()

if(NOT VMSPACE_ALLOCATOR_ONLY)
  vmspace_install_target(vmspace vmspace vmspace_Development)
  vmspace_install_target(vmspace_fmt fmt vmspace_Development)
  install(
    DIRECTORY "${PROJECT_SOURCE_DIR}/include/vmspace"
    DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}"
    COMPONENT vmspace_Development
    FILES_MATCHING PATTERN "*.hpp" ${vmspace_not_allocator})
endif()

if(NOT VMSPACE_PACKAGES) # which have these where their distribution wants them
  install(
    FILES "${PROJECT_SOURCE_DIR}/LICENSE" "${PROJECT_SOURCE_DIR}/README.md"
          "${PROJECT_SOURCE_DIR}/include/vmspace/CHANGELOG.md"
    DESTINATION "${CMAKE_INSTALL_DOCDIR}"
    COMPONENT vmspace_Allocator)
endif()

set(vmspace_library_type INTERFACE_LIBRARY)
if(TARGET vmspace)
  get_target_property(vmspace_library_type vmspace TYPE)
endif()

# gdb's pretty-printers. For the shared library gdb loads them by itself, by the file's path below
# its own auto-load directory, where the prefix is gdb's (/usr for a distribution's); for everything
# else, and elsewhere, `source` them. The prefix of the installation is known only when installing.
set(vmspace_gdb_printers "${CMAKE_CURRENT_LIST_DIR}/gdb/vmspace_gdb.py")
install(
  FILES "${vmspace_gdb_printers}"
  DESTINATION "${CMAKE_INSTALL_DATADIR}/vmspace"
  COMPONENT vmspace_Allocator)
if(vmspace_library_type STREQUAL "SHARED_LIBRARY")
  set(vmspace_gdb_libdir "${CMAKE_INSTALL_LIBDIR}")
  if(NOT IS_ABSOLUTE "${vmspace_gdb_libdir}")
    set(vmspace_gdb_libdir "\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_LIBDIR}")
  endif()
  install(
    FILES "${vmspace_gdb_printers}"
    DESTINATION "${CMAKE_INSTALL_DATADIR}/gdb/auto-load/${vmspace_gdb_libdir}"
    RENAME "$<TARGET_FILE_NAME:vmspace>-gdb.py"
    COMPONENT vmspace_Development)
endif()

configure_package_config_file(
  "${CMAKE_CURRENT_LIST_DIR}/vmspace-config.cmake.in" "${PROJECT_BINARY_DIR}/vmspace-config.cmake"
  INSTALL_DESTINATION ${vmspace_package_dir} NO_SET_AND_CHECK_MACRO)
# Before 1.0 a minor version may break its users.
set(vmspace_version_arch "")
if(VMSPACE_ALLOCATOR_ONLY)
  set(vmspace_version_arch ARCH_INDEPENDENT) # headers suit any machine
endif()
write_basic_package_version_file("${PROJECT_BINARY_DIR}/vmspace-config-version.cmake"
                                 COMPATIBILITY SameMinorVersion ${vmspace_version_arch})
install(
  FILES "${PROJECT_BINARY_DIR}/vmspace-config.cmake"
        "${PROJECT_BINARY_DIR}/vmspace-config-version.cmake"
  DESTINATION ${vmspace_package_dir}
  COMPONENT vmspace_Allocator)

# vmspace_install_pkg_config(<name> <component of the installation>): <name>.pc from <name>.pc.in.
function(vmspace_install_pkg_config name where)
  configure_file("${CMAKE_CURRENT_FUNCTION_LIST_DIR}/${name}.pc.in"
                 "${PROJECT_BINARY_DIR}/${name}.pc" @ONLY)
  install(
    FILES "${PROJECT_BINARY_DIR}/${name}.pc"
    DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig"
    COMPONENT ${where})
endfunction()

# Relative to the file itself, so that the prefix may move; distributions that give absolute
# directories have these written out.
if(IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}")
  set(vmspace_pc_prefix "${CMAKE_INSTALL_PREFIX}")
else()
  file(RELATIVE_PATH vmspace_pc_prefix "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
  string(PREPEND vmspace_pc_prefix "\${pcfiledir}/")
endif()
set(vmspace_pc_libdir "\${prefix}")
cmake_path(APPEND vmspace_pc_libdir "${CMAKE_INSTALL_LIBDIR}")
set(vmspace_pc_includedir "\${prefix}")
cmake_path(APPEND vmspace_pc_includedir "${CMAKE_INSTALL_INCLUDEDIR}")
vmspace_install_pkg_config(vmspace-allocator vmspace_Allocator)
if(TARGET vmspace)
  # Whoever links the static library links what it uses; a shared one has it linked already.
  set(vmspace_pc_requires "")
  set(vmspace_pc_definitions "")
  if(vmspace_library_type STREQUAL "STATIC_LIBRARY")
    set(vmspace_pc_requires "fmt")
    set(vmspace_pc_definitions " -DVMSPACE_STATIC")
  endif()
  vmspace_install_pkg_config(vmspace vmspace_Development)
endif()

if(VMSPACE_PACKAGES)
  include(packaging/VmspacePackages)
endif()
