"""Who may import whom: the arrows of the design, read from the syntax trees."""

import ast
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "llama_jax"

ANY = ("",)
EVERYWHERE = ("errors", "files", "messages", "trees")
# An entry allows the module and all below it. Everyone may import itself and EVERYWHERE.
ARROWS = {
    "__init__": ANY,  # names for users, loaded on first use
    "__main__": ANY,
    "axes": (),
    "chips": (),
    "cli": ANY,
    "config": ("axes", "models", "objectives", "data", "text", "optim"),
    "data": ("text",),
    "demo": ANY,
    "errors": (),
    "evals": ("config", "data", "generate", "models", "objectives", "text", "train"),
    "files": (),
    "formats": (),
    "generate": (
        *("axes", "config", "data.images", "layers.cache", "models", "text", "train", "weights"),
    ),
    "kernels": ("axes",),
    "layers": ("axes", "kernels"),
    "messages": (),
    "models": ("axes", "kernels.attention.mask", "layers"),
    "objectives": ("axes", "kernels.cross_entropy", "layers.output", "models"),
    "optim": ("axes", "layers.linear"),
    # It prices the program that training and decoding would run, and so looks into both.
    "plan": (
        "cli.plan",
        *(
            "axes",
            "config",
            "generate",
            "kernels.backends",
            "layers",
            "models",
            "objectives",
            "optim",
        ),
        *("chips", "presets", "streams", "train", "weights.layers"),
    ),
    "presets": (
        *("axes", "config", "data", "layers", "models", "objectives", "text"),
        "optim",
    ),
    "streams": (),
    "text": (),
    "train": (
        *("axes", "config", "chips", "data.loader", "kernels.backends", "kernels.flop_count"),
        *("layers.linear", "models", "objectives", "optim", "text", "weights"),
    ),
    # It checks what `weights` and `generate` make of a file, so it looks into both.
    "trees": (),
    "verify": (
        "axes",
        "formats",
        "generate",
        "layers.rope",
        "models",
        "presets",
        "text",
        "weights",
    ),
    "weights": (
        *("axes", "config", "data", "formats", "layers", "models", "objectives", "presets", "text"),
        "train.checkpoint",
    ),
}
# Third parties that only some areas, or one module of an area, may know of.
ONLY = {
    "flax": {"layers", "models", "objectives", "optim", "train", "generate"},
    "tyro": {"cli"},
    "torch": {"weights.meta", "verify.reference"},  # .pth files have no other reader
    "transformers": {"verify.reference"},  # what logits are compared with
    "tensorflow": set(),
}
WITHOUT_JAX = ("data", "text", "errors", "files", "messages")
JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}


def sources() -> list[pathlib.Path]:
    return sorted(PACKAGE.rglob("*.py"))


def area(path: pathlib.Path) -> str:
    """The first name below llama_jax: a package, or a module beside the packages."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import, those inside functions too."""
    here = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*here[: -node.level], node.module] if node.level else [node.module]
            module = ".".join(part for part in base if part)
            # `from llama_jax.data import loader` may name a module, so the whole path counts.
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def allowed(name: str, names: tuple[str, ...]) -> bool:
    return any(not n or name == n or name.startswith(n + ".") for n in names)


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(path):
    mine = area(path)
    assert mine in ARROWS, f"{mine} is new: give it a row in ARROWS and say why"
    for line, name in imports(path):
        where = f"{path.relative_to(ROOT)}:{line} imports {name}"
        first, _, rest = name.partition(".")
        if first == "llama_jax":
            assert allowed(rest, (*ARROWS[mine], mine, *EVERYWHERE)), (
                f"{where}; {mine} may import {ARROWS[mine]}"
            )
        if first in ONLY:
            module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
            assert {mine, module} & ONLY[first], f"{where}; only {ONLY[first] or 'tests'} may"
        if mine in WITHOUT_JAX:
            assert first not in JAX, f"{where}; {mine} works without jax"


def test_importing_the_package_imports_no_heavy_library():
    heavy = "jax flax optax orbax grain tensorflow tensorflow_datasets tyro numpy".split()
    script = f"import sys, llama_jax; print(*[m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_names_of_the_package_load_on_first_use():
    import llama_jax

    for name in llama_jax.__all__:
        assert getattr(llama_jax, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Rum'"):
        _ = llama_jax.Rum
