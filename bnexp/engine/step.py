"""One update of one network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnexp.config import RunConfig


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, config: RunConfig, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """One update.

    Args:
        x: normalized images, (N, C, H, W) float32.

    Returns:
        The detached loss, a scalar, and the logits, (N, num_classes).
    """
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16"):
        logits = model(x)
    logits = at_least_fp32(logits)
    loss = optimized_loss(config, logits, y)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    if config.optim.clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
    optimizer.step()
    return loss.detach(), logits.detach()


def at_least_fp32(x: Tensor) -> Tensor:
    """x as it leaves autocast, in a precision that losses can be summed in."""
    return x if x.dtype == torch.float64 else x.float()


def optimized_loss(config: RunConfig, logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy in nats, with the label smoothing that training has; a scalar."""
    return F.cross_entropy(logits, y, label_smoothing=config.optim.label_smoothing)
