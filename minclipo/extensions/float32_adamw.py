"""AdamW in float32, whatever the model computes in."""

import torch
from torch import Tensor

from minclipo.extensions.sharding import spread_like
from minclipo.model import GPT, upcast


class Float32AdamW(torch.optim.AdamW):
    """AdamW (Loshchilov & Hutter 2019) on float32 copies of the weights, for models that compute in bfloat16.

    bfloat16 has 8 significant bits: 0.02 + 1e-6, a typical weight and a typical step of reinforcement learning, is 0.02
    again, and the model would never move. So the weights that are trained (`masters`), the moments and the sums of
    gradients over micro-batches are float32; after each step the model gets them rounded. Weights that are float32 (or
    wider) are their own masters: no copy is made. Frozen weights (requires_grad False) stay as they are.

    14 bytes per parameter for a bfloat16 model (2 weights, 4 masters, 8 moments), 12 for a float32 one (4 weights, 8
    moments); the sums of gradients add 4 from the first backward() to the step. backward() moves the gradients: a model
    has one such optimizer at a time, and a new one takes over.
    """

    def __init__(self, model: GPT, learning_rate: float, weight_decay: float):
        self.weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.masters: dict[str, Tensor] = {}
        for name, weight in self.weights.items():
            self.masters[name] = weight if upcast(weight) is weight else weight.detach().float()
            if self.masters[name] is not weight:
                if hasattr(weight, "gradient_hook"):
                    weight.gradient_hook.remove()
                move = self._move_gradient(self.masters[name])
                weight.gradient_hook = weight.register_post_accumulate_grad_hook(move)
        fused = model.embed_tokens.weight.device.type in ("cpu", "cuda")  # one pass over memory, no temporary copies
        super().__init__(list(self.masters.values()), lr=learning_rate, weight_decay=weight_decay, fused=fused)

    @staticmethod
    def _move_gradient(master: Tensor):
        """A hook for backward(): adds the weight's gradient to its master's float32 one."""

        def hook(weight: Tensor) -> None:
            master.grad = weight.grad.float() if master.grad is None else master.grad.add_(weight.grad)
            weight.grad = None

        return hook

    def zero_grad(self, set_to_none: bool = True) -> None:
        for weight in self.weights.values():
            weight.grad = None  # from before this optimizer was made, say
        super().zero_grad(set_to_none)

    @torch.no_grad()
    def step(self) -> None:
        assert any(master.grad is not None for master in self.masters.values()), (
            "no gradients: a new optimizer took over"
        )
        super().step()
        self.zero_grad()  # sampling comes next, and needs the memory
        self._round_weights()

    def _round_weights(self) -> None:
        for name, weight in self.weights.items():
            if self.masters[name] is not weight:
                weight.copy_(self.masters[name])

    def state_dict(self) -> dict:
        return super().state_dict() | {"masters": {name: master.detach() for name, master in self.masters.items()}}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Go on with these float32 weights and moments; the learning rate and weight decay stay this optimizer's own.

        Raises ValueError if the weights are another model's.
        """
        saved = state["masters"]
        shapes = lambda tensors: {name: tensor.shape for name, tensor in tensors.items()}
        if shapes(saved) != shapes(self.masters):
            raise ValueError("the saved weights have other names or shapes than this model's")
        masters = list(self.masters.values())  # that of a sharded model takes its part of the moments alone
        moments = {
            number: {name: spread_like(moment, masters[number]) for name, moment in found.items()}
            for number, found in state["state"].items()
        }
        super().load_state_dict({"state": moments, "param_groups": self.state_dict()["param_groups"]})
        for name, master in self.masters.items():
            master.copy_(spread_like(saved[name], master))
        self._round_weights()

    def __deepcopy__(self, memo):
        raise TypeError(
            "Float32AdamW cannot be copied: make a new one for a copy of the model, and load this one's state"
        )
