"""Adapters on disk and in a run: PEFT's directories in both directions, and train_llm.py as a user runs it."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import FIXTURES, small_gpt
from safetensors.torch import load_file, save_file

from minclipo.checkpoint import load_model, save_model
from minclipo.checkpoint.adapter import AdapterConfig, read_adapter, read_adapter_config, save_adapter
from minclipo.checkpoint.files import read_json, write_json
from minclipo.extensions.lora import TARGETS, adapter_weights, add_lora, load_adapter, merged
from minclipo.model import GPT
from minclipo.toy import toy_tokenizer

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import train_llm  # noqa: E402

PEFT = FIXTURES / "peft"
WRITTEN_BY_PEFT = {
    "all_linear_qwen2": AdapterConfig(4, 8.0, TARGETS, "parity/qwen2_tied_qkv_bias"),
    "attention_qwen3": AdapterConfig(3, 5.0, ("q_proj", "v_proj"), "parity/qwen3_qk_norm_head_dim"),
    "rslora_llama": AdapterConfig(4, 12.0, TARGETS, "parity/llama_untied_fp32"),  # 6 sqrt(4)
}


def with_adapter(base: GPT, directory: Path) -> GPT:
    says = read_adapter_config(directory, TARGETS)
    model = add_lora(base, says.rank, says.alpha, says.targets)
    load_adapter(model, read_adapter(directory, shapes_of(model)))
    return model


def shapes_of(model: GPT) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in adapter_weights(model).items()}


def random_adapter(base: GPT, rank: int, alpha: float, targets=TARGETS) -> GPT:
    model = add_lora(base, rank, alpha, targets, torch.Generator().manual_seed(1))
    for number, weight in enumerate(adapter_weights(model).values()):
        weight.data.normal_(std=0.2, generator=torch.Generator().manual_seed(number))
    return model


# ---- PEFT's directories ----


@pytest.mark.parametrize("name", WRITTEN_BY_PEFT)
def test_what_peft_wrote_is_the_same_model_here(name):
    """Logits against transformers and PEFT. Catches: a scale that rsLoRA changes, a target that is left out, A or B
    of another layer."""
    says, expected = read_adapter_config(PEFT / name, TARGETS), load_file(PEFT / "expected.safetensors")
    assert says == WRITTEN_BY_PEFT[name]
    model = with_adapter(load_model(FIXTURES / says.base), PEFT / name)
    for policy in (model, merged(model)):
        logits = policy.logits(policy(expected["tokens"]))
        torch.testing.assert_close(logits, expected[f"{name}.logits"], atol=1e-4, rtol=1e-5)


def test_what_we_write_is_laid_out_as_peft_lays_it_out(tmp_path):
    """The same file again, and the keys that PEFT reads. Catches: a prefix that is missing or double, half precision."""
    theirs = PEFT / "all_linear_qwen2"
    says = read_adapter_config(theirs, TARGETS)
    model = with_adapter(load_model(FIXTURES / says.base), theirs)
    save_adapter(adapter_weights(model), tmp_path, says)
    ours, wanted = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path, theirs))
    assert ours.keys() == wanted.keys() and "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in ours
    assert all(torch.equal(ours[key], wanted[key]) and ours[key].dtype == torch.float32 for key in wanted)
    written, known = read_json(tmp_path / "adapter_config.json"), read_json(theirs / "adapter_config.json")
    assert written.keys() <= known.keys() and set(written.pop("target_modules")) == set(TARGETS)
    assert type(written["lora_alpha"]) is int and read_adapter_config(tmp_path, TARGETS) == says
    differ = {key for key, value in written.items() if value != known[key]}
    assert differ == {"init_lora_weights"}


def test_the_base_is_named_as_the_hub_names_it(tmp_path, monkeypatch):
    """Catches: a revision within the name, which PEFT would look for; a folder taken for a model of the hub."""
    monkeypatch.chdir(tmp_path)
    Path("runs/model@2").mkdir(parents=True)
    for base, wanted in (
        ("some/model@v1.0", ("some/model", "v1.0")),
        ("some/model", ("some/model", None)),
        ("runs/model@2", ("runs/model@2", None)),
    ):
        save_adapter({"a.lora_A.weight": torch.ones(1, 1)}, tmp_path / "a", AdapterConfig(1, 0.5, TARGETS, base))
        says = read_json(tmp_path / "a" / "adapter_config.json")
        assert (says["base_model_name_or_path"], says["revision"], says["lora_alpha"]) == (*wanted, 0.5)


def test_peft_itself_reads_what_we_write(tmp_path):
    """Where PEFT is installed. Catches: what only the library itself would refuse or understand otherwise."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    tokens = load_file(PEFT / "expected.safetensors")["tokens"]
    for base, rank, alpha, targets in (
        ("qwen2_tied_qkv_bias", 4, 8.0, TARGETS),
        ("qwen3_qk_norm_head_dim", 3, 4.5, ("v_proj", "down_proj")),
        ("llama_untied_fp32", 1, 2.0, ("o_proj",)),
    ):
        model = random_adapter(load_model(FIXTURES / "parity" / base), rank, alpha, targets)
        save_adapter(adapter_weights(model), tmp_path / base, AdapterConfig(rank, alpha, targets, base))
        theirs = transformers.AutoModelForCausalLM.from_pretrained(FIXTURES / "parity" / base, dtype=torch.float32)
        theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / base).eval()
        torch.testing.assert_close(model.logits(model(tokens)), theirs(tokens).logits, atol=3e-5, rtol=1e-5)
        whole, plain = theirs.merge_and_unload().state_dict(), merged(model)
        for name, weight in plain.named_parameters():
            theirs_name = name if name.startswith("lm_head") else f"model.{name}"
            torch.testing.assert_close(weight.detach(), whole[theirs_name], atol=1e-6, rtol=1e-6)


