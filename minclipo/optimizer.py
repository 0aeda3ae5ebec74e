"""AdamW in float32, whatever the model computes in."""

import torch
from torch import Tensor

from minclipo.model import GPT, upcast
from minclipo.state import load_moments


class Float32AdamW:
    """AdamW (Loshchilov & Hutter 2019) on float32 copies of the weights, for models that compute in bfloat16.

    bfloat16 has 8 significant bits: 0.02 + 1e-6, a usual weight and a usual step of reinforcement learning, is 0.02
    again, and the model would never move. So the weights that are trained (`masters`), the moments and the sums of
    gradients over micro-batches are float32; after each step the model gets its weights rounded. Weights that are
    float32 (or wider) already are their own masters: no copy is made.

    16 bytes a parameter for a bfloat16 model (2 weights, 2 gradients, 4 masters, 8 moments; the float32 sum of the
    gradients adds 4 more during the update), 16 for a float32 one.
    """

    def __init__(self, model: GPT, learning_rate: float, weight_decay: float):
        self.weights = dict(model.named_parameters())
        self.masters = {
            name: weight if upcast(weight) is weight else weight.detach().float()
            for name, weight in self.weights.items()
        }
        device = model.embed_tokens.weight.device.type
        self.adamw = torch.optim.AdamW(
            list(self.masters.values()),
            lr=learning_rate,
            weight_decay=weight_decay,
            fused=device in ("cpu", "cuda"),  # one pass over memory, and no temporary copies of large weights
        )

    def zero_grad(self) -> None:
        for weight in [*self.weights.values(), *self.masters.values()]:
            weight.grad = None

    def collect_gradients(self) -> None:
        """After each micro-batch's backward(): add the model's gradients to the masters' float32 ones."""
        for name, weight in self.weights.items():
            master = self.masters[name]
            if master is weight or weight.grad is None:
                continue
            master.grad = weight.grad.float() if master.grad is None else master.grad.add_(weight.grad)
            weight.grad = None

    def clip_gradients(self, max_norm: float) -> Tensor:
        """Scale all gradients down to the L2 norm `max_norm` if theirs is larger; returns what theirs was."""
        return torch.nn.utils.clip_grad_norm_(self.masters.values(), max_norm)

    @torch.no_grad()
    def step(self) -> None:
        self.adamw.step()
        self.zero_grad()
        self._round_weights()

    @torch.no_grad()
    def load(self, masters: dict[str, Tensor], moments: dict[str, Tensor]) -> None:
        """Go on with these float32 weights and the moments that `state.moments` gave."""
        for name, master in self.masters.items():
            master.copy_(masters[name])
        load_moments(self.adamw, self.masters, moments)
        self._round_weights()

    def _round_weights(self) -> None:
        for name, weight in self.weights.items():
            if self.masters[name] is not weight:
                weight.copy_(self.masters[name])
