"""Builds the CPU kernels if a compiler is there; without one the package is whole all the same.

Everything else about the package stands in pyproject.toml.
"""

from __future__ import annotations

import hashlib
import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = Path("src/localmix/kernels/csrc")
KERNELS = (
    "activation.cpp",
    "shared_weight.cpp",
    "local_weight.cpp",
    "projected_weight.cpp",
    "projected_gradient.cpp",
    "pairwise_window.cpp",
    "pairwise_neighborhood.cpp",
    "window_weight.cpp",
)
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-ffp-contract=fast", "-fno-math-errno", "-fvisibility=hidden", "-g0"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"]
INSTRUCTION_SETS = {
    # name: (bytes of a vector, flags of the compiler)
    "generic": (16, []),
    "avx2": (32, ["-mavx2", "-mfma", "-mf16c"]),
    "avx512": (64, AVX512),
}
# A set that contains AVX-512 and has what products of bfloat16 gain from; not every compiler knows it.
AVX512_BF16 = (64, [*AVX512, "-mavx512bf16"])
if os.environ.get("LOCALMIX_EMULATE_AVX512"):
    # slowly, of AVX2, to test them where nothing else is (tools/check_avx512.sh)
    emulated = [*INSTRUCTION_SETS["avx2"][1], "-Wno-psabi"]
    INSTRUCTION_SETS["avx512"] = (64, emulated)
    AVX512_BF16 = (64, [*emulated, "-include", "tools/emulated_avx512.h"])
    FLAGS.append("-DLOCALMIX_EMULATED")
IN_PAIRS = ("projected_weight.cpp", "projected_gradient.cpp", "pairwise_window.cpp", "window_weight.cpp")


class BuildKernels(build_ext):
    """Compiles the kernels once per instruction set; which one runs is decided where they are loaded."""

    def build_extension(self, ext: Extension) -> None:
        """Compiles and links one shared library with a plain C interface."""
        x86 = platform.machine().lower() in ("x86_64", "amd64")
        sets = {name: given for name, given in INSTRUCTION_SETS.items() if name == "generic" or x86}
        macros = [("LOCALMIX_X86", "1")] if x86 else []

        def compile_kernel(name: str, source: str, vector_bytes: int, flags: list[str]) -> list[str]:
            return self.compiler.compile(
                [str(CSRC / source)],
                output_dir=str(Path(self.build_temp) / name),
                macros=[("LOCALMIX_ISA", name), ("LOCALMIX_VECTOR_BYTES", str(vector_bytes))],
                extra_postargs=[*FLAGS, *flags],
                depends=ext.depends,
            )

        # The portable objects come first: of an inline function that several of them hold, the linker keeps the first.
        jobs = [(name, source, *given) for name, given in sets.items() for source in KERNELS]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            further = [pool.submit(compile_kernel, "avx512_bf16", source, *AVX512_BF16) for source in IN_PAIRS if x86]
            objects = [o for compiled in pool.map(lambda job: compile_kernel(*job), jobs) for o in compiled]
        if further and not any(job.exception() for job in further):
            objects += [o for job in further for o in job.result()]
            macros.append(("LOCALMIX_AVX512_BF16", "1"))
        interface = hashlib.sha256((CSRC / "interface.h").read_bytes()).hexdigest()
        macros.append(("LOCALMIX_INTERFACE", f'"{interface}"'))
        objects += self.compiler.compile(
            [str(CSRC / "dispatch.cpp")],
            output_dir=self.build_temp,
            macros=macros,
            extra_postargs=FLAGS,
            depends=ext.depends,
        )
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(objects, str(target), target_lang="c++")


setup(
    ext_modules=[
        Extension(
            "localmix.kernels._native",
            sources=[str(CSRC / source) for source in (*KERNELS, "dispatch.cpp")],
            depends=[str(header) for header in sorted(CSRC.glob("*.h"))],
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels},
)
