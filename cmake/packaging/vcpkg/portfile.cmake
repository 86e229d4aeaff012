# An overlay port that builds the tree it lies in:
#   vcpkg install vmspace --overlay-ports=cmake/packaging/vcpkg
# A port elsewhere would fetch a release here instead.
get_filename_component(SOURCE_PATH "${CURRENT_PORT_DIR}/../../.." ABSOLUTE)

vcpkg_cmake_configure(
  SOURCE_PATH "${SOURCE_PATH}"
  OPTIONS -DVMSPACE_BUILD_TESTS=OFF -DVMSPACE_BUILD_EXAMPLES=OFF -DVMSPACE_INSTALL=ON)
vcpkg_cmake_install()
vcpkg_cmake_config_fixup(CONFIG_PATH lib/cmake/vmspace)
vcpkg_fixup_pkgconfig()

file(REMOVE_RECURSE "${CURRENT_PACKAGES_DIR}/debug/include" "${CURRENT_PACKAGES_DIR}/debug/share")
vcpkg_install_copyright(FILE_LIST "${SOURCE_PATH}/LICENSE")