# ---- what is refused ----


@pytest.fixture
def adapter(tmp_path) -> Path:
    """A copy of what PEFT wrote for Qwen3."""
    return Path(shutil.copytree(PEFT / "attention_qwen3", tmp_path / "adapter"))


def changed(directory: Path, **changes) -> Path:
    write_json(directory / "adapter_config.json", read_json(directory / "adapter_config.json") | changes)
    return directory


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(peft_type="LOHA"), "peft_type 'LOHA' is not supported, only 'LORA'"),
        (dict(task_type="SEQ_CLS"), "task_type 'SEQ_CLS' is not supported"),
        (dict(bias="all"), "bias 'all' is not supported, only 'none'"),
        (dict(init_lora_weights="pissa"), "init_lora_weights 'pissa' is not supported"),
        (dict(use_dora=True), "use_dora True is not supported"),
        (dict(lora_bias=True), "lora_bias True is not supported"),
        (dict(fan_in_fan_out=True), "fan_in_fan_out True is not supported"),
        (dict(rank_pattern={"q_proj": 8}), "rank_pattern {'q_proj': 8} is not supported"),
        (dict(alpha_pattern={"q_proj": 8}), "alpha_pattern .* is not supported"),
        (dict(modules_to_save=["lm_head"]), r"modules_to_save \['lm_head'\] is not supported"),
        (dict(layers_to_transform=[0]), r"layers_to_transform \[0\] is not supported"),
        (dict(exclude_modules="q_proj"), "exclude_modules 'q_proj' is not supported"),
        (dict(of_next_year={"on": True}), "of_next_year .* is not supported"),
        (dict(target_modules=".*_proj"), "target_modules '.*_proj' is a pattern: write it as a list of q_proj, k_proj"),
        (dict(target_modules=["q_proj", "lm_head"]), r"target_modules \['lm_head'\] are not supported, only q_proj"),
        (dict(target_modules=[]), r"target_modules must be a list of names, found \[\]"),
        (dict(target_modules=None), "target_modules must be a list of names, found None"),
        (dict(r=0), "r must be an integer from 1 to 1000000, found 0"),
        (dict(r=True), "r must be an integer"),
        (dict(r=10**400), "r must be an integer"),
        (dict(lora_alpha=float("nan")), "lora_alpha must be a number above 0"),
        (dict(lora_alpha=10**400), "lora_alpha must be a number above 0"),
        (dict(lora_alpha="16"), "lora_alpha must be a number above 0"),
        (dict(use_rslora="yes"), "use_rslora must be true or false, found 'yes'"),
    ],
)
def test_what_would_be_another_adapter_is_refused(adapter, changes, message):
    """By file and key. Catches: an adapter that is loaded almost right."""
    with pytest.raises(ValueError, match=f"adapter_config.json: {message}"):
        read_adapter_config(changed(adapter, **changes), TARGETS)


