"""Conan 2 recipe: conan create . (with_io=False leaves out what reads files, with_net=True adds ranks in several processes)."""
import os
import re

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.files import copy, load
from conan.tools.layout import basic_layout


class NvlConan(ConanFile):
    name = "nvl"
    license = "MIT"
    description = "Header-only C++20 toolkit for LLM inference"
    topics = ("llm", "inference", "header-only")
    package_type = "header-library"
    settings = "os", "arch", "compiler", "build_type"
    options = {"with_io": [True, False], "with_net": [True, False]}
    default_options = {"with_io": True, "with_net": False}
    exports_sources = "LICENSE", "include/*"
    no_copy_source = True

    def set_version(self):
        text = load(self, os.path.join(self.recipe_folder, "include", "nvl", "version.hpp"))
        self.version = ".".join(re.findall(r"NVL_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", text))

    def layout(self):
        basic_layout(self)

    def requirements(self):
        self.requires("xxhash/[>=0.8.1 <1]")
        if self.options.with_io:
            self.requires("pcre2/[>=10.42 <11]")
            self.requires("nlohmann_json/[>=3.11 <4]")
            self.requires("utf8proc/[>=2.8 <3]")
        if self.options.with_net:
            self.requires("openssl/[>=3.0 <4]")

    def package_id(self):
        self.info.settings.clear()  # headers are the same for every compiler

    def validate(self):
        if self.settings.get_safe("compiler.cppstd"):
            check_min_cppstd(self, 20)

    def package(self):
        # Headers and nothing to build; the CMake files of consumers come from Conan and not from cmake/.
        copy(self, "LICENSE", self.source_folder, os.path.join(self.package_folder, "licenses"))
        copy(self, "*.hpp", os.path.join(self.source_folder, "include"), os.path.join(self.package_folder, "include"))
        copy(self, "*.cuh", os.path.join(self.source_folder, "include"), os.path.join(self.package_folder, "include"))

    def package_info(self):
        self.cpp_info.set_property("cmake_file_name", "nvl")
        self.cpp_info.bindirs = self.cpp_info.libdirs = []
        core = self.cpp_info.components["core"]
        core.set_property("cmake_target_name", "nvl::core")
        core.requires = ["xxhash::xxhash"]
        core.bindirs = core.libdirs = []
        if self.settings.get_safe("os") == "Linux":
            core.system_libs = ["pthread"]
        if self.options.with_io:
            io = self.cpp_info.components["io"]
            io.set_property("cmake_target_name", "nvl::io")
            io.requires = ["core", "pcre2::pcre2-8", "nlohmann_json::nlohmann_json", "utf8proc::utf8proc"]
            io.bindirs = io.libdirs = []
        if self.options.with_net:
            net = self.cpp_info.components["net"]
            net.set_property("cmake_target_name", "nvl::net")
            net.requires = ["core", "openssl::crypto"]
            net.bindirs = net.libdirs = []
