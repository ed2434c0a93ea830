"""Hugging Face's config.json and names of tensors, as far as families share them.

Only what is understood is accepted: a field that would change the numbers and is not known (another
activation, multipliers, experts) is refused by name.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llama_jax.errors import FormatError
from llama_jax.families.huggingface_names import BUFFERS, NAMES
from llama_jax.families.huggingface_numbers import LARGEST, bad, exactly, positive, size
from llama_jax.families.huggingface_rope import rope, scaling
from llama_jax.families.names import Table
from llama_jax.families.sizes import Sizes, build, sizes, unlike
from llama_jax.models.decoder import Decoder

# Fields that must have one of these values, for nothing else is built; absent means the first.
FIXED = {
    "hidden_act": ("silu", "swish"),  # two names of one function
    "attention_bias": (False,),  # unless the family has them
    "mlp_bias": (False,),
}
ATTENTION_BIAS, MLP_BIAS = "attention_bias", "mlp_bias"
# Of these names, fields that are not known change what a model computes: windows of some layers,
# multipliers, softcapping, partial rotation. Other fields are notes of a program.
SUSPECT = re.compile(
    "window|layer_types|no_rope|softcap|multiplier|expert|alibi|rotary|rope|qk_|bias|scal|quant"
)
KNOWN = {*FIXED, "rope_theta", "rope_scaling", "rope_parameters"}
