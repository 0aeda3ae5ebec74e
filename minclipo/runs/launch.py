"""Several processes that torchrun has started: how they find each other, who speaks and writes, how they end.

The first process writes all files and speaks. The others do the same work in silence. (minclipo/extensions/processes.py
has what they divide.) They stop together, between two steps. If one of them fails or dies, the others end, too, and one
message says why.
"""

import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from minclipo.config import TrainConfig
from minclipo.extensions.processes import count, several
from minclipo.extensions.sharding import can_shard
from minclipo.runs.llm_config import LLMConfig

LOST = "Another process of this run has died. A training goes on with the same command and --resume"
LOSSES = (getattr(dist, "DistBackendError", ()), getattr(dist, "DistNetworkError", ()))  # NCCL's, the store's
PATIENCE = timedelta(hours=2)  # how long a process waits for the others: one may be writing a large model


def by_torchrun() -> bool:
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_first() -> bool:
    """Whether this process is the one that speaks and writes."""
    return int(os.environ["RANK"]) == 0 if by_torchrun() else True


class Launch:
    """The processes of this run. Without torchrun there is one, and all this does nothing."""

    def __init__(self):
        self.store, self.stdout, self.stderr = None, sys.stdout, sys.stderr
        if not is_first():
            sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")

    def join(self, device: torch.device) -> None:
        """Make the processes one group, each with a GPU of its own; ValueError if there are not as many GPUs."""
        if not by_torchrun():
            return
        if device.type == "mps":
            raise ValueError("torchrun needs GPUs of NVIDIA or --device cpu: on Apple's there is one process")
        local, backend = int(os.environ.get("LOCAL_RANK", 0)), "gloo"
        if device.type == "cuda":
            if local >= torch.cuda.device_count():
                raise ValueError(
                    f"torchrun has started more processes than this machine has GPUs, {torch.cuda.device_count()}: "
                    "give it --nproc-per-node gpu"
                )
            torch.cuda.set_device(local)
            backend = "cpu:gloo,cuda:nccl"  # objects and Python numbers go through gloo, gradients through NCCL
        self.store, rank, size = next(dist.rendezvous("env://", timeout=PATIENCE))
        dist.init_process_group(backend, store=self.store, rank=rank, world_size=size, timeout=PATIENCE)
        dist.barrier()

    def says(self, message: str) -> None:
        """Print what has ended this process, unless it follows from what has ended another one."""
        if self.first_to_fail():
            print(message, file=self.stderr)

    def says_that_it_stops(self, stop: KeyboardInterrupt) -> None:
        """Once a run has begun, the first process knows what was saved. Before, whichever stops first says it."""
        can_go_on = getattr(stop, "can_go_on", None)
        if self.first_to_fail() if can_go_on is None else is_first():
            words = f"{stop or 'interrupted'}." + " The same command with --resume goes on." * bool(can_go_on)
            print(words, file=self.stdout, flush=True)

    def first_to_fail(self) -> bool:
        if self.store is None:  # not joined yet: whatever is wrong is wrong for all alike
            return is_first()
        try:
            return self.store.add("failed", 1) == 1
        except RuntimeError:  # the store has gone with the process that kept it
            return False

    def leave(self) -> None:
        """The end of a run that has not failed."""
        if self.store is None:
            return
        dist.barrier()
        dist.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # threads of PyTorch's sometimes abort an orderly exit of a run that has done all its work

    def let_it_show(self) -> None:
        """Let Python print the traceback of an error that nobody has foreseen, of the first process that has one."""
        sys.stderr = self.stderr if self.first_to_fail() else open(os.devnull, "w", encoding="utf-8")


def check_processes(config: TrainConfig, llm: LLMConfig, dtype: torch.dtype, device: torch.device) -> None:
    """ValueError if this machine, this PyTorch or these settings do not go with several processes."""
    if several() and not config.row_seeds:
        raise ValueError("several processes need --row-seeds: each has random numbers for its own rollouts")
    if not llm.shard:
        return
    if not by_torchrun():
        raise ValueError("--shard spreads a model over several processes: start them with torchrun --nproc-per-node N")
    if llm.compile == "on":
        raise ValueError("--compile on does not work with --shard, which fetches each block's weights as it is called")
    if not can_shard(device):
        raise ValueError(f"--shard does not work on a CPU with this PyTorch, {torch.__version__}: use a newer one")
    if llm.lora_rank and dtype.itemsize < 4 and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 8):
        raise ValueError(
            f"--shard with --lora-rank needs PyTorch 2.8 or --dtype float32: this one, {torch.__version__}, wants all "
            "weights of a block in one number type"
        )


def check_shares(config: TrainConfig) -> None:
    """ValueError if a process would have no prompt of a training step."""
    if config.prompts_per_step < count():
        raise ValueError(
            f"--prompts-per-step {config.prompts_per_step} must be at least {count()}, the number of processes: each "
            "takes a share of the prompts"
        )


def is_lost(error: BaseException) -> bool:
    """Whether the error says that another process does not answer any more, or torchrun's signal came upon such one."""
    if isinstance(error, KeyboardInterrupt):
        return error.__context__ is not None and is_lost(error.__context__)
    ends = ("closed by peer", "connection reset", "broken pipe", "connection refused", "timed out")
    of_gloo = isinstance(error, RuntimeError) and "gloo" in str(error)
    return several() and (of_gloo and any(end in str(error).lower() for end in ends) or isinstance(error, LOSSES))
