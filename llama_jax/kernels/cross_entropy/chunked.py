"""Cross-entropy of the logits x w, some at a time, in plain XLA; forward and backward.

    by_tokens   for each chunk of tokens: logits, loss and both gradients. 3 products, as many as
                the dense form; the gradient of w is added to once a chunk.
    by_vocab    for each chunk of words: forward log Z, backward the logits again. 4 products; each
                entry of the gradient of w is written once.

The gradient of a sum of losses is known, up to a factor, while the sum is computed, so `by_tokens`
needs no logits twice (Hsu et al. 2024, Liger Kernel, arXiv:2410.10989, section 3.2).

On a mesh a chunk of tokens takes its share from every device, and a chunk of words too, so that no
device waits and no logits move. `by_tokens` keeps a gradient of w for each device until the end,
for otherwise XLA would sum all of it over the devices once a chunk.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from llama_jax.axes import activation_spec, check_divides, weight_spec
from llama_jax.kernels.target import platform

# Below every finite logit: the largest of none.
LOWEST = float(jnp.finfo(jnp.float32).min)
NO_WORD = jnp.iinfo(jnp.int32).max
# XLA on a CPU forms a product before it adds it to the gradient of w: entries handled at once.
ADDED = 1 << 22

Axes = tuple[str, ...]
Result = tuple[Float[Array, ""], Bool[Array, "*batch"]]


class How(NamedTuple):
    """What is known while tracing.

    Attributes:
      rows: letters of the axes of x but the last, "BT".
      w: letters of w, "VD" or "DV".
      smoothing: share of the target spread over the vocabulary.
      z_loss: coefficient of log(Z)^2.
      chunk: tokens or words that one device handles at once.
    """

    rows: str
    w: str
    smoothing: float
    z_loss: float
    chunk: int


class Split(NamedTuple):
    """The mesh axes over which each axis of the rows and the vocabulary lie."""

    rows: tuple[Axes, ...]
    vocab: Axes


def split(rows: str, shape: tuple[int, ...]) -> Split:
    """How logits with axes `rows` and V lie on the devices.

    Raises:
      ValueError: an axis that the mesh cannot divide.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return Split(((),) * len(rows), ())
    letters = rows + "V"
    spec = check_divides(letters, shape, activation_spec(letters), mesh)
    *parts, vocab = (() if p is None else (p,) if isinstance(p, str) else tuple(p) for p in spec)
    return Split(tuple(parts), vocab)


