# For `conan create packaging/conan` beside a checkout. UNTESTED: Debian has no conan; written for conan 2.
import os
import re

from conan import ConanFile
from conan.tools.files import copy, load


class S3Cache(ConanFile):
    name = "s3cache"
    license = "MIT"
    description = "S3 as a cache, in one C++17 header"
    package_type = "header-library"
    settings = "os", "arch", "compiler", "build_type"
    no_copy_source = True
    checkout = os.path.join("..", "..", "..", "..")

    def set_version(self):
        header = load(self, os.path.join(self.recipe_folder, self.checkout, "s3cache.hpp"))
        self.version = re.search(r'^#define S3CACHE_VERSION "(.*)"', header, re.M).group(1)

    def export_sources(self):
        for name in ("s3cache.hpp", "LICENSE"):
            copy(self, name, os.path.join(self.recipe_folder, self.checkout), self.export_sources_folder)

    def requirements(self):
        self.requires("libcurl/[>=7.61 <9]")
        self.requires("openssl/[>=1.1.1 <4]")
        self.requires("zlib/[>=1.2.11 <2]")

    def package(self):
        copy(self, "s3cache.hpp", self.source_folder, os.path.join(self.package_folder, "include"))
        copy(self, "LICENSE", self.source_folder, os.path.join(self.package_folder, "licenses"))

    def package_id(self):
        self.info.clear()

    def package_info(self):
        self.cpp_info.bindirs = []
        self.cpp_info.libdirs = []
        self.cpp_info.set_property("cmake_file_name", "s3cache")
        self.cpp_info.set_property("cmake_target_name", "s3cache::s3cache")
        self.cpp_info.requires = ["libcurl::libcurl", "openssl::crypto", "zlib::zlib"]
