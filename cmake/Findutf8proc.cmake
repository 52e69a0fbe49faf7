# Finds utf8proc, which Debian and Ubuntu ship without CMake files.
#   utf8proc::utf8proc   the library, under the name that utf8proc's own CMake package gives it

find_path(utf8proc_INCLUDE_DIR NAMES utf8proc.h)
find_library(utf8proc_LIBRARY NAMES utf8proc)
mark_as_advanced(utf8proc_INCLUDE_DIR utf8proc_LIBRARY)

if(utf8proc_INCLUDE_DIR)
  file(STRINGS "${utf8proc_INCLUDE_DIR}/utf8proc.h" utf8proc_version_lines
       REGEX "^#define UTF8PROC_VERSION_(MAJOR|MINOR|PATCH) [0-9]+")
  string(REGEX MATCHALL " [0-9]+" utf8proc_version_parts "${utf8proc_version_lines}")
  list(TRANSFORM utf8proc_version_parts STRIP)
  list(JOIN utf8proc_version_parts "." utf8proc_VERSION)
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(utf8proc REQUIRED_VARS utf8proc_LIBRARY utf8proc_INCLUDE_DIR VERSION_VAR utf8proc_VERSION)

if(utf8proc_FOUND AND NOT TARGET utf8proc::utf8proc)
  add_library(utf8proc::utf8proc UNKNOWN IMPORTED)
  set_target_properties(utf8proc::utf8proc PROPERTIES IMPORTED_LOCATION "${utf8proc_LIBRARY}")
  target_include_directories(utf8proc::utf8proc INTERFACE "${utf8proc_INCLUDE_DIR}")
endif()