def ways(axes: Axes) -> int:
    """Into how many parts these mesh axes split."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[axis] for axis in axes)


# --- a chunk of logits ---


class Seen(NamedTuple):
    """What a token has seen of its logits: enough for its loss, and to go on from there.

    Attributes:
      top: the largest.
      exps: sum of exp(logit - top).
      target: the target's logit, 0 if it was not among them.
      first: the first word whose logit is `top`.
      total: their sum, for smoothing alone.
    """

    top: jax.Array
    exps: jax.Array
    target: jax.Array
    first: jax.Array
    total: jax.Array


class Words(NamedTuple):
    """The words of a chunk: their numbers, and which of them are new (None: all)."""

    ids: jax.Array
    new: jax.Array | None = None

    def over(self, per_token: jax.Array) -> jax.Array:
        """With axes of length 1 for the words."""
        return jnp.expand_dims(per_token, tuple(range(-self.ids.ndim, 0)))


def _look(how: How, logits: jax.Array, words: Words, targets: jax.Array) -> Seen:
    """Of each token, or of each token and each device that has a share of the words."""
    known = logits if words.new is None else jnp.where(words.new, logits, 0)
    if words.new is not None:
        logits = jnp.where(words.new, logits, -jnp.inf)
    top = jnp.maximum(jnp.max(logits, axis=-1), LOWEST)
    # A sum and not a lookup, which would gather a split vocabulary.
    target = jnp.sum(jnp.where(words.ids == words.over(targets), known, 0), axis=-1)
    first = jnp.min(jnp.where(logits == top[..., None], words.ids, NO_WORD), axis=-1)
    total = jnp.sum(known, axis=-1) if how.smoothing else jnp.zeros_like(top)
    exps = jnp.sum(jnp.exp(logits - top[..., None]), axis=-1)
    return Seen(top, exps, target, first, total)


def _joined(a: Seen, b: Seen) -> Seen:
    top = jnp.maximum(a.top, b.top)
    exps = a.exps * jnp.exp(a.top - top) + b.exps * jnp.exp(b.top - top)
    first = jnp.minimum(
        jnp.where(a.top == top, a.first, NO_WORD), jnp.where(b.top == top, b.first, NO_WORD)
    )
    return Seen(top, exps, a.target + b.target, first, a.total + b.total)


def _across(seen: Seen) -> Seen:
    """Joined over the last axis, the devices."""
    top = jnp.max(seen.top, axis=-1)
    exps = jnp.sum(seen.exps * jnp.exp(seen.top - top[..., None]), axis=-1)
    first = jnp.min(jnp.where(seen.top == top[..., None], seen.first, NO_WORD), axis=-1)
    return Seen(top, exps, jnp.sum(seen.target, axis=-1), first, jnp.sum(seen.total, axis=-1))


def _losses(how: How, seen: Seen, V: int) -> jax.Array:
    log_z = seen.top + jnp.log(seen.exps)
    loss = log_z - (1 - how.smoothing) * seen.target - how.smoothing * seen.total / V
    return loss + how.z_loss * jnp.square(log_z)


def _slopes(
    how: How, logits: jax.Array, words: Words, seen: Seen, targets: Any, factor: Any, V: int
) -> jax.Array:
    """The gradient of factor * loss with respect to the logits."""
    log_z = seen.top + jnp.log(seen.exps)
    # exp(logit - top) / exps and not exp(logit - log Z), whose rounding a whole row would share.
    share = words.over((1 + 2 * how.z_loss * log_z) / seen.exps)
    slope = jnp.exp(logits - words.over(seen.top)) * share
    slope -= jnp.where(words.ids == words.over(targets), 1 - how.smoothing, 0)
    slope -= how.smoothing / V
    # where, not a product: a row of weight 0 may be infinite.
    factor = words.over(factor)
    counted = factor != 0 if words.new is None else (factor != 0) & words.new
    return jnp.where(counted, slope * factor, 0)


def _summed(losses: jax.Array, weights: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(weights > 0, losses * weights, 0))


def _positive(weights: jax.Array) -> jax.Array:
    return jnp.where(weights > 0, weights, 0)


def _place(x: jax.Array, *parts: Axes) -> jax.Array:
    """Constrains x to lie over these mesh axes; without a mesh it returns x."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*(part or None for part in parts)))