def test_what_changes_nothing_is_read(adapter):
    """Dropout, which only trains; names of another base; keys of other versions that are off."""
    changed(adapter, lora_dropout=0.1, revision="main", runtime_config={}, of_next_year=None, task_type=None)
    assert read_adapter_config(adapter, TARGETS) == WRITTEN_BY_PEFT["attention_qwen3"]
    changed(adapter, target_modules="all-linear", base_model_name_or_path=None)
    assert read_adapter_config(adapter, TARGETS) == AdapterConfig(3, 5.0, TARGETS, "")


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda tensors: tensors.pop(FIRST), f"tensors missing: {FIRST}"),
        (lambda tensors: tensors.update({FIRST + "2": torch.ones(2)}), f"tensors without a place in .*: {FIRST}2"),
        (lambda tensors: tensors.update({FIRST: tensors[FIRST][:2].clone()}), f"misshapen for .*: {FIRST} .2, "),
        (lambda tensors: tensors.update({FIRST: tensors[FIRST].int()}), f"not of type F64.*: {FIRST} I32"),
        (lambda tensors: tensors[FIRST].fill_(float("inf")), f"{FIRST} holds values that are not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_named(adapter, change, message):
    """Catches: a layer without its adapter, one that nobody reads, an adapter of another base, a NaN in the policy."""
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    base = load_model(FIXTURES / "parity" / "qwen3_qk_norm_head_dim")
    with pytest.raises(ValueError, match=f"adapter_model.safetensors: {message}|{message}"):
        with_adapter(base, adapter)


def test_files_that_are_not_there_are_named(adapter):
    """Catches: pickled weights looked for, or an adapter of nothing."""
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="adapter_model.safetensors does not exist.*must be safetensors"):
        read_adapter(adapter, {})
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="adapter_config.json does not exist: give the directory of a LoRA"):
        read_adapter_config(adapter, TARGETS)


def test_an_adapter_is_no_model(adapter):
    """Catches: "config.json does not exist", which does not say what to do."""
    with pytest.raises(ValueError, match="holds a LoRA adapter, not a whole model: train_llm.py takes its base with"):
        load_model(adapter)


# ---- train_llm.py ----

# Half of the answers are right, by their checksums: a random model has something to learn from.
EASY = """
import zlib
from minclipo.tasks import Task
from minclipo.toy import TASK
EASY = Task(TASK.draw, lambda problem, text, finished: zlib.crc32(text.encode()) % 2 == 0)
"""
SHORT = "--prompts-per-step 2 --group-size 3 --max-new-tokens 5 --learning-rate 1e-2 --eval-problems 3 "
SHORT += "--device cpu --dtype float32 --threads 1 --save-every 1"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_model(small_gpt(vocab_size=122), toy_tokenizer(), folder)
    (folder / "easy.py").write_text(EASY)
    return folder


