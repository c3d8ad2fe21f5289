"""The Python part of the package: the modules. The programs in bin/ are installed by debian/, each to its own place."""

import ast
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent


def version() -> str:
    """The value of __version__, without importing anything."""
    for node in ast.parse((HERE / "pysendmail/__init__.py").read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return str(ast.literal_eval(node.value))
    raise SystemExit("pysendmail/__init__.py has no __version__")


setup(
    name="pysendmail",
    version=version(),
    description="A mail transfer agent",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    install_requires=["click", "dnspython", "filelock"],
    packages=find_packages(include=["pysendmail", "pysendmail.*"]),
    license="MIT",
    classifiers=[
        "Environment :: No Input/Output (Daemon)",
        "Operating System :: POSIX :: Linux",
        "Topic :: Communications :: Email :: Mail Transport Agents",
    ],
)
