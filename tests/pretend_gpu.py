"""A GPU that computes on the CPU, to see without a real one whether the tensors of a run are where they must be.

Its tensors say that they are on the device "gpu". What a real GPU refuses is refused: operands on two devices. Rounds and
captured steps are on, as they are on CUDA. PyTorch takes one such device per process and keeps it, so the tests run this
file as a process of its own:

    python tests/pretend_gpu.py WORK          # a training step of each kind, train_llm.py, some of tests/gpu
    python tests/pretend_gpu.py WORK all      # every option; all of tests/gpu but what needs CUDA itself

What was found is in WORK/found.json.
"""

import json
import os
import sys
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from conftest import small_gpt
from everything import OPTIONS, trainer_of
from safetensors.torch import load_file, save_file
from test_rounds import Replay
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

import train_llm
from minclipo import sampler
from minclipo.checkpoint import save_model
from minclipo.runs.measure import timed_step
from minclipo.toy import toy_tokenizer

MAKE_DEVICE = "_setup_privateuseone_for_python_backend"  # PyTorch 2.13 has it, 2.6 does not
MAY_TAKE_BOTH = {"copy_", "_to_copy", "index", "index_put_"}  # copies between devices; indices from the host
CPU = torch.device("cpu")
SCRIPT = (  # for train_llm.py, whose --device knows no pretended ones
    "--prompts-per-step 4 --group-size 4 --max-new-tokens 8 --eval-every 2 --eval-problems 6 --save-every 2 --threads 1 "
    "--dtype float32 --device cpu --learning-rate 1e-4 --contrastive-weight 0.1 --kl-weight 0.1 --lora-rank 4 "
    "--micro-batch-tokens 60 --keep-best accuracy"
).split()
# The tests take one of each kind.
FEW = ["algorithm dapo", "algorithm gspo", "method clipo", "method oracle", "method prompt_contrast", "infonce batch"]
FEW += [
    "supcon_in group",
    "head mlp",
    "KL penalty",
    "micro-batches",
    "sampled in parts",
    "random numbers by row",
    "adapters",
]
FEW_TESTS = "given or finite or llama3 or saves_memory"
ALL_TESTS = "not compiled and not waits and not process and not learns"


class Elsewhere(torch.Tensor):
    """A tensor on the pretended GPU: `here` has its numbers, on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here: torch.Tensor, requires_grad: bool = False):
        place = dict(strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype, device="gpu:0")
        return torch.Tensor._make_wrapper_subclass(cls, here.shape, requires_grad=requires_grad, **place)

    def __init__(self, here: torch.Tensor, requires_grad: bool = False):
        self.here = here

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), options=None):
        return compute(function, arguments, options or {})

    def tolist(self):
        return self.here.tolist()

    def __reduce_ex__(self, protocol):  # in a file it is like any other tensor
        return self.here.__reduce_ex__(protocol)


class PretendGpu(TorchDispatchMode):
    """Makes tensors that are asked for with `device="gpu"`."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        return compute(function, arguments, options or {})


def mapped(change, tree):
    """The tree of lists, tuples and dicts with every tensor changed."""
    if isinstance(tree, torch.Tensor):
        return change(tree)
    if isinstance(tree, (list, tuple)):
        return type(tree)(mapped(change, x) for x in tree)
    return {name: mapped(change, x) for name, x in tree.items()} if isinstance(tree, dict) else tree


def here(tree):
    return mapped(lambda x: x.here if isinstance(x, Elsewhere) else x, tree)


def compute(function, arguments, options):
    """Do it on the CPU; what comes out is where its inputs are, or where the options say. RuntimeError for two devices."""
    name, found = function.overloadpacket.__name__, []
    mapped(found.append, (arguments, options))
    elsewhere = [x for x in found if isinstance(x, Elsewhere)]
    strangers = [x for x in found if not isinstance(x, Elsewhere) and x.dim()]  # a single number may come from the host
    if elsewhere and strangers and name not in MAY_TAKE_BOTH:
        raise RuntimeError(f"{function}: tensors on two devices, {[tuple(x.shape) for x in strangers]} on the CPU")
    device = options.get("device")
    on_gpu = bool(elsewhere) if device is None else torch.device(device).type == "gpu"
    result = function(*here(arguments), **here(options) | ({} if device is None else {"device": CPU}))
    if name.endswith("_"):  # in place
        return arguments[0]
    same = {id(here(x)): x for x in found}  # what comes out as it went in is no new tensor
    return mapped(lambda x: same[id(x)] if id(x) in same else Elsewhere(x) if on_gpu else x, result)


class Generator(torch.Generator):
    """On the CPU, and says that it is where it was asked for."""

    def __new__(cls, device="cpu"):
        generator = super().__new__(cls, "cpu")
        generator.place = torch.device(device)
        return generator

    def __init__(self, device="cpu"):
        pass

    @property
    def device(self):
        return self.place


def copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    here(target).copy_(here(source))
    return target


