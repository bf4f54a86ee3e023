"""Build steps that pyproject.toml cannot express."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildPy(build_py):
    """Ships the top-level manifest inside the package."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_file("weights.yaml", str(Path(self.build_lib, "dcnzoo", "weights.yaml")))


setup(cmdclass={"build_py": BuildPy})
