"""Prompts of any length into a cache, then tokens out of it, in a few compiled programs.

    engine = Engine(model.build(), params)
    rows = engine.rows(batch=2, slots=256)
    logits = rows.feed([[1, 5, 9], [1, 7]])                  # prefill, in chunks of fixed sizes
    for ids_BT, logp_BT in rows.tokens(logits, most=64):      # decode, a few tokens a dispatch
        ...

Chunks of few sizes mean few programs: a conversation compiles nothing after its first turn. On the
first reading go straight to `_extend` and `_advance`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from llama_jax import seeds
from llama_jax.axes import FSDP_TENSOR, Rules, activation_spec, make_mesh, using
from llama_jax.errors import UserError
from llama_jax.generate.sample import Sampling
from llama_jax.layers.cache import Cache
from llama_jax.models.tokens import Placed

if TYPE_CHECKING:
    from llama_jax.models.language import Language

# Tokens of a prefill program. A prompt is cut into these, the largest first; padding, on the left,
# is less than the smallest.
CHUNKS = (512, 128, 32)
SLOTS = 128  # caches are multiples of this long: one program for many lengths
# Tokens a dispatch: few where a token takes tens of milliseconds and is shown at once, more where
# it takes less than the dispatch.
STRIDE = {"cpu": 1}
STRIDE_ELSEWHERE = 16


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Decoding between two dispatches.

    Attributes:
      cache: keys and values of the tokens before `token`.
      token: chosen last, not in the cache yet.
      ended: rows that have given an end token.
      seen: tokens that each row holds, or [B,0] if nobody asks.
      keys: random keys, one a row; None if tokens are not drawn.
      step: tokens chosen so far.
    """

    cache: Cache
    token: Int[Array, " B"]
    ended: Bool[Array, " B"]
    seen: Bool[Array, "B V"]
    keys: jax.Array | None
    step: Int[Array, ""]


class Engine:
    """A decoder with its weights, on its devices, ready to generate."""

    def __init__(
        self, module: "Language", params: Any, mesh: Mesh | None = None, rules: Rules = FSDP_TENSOR
    ):
        self.module = module
        self.params = params
        self.mesh = mesh or make_mesh(devices=jax.devices()[:1])
        self.rules = rules

    @property
    def context(self) -> int | None:
        """Positions the model was trained for."""
        return self.module.config.language.context

    @property
    def steady(self) -> int | None:
        """Tokens to which a text may be read in pieces; None for any (see `Rope.steady`)."""
        return self.module.config.language.stack.steady

    def rows(self, batch: int, slots: int) -> "Rows":
        """An empty cache for `slots` tokens of each of `batch` rows."""
        return Rows(self, batch, slots)

    def logits(
        self, ids_BT: np.ndarray, seen: Mapping[str, np.ndarray] | None = None
    ) -> Float[Array, "B T V"]:
        """Logits of whole sequences, as in training, without a cache; `seen` as for `Rows.look`."""
        with using(self.mesh, self.rules):
            memory = _see(self.module, self.params, **seen) if seen else None
            return _logits(self.module, self.params, jnp.asarray(ids_BT, jnp.int32), memory)

    def logprobs(self, ids_BT: np.ndarray) -> Float[Array, "B T"]:
        """The log-probability of each token but the first after those before it, [B, T-1]."""
        with using(self.mesh, self.rules):
            return _logprobs(self.module, self.params, jnp.asarray(ids_BT, jnp.int32))


