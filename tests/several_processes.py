"""Several processes for tests: how they are started, and what they do for tests/test_processes.py.

They are forked from one that has imported PyTorch already, which takes each of them two seconds of a core.
"""

import multiprocessing
import os
import sys
import zlib
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import train_llm
from minclipo.config import TrainConfig
from minclipo.extensions.lora import add_lora
from minclipo.extensions.processes import mean_gradients, sum_gradients
from minclipo.extensions.sharding import can_shard, shard, whole, whole_state
from minclipo.model import GPT, GPTConfig, init_weights
from minclipo.tasks import Task
from minclipo.toy import TASK, toy_tokenizer
from minclipo.trainer import Trainer

STEPS = 3
GROUP = dict(contrastive_weight=0.2, contrastive_loss="infonce", contrastive_level="group", contrastive_temperature=0.5)
CLIPO = dict(contrastive_weight=0.2)
CASES = {
    "grpo": {},
    "clipo cross": CLIPO,
    "clipo batch": CLIPO | dict(contrastive_level="batch"),
    "clipo group": GROUP,
    "dapo": dict(dynamic_sampling=3, clip_high=0.28, overlong_penalty=0.5),
    "kl": dict(kl_weight=0.1, aggregation="sequence_mean"),
    "prompt contrast": dict(prompt_contrast_weight=0.2),
    "gspo": dict(ratio="sequence", clip_low=3e-4, clip_high=4e-4),
    "micro-batches": dict(micro_batch_tokens=60, kl_weight=0.1),
    "small parts": dict(sampling_rows=3, num_mini_batches=5),
    "one step per batch": dict(num_mini_batches=1),
    "sharded": dict(shard=True, micro_batch_tokens=60),
    "sharded clipo, kl": dict(shard=True, kl_weight=0.1) | CLIPO,
    "lora": dict(lora=True, kl_weight=0.1, micro_batch_tokens=60),
    "sharded lora": dict(shard=True, lora=True, kl_weight=0.1) | CLIPO,
    "bfloat16": dict(dtype=torch.bfloat16, micro_batch_tokens=60),
    "sharded bfloat16": dict(dtype=torch.bfloat16, micro_batch_tokens=60, shard=True),
    "bfloat16 lora": dict(dtype=torch.bfloat16, lora=True),
    "sharded bfloat16 lora": dict(dtype=torch.bfloat16, lora=True, shard=True),
}
SHARDS = can_shard(torch.device("cpu"))


FEW = ("grpo", "clipo cross", "dapo", "micro-batches", "small parts", "sharded clipo, kl")


def cases(count: int) -> list[str]:
    """What so many processes train: four of them fewer cases, since they share two cores in most places."""
    return [name for name in CASES if (SHARDS or "shard" not in CASES[name]) and (count < 4 or name in FEW)]


def make(name: str) -> Trainer:
    """The trainer of a case. Rollouts are right by a checksum of their text, so that a model of random weights is right
    half of the time."""
    settings = dict(CASES[name])
    dtype, sharded, lora = (
        settings.pop("dtype", torch.float32),
        settings.pop("shard", False),
        settings.pop("lora", False),
    )
    shape = GPTConfig(
        vocab_size=122,
        hidden_size=16,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=24,
        max_positions=64,
    )
    model = init_weights(GPT(shape), torch.Generator().manual_seed(0)).to(dtype)
    if lora:
        add_lora(model, rank=2, alpha=4, generator=torch.Generator().manual_seed(0))
    if sharded and dist.is_initialized():
        model = shard(model)
    task = Task(TASK.draw, lambda problem, text, finished: zlib.crc32(text.encode()) % 2 == 0)
    common = dict(prompts_per_step=4, group_size=4, max_new_tokens=6, learning_rate=1e-3, row_seeds=True, seed=1)
    return Trainer(model, toy_tokenizer(), task, TrainConfig(**common | settings))


def train(name: str) -> dict:
    """Rollouts, metrics and weights of the first steps of a case."""
    trainer, steps = make(name), []
    for _ in range(STEPS if trainer.model.embed_tokens.weight.dtype == torch.float32 else 1):
        step = trainer.step()
        rollouts = {key: value for key, value in vars(step.rollouts).items() if key != "group_size"}
        steps.append(rollouts | {"rewards": step.rewards, "texts": step.texts, "metrics": step.metrics})
    head = {} if trainer.head is None else {f"head {name}": w.detach() for name, w in trainer.head.named_parameters()}
    weights = {name: weight.detach() for name, weight in whole(trainer.model).named_parameters()}
    return {"steps": steps, "weights": weights | head, "state": whole_state(trainer.state_dict())}


def gradients(rank: int) -> list[float]:
    """The sum and the mean of gradients 1, 2, ... of the processes, of which the second has none in the first case."""
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    if rank != 1:
        weights[0].grad = torch.tensor([1.0 + rank])
    weights[1].grad = torch.tensor([1.0 + rank])
    sum_gradients(weights[:1])
    mean_gradients(weights[1:])
    return [weight.grad.item() for weight in weights]


def train_all(out: Path, rank: int, count: int) -> None:
    """Train every case; leaves OUT/processesN_rankR.pt."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(out / f"store{count}"), count)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=timedelta(seconds=60))
    found = {name: train(name) for name in cases(count)}
    found["gradients"] = gradients(rank)
    torch.save(found, out / f"processes{count}_rank{rank}.pt")
    dist.destroy_process_group()


def run_train_llm(log: Path, environment: dict[str, str], arguments: list[str]) -> None:
    """train_llm.py in this process; all that it prints goes to the end of the file."""
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.exit(train_llm.main(arguments))


def start(work, *arguments) -> multiprocessing.Process:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["several_processes"])
    process = context.Process(target=work, args=arguments)
    process.start()
    return process


def end(processes: list[multiprocessing.Process]) -> list[int]:
    """Wait for them; their exit codes."""
    for process in processes:
        process.join(timeout=240)
    return [process.exitcode for process in processes]
