#pragma once
/// The version of nvl. CMake reads it from here; nothing else states it.

#define NVL_VERSION_MAJOR 0
#define NVL_VERSION_MINOR 1
#define NVL_VERSION_PATCH 0
