"""Sampling, update and a whole training step on one NVIDIA GPU. A benchmark: it decides nothing.

    python tests/benchmarks/gpu.py
    python tests/benchmarks/gpu.py --shapes Qwen2.5-0.5B --rows 512 --tokens 512 --micro-batch-tokens 32768

Random weights of published shapes in bfloat16; every completion has its full length. First come the rates of the
machine itself, which the rest is held against. `--cpu` tries the script out: its numbers mean nothing.
B prompts of P tokens, G completions of each, N = B * G completions of T tokens.
"""

import argparse
import gc
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from shapes import SHAPES, endless_trainer, one_update, random_model, shape_of

from minclipo.config import TrainConfig
from minclipo.model import GPT, GPTConfig
from minclipo.runs.machine import GIB, Memory, count_weights, estimate_memory
from minclipo.sampler import Rollouts, sample
from minclipo.trainer import Trainer

DTYPE = torch.bfloat16
STEP = (16, 16, 128)  # prompts, rollouts of each, tokens
STEP_PROMPT_TOKENS = 37  # about as many as Qwen2.5's chat template makes of "What is 1 + 2?"
TRY_OUT = dict(rows=8, group_size=4, prompt_tokens=12, tokens=8, micro_batch_tokens=60, shapes=["tiny"])  # with --cpu
TRY_OUT |= dict(step_shape="tiny", step=(2, 4, 8))


@dataclass
class Machine:
    """What the device can do, measured here and now."""

    device: torch.device
    bandwidth: float  # bytes per second, read plus written
    matrix_rate: float  # floating-point operations per second of a large bfloat16 product


@dataclass
class Measured:
    """Several calls of the same work. The first pays for libraries that start and for compilation; each call of `sample`
    captures its graphs anew."""

    seconds: list[float]
    peak: int | None  # bytes of tensors on the GPU at most, None on a CPU; a graph sets memory aside besides
    result: object  # of the last call

    @property
    def best(self) -> float:
        return min(self.seconds[1:])

    def memory(self, estimated: int) -> str:
        peak = "not measured" if self.peak is None else f"{self.peak / GIB:.2f} GiB"
        return f"first call {self.seconds[0]:.2f} s; peak {peak}, estimated {estimated / GIB:.2f} GiB"


def measure(work: Callable, device: torch.device, calls: int = 4) -> Measured:
    """Time each call until the device has done all of it."""
    on_gpu, seconds = device.type == "cuda", []
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(calls):
        result = None  # of the call before: it must not count as this one's memory
        wait()
        started = time.perf_counter()
        result = work()
        wait()
        seconds.append(time.perf_counter() - started)
    return Measured(seconds, torch.cuda.max_memory_allocated() if on_gpu else None, result)


def copy_bandwidth(device: torch.device, size: int) -> float:
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / measure(lambda: target.copy_(source), device, calls=10).best


def matrix_rate(device: torch.device, size: int) -> float:
    a, b = (torch.randn(size, size, device=device, dtype=DTYPE) for _ in range(2))
    return 2 * size**3 / measure(lambda: a @ b, device, calls=10).best


def describe(device: torch.device) -> Machine:
    """Print what this is and how fast it is by itself."""
    card, driver, size, bytes_copied = "none, a CPU", "none", 256, 2**22
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        card, size, bytes_copied = f"{found.name}, {found.total_memory / GIB:.0f} GiB", 8192, 2**31
        driver = driver_version()
    print(f"card: {card}; driver {driver}")
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}")
    machine = Machine(device, copy_bandwidth(device, bytes_copied), matrix_rate(device, size))
    print(f"copy, device to device: {machine.bandwidth / 1e12:.3g} TB/s, read plus written")
    print(f"bfloat16 product, {size} x {size} x {size}: {machine.matrix_rate / 1e12:.3g} TFLOP/s")
    return machine


def driver_version() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def bytes_to_read(shape: GPTConfig, rows: int, prompt_tokens: int, tokens: int) -> int:
    """What decoding cannot do without: for each token all weights once, and the keys and values of every row so far."""
    seen = sum(prompt_tokens + t for t in range(1, tokens + 1))
    keys_and_values = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim
    return DTYPE.itemsize * (tokens * count_weights(shape) + rows * seen * keys_and_values)


