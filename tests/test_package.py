"""What the wheel says of itself and brings along."""

import tomllib
from pathlib import Path

import llama_jax

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_type_checkers_are_told_that_the_package_has_types():
    assert (Path(llama_jax.__file__).parent / "py.typed").read_bytes() == b""
    assert PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["llama_jax"]


def test_the_wheel_has_the_version_of_the_package():
    assert PROJECT["project"]["version"] == llama_jax.__version__
