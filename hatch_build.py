"""Builds the compiled loop, ``gradpath.engine._replay``, where there is a C compiler; without it
gradpath is slower.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy
from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CompileError, LinkError

SOURCES = Path("src")


class CustomBuildHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles in place, beside the module that uses it, for a wheel and for an editable
        installation alike.
        """
        source = SOURCES / "gradpath" / "engine" / "_replay.c"
        extension = Extension(
            "gradpath.engine._replay",
            [str(source)],
            include_dirs=[numpy.get_include()],
            # -g0: what a debugger reads holds the name of this folder, and the bytes are to be the
            # same in any.
            extra_compile_args=["-O3", "-g0"],
        )
        with TemporaryDirectory() as scratch:
            command = build_ext(Distribution({"ext_modules": [extension], "package_dir": {"": str(SOURCES)}}))
            command.inplace, command.build_temp, command.build_lib = True, scratch, scratch
            try:
                command.ensure_finalized()
                command.run()
            except (BaseError, CompileError, LinkError) as error:
                self.app.display_warning(f"The loop over time stays in Python: {error}")
                return
            built = Path(command.get_ext_fullpath("gradpath.engine._replay"))
        build_data["artifacts"].append(str(built.resolve().relative_to(Path(self.root).resolve())))
        build_data["pure_python"], build_data["infer_tag"] = False, True
