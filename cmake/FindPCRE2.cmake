# Finds the 8-bit library of PCRE2, which Debian and Ubuntu ship without CMake files.
#   PCRE2::8BIT   the library, under the name that PCRE2's own CMake package gives it

find_path(PCRE2_INCLUDE_DIR NAMES pcre2.h)
find_library(PCRE2_8BIT_LIBRARY NAMES pcre2-8 pcre2-8-static)
mark_as_advanced(PCRE2_INCLUDE_DIR PCRE2_8BIT_LIBRARY)

if(PCRE2_INCLUDE_DIR)
  file(STRINGS "${PCRE2_INCLUDE_DIR}/pcre2.h" PCRE2_version_lines REGEX "^#define PCRE2_(MAJOR|MINOR) +[0-9]+")
  string(REGEX MATCHALL " [0-9]+" PCRE2_version_parts "${PCRE2_version_lines}")
  list(TRANSFORM PCRE2_version_parts STRIP)
  list(JOIN PCRE2_version_parts "." PCRE2_VERSION)
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(PCRE2 REQUIRED_VARS PCRE2_8BIT_LIBRARY PCRE2_INCLUDE_DIR VERSION_VAR PCRE2_VERSION)

if(PCRE2_FOUND AND NOT TARGET PCRE2::8BIT)
  add_library(PCRE2::8BIT UNKNOWN IMPORTED)
  set_target_properties(PCRE2::8BIT PROPERTIES IMPORTED_LOCATION "${PCRE2_8BIT_LIBRARY}")
  target_include_directories(PCRE2::8BIT INTERFACE "${PCRE2_INCLUDE_DIR}")
endif()