def _einsum(equation: str, a: jax.Array, b: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    return jnp.einsum(equation, a, b, preferred_element_type=dtype)


# --- chunks of tokens ---


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def by_tokens(how: How, x, w, bias, targets, weights) -> Result:
    """The weighted sum of losses, and which tokens' largest logit is the target.

    Args:
      how: see `How`.
      x: [*rows, D].
      w: [V, D] or [D, V].
      bias: [V] or None, added to the logits.
      targets: [*rows]; a row of weight 0 may hold anything.
      weights: [*rows], float32.
    """
    losses, right, _ = _over_tokens(how, x, w, bias, targets, weights, graded=False)
    return _summed(losses, weights), right


def _by_tokens_forward(how, x, w, bias, targets, weights):
    losses, right, grads = _over_tokens(how, x, w, bias, targets, weights, graded=True)
    # An array of no length carries w's type to the backward pass.
    kept = (*grads, jnp.where(weights > 0, losses, 0), jnp.zeros(0, w.dtype))
    return (_summed(losses, weights), right), kept


def _by_tokens_backward(how, kept, grad):
    dx, dw, db, losses, like = kept
    g = grad[0]
    db = None if db is None else db * g
    return (dx * g).astype(dx.dtype), (dw * g).astype(like.dtype), db, None, losses * g


by_tokens.defvjp(_by_tokens_forward, _by_tokens_backward)


def _over_tokens(how: How, x, w, bias, targets, weights, graded: bool):
    """Losses and right [*rows], and the gradients of their weighted sum or None.

    `a` below are the devices that share the tokens, `c` the tokens of a chunk on each; without
    such devices there is no such axis, for XLA on a CPU copies to be rid of an axis of length 1.
    """
    rows, V = x.shape[:-1], w.shape[how.w.index("V")]
    lie = split(how.rows, (*rows, V))
    everywhere = tuple(axis for axes in lie.rows for axis in axes)
    each = [ways(axes) for axes in lie.rows]
    a, at = ("a", (everywhere,)) if everywhere else ("", ())
    share = math.prod(rows) // math.prod(each)
    size, count = how.chunk, -(-share // how.chunk)

    def cut(x):
        """[*rows, ...] as [count, a, c, ...]."""
        x = _dealt(x, each)
        x = jnp.pad(x, ((0, 0), (0, size * count - share)) + ((0, 0),) * (x.ndim - 2))
        if not a:
            return x.reshape(count, size, *x.shape[2:])
        x = jnp.moveaxis(x.reshape(x.shape[0], count, size, *x.shape[2:]), 1, 0)
        return _place(x, (), *at, *((),) * (x.ndim - 2))

    def whole(x):
        x = jnp.moveaxis(x, 0, 1) if a else x[None]
        x = x.reshape(x.shape[0], size * count, *x.shape[3:])
        return _gathered(x[:, :share], rows, each)

    letters = how.w.lower()
    vocab = [lie.vocab if letter == "V" else () for letter in how.w]
    # Cast before FSDP's shares of D are joined, which is done once.
    w_cast = _place(_as_weight(how.w, w.astype(x.dtype)), *vocab)
    words = Words(jnp.arange(V, dtype=jnp.int32))

    def chunk(grads: Any, piece: Any) -> Any:
        x, targets, weights = piece
        logits = _einsum(f"{a}cd,{letters}->{a}cv", x, w_cast)
        logits = _place(logits if bias is None else logits + bias, *at, (), lie.vocab)
        seen = _look(how, logits, words, targets)
        losses, right = _losses(how, seen, V), seen.first == targets
        if grads is None:
            return None, (losses, right, None)
        dw, db = grads
        slopes = _slopes(how, logits, words, seen, targets, _positive(weights), V)
        if db is not None:
            db = db + jnp.sum(slopes, axis=-2)
        slopes = slopes.astype(x.dtype)
        dx = _place(_einsum(f"{a}cv,{letters}->{a}cd", slopes, w_cast, x.dtype), *at, (), ())
        dw = _added(f"{a}cv,{a}cd->{a}{letters}", dw, slopes, x)
        return (dw, db), (losses, right, dx)

    grads: Any = None
    if graded:
        own = (math.prod(each),) if a else ()
        dw = _place(jnp.zeros((*own, *w.shape), jnp.float32), *at, *vocab)
        grads = dw, None if bias is None else jnp.zeros((*own, V), jnp.float32)
    pieces = cut(x), cut(targets), cut(weights)
    if count == 1:  # A loop of one round would still copy what it carries.
        grads, found = chunk(grads, jax.tree.map(lambda x: x[0], pieces))
        found = jax.tree.map(lambda x: x[None], found)
    else:
        grads, found = jax.lax.scan(chunk, grads, pieces)
    losses, right, dx = found
    if graded:
        dw, db = grads
        dw = _over_devices(dw.astype(x.dtype)) if a else dw
        db = None if db is None else jnp.sum(db, axis=0) if a else db
        dx, dw = whole(dx), _as_weight(how.w, dw)
        # Else XLA may keep a device's own gradient of all of w until the layers' backward passes,
        # which need dx, are over.
        dx, dw = jax.lax.optimization_barrier((dx, dw)) if a else (dx, dw)
        grads = dx, dw, db
    return whole(losses), whole(right), grads


def _dealt(x: jax.Array, each: list[int]) -> jax.Array:
    """[*rows, ...] as [devices, tokens of each, ...]; nothing moves between devices."""
    count = len(each)
    rows, rest = x.shape[:count], x.shape[count:]
    parts = [n for length, k in zip(rows, each, strict=True) for n in (k, length // k)]
    order = [*range(0, 2 * count, 2), *range(1, 2 * count, 2)]
    x = x.reshape(*parts, *rest)
    x = x.transpose(*order, *range(2 * count, x.ndim))
    return x.reshape(math.prod(each), -1, *rest)


def _gathered(x: jax.Array, rows: tuple[int, ...], each: list[int]) -> jax.Array:
    """The inverse of `_dealt`."""
    count, rest = len(each), x.shape[2:]
    x = x.reshape(*each, *(n // k for n, k in zip(rows, each, strict=True)), *rest)
    order = [axis for i in range(count) for axis in (i, count + i)]
    return x.transpose(*order, *range(2 * count, x.ndim)).reshape(*rows, *rest)


def _added(equation: str, dw: jax.Array, slopes: jax.Array, x: jax.Array) -> jax.Array:
    """dw and the product of slopes and x."""
    V, D = slopes.shape[-1], x.shape[-1]
    parts = -(-V * D // ADDED)
    if platform() != "cpu" or dw.ndim > 2 or parts == 1:
        return dw + _einsum(equation, slopes, x)
    axis, size = equation.split("->")[1].index("v"), -(-V // parts)

    def add(i, dw):
        # The last part goes back to fill its size; what it has in common with the one before
        # counts once.
        start = jnp.minimum(i * size, V - size)
        some = jax.lax.dynamic_slice_in_dim(slopes, start, size, axis=1)
        if V % size:
            some = jnp.where(start + jnp.arange(size) >= i * size, some, 0)
        old = jax.lax.dynamic_slice_in_dim(dw, start, size, axis=axis)
        new = old + _einsum(equation, some, x)
        return jax.lax.dynamic_update_slice_in_dim(dw, new, start, axis=axis)

    return jax.lax.fori_loop(0, parts, add, dw)


def _over_devices(dw: jax.Array) -> jax.Array:
    """The sum over the first axis in dw's own type: `jnp.sum` would send bfloat16 as float32."""
    return jax.lax.reduce(dw, jnp.zeros((), dw.dtype), jax.lax.add, (0,))


def _as_weight(letters: str, dw: jax.Array) -> jax.Array:
    """Laid out as the weight is, so that XLA scatters sums and does not repeat them."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return dw
    spec = check_divides(letters, dw.shape, weight_spec(letters), mesh)
    return jax.lax.with_sharding_constraint(dw, spec)


# --- chunks of the vocabulary ---


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def by_vocab(how: How, x, w, bias, targets, weights) -> Result:
    """As `by_tokens`."""
    return _by_vocab_forward(how, x, w, bias, targets, weights)[0]


def _by_vocab_forward(how, x, w, bias, targets, weights):
    rows, V = x.shape[:-1], w.shape[how.w.index("V")]
    words = _Vocabulary(how, x, w, bias)

    def chunk(seen, i):
        logits, some, _ = words.chunk(i)
        return _joined(seen, _look(how, logits, some, targets)), None

    # For each device that shares the words, until the end: nothing is sent in between.
    own = (*rows, words.ways) if words.u else rows
    zeros = _place(jnp.zeros(own, jnp.float32), *words.lie.rows, *words.at)
    none = Seen(zeros + LOWEST, zeros, zeros, jnp.full(own, NO_WORD), zeros)
    seen, _ = jax.lax.scan(chunk, none, jnp.arange(words.count))
    seen = _across(seen) if words.u else seen
    losses = _losses(how, seen, V)
    out = _summed(losses, weights), seen.first == targets
    return out, (x, w, bias, targets, weights, seen, losses)


def _by_vocab_backward(how, kept, grad):
    x, w, bias, targets, weights, seen, losses = kept
    g, V = grad[0], w.shape[how.w.index("V")]
    factor = _positive(weights) * g
    words = _Vocabulary(how, x, w, bias)
    rows, u, left, right = words.rows, words.u, words.logits, words.letters

    def chunk(carry, i):
        dx, dw, db = carry
        logits, some, w_some = words.chunk(i)
        slopes = _slopes(how, logits, some, seen, targets, factor, V)
        if db is not None:
            db = words.add(db, i, jnp.sum(slopes, axis=tuple(range(len(rows)))), axis=-1)
        slopes = slopes.astype(x.dtype)
        dx = dx + _einsum(f"{left},{right}->{rows}{u}d", slopes, w_some)
        # Over devices, in the type in which the gradients of all other weights are summed.
        kind = x.dtype if words.split else jnp.float32
        dw_some = words.as_weight(_einsum(f"{left},{rows}d->{right}", slopes, x, kind))
        dw = words.add(dw, i, dw_some.astype(dw.dtype), axis=right.index("v"))
        return (_place(dx, *words.lie.rows, *words.at, ()), dw, db), None

    own = (words.ways,) if u else ()
    dx = _place(jnp.zeros((*x.shape[:-1], *own, x.shape[-1])), *words.lie.rows, *words.at, ())
    dw = words.unfolded(jnp.zeros(w.shape, w.dtype))
    db = None if bias is None else jnp.zeros(words.ids.shape, jnp.float32)
    (dx, dw, db), _ = jax.lax.scan(chunk, (dx, dw, db), jnp.arange(words.count))
    dx = jnp.sum(dx, axis=-2) if u else dx
    db = None if db is None else db.reshape(V)
    dw = _as_weight(how.w, dw.reshape(w.shape))
    return dx.astype(x.dtype), dw, db, None, jnp.where(weights > 0, losses, 0) * g


by_vocab.defvjp(_by_vocab_forward, _by_vocab_backward)


class _Vocabulary:
    """The weight in chunks of words: `u` devices share it, `v` words of each are in a chunk.

    Without such devices there is no axis u.
    """

    def __init__(self, how: How, x: jax.Array, w: jax.Array, bias: jax.Array | None):
        V = w.shape[how.w.index("V")]
        self.how, self.x, self.shape = how, x, w.shape
        self.lie = split(how.rows, (*x.shape[:-1], V))
        self.split = math.prod(ways(axes) for axes in self.lie.rows) > 1
        self.ways = ways(self.lie.vocab)
        self.u, self.at = ("u", (self.lie.vocab,)) if self.lie.vocab else ("", ())
        self.rows, self.letters = how.rows.lower(), how.w.lower().replace("v", self.u + "v")
        self.logits = f"{self.rows}{self.u}v"
        self.each = V // self.ways
        self.size = min(how.chunk, self.each)
        self.count = -(-self.each // self.size)
        self.w = self.unfolded(w)
        shape = (self.ways, self.each) if self.u else (V,)
        self.ids = jnp.arange(V, dtype=jnp.int32).reshape(shape)
        self.bias = None if bias is None else bias.reshape(shape)

    def chunk(self, i) -> tuple[jax.Array, Words, jax.Array]:
        """Logits [*rows, u, v], which words they are of, and the weight that they came from."""
        w_some = self.some(self.w, i, self.letters.index("v"))
        where = [self.lie.vocab if letter == "u" else () for letter in self.letters]
        if platform() == "tpu":
            # XLA would cast all of w before the loop and keep the copy, half of w. It cannot do so
            # for what depends on the round.
            w_some = w_some + i.astype(w_some.dtype) * 0
        # Cast before FSDP's shares of D are joined.
        w_some = _place(self.as_weight(w_some.astype(self.x.dtype)), *where)
        logits = _einsum(f"{self.rows}d,{self.letters}->{self.logits}", self.x, w_some)
        if self.bias is not None:
            logits = logits + self.some(self.bias, i, -1)
        logits = _place(logits, *self.lie.rows, *self.at, ())
        new = None
        if self.each % self.size:  # The last chunk goes back over some words of the one before.
            new = jnp.arange(self.size) + self.start(i) >= i * self.size
            new = jnp.broadcast_to(new, (*self.ids.shape[:-1], self.size))
        return logits, Words(self.some(self.ids, i, -1), new), w_some

    def start(self, i):
        """Of chunk i in the words of each device."""
        return jnp.minimum(i * self.size, self.each - self.size)

    def some(self, a: jax.Array, i, axis: int) -> jax.Array:
        """Chunk i of an array with the words of each device along `axis`."""
        return jax.lax.dynamic_slice_in_dim(a, self.start(i), self.size, axis=axis)

    def add(self, a: jax.Array, i, more: jax.Array, axis: int) -> jax.Array:
        """Adds to chunk i: words that it has in common with the one before get 0."""
        new = self.some(a, i, axis) + more
        return jax.lax.dynamic_update_slice_in_dim(a, new, self.start(i), axis=axis)

    def unfolded(self, w: jax.Array) -> jax.Array:
        """A weight with its vocabulary as [u, words of each], laid out as it was."""
        axis = self.how.w.index("V")
        own = (self.ways, self.each) if self.u else (self.each,)
        return self.as_weight(w.reshape(*w.shape[:axis], *own, *w.shape[axis + 1 :]))

    def as_weight(self, w: jax.Array) -> jax.Array:
        """Words of a weight laid out as all of it is."""
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1:
            return w
        parts = check_divides(self.how.w, self.shape, weight_spec(self.how.w), mesh)
        named = dict(zip(self.how.w.lower(), parts, strict=True))
        if self.u:
            named |= {"u": named["v"], "v": None}
        spec = PartitionSpec(*(named[letter] for letter in self.letters))
        return jax.lax.with_sharding_constraint(w, spec)
