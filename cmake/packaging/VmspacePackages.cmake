# Debian packages by CPack: `cmake --workflow --preset package` writes them to build/package/.
#
#   libvmspace<soversion>     the shared library
#   libvmspace-allocator-dev  the header-only allocator
#   libvmspace-dev            headers, CMake package and pkg-config file of the library; needs both
#
# The first is named after the library's SONAME, as Debian's policy (8.1) has it: before 1.0 a minor
# version may break its users, so that two have to be installable side by side.
#
# DEBFULLNAME and DEBEMAIL say who makes them, as for Debian's own tools.

get_target_property(vmspace_soversion vmspace SOVERSION)
set(vmspace_runtime_package "libvmspace${vmspace_soversion}")
set(vmspace_revision 1)

set(vmspace_packager "vmspace maintainers")
if(DEFINED ENV{DEBFULLNAME})
  set(vmspace_packager "$ENV{DEBFULLNAME}")
endif()
set(vmspace_packager_email "vmspace@vmspace.invalid")
if(DEFINED ENV{DEBEMAIL})
  set(vmspace_packager_email "$ENV{DEBEMAIL}")
endif()

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME vmspace)
set(CPACK_PACKAGE_CONTACT "${vmspace_packager} <${vmspace_packager_email}>")
set(CPACK_PACKAGE_VERSION "${PROJECT_VERSION}")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "") # each package has its own
set(CPACK_PACKAGING_INSTALL_PREFIX "${CMAKE_INSTALL_PREFIX}")
set(CPACK_INSTALL_DEFAULT_DIRECTORY_PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ
                                                GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
set(CPACK_STRIP_FILES ON)
set(CPACK_COMPONENTS_ALL vmspace_Runtime vmspace_Allocator vmspace_Development)
set(CPACK_COMPONENTS_GROUPING ONE_PER_GROUP)

set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_COMPRESSION_TYPE xz)
set(CPACK_DEBIAN_PACKAGE_RELEASE ${vmspace_revision})
set(CPACK_DEBIAN_PACKAGE_SOURCE vmspace)
set(CPACK_DEBIAN_PACKAGE_MULTIARCH same)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
set(vmspace_this_version "(= ${PROJECT_VERSION}-${vmspace_revision})")

# Programs that are linked to the library depend on its package, and dpkg runs ldconfig for it. CPack
# writes scripts that call ldconfig beside it, which lintian is told of.
file(WRITE "${CMAKE_CURRENT_BINARY_DIR}/shlibs"
     "libvmspace ${vmspace_soversion} ${vmspace_runtime_package} (>= ${PROJECT_VERSION})\n")
file(WRITE "${CMAKE_CURRENT_BINARY_DIR}/triggers" "activate-noawait ldconfig\n")
set(CPACK_DEBIAN_VMSPACE_RUNTIME_PACKAGE_CONTROL_EXTRA "${CMAKE_CURRENT_BINARY_DIR}/shlibs"
                                                       "${CMAKE_CURRENT_BINARY_DIR}/triggers")

# Each of these is Debian's synopsis and long description.
set(CPACK_DEBIAN_VMSPACE_RUNTIME_PACKAGE_NAME ${vmspace_runtime_package})
set(CPACK_DEBIAN_VMSPACE_RUNTIME_PACKAGE_SECTION libs)
set(CPACK_DEBIAN_VMSPACE_RUNTIME_DESCRIPTION
    "guest physical address space of a virtual machine - shared library
vmspace manages which ranges of a guest's physical address space are in
use, what each of them is, where it is mapped on the host, and which device
holds which ports, addresses and interrupts.
.
This package has the library that programs need to run."
)

set(CPACK_DEBIAN_VMSPACE_ALLOCATOR_PACKAGE_NAME libvmspace-allocator-dev)
set(CPACK_DEBIAN_VMSPACE_ALLOCATOR_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_VMSPACE_ALLOCATOR_PACKAGE_DEPENDS libexpected-dev)
set(CPACK_DEBIAN_VMSPACE_ALLOCATOR_DESCRIPTION
    "allocator of numbered ranges - header-only C++20 library
An interval tree that hands out ranges of addresses, ports, interrupts or
identifiers, keeps a value with each, and answers which is whose.
.
This package is enough for vmspace::allocator, which needs the standard
library and tl::expected."
)

set(CPACK_DEBIAN_VMSPACE_DEVELOPMENT_PACKAGE_NAME libvmspace-dev)
set(CPACK_DEBIAN_VMSPACE_DEVELOPMENT_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_VMSPACE_DEVELOPMENT_PACKAGE_DEPENDS
    "${vmspace_runtime_package} ${vmspace_this_version}, libvmspace-allocator-dev ${vmspace_this_version}")
set(CPACK_DEBIAN_VMSPACE_DEVELOPMENT_PACKAGE_SUGGESTS "libfmt-dev, libgmock-dev")
set(CPACK_DEBIAN_VMSPACE_DEVELOPMENT_DESCRIPTION
    "guest physical address space of a virtual machine - development files
vmspace manages which ranges of a guest's physical address space are in
use, what each of them is, where it is mapped on the host, and which device
holds which ports, addresses and interrupts.
.
This package has the headers, the CMake package and the pkg-config file.
The formatters, vmspace::fmt, need libfmt-dev too; vmspace/testing.hpp
needs libgmock-dev."
)

# What every package of Debian's has below /usr/share/doc. The date is SOURCE_DATE_EPOCH's, if it is set.
find_program(VMSPACE_GZIP gzip REQUIRED)
mark_as_advanced(VMSPACE_GZIP)
string(TIMESTAMP vmspace_date "%a, %d %b %Y %H:%M:%S +0000" UTC)
configure_file("${CMAKE_CURRENT_LIST_DIR}/changelog.Debian.in" changelog.Debian @ONLY)
configure_file("${PROJECT_SOURCE_DIR}/include/vmspace/CHANGELOG.md" changelog COPYONLY)
execute_process(COMMAND "${VMSPACE_GZIP}" --best --no-name --force --keep changelog.Debian changelog
                WORKING_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}" COMMAND_ERROR_IS_FATAL ANY)
foreach(component Runtime Allocator Development)
  string(TOUPPER "${component}" upper)
  install(
    FILES "${CMAKE_CURRENT_LIST_DIR}/copyright" "${CMAKE_CURRENT_BINARY_DIR}/changelog.Debian.gz"
          "${CMAKE_CURRENT_BINARY_DIR}/changelog.gz"
    DESTINATION "${CMAKE_INSTALL_DATADIR}/doc/${CPACK_DEBIAN_VMSPACE_${upper}_PACKAGE_NAME}"
    COMPONENT vmspace_${component})
endforeach()
install(
  FILES "${PROJECT_SOURCE_DIR}/README.md"
  DESTINATION "${CMAKE_INSTALL_DATADIR}/doc/libvmspace-dev"
  COMPONENT vmspace_Development)

install(
  FILES "${CMAKE_CURRENT_LIST_DIR}/lintian-overrides"
  DESTINATION "${CMAKE_INSTALL_DATADIR}/lintian/overrides"
  RENAME "${vmspace_runtime_package}"
  COMPONENT vmspace_Runtime)

include(CPack)
