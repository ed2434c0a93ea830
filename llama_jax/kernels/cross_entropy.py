"""Token cross-entropy in float32, as a sum and a count; the array of logits is formed in full."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


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
