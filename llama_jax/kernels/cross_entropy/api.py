"""Token cross-entropy in float32, as a sum and a count.

`cross_entropy(logits, ...)` is the definition. `linear_cross_entropy(x, w, ...)` is the same of the
logits x w, which for a large vocabulary are the largest array of a training step; its table of
backends has two that never hold them, and the definition for when they are few.

    linear_cross_entropy(x_BTD, w_DV, targets_BT)                      # "auto"
    linear_cross_entropy(x_BTD, table_VD, targets_BT, equation="BTD,VD->BTV", backend="xla_vocab")
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from llama_jax.axes import shard
from llama_jax.errors import UserError
from llama_jax.kernels import flop_count
from llama_jax.kernels.backends import Backend, choose
from llama_jax.kernels.cross_entropy import chunked
from llama_jax.kernels.cross_entropy.chunked import How
from llama_jax.kernels.target import platform

# Logits of one device; up to so many the dense form is as fast and its memory no concern (16 MiB).
DENSE_LOGITS = 1 << 22
# Logits of a chunk on one device, 128 and 32 MiB in float32 ...
TOKEN_CHUNK, VOCAB_CHUNK = 1 << 25, 1 << 23
CPU_CHUNK = 1 << 23  # of tokens: a larger one is slower by 5 % (T 2048, D 256, V 49152)
# ... but at least so many tokens or words, so that products do not wait for memory.
LEAST_TOKENS, LEAST_WORDS = 256, 1024
# On an accelerator a chunk of words takes this part of what there is room for: at 8B there would be
# some 16, whose traffic is small beside their products.
OF_MANY = 4
CHUNKS = 32  # Of the vocabulary there are at least so many, if they are not too small.
LANES = 128  # Chunks are multiples of it: a TPU's vectors have so many.
# What xla_tokens may hold beside its chunk, as a share of all logits in float32 ...
ROOM = 1 / 16
# ... or, on an accelerator, with its chunk: so many times the vectors. The backward pass of a block
# of a LLaMA holds 30 times its vectors beside what the stack has stored (8B, compiled for v6e); the
# loss is over by then, so what it holds is hardly more memory at the peak.
OF_A_BLOCK = 30
# Bytes of a logit in a chunk of tokens: float32, and its slope in the products' type.
OF_A_LOGIT = 6
# ... and of words on a GPU, where XLA fuses less: with 6 a step for 8 H100 took 0.16 of the logits.
OF_A_WORDS_LOGIT = 16


def cross_entropy(
    logits: Float[Array, "*batch V"],
    targets: Int[Array, "*batch"],
    weights: Float[Array, "*batch"] | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sums the cross-entropy (in nats) over the rows of weight > 0.

    With smoothing e the target distribution is (1 - e) one-hot + e / V (Szegedy et al. 2016, as
    `torch.nn.functional.cross_entropy`); `z_loss` adds z log(Z)^2, which keeps logits from drifting
    (PaLM, arXiv:2204.02311, section 5).

    Args:
      logits: any float type; the arithmetic is float32.
      targets: ids in [0, V); a row of weight 0 may hold anything.
      weights: weight of each row, all 1 by default.
      label_smoothing: share of the target spread over the whole vocabulary, in [0, 1).
      z_loss: coefficient of log(Z)^2; PaLM used 1e-4.

    Returns:
      The weighted sum and the sum of the weights.
    """
    logits = logits.astype(jnp.float32)
    weights = (
        jnp.ones(targets.shape, jnp.float32) if weights is None else weights.astype(jnp.float32)
    )
    log_z = jax.nn.logsumexp(logits, axis=-1)
    # A masked row may hold -100 or a pad id: read some valid entry, its weight is 0.
    ids = jnp.clip(targets, 0, logits.shape[-1] - 1)[..., None]
    target_logit = jnp.take_along_axis(logits, ids, axis=-1)[..., 0]
    loss = log_z - target_logit
    if label_smoothing:
        # -mean(log p) over the vocabulary is log Z - mean(logits).
        loss = (1 - label_smoothing) * loss + label_smoothing * (log_z - jnp.mean(logits, axis=-1))
    if z_loss:
        loss = loss + z_loss * jnp.square(log_z)
    # where, not a product: 0 times an infinite loss would be NaN.
    return jnp.sum(jnp.where(weights > 0, loss * weights, 0)), jnp.sum(weights)