def bench_sampling(model: GPT, machine: Machine, estimate: Memory, arguments: argparse.Namespace) -> Rollouts:
    N, P, T = arguments.rows, arguments.prompt_tokens, arguments.tokens
    prompts = torch.randint(model.config.vocab_size, (N // arguments.group_size, P)).tolist()
    found = measure(lambda: sample(model, prompts, arguments.group_size, T, eos_ids=[]), machine.device)
    limit = bytes_to_read(model.config, N, P, T) / machine.bandwidth
    print(
        f"  sampling: {1000 * found.best / T:.2f} ms per token, {N * T / found.best:,.0f} tokens/s; "
        f"{limit / found.best:.1%} of the bandwidth limit, which is {1000 * limit / T:.3f} ms per token; "
        + found.memory(estimate.sampling - estimate.optimizer)  # there is no optimizer yet
    )
    return found.result


def bench_update(trainer: Trainer, rollouts: Rollouts, machine: Machine, estimate: Memory) -> None:
    advantages = torch.randn(len(rollouts.mask), device=machine.device)
    found = measure(lambda: trainer.update_policy(rollouts, advantages), machine.device)
    tokens = sum(map(len, rollouts.prompts)) + rollouts.mask.sum().item()  # each prompt is computed once
    mfu = 6 * count_weights(trainer.model.config) * tokens / found.best / machine.matrix_rate
    print(f"  update: {found.best:.3f} s, MFU {mfu:.1%}; {found.memory(estimate.update)}")


def prepare(
    shape: GPTConfig, config: TrainConfig, prompt_tokens: int, machine: Machine, arguments: argparse.Namespace
) -> tuple[GPT, Memory]:
    """A model of this shape, and what a training step of it is estimated to hold."""
    model = random_model(shape, machine.device, DTYPE)
    model.gradient_checkpointing = arguments.gradient_checkpointing
    if arguments.compile:
        torch.compiler.reset()  # what was compiled for another shape is not to burden this one
        model.compiled = True
    options = dict(dtype=DTYPE, gradient_checkpointing=arguments.gradient_checkpointing)
    return model, estimate_memory(shape, config, prompt_tokens=prompt_tokens, **options)


def bench_shape(name: str, machine: Machine, arguments: argparse.Namespace) -> None:
    """Sampling, then the update on what was sampled."""
    shape, B, G = shape_of(name), arguments.rows // arguments.group_size, arguments.group_size
    P, T = arguments.prompt_tokens, arguments.tokens
    print(f"{name}: {count_weights(shape) / 1e6:.1f} million weights; {B} prompts of {P} tokens, {B * G} rows of {T}")
    config = one_update(B, G, T, arguments.micro_batch_tokens)
    model, estimate = prepare(shape, config, P, machine, arguments)
    rollouts = bench_sampling(model, machine, estimate, arguments)
    bench_update(endless_trainer(model, config, P), rollouts, machine, estimate)


def bench_step(name: str, machine: Machine, arguments: argparse.Namespace) -> None:
    """Three training steps as they are, verifying included."""
    B, G, T = arguments.step
    print(f"a whole step of {name}: {B} prompts x {G} rollouts x {T} tokens")
    config = one_update(B, G, T, arguments.micro_batch_tokens)
    model, estimate = prepare(shape_of(name), config, STEP_PROMPT_TOKENS, machine, arguments)
    found = measure(endless_trainer(model, config, STEP_PROMPT_TOKENS).step, machine.device, calls=3)
    later = ", ".join(f"{seconds:.3f}" for seconds in found.seconds[1:])
    print(f"  steps 2 and 3: {later} s; {found.memory(estimate.peak)}")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes = ["SmolLM2-135M", "Qwen2.5-0.5B", "Qwen2.5-1.5B"]
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=shapes, help="for sampling and update")
    parser.add_argument("--rows", type=int, default=256, help="completions sampled side by side (N)")
    parser.add_argument("--group-size", type=int, default=16, help="completions per prompt")
    parser.add_argument("--prompt-tokens", type=int, default=256, help="tokens per prompt (P)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens per completion (T)")
    parser.add_argument("--micro-batch-tokens", type=int, default=10_000, help="most tokens per pass of an update")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="compiled blocks; default: on a GPU")
    parser.add_argument("--cpu", action="store_true", help="try the script out on a CPU, at tiny sizes")
    parser.set_defaults(step_shape="Qwen2.5-0.5B", step=STEP)
    arguments = parser.parse_args(argv)
    if arguments.compile is None:
        arguments.compile = not arguments.cpu
    if arguments.cpu:
        vars(arguments).update(TRY_OUT)
    if arguments.rows % arguments.group_size:
        parser.error(f"--rows {arguments.rows} must be a multiple of --group-size {arguments.group_size}")
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    if not arguments.cpu and not torch.cuda.is_available():
        print("gpu.py: this PyTorch finds no CUDA device; --cpu tries the script out at tiny sizes", file=sys.stderr)
        return 1
    if arguments.cpu:
        torch.set_num_threads(1)  # too little work to share out
    machine = describe(torch.device("cpu" if arguments.cpu else "cuda"))
    print(f"compiled blocks: {'on' if arguments.compile else 'off'}")
    for bench, name in [*((bench_shape, name) for name in arguments.shapes), (bench_step, arguments.step_shape)]:
        try:
            bench(name, machine, arguments)
        except torch.OutOfMemoryError:
            print("  does not fit into this GPU's memory")
        gc.collect()  # a model and its optimizer refer to each other, and the next ones need their memory
    return 0


if __name__ == "__main__":
    sys.exit(main())
