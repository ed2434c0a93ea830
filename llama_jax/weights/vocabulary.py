"""The tokenizer of a checkpoint, wherever its format keeps it."""

from llama_jax.errors import FormatError
from llama_jax.text.pretrained import Pretrained, open_tokenizer
from llama_jax.weights.opened import Checkpoint


def tokenizer(checkpoint: Checkpoint) -> Pretrained:
    """Opens the tokenizer that came with the weights, and checks that it fits them.

    Raises:
      FormatError: there is none, it is damaged, or it has more ids than the model has embeddings.
    """
    place = checkpoint.tokenizer_place
    if place is None:
        raise FormatError(
            f"{checkpoint.place} has no tokenizer; put tokenizer.json or tokenizer.model beside it"
        )
    if checkpoint.kind == "gguf":
        from llama_jax.text.gguf import from_fields
        from llama_jax.weights.gguf import open_gguf

        found = from_fields(open_gguf(place).fields)
    else:
        found = open_tokenizer(place)
    vocab = checkpoint.model.vocab
    if found.vocab > vocab:
        raise FormatError(
            f"{place}: the tokenizer has ids up to {found.vocab - 1} and the model {vocab} "
            "embeddings; it is another model's tokenizer"
        )
    return found
