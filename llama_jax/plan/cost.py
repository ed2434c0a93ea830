"""Seconds of a step from what it computes, moves and sends: a roofline of one chip.

    products   FLOPs of the jaxpr, loops and recomputation counted / (peak x efficiency),
               those of attention divided by the share of the matrix unit that heads fill too
    memory     weights, moments and activations that must pass through HBM / bandwidth
    network    every collective of the compiled program, alone on its links
    host       what waits in the host's memory, out in the forward pass and back in the backward
               one, over the chip's own link to it
    step     = max(products, memory) + update + what of the network and of host nothing hides

Two constants (`chips.py`) are judgements and no measurements: the efficiency of a family of chips,
chosen beside the published figures that `experiments/plan_published.py` compares with, so that its
errors are no prediction's; and the share of the network that is hidden, assumed.
"""

from dataclasses import dataclass

from llama_jax.chips import OVERLAP, Chip
from llama_jax.train.flops import Work

# Mesh axes whose collectives carry weights and their gradients.
OF_WEIGHTS = frozenset({"data", "fsdp", "stage"})
# The forward pass's share of products: the backward pass has two for each, and most policies
# compute each again.
FORWARD = 1 / 4


@dataclass(frozen=True)
class Sent:
    """The network's part of a step.

    Attributes:
      weights: seconds of collectives of weights, which products can hide.
      activations: seconds of those that products wait for.
      bytes: how many a chip receives, of all.
    """

    weights: float
    activations: float
    bytes: float


@dataclass(frozen=True)
class Cost:
    """A step of one chip.

    Attributes:
      products: seconds.
      memory: seconds of HBM traffic beside them, hidden if shorter.
      update: seconds of the optimizer's, which nothing hides.
      network: seconds of all collectives.
      host: seconds of copies to the host's memory and back.
      exposed: seconds of both that nothing hides.
      work: FLOPs done.
      model: FLOPs of the model, for MFU.
      tokens: a chip's share of the tokens of a step.
      flops: the chip's peak.
    """

    products: float
    memory: float
    update: float
    network: float
    host: float
    exposed: float
    work: float
    model: float
    tokens: float
    flops: float

    @property
    def seconds(self) -> float:
        """Of the step."""
        return max(self.products, self.memory) + self.update + self.exposed

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds

    @property
    def mfu(self) -> float:
        """Model FLOPs a second as a share of the peak; causal attention counts half."""
        return self.model / self.seconds / self.flops


def of(
    chip: Chip,
    work: Work,
    head_dim: int,
    model: float,
    tokens: float,
    updated: float,
    moved: float,
    sent: Sent,
    offloaded: float = 0.0,
) -> Cost:
    """The cost of a step; all figures are a chip's share.

    Args:
      chip: which.
      work: FLOPs done, with what is computed again.
      head_dim: H of attention's heads.
      model: FLOPs of the model.
      tokens: how many tokens a step has.
      updated: bytes that the update of weights and moments moves.
      moved: bytes through HBM in the passes.
      sent: what it sends.
      offloaded: bytes that it leaves in the host's memory and takes back.
    """
    idle = work.attention * (1 / chip.filled(head_dim) - 1)
    products = (work.total + idle) / (chip.flops * chip.efficiency)
    memory = moved / chip.bandwidth
    update, passes = updated / chip.bandwidth, max(products, memory)
    hidden = min(OVERLAP * sent.weights, passes)
    network, copy = sent.weights + sent.activations, offloaded / chip.host_link
    waits = (max(copy - OVERLAP * share * passes, 0.0) for share in (FORWARD, 1 - FORWARD))
    exposed = network - hidden + sum(waits)
    return Cost(
        *(products, memory, update, network, 2 * copy, exposed),
        *(work.total, model, tokens, chip.flops),
    )


def updated(weights: float, moments: float) -> float:
    """Bytes that an update moves: weights and moments twice, gradients as wide as weights once.

    Args:
      weights: bytes.
      moments: bytes.
    """
    return 2 * (weights + moments) + weights
