# SPDX-License-Identifier: Apache-2.0
#
# Conan 2: `conan create cmake/packaging/conan --build=missing` builds the tree that this file lies in.

import os
import re

from conan import ConanFile
from conan.errors import ConanInvalidConfiguration
from conan.tools.build import check_min_cppstd
from conan.tools.cmake import CMake, CMakeDeps, CMakeToolchain, cmake_layout
from conan.tools.files import copy, load, rmdir

required_conan_version = ">=2.0"


class VmspaceConan(ConanFile):
    name = "vmspace"
    description = "Guest physical address space management for virtual machine monitors"
    license = "Apache-2.0"
    topics = ("virtualization", "vmm", "kvm", "vhost-user", "allocator")
    package_type = "library"
    settings = "os", "arch", "compiler", "build_type"
    options = {"shared": [True, False], "fPIC": [True, False]}
    default_options = {"shared": False, "fPIC": True, "boost/*:header_only": True}

    def _tree(self):
        return os.path.join(self.recipe_folder, "..", "..", "..")

    def set_version(self):
        text = load(self, os.path.join(self._tree(), "include", "vmspace", "base", "version.hpp"))
        part = lambda name: re.search(rf"#define VMSPACE_VERSION_{name} (\d+)", text).group(1)
        self.version = ".".join(part(name) for name in ("MAJOR", "MINOR", "PATCH"))

    def export_sources(self):
        for pattern in ("CMakeLists.txt", "LICENSE", "README.md", "cmake/*", "include/*", "src/*"):
            copy(self, pattern, src=self._tree(), dst=self.export_sources_folder)

    def configure(self):
        if self.options.shared:
            self.options.rm_safe("fPIC")

    def layout(self):
        cmake_layout(self)

    def requirements(self):
        # Result is in every header. fmt is linked, and vmspace::fmt includes it.
        self.requires("tl-expected/[>=1.0.0 <2]", transitive_headers=True)
        self.requires("fmt/[>=8]", transitive_headers=True)
        # To build, not to use.
        self.requires("boost/[>=1.74]", headers=True, libs=False, visible=False)
        self.requires("xxhash/[>=0.8]", headers=True, libs=False, visible=False)

    def validate(self):
        if self.settings.os != "Linux":
            raise ConanInvalidConfiguration("vmspace maps memory by Linux system calls")
        check_min_cppstd(self, 20)

    def generate(self):
        toolchain = CMakeToolchain(self)
        toolchain.cache_variables["VMSPACE_BUILD_TESTS"] = False
        toolchain.cache_variables["VMSPACE_BUILD_EXAMPLES"] = False
        toolchain.generate()
        CMakeDeps(self).generate()

    def build(self):
        cmake = CMake(self)
        cmake.configure()
        cmake.build()

    def package(self):
        copy(self, "LICENSE", src=self.source_folder, dst=os.path.join(self.package_folder, "licenses"))
        CMake(self).install()
        for folder in ("cmake", "pkgconfig"):  # Conan writes its own
            rmdir(self, os.path.join(self.package_folder, "lib", folder))

    def package_info(self):
        self.cpp_info.set_property("cmake_file_name", "vmspace")
        allocator = self.cpp_info.components["allocator"]
        allocator.set_property("cmake_target_name", "vmspace::allocator")
        allocator.set_property("pkg_config_name", "vmspace-allocator")
        allocator.libdirs = []
        allocator.requires = ["tl-expected::tl-expected"]
        allocator.system_libs = ["pthread"]
        library = self.cpp_info.components["vmspace"]
        library.set_property("cmake_target_name", "vmspace::vmspace")
        library.set_property("pkg_config_name", "vmspace")
        library.libs = ["vmspace"]
        library.requires = ["allocator", "fmt::fmt", "boost::headers", "xxhash::xxhash"]
        if not self.options.shared:
            library.defines = ["VMSPACE_STATIC"]
        formatters = self.cpp_info.components["fmt"]
        formatters.set_property("cmake_target_name", "vmspace::fmt")
        formatters.libdirs = []
        formatters.requires = ["vmspace", "fmt::fmt"]
