"""A sign of life: what a run is doing while a step lasts, and how long the whole will take.

On a terminal it is a line below the log; elsewhere (a pipe, a notebook) a line now and then. A thread looks at what the
host knows anyway: the trainer's step, which fills up stage by stage, and the sampler's cache. So nothing waits for a
GPU, and the files of the step need not report anything.
"""

import shutil
import threading
import time
import weakref
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from minclipo.extensions.processes import several
from minclipo.runs.console import say, wrapped
from minclipo.runs.signals import check_signals
from minclipo.sampler import KVCache

EVERY = 30.0  # seconds between two lines, at least
LOOK = 0.5  # seconds between two looks


class Sampling:
    """How far a call of `sample` has got, as seen from the model's forward passes: parts of a batch, one cache each."""

    def __init__(self):
        self.before = self.rows = 0  # rows of earlier parts, all finished; rows of this part
        self.cache = lambda: None  # of this part, weakly: it takes gigabytes and is to go when its part is done

    def see(self, inputs: tuple) -> None:
        """A forward pass of the policy begins; inputs: (tokens [B, T], layout)."""
        cache = inputs[1] if len(inputs) > 1 else None
        if not isinstance(cache, KVCache):
            return
        if cache is not self.cache():  # the prompts of a new part
            self.before, self.rows, self.length = self.before + self.rows, 0, inputs[0].shape[1]
            self.tokens, self.started, self.cache = 0, time.monotonic(), weakref.ref(cache)
        elif not self.rows:  # its first token
            self.rows = len(cache.lengths)

    def look(self) -> tuple[int, int]:
        """(Rollouts that are finished, tokens per second); as many as after the sampler's last round."""
        cache = self.cache()
        if cache is None or not self.rows:  # between two parts, or at the prompts
            return self.before + self.rows, 0
        alive, new, self.length = getattr(cache, "alive", self.rows), cache.longest - self.length, cache.longest
        self.tokens += new * alive
        return self.before + self.rows - alive, round(self.tokens / (time.monotonic() - self.started + 1e-3))


class Progress:
    """Looks at a `Run` from a thread of its own, from `with` to its end."""

    def __init__(self, run):
        self.run, self.trainer, self.config = run, run.trainer, run.config
        self.sampling, self.passes, self.seen = Sampling(), 0, None
        self.done, self.end = 0, None  # steps done here; when the last one will be

    def __enter__(self):
        self.bar = tqdm(total=0, bar_format="{desc}", leave=False, disable=None)
        self.shown = self.estimated = self.began = time.monotonic()  # last line; last estimate; start
        self.hook = self.trainer.model.register_forward_pre_hook(lambda model, inputs: self.see(inputs))
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch, name="progress", daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.hook.remove()
        self.over.set()
        self.thread.join()
        self.bar.close()

    def see(self, inputs: tuple) -> None:
        """A forward pass begins. Counts those of the update, and leaves the others to `Sampling`."""
        if self.seen != self.where():  # another batch, or an evaluation
            self.sampling, self.passes, self.seen = Sampling(), 0, self.where()
        self.sampling.see(inputs)
        self.passes += self.trainer.last.advantages is not None

    def where(self) -> tuple:
        return self.run.doing, self.trainer.last.number, self.trainer.problems_drawn

    def step_done(self) -> None:
        """The line of a step has just been shown. Off a terminal, whose bar does it, say how long the rest takes: after
        the first step, and as time goes on less and less often."""
        self.done, self.shown = self.done + 1, time.monotonic()
        if self.done == 1:  # it warms up and compiles: as soon as there is another one, it does not count
            self.first, pace = self.shown, self.shown - self.began
        else:
            pace = (self.shown - self.first) / (self.done - 1)
        self.end = self.shown + pace * (self.config.steps - self.run.step)
        due = self.done == 1 or self.shown - self.estimated > max(EVERY, 0.1 * (self.shown - self.began))
        if self.bar.disable and due and self.end - self.shown > EVERY:
            self.estimated = self.shown
            say(f"{self.run.description}: {self.time_left()}")

    def time_left(self) -> str:
        return f"about {duration(max(0, self.end - time.monotonic()))} left"

    def watch(self) -> None:
        """What the thread does."""
        while not self.over.wait(LOOK):
            text, quiet = self.now(), time.monotonic() - self.shown
            if not self.bar.disable:  # a short step needs no words
                self.bar.set_description_str(text[: shutil.get_terminal_size().columns - 1] if quiet > 1 else "")
            elif quiet > EVERY:
                self.shown = self.estimated = time.monotonic()
                say(text if self.end is None else wrapped([text, self.time_left()]))

    def now(self) -> str:
        """What is going on, in words."""
        step = self.trainer.last
        finished, speed = self.sampling.look() if self.seen == self.where() else (0, 0)
        if self.run.doing == "evaluation":
            return f"{self.run.description}: evaluation, {finished:,} completions finished, {speed:,} tokens/s"
        if self.run.doing != "step":
            return f"{self.run.description}: {self.run.doing}"
        if step.advantages is not None:
            stage = f"update, forward pass {self.passes}"
        elif step.correct is not None:
            stage = "contrast and rewards"
        elif step.rollouts is not None:
            stage = "verifying"
        else:
            rollouts = self.config.prompts_per_step * self.config.group_size
            how_far = f", {finished:,} of {rollouts:,} rollouts finished, {speed:,} tokens/s"
            stage = f"sampling{self.batch()}" + how_far * (not several())  # of a part, nobody wants to know
        return f"{self.run.description} {step.number}/{self.config.steps}: {stage}"

    def batch(self) -> str:
        """Which of the batches of dynamic sampling."""
        if not self.config.dynamic_sampling:
            return ""
        number = (self.trainer.problems_drawn - self.run.before["problems_drawn"]) // self.config.prompts_per_step
        return f" batch {number} of at most {self.config.dynamic_sampling}"


def watched(parts: Sequence, what: str) -> Iterator:
    """The parts of some work outside a `Run`, with a bar on a terminal, and elsewhere with a line now and then."""
    bar, began = tqdm(parts, what, leave=False, disable=None), time.monotonic()
    shown = began
    for done, part in enumerate(bar):
        check_signals()
        now = time.monotonic()
        if done and bar.disable and now - shown > EVERY:
            shown = now
            left = (now - began) / done * (len(parts) - done)
            say(f"{what}: {done} of {len(parts)}, about {duration(left)} left")
        yield part


def duration(seconds: float) -> str:
    """In two units at most.

    >>> [duration(x) for x in (59, 600, 7800, 400000)]
    ['59 s', '10 min', '2 h 10 min', '4 d 15 h']
    """
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
