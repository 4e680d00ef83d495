# SPDX-License-Identifier: Apache-2.0
# For Spack: spack repo create DIR; copy this folder to DIR/packages/cadre; spack repo add DIR; spack install cadre.
from spack.package import *


class Cadre(CMakePackage):
    """Trains and runs mixture-of-experts models of the DeepSeek-V3 family over MPI."""

    version("main", branch="main")

    variant("cuda", default=False, description="Build the GPU back end")
    variant("onednn", default=True, description="bf16 products by oneDNN")

    depends_on("cxx", type="build")
    depends_on("cmake@3.25:", type="build")
    depends_on("ninja", type="build")
    depends_on("pkgconfig", type="build")

    depends_on("mpi@3.1:")
    depends_on("blas")
    depends_on("openblas threads=pthreads", when="^[virtuals=blas] openblas")
    depends_on("onednn@2.6:", when="+onednn")
    depends_on("highway")
    depends_on("hwloc@2:")
    depends_on("boost@1.74: +program_options")
    depends_on("fmt@9:")
    depends_on("nlohmann-json@3.11:")
    depends_on("tomlplusplus@3:")
    depends_on("xxhash")
    depends_on("random123")
    depends_on("oniguruma")
    depends_on("sentencepiece")
    depends_on("cuda@12:", when="+cuda")

    generator("ninja")

    def cmake_args(self):
        return [
            self.define("CADRE_TESTS", "OFF"),
            self.define("CADRE_CUDA", "ON" if self.spec.satisfies("+cuda") else "OFF"),
        ]
