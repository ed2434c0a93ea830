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
EVERYWHERE = ("checked", "errors", "files", "kinds", "limits", "messages", "trees")
# An entry allows the module and all below it. Everyone may import itself and EVERYWHERE.
ARROWS = {
    "__init__": ANY,  # names for users, loaded on first use
    "__main__": ANY,
    "axes": (),
    "checked": (),
    "chips": (),
    "cli": ANY,
    "config": ("axes", "models", "objectives", "data", "text", "optim", "seeds"),
    "data": ("text",),
    "demo": ANY,
    "errors": (),
    "evals": ("config", "data", "generate", "models", "objectives", "tasks", "text", "train"),
    "families": ("config", "data", "formats", "layers", "models", "objectives", "optim"),
    "files": (),
    "formats": (),
    "generate": (
        "axes",
        "config",
        "data.tiles",
        "layers.cache",
        "models",
        "seeds",
        "text",
        "train",
        "weights",
    ),
    "kernels": ("axes",),
    "kinds": (),
    "layers": ("axes", "kernels"),
    "limits": (),
    "messages": (),
    "models": ("axes", "data.marks", "kernels.attention.mask", "layers"),
    "objectives": ("axes", "kernels.cross_entropy", "layers.sown", "models"),
    "optim": ("axes", "layers.linear"),
    # It prices the program that training and decoding would run, and so looks into both.
    "plan": (
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
        *("axes", "config", "data", "layers", "models", "objectives", "tasks", "text"),
        "optim",
    ),
    "seeds": (),
    "streams": (),
    "tasks": ("data",),
    "text": (),
    "train": (
        *("axes", "config", "chips", "data", "kernels.backends", "kernels.flop_count"),
        *("layers.linear", "models", "objectives", "optim", "seeds", "text", "weights"),
    ),
    # It checks what `weights` and `generate` make of a file, so it looks into both.
    "trees": (),
    "verify": (
        "axes",
        "families",
        "formats",
        "generate",
        "layers.rope",
        "models",
        "presets",
        "text",
        "weights",
    ),
    "weights": (
        *("axes", "config", "data", "families", "formats", "layers", "models", "objectives"),
        "presets",
        "text",
    ),
}
# The house from its roof down: an import goes down, or stays on its floor.
FLOORS = (
    ("__main__",),
    ("cli", "demo"),
    ("evals", "plan", "serve", "verify"),
    ("generate",),
    ("train",),
    ("weights",),
    ("families", "presets"),
    ("config", "objectives", "tasks"),
    ("models", "optim"),
    ("data", "layers"),
    ("formats", "kernels", "text"),
    (
        "axes",
        "checked",
        "chips",
        "errors",
        "files",
        "kinds",
        "limits",
        "messages",
        "seeds",
        "streams",
        "trees",
    ),
)
# Third parties that only some areas, or one module of an area, may know of.
ONLY = {
    "flax": {"layers", "models", "objectives", "optim", "train", "generate"},
    "torch": {"formats.pth", "verify.reference"},  # .pth files have no other reader
    "transformers": {"verify.reference"},  # what logits are compared with
    "tensorflow": set(),
}
WITHOUT_JAX = ("data", "text", "checked", "errors", "files", "kinds", "limits", "messages")
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


def dotted(path: pathlib.Path) -> str:
    """A module's name below llama_jax; a package's own is that of its folder."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def graph() -> dict[str, set[str]]:
    """Which module of ours imports which, names below llama_jax."""
    names = {dotted(path): path for path in sources()}
    found: dict[str, set[str]] = {}
    for mine, path in names.items():
        full = [name.partition(".") for _, name in imports(path)]
        inner = [rest for first, _, rest in full if first == "llama_jax"]
        # `from llama_jax.data import loader` is of the module, `... import Loader` of the package.
        modules = {name if name in names else name.rpartition(".")[0] for name in inner}
        found[mine] = (modules & names.keys()) - {mine}
    return found


def circles(imported: dict[str, set[str]]) -> set[frozenset[str]]:
    """The modules that import each other, directly or through others."""
    reached = {name: set(others) for name, others in imported.items()}
    for middle in reached:
        for others in reached.values():
            if middle in others:
                others |= reached[middle]
    return {
        frozenset(b for b in others if name in reached[b])
        for name, others in reached.items()
        if name in others
    }


def test_no_modules_import_each_other_in_a_circle():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == {frozenset("bc")}
    assert circles(graph()) == set()


def test_no_import_goes_up_to_a_higher_floor():
    floor = {name: depth for depth, names in enumerate(FLOORS) for name in names}
    up = {
        (mine, other)
        for mine, others in graph().items()
        for other in others
        if mine != "__init__" and floor[other.split(".")[0]] < floor[mine.split(".")[0]]
    }
    assert up == set()


def test_importing_the_package_imports_no_heavy_library():
    heavy = "jax flax optax orbax grain tensorflow tensorflow_datasets numpy".split()
    script = f"import sys, llama_jax; print(*[m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_names_of_the_package_load_on_first_use():
    import llama_jax

    for name in llama_jax.__all__:
        assert getattr(llama_jax, name).__name__.removeprefix("llama_jax.") == name
    with pytest.raises(AttributeError, match="no attribute 'Rum'"):
        _ = llama_jax.Rum


ORDERS = {
    "train": [
        "import llama_jax",
        "import llama_jax.train",
        "from llama_jax.train.loop import train",
    ],
    "attention": ["import llama_jax", "import llama_jax.kernels.attention.api"],
}


def test_packages_named_for_what_they_do_are_the_functions_too_whatever_is_imported_first():
    """In another process, for this one has imported all; our modules anew for every order."""
    trains = (
        "import llama_jax; from llama_jax import train\n"
        "from llama_jax.train import loop; from llama_jax.train.loop import Result\n"
        "loop.train = lambda *args, **settings: (args, settings)\n"
        "assert llama_jax.train is train and train.loop is loop\n"
        "assert llama_jax.train(1, 2, steps=3) == ((1, 2), {'steps': 3})"
    )
    attends = (
        "from llama_jax.kernels import Mask, attention\n"
        "from llama_jax.kernels.attention import api\n"
        "api.attention = lambda *args, **settings: (args, settings)\n"
        "assert attention(1, Mask(causal=True), scale=2) == ((1, Mask(causal=True)), {'scale': 2})"
    )
    forget = (
        "import sys\n"
        "for name in [name for name in sys.modules if name.startswith('llama_jax')]:\n"
        "    del sys.modules[name]"
    )
    code = [
        f"{forget}\n{first}\n{then}"
        for what, then in (("train", trains), ("attention", attends))
        for first in ORDERS[what]
    ]
    subprocess.run([sys.executable, "-c", "\n".join(code)], cwd=ROOT, check=True)
