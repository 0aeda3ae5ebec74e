"""LoRA: train two thin matrices beside each weight instead of the weight (Hu et al. 2021, arXiv 2106.09685, eq. 3).

    y = W x + (alpha / r) B A x        W [out, in] frozen, A [r, in], B [out, r]

A starts random and B at 0, so that training starts at exactly the model that was loaded. The names are those of the PEFT
library: minclipo/checkpoint/adapter.py only adds a prefix. Left out: dropout, adapters on embeddings.
"""

import math
from collections.abc import Collection

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from minclipo.model import GPT, upcast

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # of a block: all it has


class LoRALinear(nn.Linear):
    """A frozen linear layer with an adapter. It keeps the layer's own tensors, under their names.

    A and B are float32 masters, as `Float32AdamW` needs them, and are rounded to the dtype of x for the product. The other
    way round, x in float32, would keep a second and larger copy of x for backward, and multiply at a fraction of the speed.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, generator: torch.Generator | None = None):
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias, self.scale = base.weight, base.bias, alpha / rank
        thin = dict(bias=False, dtype=torch.float32, device=base.weight.device)
        self.lora_A = nn.utils.skip_init(nn.Linear, base.in_features, rank, **thin)
        self.lora_B = nn.utils.skip_init(nn.Linear, rank, base.out_features, **thin)
        # The paper draws A from a normal distribution; its code and PEFT draw as here. On the CPU: the same everywhere.
        drawn = torch.empty(rank, base.in_features, device="meta" if base.weight.is_meta else "cpu")
        with torch.no_grad():
            self.lora_A.weight.copy_(nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator))
            self.lora_B.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        A, B = self.lora_A.weight.to(x.dtype), (self.scale * self.lora_B.weight).to(x.dtype)  # [r, in], [out, r]
        return F.linear(x, self.weight, self.bias) + F.linear(F.linear(x, A), B)  # [..., out]


def add_lora(
    model: GPT, rank: int, alpha: float, targets: Collection[str] = TARGETS, generator: torch.Generator | None = None
) -> GPT:
    """Freeze the model and put adapters beside the linear layers `targets` of each block, in place. Only adapters have
    gradients then. generator: of the CPU."""
    assert rank >= 1 and targets and set(targets) <= set(TARGETS), f"impossible: {rank=}, {targets=}"
    model.requires_grad_(False)
    for part in (part for block in model.layers for part in (block.self_attn, block.mlp)):
        for name in (name for name in TARGETS if name in targets and hasattr(part, name)):
            setattr(part, name, LoRALinear(getattr(part, name), rank, alpha, generator))
    return model


def adapter_weights(model: GPT) -> dict[str, Tensor]:
    """{"layers.0.self_attn.q_proj.lora_A.weight": A, ...}, the model's own tensors; {} if it has no adapters."""
    return {name: weight for name, weight in model.named_parameters() if ".lora_" in name}


@torch.no_grad()
def load_adapter(model: GPT, weights: dict[str, Tensor]) -> None:
    """Copy A and B of every adapter, names and shapes as in `adapter_weights`, into the model."""
    own = adapter_weights(model)
    assert own.keys() == weights.keys(), f"other adapters: {sorted(own.keys() ^ weights.keys())}"
    for name, weight in own.items():
        weight.copy_(weights[name])


@torch.no_grad()
def merged(model: GPT) -> GPT:
    """The GPT without adapters that computes the same, to be saved: W + (alpha / r) B A, summed in float32 and rounded
    to the dtype of W. Without adapters, the model itself.

    Summed weights are on the CPU, so that a GPU never holds the model twice. All others are the model's own tensors, not
    copies: so the result is frozen.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRALinear)}
    if not layers:
        return model
    weights = {name: weight.detach() for name, weight in model.named_parameters() if ".lora_" not in name}
    for name, layer in layers.items():
        W, A, B = (weight.detach().cpu() for weight in (layer.weight, layer.lora_A.weight, layer.lora_B.weight))
        wide = upcast(W)
        weights[f"{name}.weight"] = torch.addmm(wide, B.to(wide), A.to(wide), alpha=layer.scale).to(W)  # [out, in]
    with torch.device("meta"):
        plain = GPT(model.config)
    plain.load_state_dict(weights, assign=True)
    return plain.requires_grad_(False)
