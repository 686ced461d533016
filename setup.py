"""Builds pycomm._native with CMake; everything else about the package is in pyproject.toml."""

import subprocess
import sys
import sysconfig
from pathlib import Path
from zlib import crc32

import nanobind
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Lets CMake build the extension, in a directory per Python and per environment."""

    def build_extension(self, ext: Extension) -> None:
        """Configure and build; both do only what has changed."""
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        environment = crc32(f"{sys.prefix} {nanobind.cmake_dir()}".encode())
        build = ROOT / "build" / f"{sys.implementation.cache_tag}-{environment:08x}"
        cmake = [sys.executable, "-m", "cmake"]
        configure = [
            "-G=Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dnanobind_ROOT={nanobind.cmake_dir()}",
        ]
        subprocess.run([*cmake, "-S", ROOT, "-B", build, *configure], check=True)
        subprocess.run([*cmake, "--build", build], check=True)
        self.mkpath(str(target.parent))
        built = build / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
        self.copy_file(str(built), str(target))


class WithSources(build_py):
    """Installs the CUDA kernels and their headers, which are compiled at run time."""

    def run(self) -> None:
        """Copy what a working copy has beside the package into it."""
        super().run()
        if self.editable_mode:
            return
        for source in [*csrc("*.cu"), *kernel_headers()]:
            target = Path(self.build_lib) / "pycomm" / source
            self.mkpath(str(target.parent))
            self.copy_file(str(ROOT / source), str(target))


def kernel_headers() -> list[str]:
    """Return the headers that .cu files include, as paths relative to this file."""
    return [h for h in csrc("*.h") if Path(h).parent in (Path("csrc"), Path("csrc/cuda"))]


def csrc(*patterns: str) -> list[str]:
    """Return the files below csrc/, as paths relative to this one."""
    return sorted(str(f.relative_to(ROOT)) for p in patterns for f in (ROOT / "csrc").rglob(p))


native = Extension(
    "pycomm._native", csrc("*.cpp"), depends=["CMakeLists.txt", *csrc("*.h", "*.cu")]
)
setup(ext_modules=[native], cmdclass={"build_ext": CMakeBuild, "build_py": WithSources})
