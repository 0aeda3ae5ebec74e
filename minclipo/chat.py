"""Talk to a model: the directory of a checkpoint, such as runs/llm/model, or its id on the Hugging Face hub.

    python -m minclipo.chat runs/llm/model                            # a conversation
    python -m minclipo.chat MODEL --prompt "What is 6 times 7?"       # one answer; a text from a pipe gets one, too
    python -m minclipo.chat MODEL --prompt TEXT --samples 4           # four answers, each with its log-prob

In a conversation, Ctrl-C stops an answer, /new begins anew and Ctrl-D ends. A model without a chat template knows no
conversation: it gets each text by itself and a newline, as train_llm.py writes its problems.
"""

import argparse
import contextlib
import math
import sys
from dataclasses import dataclass
from functools import partial

import torch

from minclipo.checkpoint import Checkpoint
from minclipo.checkpoint.tokenizer import prompt_writer
from minclipo.config import check, option
from minclipo.runs.answers import Stream, print_samples
from minclipo.runs.command_line import add_options, given_options
from minclipo.runs.console import prepare_console
from minclipo.runs.machine import pick_device, pick_dtype
from minclipo.runs.problems import prompt_lengths

_model, _sampling = partial(option, group="model"), partial(option, group="sampling")


@dataclass
class ChatConfig:
    """What is asked for besides model and prompt."""

    system_prompt: str = _model("", "system message of the chat; empty: the template's own")
    stop_tokens: str = _model("", "more tokens that end a completion, separated by spaces: '<|im_end|>'")
    device: str = _model("auto", "auto: cuda, else mps, else cpu", choices=("auto", "cuda", "mps", "cpu"))
    dtype: str = _model("auto", "auto: bfloat16 on cuda, else float32", choices=("auto", "float32", "bfloat16"))
    temperature: float = _sampling(0.6, "0: always the likeliest token", at_least=0)
    top_p: float = _sampling(0.95, "draw from the likeliest tokens that have this probability", above=0, at_most=1)
    top_k: int = _sampling(0, "draw from this many of the likeliest tokens; 0: from all", at_least=0)
    max_new_tokens: int = _sampling(512, "tokens of an answer at most", at_least=1)
    samples: int = _sampling(0, "answers to show, each with its log-prob; 0: one, word by word", at_least=0)
    seed: int = _sampling(0, "the same seed gives the same answers", at_least=0, at_most=2**63 - 1)

    def __post_init__(self):
        check(self)
        if 0 < self.temperature < 1e-6:
            raise ValueError(f"temperature must be 0 or at least 1e-6, found {self.temperature}")


class Chat:
    """A model, and what has been said so far."""

    def __init__(self, source: str, config: ChatConfig):
        device, checkpoint = pick_device(config.device), Checkpoint(source)
        self.config, self.tokenizer = config, checkpoint.tokenizer
        self.tokenizer.stop_at(config.stop_tokens.split())
        self.model = checkpoint.model(pick_dtype(config.dtype, device), device)
        self.system = [{"role": "system", "content": config.system_prompt}] if config.system_prompt else []
        self.said: list[dict] = []
        self.generator = torch.Generator(device).manual_seed(config.seed)
        self.settings = dict(temperature=config.temperature, top_k=config.top_k or None, top_p=config.top_p)

    def prompt(self, text: str) -> str:
        if self.tokenizer.chat_template is None:
            return prompt_writer(self.tokenizer, system_prompt=self.config.system_prompt)(text)
        return self.tokenizer.chat([*self.system, *self.said, {"role": "user", "content": text}])

    @torch.no_grad()
    def say(self, text: str) -> None:
        """Print the answer to `text`, or several, which the conversation does not remember. ValueError if the model
        cannot read it. After Ctrl-C the conversation goes on from what was printed."""
        prompt, most = self.prompt(text), self.model.config.max_positions
        used = prompt_lengths(["the prompt"], [prompt], self.tokenizer, most)[0]
        if used >= most:
            new = ": /new begins anew" if self.said else ""
            found = f"{used} tokens" if used < math.inf else "far more tokens than that"
            raise ValueError(f"this is too long: {found}, and the model has {most} for prompt and answer{new}")
        ids, room = self.tokenizer.encode(prompt), min(self.config.max_new_tokens, most - used)
        ask = dict(model=self.model, tokenizer=self.tokenizer, ids=ids, room=room) | self.settings
        if self.config.samples:
            return print_samples(count=self.config.samples, generator=self.generator, **ask)
        answer = Stream(**ask)
        try:
            finished = answer.run(self.generator).finished.item()
        finally:
            if self.tokenizer.chat_template is not None:
                self.said += [{"role": "user", "content": text}, {"role": "assistant", "content": answer.text}]
        if not finished:
            limit = "--max-new-tokens" if room == self.config.max_new_tokens else "the model has no room for more"
            print(f"[cut off after {room} tokens: {limit}]", file=sys.stderr)


def converse(chat: Chat) -> None:
    with contextlib.suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  arrow keys and history for `input`
    print("Ctrl-C stops an answer, /new begins anew, Ctrl-D ends.", file=sys.stderr)
    while True:
        try:
            text = input("> ").strip()
            chat.said.clear() if text == "/new" else chat.say(text) if text else None
        except EOFError:
            return print()
        except KeyboardInterrupt:
            print()
        except ValueError as error:
            print(f"chat: {error}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    prepare_console()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="directory of a checkpoint, or its id on the Hugging Face hub")
    parser.add_argument("--prompt", metavar="TEXT", help="answer this and end (default: what comes from a pipe)")
    add_options(parser, ChatConfig)
    arguments = parser.parse_args(argv)
    try:
        config, prompt = ChatConfig(**given_options(arguments, ChatConfig)), arguments.prompt
        if prompt is None and not (sys.stdin and sys.stdin.isatty()):
            prompt = sys.stdin.read() if sys.stdin else ""
        if prompt is not None and not prompt.strip():
            raise ValueError("there is nothing to answer: give --prompt TEXT, or a text on standard input")
        chat = Chat(arguments.model, config)
        converse(chat) if prompt is None else chat.say(prompt.removesuffix("\n"))
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, FloatingPointError, torch.OutOfMemoryError) as error:
        print(f"chat: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
