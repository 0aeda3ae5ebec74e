"""A model whose weights, gradients and optimizer are spread over the processes: each holds 1/N of every tensor.

PyTorch does it (FSDP2, torch.distributed.fsdp.fully_shard): a pass fetches the weights of one block after the other,
and backward leaves each process its part of the gradient. For sampling, which passes the model once per token,
the whole model is put together first (`whole`), and dropped afterwards.
"""

import copy

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from minclipo.extensions.processes import count, rank
from minclipo.model import GPT


def is_sharded(thing: GPT | Tensor) -> bool:
    """Whether a model, or a tensor, is spread over the processes."""
    return hasattr(thing, "skeleton") or hasattr(thing, "full_tensor")


def can_shard(device: torch.device) -> bool:
    """Whether this PyTorch's FSDP2 works on the device; older ones know no streams on a CPU."""
    return device.type != "cpu" or hasattr(torch.cpu.current_stream(), "record_event")


def shard(model: GPT) -> GPT:
    """Spread the model, in place, over the processes of the process group. backward leaves the mean of their gradients."""
    from torch.distributed.device_mesh import init_device_mesh  # takes a while, and few runs need it
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(model.embed_tokens.weight.device.type, (count(),))
    assert not model.compiled, "a compiled block is a function: it would not fetch its weights"
    on_meta = {
        id(weight): nn.Parameter(weight.detach().to("meta"), weight.requires_grad) for weight in model.parameters()
    }
    model.skeleton = (copy.deepcopy(model, on_meta),)  # in a tuple, or it would be a part of the model
    for module in [*model.layers, model]:
        fully_shard(module, mesh=mesh, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32))
    return model


def whole(thing):
    """An ordinary model with all its weights, or an ordinary tensor: itself, if it is not sharded. Every process must
    call it. The memory is taken until the last reference is gone."""
    if isinstance(thing, Tensor):
        return thing.full_tensor() if is_sharded(thing) else thing
    if not is_sharded(thing):
        return thing
    thing.reshard()  # after a pass without backward the embedding would still lie whole, in memory that is not ours
    model = copy.deepcopy(thing.skeleton[0])
    model.load_state_dict({name: whole(weight.detach()) for name, weight in thing.named_parameters()}, assign=True)
    return model


def frozen_copy(model: GPT) -> GPT:
    """The model as it is now, for good. Weights that are not trained are shared with it; a sharded one is copied whole."""
    if is_sharded(model):
        return shard(whole(model).requires_grad_(False))
    untrained = {id(weight): weight for weight in model.parameters() if not weight.requires_grad}
    return copy.deepcopy(model, untrained).requires_grad_(False)


def whole_state(state: dict) -> dict:
    """A state dict without tensors that are spread. Every process must call it. The first one gets them whole, on the
    CPU; the others, which write nothing, get their shapes."""
    device = "cpu" if rank() == 0 else "meta"
    return tree_map(lambda value: whole(value).to(device) if is_sharded(value) else value, state)


def spread_like(value: Tensor, weight: Tensor) -> Tensor:
    """An ordinary tensor, spread over the processes as `weight` is, if it is."""
    if not is_sharded(weight) or is_sharded(value) or value.shape != weight.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)