def run(base: Path, out: Path, *arguments: str) -> int:
    words = ["--model", str(base), "--data", f"{base / 'easy.py'}:EASY", *SHORT.split(), "--out", str(out)]
    return train_llm.main([*words, *arguments])


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory) -> Path:
    """Two steps of rank 2."""
    out = tmp_path_factory.mktemp("runs") / "trained"
    assert run(base, out, "--steps", "2", "--lora-rank", "2", "--eval-every", "2", "--keep-best", "accuracy") == 0
    return out


def test_a_run_saves_both_ways(base, trained):
    """OUT/model is base + OUT/adapter; OUT/best is an ordinary model, too. Catches: a model saved without its
    adapters, or with tensors that nothing else reads; adapters of another step."""
    tokens, whole = torch.arange(9)[None], load_model(trained / "model")
    model = with_adapter(load_model(base), trained / "adapter")
    assert torch.equal(merged(model)(tokens), whole(tokens)) and not torch.equal(
        whole(tokens), load_model(base)(tokens)
    )
    assert load_model(trained / "best").config == whole.config
    says = read_json(trained / "adapter" / "adapter_config.json")
    assert (says["r"], says["lora_alpha"], says["base_model_name_or_path"]) == (2, 32, str(base))
    state = torch.load(trained / "states" / "step_000002.pt", weights_only=True)
    assert state["optimizer"]["masters"].keys() == adapter_weights(model).keys()


def test_a_run_goes_on_bit_equal(base, trained, tmp_path):
    """One step, then the other. Catches: adapters drawn anew; a moment or a step that is lost."""
    arguments = ("--lora-rank", "2", "--eval-every", "0")
    assert run(base, tmp_path / "run", "--steps", "1", *arguments) == 0
    assert run(base, tmp_path / "run", "--steps", "2", "--resume", *arguments) == 0
    for file in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        ours, theirs = load_file(tmp_path / "run" / file), load_file(trained / file)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_begins_with_an_adapter(base, trained, tmp_path, capsys):
    """Rank, alpha and targets are the adapter's; with a KL to it. Catches: a run that begins at B = 0 again, or with
    a reference of its own; an evaluation of the base."""
    out = tmp_path / "run"
    arguments = ("--steps", "1", "--init-adapter", str(trained / "adapter"), "--kl-weight", "0.1")
    assert run(base, out, *arguments, "--num-mini-batches", "1") == 0
    assert f"adapters from {trained / 'adapter'}, made for {base}" in capsys.readouterr().out
    settings, line = read_json(out / "settings.json"), json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    assert (settings["llm"]["lora_rank"], settings["llm"]["lora_targets"]) == (2, " ".join(TARGETS))
    assert settings["files"]["adapter"].keys() == {"adapter_config.json", "adapter_model.safetensors"}
    assert abs(line["kl_reference"]) < 1e-6 and read_json(out / "adapter" / "adapter_config.json")["r"] == 2
    (trained / "model" / "easy.py").write_text(EASY)
    changed(trained / "adapter", base_model_name_or_path="\x1b[2Jme")
    given = (base, tmp_path / "eval", "--init-adapter", str(trained / "adapter"))
    for model, folder, *more in (given, (trained / "model", tmp_path / "merged")):
        assert run(model, folder, "--eval-only", *more) == 0
    changed(trained / "adapter", base_model_name_or_path=str(base))
    assert "made for ?[2Jme" in capsys.readouterr().out
    answers = [(tmp_path / name / "answers.jsonl").read_text() for name in ("eval", "merged")]
    assert answers[0] == answers[1]


