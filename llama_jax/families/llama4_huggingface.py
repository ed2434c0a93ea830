"""Llama 4's language model in a config.json: which layers have what, in transformers' words."""

from dataclasses import replace
from pathlib import Path

from llama_jax.families.huggingface import Fields, HuggingFace
from llama_jax.families.huggingface_numbers import bad, positive, size
from llama_jax.families.huggingface_windows import FULL
from llama_jax.families.llama4_names import HUGGING_FACE
from llama_jax.families.sizes import Sizes
from llama_jax.layers.attention import TemperatureTuning
from llama_jax.layers.experts import Experts
from llama_jax.layers.mlp import SwiGLU

CHUNKED = "chunked_attention"  # transformers' name of a layer
NOPE, NOPE_EVERY = "no_rope_layers", "no_rope_layer_interval"
ROUTED, ROUTED_EVERY = "moe_layers", "interleave_moe_layer_step"
DENSE, CHUNK = "intermediate_size_mlp", "attention_chunk_size"
FLOOR, GROWTH, TUNED = "floor_scale", "attn_scale", "attn_temperature_tuning"
EXPERTS, TOP_K, BARE = "num_local_experts", "num_experts_per_tok", "use_qk_norm"
DEFAULTS: Fields = {
    "vocab_size": 202_048, "hidden_size": 5120, "num_hidden_layers": 48, "head_dim": 128,
    "num_attention_heads": 40, "num_key_value_heads": 8, "intermediate_size": 8192,
    "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "rope_theta": 5e5,
    "tie_word_embeddings": False, DENSE: 16_384, CHUNK: 8192, NOPE_EVERY: 4, ROUTED_EVERY: 1,
    EXPERTS: 16, TOP_K: 1, BARE: True, TUNED: True, FLOOR: 8192, GROWTH: 0.1,
}  # fmt: skip


def mixture(hidden: int, experts: int, top_k: int) -> Experts:
    """Experts beside a shared one of their width."""
    return Experts(hidden, experts, top_k, shared=SwiGLU(hidden))


def every(layers: int, n: int) -> list[int]:
    """Layers n - 1, 2 n - 1, ..."""
    return list(range(n - 1, layers, n))


def read(given: Sizes, config: Fields, place: Path | str) -> Sizes:
    """See `HuggingFace.read`."""
    layers, listed = given.layers, config.get(NOPE)  # 1 where there is a rotary embedding
    if not listed:
        bare = every(layers, size(config, place, NOPE_EVERY))
        listed = [int(i not in bare) for i in range(layers)]
    if (
        not isinstance(listed, list)
        or len(listed) < layers
        or any(one not in (0, 1) for one in listed)
    ):
        raise bad(place, NOPE, listed, f"0 or 1 for each of {layers} layers")
    rotated = tuple(map(bool, listed[:layers]))
    routed = config.get(ROUTED)
    routed = every(layers, size(config, place, ROUTED_EVERY)) if routed is None else routed
    if not isinstance(routed, list) or any(one not in range(layers) for one in routed):
        raise bad(place, ROUTED, routed, f"a list of layers below {layers}")
    routing = None
    if routed:
        routing = mixture(given.hidden, *(size(config, place, name) for name in (EXPERTS, TOP_K)))
    tuning = TemperatureTuning(size(config, place, FLOOR), positive(config[GROWTH], GROWTH, place))
    for name in (TUNED, BARE):  # early files have 4 for true
        if type(config[name]) not in (bool, int):
            raise bad(place, name, config[name], "true or false")
    if config[BARE] and given.rope is not None and given.rope.gain != 1:
        raise bad(place, BARE, True, "a rotary embedding that stretches no vector")
    return replace(
        given,
        hidden=size(config, place, DENSE),
        rotated=() if all(rotated) else rotated,
        chunks=_chunks(config, place, rotated),
        bare_norm=bool(config[BARE]),
        tuning=tuning if config[TUNED] else None,
        experts=tuple(routing if i in routed else None for i in range(layers)) if routed else (),
    )


def _chunks(config: Fields, place: Path | str, rotated: tuple[bool, ...]) -> tuple[int | None, ...]:
    """Each layer's chunk, by `layer_types`; else layers with the rotary embedding have one."""
    kinds = config.get("layer_types")
    if kinds is None:
        there = config.get(CHUNK) is not None
        kinds = [CHUNKED if turned and there else FULL for turned in rotated]
    if not isinstance(kinds, list) or len(kinds) != len(rotated):
        raise bad(place, "layer_types", kinds, f"a list with each of {len(rotated)} layers")
    for kind in kinds:
        if kind not in (FULL, CHUNKED):
            raise bad(place, "layer_types", kind, f"{FULL!r} or {CHUNKED!r}")
    if CHUNKED not in kinds:
        return ()
    chunk = size(config, place, CHUNK)
    return tuple(chunk if kind == CHUNKED else None for kind in kinds)


def write(given: Sizes) -> Fields:
    """See `HuggingFace.write`."""
    experts, tuning = given.routed, given.tuning or TemperatureTuning()
    chunks = given.chunks or (None,) * given.layers
    told = {
        DENSE: given.hidden,
        NOPE: [int(turned) for turned in given.rotated or (True,) * given.layers],
        ROUTED: [i for i, one in enumerate(given.experts) if one is not None],
        CHUNK: next(filter(None, chunks), None),
        "layer_types": [FULL if chunk is None else CHUNKED for chunk in chunks],
        BARE: given.bare_norm,
        TUNED: given.tuning is not None,
        FLOOR: int(tuning.floor),
        GROWTH: tuning.growth,
        EXPERTS: 1 if experts is None else experts.experts,
        TOP_K: 1 if experts is None else experts.top_k,
    }
    return told | ({} if experts is None else {"intermediate_size": experts.hidden})


WORDS = HuggingFace(
    "llama4_text",
    "Llama4ForCausalLM",
    defaults=DEFAULTS,
    known=(*DEFAULTS, NOPE, ROUTED, "layer_types", "output_router_logits")
    + ("router_aux_loss_coef", "router_jitter_noise"),  # of a training that is not this one
    biases=("attention_bias",),
    read=read,
    write=write,
    table=HUGGING_FACE,
)
