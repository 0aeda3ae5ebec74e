"""Talking to a model: what is printed is what `sample` gives, in a pipe and at a terminal."""

import io
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import FIXTURES, small_gpt

from minclipo import chat as chat_module
from minclipo.chat import Chat, ChatConfig, main
from minclipo.checkpoint import load_model, load_tokenizer, save_model
from minclipo.runs import answers
from minclipo.runs.answers import Stream, printable
from minclipo.sampler import sample
from minclipo.toy import toy_tokenizer

ROOT = Path(__file__).parent.parent
CHAT_MODEL = str(FIXTURES / "parity" / "smollm2_like_bf16")
QUESTION = [{"role": "user", "content": "1 + 1?"}]


class Terminal(io.StringIO):
    """Remembers what was written piece by piece."""

    def __init__(self):
        super().__init__()
        self.pieces = []

    def write(self, text: str) -> int:
        self.pieces.append(text)
        return super().write(text)


def scripted(monkeypatch, ids: list[int], then: BaseException | None = None) -> None:
    """Let a Stream draw these ids, whatever the model thinks; then the exception, if any."""
    queue = iter(ids)

    def draw(logits, uniform, **_):
        token = next(queue, None)
        if token is None:
            raise then
        return torch.tensor([token]), torch.zeros(1)

    monkeypatch.setattr(answers, "draw_token", draw)


@pytest.mark.parametrize(
    "options, settings",
    [
        (["--temperature", "0"], dict(temperature=0)),
        (["--seed", "5"], dict(temperature=0.6, top_p=0.95)),
        (["--temperature", "2", "--top-p", "1", "--top-k", "7"], dict(temperature=2, top_k=7)),
    ],
)
def test_a_streamed_answer_is_the_one_that_sample_gives(options, settings, capsys):
    """Catches: a second sampler beside the first, an option that reaches nobody, a seed that does not decide."""
    assert main([CHAT_MODEL, "--prompt", "1 + 1?", "--max-new-tokens", "20", "--device", "cpu", *options]) == 0
    tokenizer, seed = load_tokenizer(CHAT_MODEL), 5 if "--seed" in options else 0
    ids, generator = tokenizer.encode(tokenizer.chat(QUESTION)), torch.Generator().manual_seed(seed)
    wanted = sample(load_model(CHAT_MODEL), [ids], 1, 20, eos_ids=tokenizer.eos_ids, generator=generator, **settings)
    printed = capsys.readouterr()
    assert printed.out == printable(tokenizer.decode_batch(wanted.completion_ids())[0]) + "\n"
    assert ("cut off after 20 tokens: --max-new-tokens" in printed.err) == (not wanted.finished.item())


def test_words_appear_as_they_are_drawn_and_characters_whole(monkeypatch):
    """Bytes of characters are tokens here. Catches: an answer that comes at its end, or in replacement characters."""
    tokenizer, terminal = load_tokenizer(CHAT_MODEL), Terminal()
    ids = tokenizer.encode("né 😀")
    assert len(ids) > len("né 😀")
    scripted(monkeypatch, ids + tokenizer.eos_ids)
    monkeypatch.setattr(sys, "stdout", terminal)
    Stream(load_model(CHAT_MODEL), tokenizer, [1], 50).run(None)
    assert [piece for piece in terminal.pieces if piece] == ["n", "é", " ", "😀", "\n"]


def test_what_ends_in_half_a_character_is_printed_all_the_same(monkeypatch, capsys):
    """Catches: a last character that is held back for ever."""
    tokenizer = load_tokenizer(CHAT_MODEL)
    scripted(monkeypatch, [*tokenizer.encode("a😀")[:-1], *tokenizer.eos_ids])
    Stream(load_model(CHAT_MODEL), tokenizer, [1], 50).run(None)
    assert capsys.readouterr().out == "a\N{REPLACEMENT CHARACTER}\n"