def make_device() -> torch.library.Library:
    """Registers the device; it lasts as long as what this returns."""
    module = backend_registration._DummyBackendModule()
    module.get_amp_supported_dtype, module.is_autocast_enabled = lambda: [], lambda: False  # checkpointing asks
    getattr(backend_registration, MAKE_DEVICE)("gpu", backend_module=module)
    made = torch.library.Library("aten", "IMPL")  # for torch.tensor(..., device="gpu"), which no mode sees
    empty = lambda size, dtype=None, **_: Elsewhere(torch.empty(size, dtype=dtype))
    strided = lambda size, stride, dtype=None, **_: Elsewhere(torch.empty_strided(size, stride, dtype=dtype))
    made.impl("empty.memory_format", empty, "PrivateUse1")
    made.impl("empty_strided", strided, "PrivateUse1")
    made.impl("_copy_from", copy_from, "PrivateUse1")
    return made


def on(device: str, round_tokens: int = 4, slots: int = 8):
    """What must hold while something runs there: both take the same rounds, so that they draw the same numbers."""
    gpu = device == "gpu"
    settings = mock.patch.multiple(
        sampler, ROUND={device: round_tokens}, SLOTS={device: slots}, CAPTURE={"gpu": Replay}
    )
    generator = mock.patch.object(torch, "Generator", Generator if gpu else torch.Generator)
    stack = ExitStack()
    for context in (settings, generator, PretendGpu() if gpu else nullcontext()):
        stack.enter_context(context)
    return stack


def two_steps(device: str, options: dict) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """(The completions of the first step, the weights before it, the weights after the second)."""
    with on(device):
        trainer = trainer_of(device, **options)
        before = [here(weight.detach().clone()) for weight in trainer.model.parameters()]
        timed_step(trainer)
        first = trainer.last.rollouts.completions
        timed_step(trainer)
    return here(first), before, [here(weight.detach()) for weight in trainer.model.parameters()]


def script(device: str, model: Path, out: Path, *arguments: str) -> dict[str, torch.Tensor]:
    """train_llm.py there; the weights that it leaves."""
    to_host = lambda tensors, *rest, **options: save_file(
        {name: here(tensor.detach()) for name, tensor in tensors.items()}, *rest, **options
    )
    with (
        on(device),
        mock.patch.object(train_llm, "pick_device", lambda _: torch.device(device, 0)),
        mock.patch("minclipo.checkpoint.weights.save_file", to_host),  # it looks at memory that is not there
    ):
        assert train_llm.main([*SCRIPT, "--model", str(model), "--out", str(out), *arguments]) == 0
    return load_file(out / "model" / "model.safetensors")


def difference(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """On average over the weights, since Adam moves a weight whose gradient is all rounding as far as any other."""
    return torch.cat([(x - y).abs().flatten() for x, y in zip(one, other, strict=True)]).mean().item()


def compare(options: dict) -> dict:
    few = dict(prompts_per_step=4, group_size=4, max_new_tokens=10, learning_rate=1e-4)
    (wanted, _, weights), (found, before, after) = (two_steps(device, few | options) for device in ("cpu", "gpu"))
    same, moved = torch.equal(found, wanted), difference(after, before)
    return {"same rollouts": same, "difference": difference(after, weights) / moved}


def compare_scripts(work: Path) -> dict:
    """Two steps and a resumed third."""
    save_model(small_gpt(vocab_size=122), toy_tokenizer(), work / "start")
    (work / "task.py").write_text("from everything import EASY as task\n")
    found, before = [], list(load_file(work / "start" / "model.safetensors").values())
    for device in ("cpu", "gpu"):
        run = partial(script, device, work / "start", work / device, "--task", f"{work / 'task.py'}:task")
        run("--steps", "2")
        found.append(list(run("--steps", "3", "--resume").values()))
    return {"same rollouts": True, "difference": difference(*found) / difference(found[0], before)}


def attempt(compared, *arguments) -> dict:
    try:
        return compared(*arguments)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def run_tests(which: str) -> int:
    """Those of tests/gpu there, with rounds as on CUDA; pytest's exit code."""
    os.environ["MINCLIPO_TEST_DEVICE"], close = "gpu", torch.testing.assert_close
    on_host = lambda found, wanted, **options: close(here(found.detach()), here(wanted.detach()), **options)
    with on("gpu", round_tokens=32, slots=256), mock.patch.object(torch.testing, "assert_close", on_host):
        return pytest.main(["-q", "-p", "no:cacheprovider", "-k", which, str(Path(__file__).parent / "gpu")])


def main(work: Path, everything: bool) -> None:
    torch.set_num_threads(1)
    found = {name: attempt(compare, OPTIONS[name]) for name in (OPTIONS if everything else FEW)}
    found["train_llm.py"] = attempt(compare_scripts, work)
    with PretendGpu():
        found["two devices"] = attempt(lambda: torch.ones(2, device="gpu") + torch.ones(2))
    found["tests/gpu"] = run_tests(ALL_TESTS if everything else FEW_TESTS)
    (work / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    DEVICE = make_device()
    main(Path(sys.argv[1]), sys.argv[2:] == ["all"])
