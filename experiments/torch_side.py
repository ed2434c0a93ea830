"""The same training in torch: transformers' Llama with torch's AdamW, on batches of ours."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from llama_jax.config import Run
from llama_jax.optim.optimizer import AdamW


class TorchRun:
    """Weights of a Hugging Face folder, trained as a run of ours says.

    What decays, the clipping, the moments and the rate of every step are those of the run. With
    packed rows transformers keeps documents apart by their positions, which begin anew.
    """

    def __init__(self, run: Run, weights: Path, threads: int, compiled: bool = False):
        torch.set_num_threads(threads)
        kind: Any = transformers.AutoModelForCausalLM
        model = kind.from_pretrained(weights, dtype=torch.float32, attn_implementation="sdpa")
        self.model: Any = torch.compile(model) if compiled else model
        self.params = list(model.parameters())
        optimizer = run.optimizer
        assert isinstance(optimizer, AdamW)
        groups = [
            {
                "params": [p for p in self.params if (p.ndim >= 2) == matrix],
                "weight_decay": optimizer.weight_decay if matrix else 0.0,
            }
            for matrix in (True, False)
        ]
        self.optimizer = torch.optim.AdamW(
            groups, betas=(optimizer.b1, optimizer.b2), eps=optimizer.eps, fused=True
        )
        self.clip, self.done = optimizer.clip, 0
        self.rate: Any = optimizer.rate_at(run.steps)

    def step(self, batch: dict[str, np.ndarray]) -> float:
        """One step of training; the loss before it."""
        self.model.train()
        total, count = self.sums(batch)
        loss = total / count
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.params, self.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = float(self.rate(self.done))
        self.optimizer.step()
        self.done += 1
        return loss.item()

    def sums(self, batch: dict[str, np.ndarray]) -> tuple[torch.Tensor, float]:
        """The sum of the losses of all targets, and how many there are."""
        ids, targets = (torch.from_numpy(batch[k]).long() for k in ("tokens", "targets"))
        places = {}
        if "positions" in batch:
            places["position_ids"] = torch.from_numpy(batch["positions"]).long()
        logits = self.model(ids, use_cache=False, **places).logits
        each = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="none"
        )
        weights = torch.from_numpy(batch["loss_weights"]).flatten()
        return (each * weights).sum(), float(weights.sum())

    def loss(self, batches: Any) -> float:
        """The mean loss over batches, without training."""
        self.model.eval()
        with torch.inference_mode():
            found = [(total.item(), count) for total, count in map(self.sums, batches)]
        return sum(total for total, _ in found) / sum(count for _, count in found)