class Scored(NamedTuple):
    """What a loss and its metrics need.

    Attributes:
      sum: weighted sum of the losses, in nats.
      count: sum of the weights.
      right: whether a token's largest logit (the first, if several are) is the target.
    """

    sum: Float[Array, ""]
    count: Float[Array, ""]
    right: Bool[Array, "*batch"]


class Case(NamedTuple):
    """What a backend may look at before it takes a call; sizes are those of one device.

    Attributes:
      platform: "cpu", "tpu", "gpu".
      x: shape and type of the vectors, of all devices.
      w: shape and type of the weight, of all devices.
      tokens: T.
      width: D.
      vocab: V.
      copies: into how many parts the tokens are split.
      shares: into how many parts the vocabulary is split.
    """

    platform: str
    x: jax.ShapeDtypeStruct
    w: jax.ShapeDtypeStruct
    tokens: int
    width: int
    vocab: int
    copies: int
    shares: int = 1

    def __str__(self) -> str:
        return f"x{list(self.x.shape)} w{list(self.w.shape)} {jnp.dtype(self.x.dtype).name}"


def _few(case: Case) -> str | None:
    logits = case.tokens * case.vocab
    if logits > DENSE_LOGITS:
        return None
    return f"{case.tokens} x {case.vocab} logits are few enough for the dense form"


def _held(case: Case) -> int:
    """Bytes that xla_tokens holds beside its chunk, whatever the chunk."""
    # A copy of w in the products' type (a TPU's are bfloat16), and the device's own gradient of w
    # before the devices' sum.
    kind = jnp.bfloat16 if case.platform == "tpu" else case.x.dtype
    copy = jnp.dtype(kind).itemsize if kind != case.w.dtype else 0
    return case.width * case.vocab * (copy + 4 * (case.copies > 1))


def _room(case: Case) -> int:
    """Bytes that a device has for a loss of chunks, for blocks hold as much at another time."""
    # On a CPU the peak is that of a process, which gives back little of what it once took.
    if case.platform == "cpu":
        return 0
    vectors = case.tokens * case.width * jnp.dtype(case.x.dtype).itemsize
    return OF_A_BLOCK * vectors // case.shares  # heads and feed-forward are split as words are


def _no_room(case: Case) -> str | None:
    held, logits = _held(case), 4 * case.tokens * case.vocab
    if held <= ROOM * logits or held + OF_A_LOGIT * LEAST_TOKENS * case.vocab <= _room(case):
        return _few(case)
    return (
        f"{held >> 20} MiB beside the chunks are too much to save a product of "
        f"{logits >> 20} MiB of logits"
    )