def test_a_run_goes_on_only_on_the_same_frozen_weights(base, trained, tmp_path, capsys):
    """They are in no training state. Catches: adapters that go on beside other weights than they were trained for."""
    copy, out = Path(shutil.copytree(base, tmp_path / "base")), tmp_path / "run"
    adapter = Path(shutil.copytree(trained / "adapter", tmp_path / "adapter"))
    arguments = ("--init-adapter", str(adapter), "--eval-every", "0")
    assert run(copy, out, "--steps", "1", *arguments) == 0
    for path, wanted in ((adapter / "adapter_model.safetensors", 0), (copy / "model.safetensors", 1)):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        assert run(copy, out, "--steps", "2", "--resume", *arguments) == wanted
    said = capsys.readouterr()
    assert "--init-adapter: adapter_model.safetensors has changed. The run goes on from its own adapters" in said.out
    assert "--model: model.safetensors has changed. Put the earlier files back" in said.err


def test_a_kl_penalty_needs_the_adapter_that_it_began_with(base, trained, tmp_path, capsys):
    """Catches: another reference from the middle of the run on."""
    adapter = Path(shutil.copytree(trained / "adapter", tmp_path / "adapter"))
    arguments = ("--init-adapter", str(adapter), "--eval-every", "0", "--kl-weight", "0.1")
    assert run(base, tmp_path / "run", "--steps", "1", *arguments) == 0
    data = bytearray((adapter / "adapter_model.safetensors").read_bytes())
    data[-1] ^= 1
    (adapter / "adapter_model.safetensors").write_bytes(data)
    assert run(base, tmp_path / "run", "--steps", "2", "--resume", *arguments) == 1
    assert "--init-adapter: adapter_model.safetensors has changed. Put the earlier" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--lora-alpha 4", "--lora-alpha does nothing without --lora-rank or --init-adapter"),
        ("--lora-targets q_proj", "--lora-targets does nothing without --lora-rank or --init-adapter"),
        ("--lora-rank -1", "--lora-rank must be at least 0, found -1"),
        ("--lora-rank 2 --lora-alpha 0", "--lora-alpha must be above 0, found 0.0"),
        ("--lora-rank 2 --lora-targets lm_head", "--lora-targets must be some of q_proj .*; found 'lm_head'"),
        ("--lora-rank 2 --lora-targets=", "--lora-targets must be some of q_proj .*; found ''"),
        ("--init-adapter nowhere", "nowhere.adapter_config.json does not exist: give the directory of a LoRA adapter"),
        ("--init-adapter ADAPTER --lora-rank 3", "--lora-rank 3 contradicts .*adapter, which has 2: leave it out"),
        ("--init-adapter ADAPTER --lora-alpha 3", "--lora-alpha 3.0 contradicts .*adapter, which has 32.0"),
        (
            "--init-adapter ADAPTER --lora-targets q_proj",
            "--lora-targets q_proj contradicts .*, which has q_proj k_proj",
        ),
    ],
)
def test_options_that_do_nothing_or_contradict_are_refused(base, trained, tmp_path, capsys, arguments, message):
    words = arguments.replace("ADAPTER", str(trained / "adapter")).split()
    assert run(base, tmp_path / "run", *words) == 1
    said = capsys.readouterr().err
    assert re.search(message, said) and said.count("\n") == 1 and not (tmp_path / "run").exists()


def test_the_same_as_the_adapter_says_may_be_said(base, trained, capsys):
    """Catches: settings that a run has written down and that contradict the adapter they came from; a place that is
    not named."""
    words = ["--init-adapter", str(trained / "adapter"), "--lora-rank", "2", "--show-settings"]
    words += ["--lora-targets", " ".join(reversed(TARGETS))]
    assert run(base, Path("nowhere"), *words) == 0
    said = capsys.readouterr().out
    assert f"lora_alpha               32.0                         {trained / 'adapter'}" in said


def test_an_evaluation_says_that_fresh_adapters_do_nothing(base, tmp_path, capsys):
    words = ("--eval-only", "--lora-rank", "2", "--lora-alpha", "3")
    assert run(base, tmp_path / "eval", *words) == 0
    said = capsys.readouterr().out
    assert "--eval-only trains nothing: " in said and "--lora-rank, --lora-alpha" in said and "LoRA: rank" not in said
