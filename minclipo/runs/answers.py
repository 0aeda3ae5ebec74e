"""A model's answers on the screen: one as it comes, or several with their log-probs."""

import re
from functools import partial

import torch

from minclipo.checkpoint import Tokenizer
from minclipo.checkpoint.tokenizer import NO_TEXT
from minclipo.logprobs import completion_logprobs
from minclipo.model import GPT
from minclipo.sampler import Decoder, draw_token, sample


def printable(text: str) -> str:
    """The text as a terminal may have it: a control character could move the cursor, set the window's title or turn the
    direction of writing."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", lambda found: repr(found[0])[1:-1], text)


class Stream(Decoder):
    """An answer that is printed as it grows: after every token, on a GPU after every round of them. The tokens are
    those of `sample`, since both are a `Decoder`'s."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, ids: list[int], room: int, **settings):
        """room: tokens of the answer at most; settings: temperature, top_k and top_p, as `sample` takes them."""
        self.tokenizer, self.text, self.shown = tokenizer, "", 0
        super().__init__(model, [ids], 1, room, tokenizer.eos_ids, partial(draw_token, **settings))

    def round(self, tokens: int, *random) -> int:
        alive = super().round(tokens, *random)
        ids = self.completions[0][self.mask[0]].tolist()
        self.text = self.tokenizer.decode_batch([ids[:-1] if ids[-1] in self.tokenizer.eos_ids else ids])[0]
        self.print(len(self.text.rstrip(NO_TEXT)))  # half a character at the end waits for the other half
        return alive

    def print(self, end: int) -> None:
        """The text up to there, as far as it is not printed yet."""
        print(printable(self.text[self.shown : end]), end="", flush=True)
        self.shown = max(end, self.shown)

    def run(self, generator: torch.Generator | None):
        """Ends the line in any case: Ctrl-C leaves what has come so far, in `text`, too."""
        try:
            return super().run(generator)
        finally:
            self.print(len(self.text))
            print()


@torch.no_grad()
def print_samples(model: GPT, tokenizer: Tokenizer, ids: list[int], count: int, room: int, generator, **settings):
    """Print `count` answers. Their log-probs are the model's own, at temperature 1, whatever the answers were drawn
    with; the token that ends an answer counts, too."""
    drawn = sample(model, [ids], count, room, eos_ids=tokenizer.eos_ids, generator=generator, **settings)
    logprobs, _ = completion_logprobs(model, drawn.prompts, drawn.completions, drawn.mask, drawn.group)
    rows = zip(logprobs.sum(1).tolist(), drawn.mask.sum(1).tolist(), drawn.finished.tolist())
    for text, (logprob, tokens, finished) in zip(tokenizer.decode_batch(drawn.completion_ids()), rows):
        cut = "" if finished else ", cut off"
        print(f"[log-prob {logprob:.3f}, {logprob / tokens:.3f} per token, {tokens} tokens{cut}]")
        print(printable(text), end="\n\n")