def test_a_model_does_not_command_the_terminal(monkeypatch, capsys):
    """Catches: a model that sets the window's title, hides what it wrote, or rings."""
    tokenizer = load_tokenizer(CHAT_MODEL)
    scripted(monkeypatch, tokenizer.encode("a\x1b]0;title\x07\r\x9b2Jb\n\tc") + tokenizer.eos_ids)
    Stream(load_model(CHAT_MODEL), tokenizer, [1], 50).run(None)
    assert capsys.readouterr().out == "a\\x1b]0;title\\x07\\r\\x9b2Jb\n\tc\n"


def test_a_conversation_remembers_what_was_said(monkeypatch):
    """And after Ctrl-C, what was printed. Catches: a model that forgets, or is told words that nobody has seen."""
    chat = Chat(CHAT_MODEL, ChatConfig(system_prompt="Be brief.", device="cpu"))
    scripted(monkeypatch, chat.tokenizer.encode("Hello.") + chat.tokenizer.eos_ids)
    chat.say("Hi!")
    scripted(monkeypatch, chat.tokenizer.encode("I am"), then=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        chat.say("Who are you?")
    said = [("system", "Be brief."), ("user", "Hi!"), ("assistant", "Hello."), ("user", "Who are you?")]
    said += [("assistant", "I am"), ("user", "Go on.")]
    assert chat.prompt("Go on.") == chat.tokenizer.chat([{"role": role, "content": text} for role, text in said])


def test_a_conversation_that_is_too_long_says_so(tmp_path, monkeypatch, capsys):
    """Room for a part of the answer, then for none. Catches: an assertion of the cache, a chat that dies of it."""
    save_model(small_gpt(vocab_size=400, max_positions=60), load_tokenizer(CHAT_MODEL), tmp_path)
    chat = Chat(str(tmp_path), ChatConfig(device="cpu", temperature=0, max_new_tokens=10**9))
    used = len(chat.tokenizer.encode(chat.prompt("1 + 1?")))
    chat.say("1 + 1?")
    assert capsys.readouterr().err == f"[cut off after {60 - used} tokens: the model has no room for more]\n"
    monkeypatch.setattr("builtins.input", lambda _, lines=iter(["and 2 + 2?", "/new", "3 + 3?"]): next_line(lines))
    chat_module.converse(chat)
    printed = capsys.readouterr().err
    assert printed.count("this is too long") == 1 and "the model has 60 for prompt and answer: /new begins" in printed
    assert printed.count("cut off after") == 1 and [message["role"] for message in chat.said] == ["user", "assistant"]


def next_line(lines) -> str:
    try:
        return next(lines)
    except StopIteration:
        raise EOFError from None


def test_samples_carry_the_models_own_log_probs(capsys):
    """Against a plain forward pass. Catches: those of the distribution drawn from (0 when greedy), eos left out."""
    options = "--samples 3 --max-new-tokens 12 --temperature 0.5 --top-k 3 --device cpu".split()
    assert main([CHAT_MODEL, "--prompt", "1 + 1?", *options]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[log-prob ")]
    tokenizer, model = load_tokenizer(CHAT_MODEL), load_model(CHAT_MODEL)
    ids = tokenizer.encode(tokenizer.chat(QUESTION))
    generator = torch.Generator().manual_seed(0)
    drawn = sample(
        model, [ids], 3, 12, temperature=0.5, top_k=3, top_p=0.95, eos_ids=tokenizer.eos_ids, generator=generator
    )
    for line, completion, mask in zip(lines, drawn.completions, drawn.mask, strict=True):
        answer = completion[mask].tolist()
        with torch.no_grad():
            logits = model.logits(model(torch.tensor([ids + answer])))[0, len(ids) - 1 : -1]
        total = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum().item()
        said = [float(word) for word in line[1:].replace(",", "").split() if word.lstrip("-")[0].isdigit()]
        assert said == pytest.approx([total, total / len(answer), len(answer)], abs=2e-3)


def test_a_text_from_a_pipe_is_one_prompt(monkeypatch, capsys):
    """Catches: line by line, as if it were typed; the newline that `echo` adds as a part of the question."""
    asked = []
    monkeypatch.setattr(Chat, "say", lambda self, text: asked.append(text))
    monkeypatch.setattr(sys, "stdin", io.StringIO("two\nlines\n"))
    assert main([CHAT_MODEL, "--device", "cpu"]) == 0 and asked == ["two\nlines"]


def test_the_toys_own_model_gets_plain_words(tmp_path, capsys):
    """Catches: a chat template that a model must have; a traceback for a word that it does not know."""
    save_model(small_gpt(vocab_size=122), toy_tokenizer(), tmp_path)
    toy = [str(tmp_path), "--device", "cpu", "--max-new-tokens", "5"]
    assert main([*toy, "--prompt", "7 , +5 , -3 ="]) == 0
    assert len(capsys.readouterr().out.split()) in range(1, 6)
    assert main([*toy, "--prompt", "seven"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("chat: the prompt: the model's tokenizer cannot encode 'seven") and said.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["no/such/folder"], "no/such/folder does not exist"),
        ([CHAT_MODEL, "--temperature", "-1"], "temperature must be at least 0"),
        ([CHAT_MODEL, "--temperature", "1e-9"], "temperature must be 0 or at least 1e-6"),
        ([CHAT_MODEL, "--top-p", "0"], "top_p must be above 0"),
        ([CHAT_MODEL, "--stop-tokens", "<stop>"], "'<stop>' is no token"),
        ([CHAT_MODEL, "--prompt", "1 " * 600], "this is too long: 12"),
        ([CHAT_MODEL, "--prompt", ""], "there is nothing to answer"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments, message, capsys):
    assert main(["--device", "cpu", *(arguments if "--prompt" in arguments else [*arguments, "--prompt", "x"])]) == 1
    said = capsys.readouterr().err
    assert said.startswith("chat: ") and message in said and said.count("\n") == 1


@pytest.mark.parametrize("stdin", [None, io.StringIO("")])
def test_without_anything_to_read_it_says_what_to_give(stdin, monkeypatch, capsys):
    """Closed or empty. Catches: an attribute of None; an answer to nothing."""
    monkeypatch.setattr(sys, "stdin", stdin)
    assert main([CHAT_MODEL]) == 1 and "give --prompt TEXT" in capsys.readouterr().err


def read_until(screen: int, wanted: str, process: subprocess.Popen, seconds: float = 120) -> str:
    """What the terminal shows until `wanted` is there."""
    seen, end = "", time.monotonic() + seconds
    while wanted not in seen:
        assert select.select([screen], [], [], max(0, end - time.monotonic()))[0], f"no {wanted!r} in {seen!r}"
        seen += os.read(screen, 4096).decode(errors="replace")
    return seen


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_at_a_terminal_ctrl_c_stops_an_answer_and_ctrl_d_ends(tmp_path):
    """A real terminal, and an answer that would take hours. Catches: Ctrl-C that ends the chat or waits for the
    answer, a prompt that does not come back, words that come only at the end."""
    tokenizer = load_tokenizer(CHAT_MODEL)
    save_model(small_gpt(vocab_size=400, max_positions=10**6), tokenizer, tmp_path)
    screen, terminal = os.openpty()
    command = [sys.executable, "-m", "minclipo.chat", str(tmp_path), "--device", "cpu"]
    command += ["--temperature", "0", "--max-new-tokens", "100000"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "dumb"}
    options = dict(cwd=tmp_path, env=environment, start_new_session=True)
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, **options)
    try:
        read_until(screen, "> ", process)
        for question in (b"first", b"second"):
            os.write(screen, question + b"\n")
            read_until(screen, question.decode() + "\r\n", process)
            assert select.select([screen], [], [], 60)[0]  # the first word
            process.send_signal(signal.SIGINT)
            read_until(screen, "\r\n> ", process)
        os.write(screen, b"\x04")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(screen)
        os.close(terminal)


def test_nothing_that_a_model_says_is_a_command():
    """Escape sequences, and what turns the direction of writing; emoji and line breaks stay. Catches: a model that
    clears the screen, or writes a text that reads otherwise than it is."""
    assert printable("a\x1b[2J\u202eb\u2066\n\tc👨‍👩‍👧") == "a\\x1b[2J\\u202eb\\u2066\n\tc👨‍👩‍👧"
