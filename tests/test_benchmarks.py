"""The GPU benchmark as far as a machine without a GPU can run it."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
import gpu  # noqa: E402


def test_the_gpu_benchmark_runs_at_tiny_sizes(capsys):
    """Catches: a benchmark that has not followed the code that it measures."""
    assert gpu.main(["--cpu"]) == 0
    printed = capsys.readouterr().out.splitlines()
    starts = ["card: ", "torch ", "copy, ", "bfloat16 product, ", "compiled blocks: ", "tiny: ", "  sampling: "]
    starts += ["  update: ", "a whole step of tiny: ", "  steps 2 and 3: "]
    assert [line[: len(start)] for line, start in zip(printed, starts, strict=True)] == starts


def test_the_gpu_benchmark_says_what_it_needs(monkeypatch, capsys):
    """Catches: a traceback on a machine without a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 1
    assert "this PyTorch finds no CUDA device" in capsys.readouterr().err


def test_what_decoding_must_read():
    """By hand: two tokens need all weights twice, and after a prompt of 10 the keys and values of 11 and of 12 tokens.

    Catches: a limit on the speed that forgets rows, layers, or one of keys and values."""
    shape = gpu.shape_of("tiny")  # 2 layers, 2 key/value heads of width 16
    weights, seen = gpu.count_weights(shape), 11 + 12
    assert gpu.bytes_to_read(shape, rows=3, prompt_tokens=10, tokens=2) == 2 * (2 * weights + 3 * seen * 2 * 2 * 2 * 16)