def _even(total: int, most: int, least: int) -> int:
    """The size of chunks of about one size, each at most max(most, least)."""
    count = -(-total // max(most, least))
    return total if count == 1 else -(-total // (count * LANES)) * LANES


def _divided(total: int, most: int) -> int:
    """As `_even`, and without padding if chunks of more than half the size allow it."""
    least = -(-total // most)
    whole = (n for n in range(least, 2 * least) if total % (n * LANES) == 0)
    return next((total // n for n in whole), _even(total, most, LANES))


def _tokens_at_once(case: Case) -> int:
    chunk = CPU_CHUNK if case.platform == "cpu" else TOKEN_CHUNK
    if not (room := _room(case)):
        return _even(case.tokens, chunk // case.vocab, LEAST_TOKENS)
    # Each chunk reads and writes all of the gradient of w: the fewer, the better.
    most = max(chunk, (room - _held(case)) // OF_A_LOGIT) // case.vocab
    return _divided(case.tokens, max(most, LEAST_TOKENS))


def _words_at_once(case: Case) -> int:
    most = min(VOCAB_CHUNK // case.tokens, case.vocab // CHUNKS)
    # Each chunk reads and writes all of the gradient of x, and is a gather and a sum of its own.
    size = OF_A_WORDS_LOGIT if case.platform == "gpu" else OF_A_LOGIT
    most = max(most, _room(case) // OF_MANY // (size * case.tokens))
    return _even(case.vocab, most, LEAST_WORDS)


def _dense(how: How, x, w, bias, targets, weights) -> tuple[jax.Array, jax.Array]:
    equation = f"{how.rows}D,{how.w}->{how.rows}V"
    logits = jnp.einsum(equation, x, w.astype(x.dtype), preferred_element_type=jnp.float32)
    logits = shard(logits if bias is None else logits + bias, how.rows + "V")
    total, _ = cross_entropy(logits, targets, weights, how.smoothing, how.z_loss)
    return total, jnp.argmax(logits, axis=-1) == targets


# In the order in which "auto" asks.
BACKENDS: dict[str, Backend] = {
    "xla_tokens": Backend(chunked.by_tokens, worse=_no_room),
    "xla_vocab": Backend(chunked.by_vocab, worse=_few),
    "dense": Backend(_dense),
}
# Tokens or words at once.
CHUNK: dict[str, Callable[[Case], int]] = {
    "xla_tokens": _tokens_at_once,
    "xla_vocab": _words_at_once,
    "dense": lambda case: 0,
}


def linear_cross_entropy(
    x: Float[Array, "*batch D"],
    w: Float[Array, "_ _"],
    targets: Int[Array, "*batch"],
    weights: Float[Array, "*batch"] | None = None,
    *,
    equation: str = "BTD,DV->BTV",
    bias: Float[Array, " V"] | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    backend: str = "auto",
) -> Scored:
    """`cross_entropy` of the logits x w + bias; its gradients have the types of x and w.

    Products are of x's type and summed in float32, as is the gradient of w.

    Args:
      x: vectors, float32 or bfloat16.
      w: the weight that makes logits of them; its V may be split over devices, as x's rows may.
      targets: ids in [0, V); a row of weight 0 may hold anything.
      weights: weight of each row, all 1 by default; those of 0 or less do not count.
      equation: the letters of x and w, "BTD,VD->BTV" for a table that is the embedding too.
      bias: added to the logits, float32.
      label_smoothing: see `cross_entropy`.
      z_loss: see `cross_entropy`.
      backend: "auto" or a name of `BACKENDS`.

    Raises:
      UserError: shapes that do not fit the equation, or an unknown backend.
    """
    rows, letters = _letters(equation, x, w)
    if weights is None:
        weights = jnp.ones(targets.shape, jnp.float32)
    weights = weights.astype(jnp.float32)
    V = w.shape[letters.index("V")]
    split = chunked.split(rows, (*targets.shape, V))
    copies = math.prod(chunked.ways(axes) for axes in split.rows)
    case = Case(
        platform(),
        jax.ShapeDtypeStruct(x.shape, x.dtype),
        jax.ShapeDtypeStruct(w.shape, w.dtype),
        math.prod(targets.shape) // copies,
        x.shape[-1],
        V // chunked.ways(split.vocab),
        copies,
        chunked.ways(split.vocab),
    )
    name = choose("cross-entropy", BACKENDS, case, "dense" if flop_count.on("model") else backend)
    shape, mesh = targets.shape, jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        # XLA on a CPU turns arrays around to sum over two axes; over one it does not.
        rows, x = rows[-1], x.reshape(-1, x.shape[-1])
        targets, weights = targets.reshape(-1), weights.reshape(-1)
    how = How(rows, letters, label_smoothing, z_loss, CHUNK[name](case))
    total, right = BACKENDS[name].run(how, x, w, bias, targets, weights)
    # The count depends on the weights alone, so whoever wants only it computes no logits.
    return Scored(total, jnp.sum(weights), right.reshape(shape))


def _letters(equation: str, x: jax.Array, w: jax.Array) -> tuple[str, str]:
    """The letters of the rows and of w; checks that the equation is one of logits."""
    left, _, right = equation.partition(",")
    letters, _, out = right.partition("->")
    rows = left[:-1]
    if left[-1:] != "D" or sorted(letters) != ["D", "V"] or out != rows + "V" or not rows:
        raise UserError(f"equation {equation!r}: expected one like 'BTD,DV->BTV' or 'BTD,VD->BTV'")
    if x.ndim != len(left) or x.shape[-1] != w.shape[letters.index("D")]:
        raise UserError(f"x {x.shape} and w {w.shape} do not fit {equation!r}")
    return rows, letters


def accuracy(
    logits: Float[Array, "*batch V"],
    targets: Int[Array, "*batch"],
    weights: Float[Array, "*batch"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The weighted number of rows whose largest logit is the target, and the sum of the weights."""
    weights = (
        jnp.ones(targets.shape, jnp.float32) if weights is None else weights.astype(jnp.float32)
    )
    right = jnp.argmax(logits, axis=-1) == targets
    return jnp.sum(jnp.where(right, weights, 0)), jnp.sum(weights)