class Rows:
    """Sequences that are being read and written: a cache, and how full it is."""

    def __init__(self, engine: Engine, batch: int, slots: int):
        self.engine, self.batch = engine, batch
        self.cache = self._empty(-(-slots // SLOTS) * SLOTS)
        # What is in the slots so far; -1 is padding.
        self.ids_BS = np.empty((batch, 0), np.int32)
        self.memory: Any = None  # what is read beside the tokens, until it is in the cache

    def _empty(self, slots: int) -> Cache:
        module, mesh = self.engine.module, self.engine.mesh
        with using(mesh, self.engine.rules):
            make = partial(module.config.empty_cache, self.batch, slots, module.dtype)
            scan = module.config.language.stack.scan
            shardings = _shardings(jax.eval_shape(make), self.batch, scan, mesh)
            return jax.jit(make, out_shardings=shardings)()

    def look(self, seen: Mapping[str, np.ndarray]) -> None:
        """Shows pictures to rows that have read nothing yet; arguments of the model's `see`."""
        engine = self.engine
        with using(engine.mesh, engine.rules):
            self.memory = _see(engine.module, engine.params, **seen)

    def feed(self, prompts: Sequence[Sequence[int]]) -> Float[Array, "B V"]:
        """Reads one list of ids a row, at least one id each; returns the logits of the next token.

        Raises:
          UserError: an empty prompt, or one beyond the model's context.
        """
        engine, lengths = self.engine, [len(prompt) for prompt in prompts]
        if min(lengths) == 0:
            raise UserError("a prompt without tokens; give at least one, such as the beginning")
        width = -(-max(lengths) // CHUNKS[-1]) * CHUNKS[-1]
        steady, chunks = engine.steady, CHUNKS
        if steady is not None and self._tokens + max(lengths) > steady:
            chunks = (width,)  # a piece does not tell how long the whole is
        ids_BT = np.zeros((self.batch, width), np.int32)
        valid_BT = np.arange(width) >= width - np.array(lengths)[:, None]
        for row, prompt in zip(ids_BT, prompts, strict=True):
            row[width - len(prompt) :] = prompt
        self._make_room(width, max(lengths))
        logits = start = 0
        with using(engine.mesh, engine.rules):
            for chunk in chunks:
                while width - start >= chunk:
                    piece = np.s_[:, start : start + chunk]
                    # Another program, so only where it is worth one.
                    fresh = chunk >= CHUNKS[0] and self.used + start == 0
                    args = ids_BT[piece], self.cache, valid_BT[piece]
                    logits, self.cache = _extend(
                        engine.module, engine.params, *args, self._beside(), fresh=fresh
                    )
                    start += chunk
        self._note(np.where(valid_BT, ids_BT, -1))
        return jnp.asarray(logits)

    def rewind(self, prompt: Sequence[int]) -> int:
        """Keeps of a single row only what it has in common with a prompt; returns how many tokens.

        Raises:
          ValueError: there are several rows.
        """
        if self.batch != 1:
            raise ValueError(f"{self.batch} rows; one was expected")
        slots = np.flatnonzero(self.ids_BS[0] >= 0)
        both = list(zip(self.ids_BS[0, slots].tolist(), prompt, strict=False))
        same = next((i for i, (a, b) in enumerate(both) if a != b), len(both))
        keep = int(slots[same]) if same < len(slots) else self.used
        if keep < self.used and self.cache.reach is not None and self.cache.reach < len(slots):
            keep = same = 0  # what came later has taken the place of what would be needed
        self.ids_BS = self.ids_BS[:, :keep]
        self.cache = self.cache.rewound(jnp.asarray(keep))
        return same

    def _beside(self) -> Any:
        """What the next tokens are read with.

        A memory goes into the cache with the first of them. Vectors in the places of tokens are
        read with these, and once more if the rows were rewound to before them.
        """
        found = self.memory
        if not isinstance(found, Placed):
            self.memory = None
            return found
        read_B1 = np.sum(self.ids_BS >= 0, axis=1, keepdims=True)
        return found if np.any(np.asarray(found.at) >= read_B1) else None

    @property
    def used(self) -> int:
        """Slots that are filled."""
        return self.ids_BS.shape[1]

    @property
    def _tokens(self) -> int:
        """Tokens of the longest row so far."""
        return int((self.ids_BS >= 0).sum(axis=1).max(initial=0))

    def _note(self, ids_BT: np.ndarray) -> None:
        self.ids_BS = np.concatenate([self.ids_BS, ids_BT], axis=1)

    def tokens(
        self,
        logits_BV: Float[Array, "B V"],
        most: int,
        sampling: Sampling | None = None,
        seed: int = 0,
        ends: Sequence[int] = (),
        held: Sequence[Sequence[int]] = (),
        stride: int | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Chooses tokens, at most `most` a row, until every row has ended.

        Args:
          logits_BV: what `feed` returned.
          most: tokens a row.
          sampling: how; greedy by default.
          seed: decides the random keys.
          ends: tokens that end a row; what follows them in a row is 0.
          held: ids that each row holds already, for a repetition penalty.
          stride: tokens a dispatch after the first.

        Yields:
          ids [B,t] and their log-probabilities (before the sampling) [B,t]; t is 1, then at most
          the stride.
        """
        engine, sampling = self.engine, sampling or Sampling()
        if most < 1:
            return
        self._make_room(most, most)
        vocab = logits_BV.shape[1] if sampling.penalises else 0
        seen = np.zeros((self.batch, vocab), bool)
        for row, ids in zip(seen, held, strict=False):
            row[list(ids) if vocab else []] = True
        ends_E = np.array(sorted(ends), np.int32)
        stride = stride or STRIDE.get(engine.mesh.devices.flat[0].platform, STRIDE_ELSEWHERE)
        with using(engine.mesh, engine.rules):
            found, state = _first(logits_BV, sampling, seeds.words(seed), ends_E, seen, self.cache)
        self.cache = state.cache
        ids_BT, logp_BT = map(np.asarray, found)
        yield ids_BT, logp_BT
        done = 1
        while done < most and not np.all(state.ended):
            count = min(stride, most - done)
            last_B1 = ids_BT[:, -1:]
            with using(engine.mesh, engine.rules):
                found, state = _advance(
                    engine.module, engine.params, state, sampling, ends_E, count=count
                )
            ids_BT, logp_BT = map(np.asarray, found)
            # The caller may stop at any yield; the cache then lacks the newest token.
            self.cache = state.cache
            self._note(np.concatenate([last_B1, ids_BT[:, :-1]], axis=1))
            done += count
            yield ids_BT, logp_BT

    def _make_room(self, slots: int, tokens: int) -> None:
        """Grows the cache, by doubling, if it lacks slots; refuses tokens beyond the context."""
        context = self.engine.context
        total = self._tokens + tokens
        if context is not None and total > context:
            raise UserError(
                f"{total} tokens are more than the model's context of {context}; shorten the "
                "prompt, ask for fewer new tokens, or begin a new conversation"
            )
        if (need := self.used + slots) <= self.cache.slots:
            return
        bigger = self._empty(max(-(-need // SLOTS) * SLOTS, 2 * self.cache.slots))
        with using(self.engine.mesh, self.engine.rules):
            self.cache = _grow(bigger, self.cache)


def _shardings(cache: Cache, batch: int, scan: bool, mesh: Mesh) -> Any:
    """Keys and values by their letters, the rest by batch."""

    def place(x):
        slots = "L" * scan + "B" * (batch > 1) + "KSH"
        letters = slots if len(slots) == x.ndim else ("", "B", "BS", "LBS")[x.ndim]
        spec = [*activation_spec(letters)]
        for axis, letter in enumerate(letters):
            ways = np.prod([mesh.shape[a] for a in np.atleast_1d(spec[axis]) if a is not None])
            if x.shape[axis] % ways or letter in "LS":
                spec[axis] = None
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

    return jax.tree.map(place, cache)


@partial(jax.jit, static_argnames="module")
def _logits(module, params, ids_BT, memory=None):
    return module.apply({"params": params}, ids_BT, memory, method="decode")[0]


@partial(jax.jit, static_argnames="module")
def _logprobs(module, params, ids_BT):
    # What would come after the last token is not known.
    logp_BT = module.apply({"params": params}, ids_BT, jnp.roll(ids_BT, -1, 1), method="score")
    return logp_BT[:, :-1]


@partial(jax.jit, static_argnames=("module", "fresh"), donate_argnames="cache")
def _extend(module, params, ids_BT, cache, valid_BT, memory=None, *, fresh):
    """A chunk of the prompts into the cache; logits after its last token."""
    given = ids_BT, cache, valid_BT, fresh, memory
    return module.apply({"params": params}, *given, method="extend")


@partial(jax.jit, static_argnames="module")
def _see(module, params, **seen):
    return module.apply({"params": params}, **seen, method="see")


@partial(jax.jit, donate_argnames="cache")
def _first(logits_BV, sampling, seed_2, ends_E, seen_BV, cache):
    """The first token, from the prompts' logits, and the state after it."""
    rows = jnp.arange(len(logits_BV))
    keys = None
    if sampling.draws:
        keys = jax.vmap(partial(jax.random.fold_in, seeds.key(seed_2)))(rows)
    token_B, logp_B, ended_B, seen_BV = _choose(
        logits_BV, sampling, keys, 0, ends_E, jnp.zeros(rows.shape, bool), seen_BV
    )
    state = State(cache, token_B, ended_B, seen_BV, keys, jnp.int32(1))
    return (token_B[:, None], logp_B[:, None]), state


@partial(jax.jit, static_argnames=("module", "count"), donate_argnames="state")
def _advance(module, params, state, sampling, ends_E, *, count):
    """`count` times: the token into the cache, the next one chosen."""

    def one(state, _):
        fed_B1 = state.token[:, None]
        logits_BV, cache = module.apply(
            {"params": params}, fed_B1, state.cache, jnp.ones_like(fed_B1, bool), method="extend"
        )
        token_B, logp_B, ended_B, seen_BV = _choose(
            logits_BV, sampling, state.keys, state.step, ends_E, state.ended, state.seen
        )
        state = replace(
            state, cache=cache, token=token_B, ended=ended_B, seen=seen_BV, step=state.step + 1
        )
        return state, (token_B, logp_B)

    if count == 1:  # a loop of one costs copies of the cache on a CPU
        state, (token_B, logp_B) = one(state, None)
        return (token_B[:, None], logp_B[:, None]), state
    state, (ids_TB, logp_TB) = jax.lax.scan(one, state, None, length=count)
    return (ids_TB.T, logp_TB.T), state


def _choose(logits_BV, sampling, keys, step, ends_E, ended_B, seen_BV):
    """Tokens of one step with their log-probabilities; rows that have ended give 0."""
    if keys is not None:
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
    token_B = sampling(logits_BV, keys, seen_BV)
    chosen_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=1)[:, 0]
    logp_B = chosen_B - jax.nn.logsumexp(logits_BV, axis=-1)
    token_B = jnp.where(ended_B, 0, token_B)
    if seen_BV.shape[1]:
        seen_BV = seen_BV | jax.nn.one_hot(token_B, seen_BV.shape[1], dtype=bool)
    logp_B = jnp.where(ended_B, 0.0, logp_B)
    ended_B = ended_B | jnp.any(token_B[:, None] == ends_E, axis=1)
    return token_B, logp_B, ended_B, seen_BV


@partial(jax.jit, donate_argnums=0)
def _grow(bigger, cache):
    """The old slots at the front of the new ones."""
    return cache.grown(bigger)
