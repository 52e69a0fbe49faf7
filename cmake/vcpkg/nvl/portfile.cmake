# An overlay port: vcpkg install nvl --overlay-ports=<nvl>/cmake/vcpkg installs the headers of the tree that this file is in.
get_filename_component(SOURCE_PATH "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
set(VCPKG_BUILD_TYPE release)  # header-only: one configuration is all of them

vcpkg_cmake_configure(
  SOURCE_PATH "${SOURCE_PATH}"
  OPTIONS -DNVL_BUILD_TESTS=OFF -DNVL_BUILD_EXAMPLES=OFF -DNVL_BUILD_BENCH=OFF -DNVL_INSTALL=ON)
vcpkg_cmake_install()
vcpkg_cmake_config_fixup(CONFIG_PATH share/cmake/nvl)
vcpkg_install_copyright(FILE_LIST "${SOURCE_PATH}/LICENSE")
