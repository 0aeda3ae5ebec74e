"""One training step of GRPO and CLIPO, and the loop around it.

`Trainer.step` reads like the algorithm box of a paper: sample, verify, contrast, advantages, update, measure. GRPO is
the case contrastive_weight = 0; the policy update knows nothing of the contrastive part, which only changes rewards.
The toy and real checkpoints run this same code.
Left out: several workers, learning-rate schedules.

B prompts, G rollouts a prompt, N = B * G rows, T completion tokens.
"""

import copy
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from minclipo.checkpoint import save_model, save_tensors
from minclipo.config import TrainConfig
from minclipo.contrastive import ContrastiveHead, center_by_group, contrastive_loss, contrastive_reward
from minclipo.dapo import dynamic_sampling, overlong_penalty
from minclipo.files import read_lines, write_lines
from minclipo.grpo import aggregate, group_advantages, kl_penalty, masked_mean, policy_loss, token_weights
from minclipo.logprobs import completion_logprobs, micro_batches, rollout_logprobs
from minclipo.metrics import faithfulness_metrics, log_line, rollout_metrics
from minclipo.model import GPT
from minclipo.optimizer import Float32AdamW
from minclipo.prompt_contrast import draw_other_prompts, logprobs_under, prompt_contrast
from minclipo.sampler import Rollouts, sample
from minclipo.state import load_moments, moments, newest_state, remove_states, save_state, saved_states
from minclipo.tasks import Problem, Task
from minclipo.tokenizer import Tokenizer


def contrastive_step(
    head: ContrastiveHead,
    optimizer: torch.optim.Optimizer | None,
    pooled: Tensor,
    correct: Tensor,
    group: Tensor,
    *,
    weight: float,
    floor: float = -0.5,
    constant: float = 0.0,
    **loss_options,
) -> tuple[Tensor, Tensor]:
    """Stage 3: (contrastive reward [N], mean contrastive loss) of pooled states [N, D], then one update of the head.

    The reward uses the embeddings from before the update. Without an optimizer, or without an anchor in the batch, the
    head stays as it is. `loss_options` go to `contrastive_loss`. Raises FloatingPointError for embeddings that
    are not finite.
    """
    embeddings = head(pooled)
    if not embeddings.isfinite().all():
        raise FloatingPointError("the contrastive head's embeddings are not finite")
    found = contrastive_loss(embeddings, correct, group, **loss_options)
    reward = contrastive_reward(found.loss, correct, weight=weight, floor=floor, constant=constant)
    if optimizer is not None and found.anchors.any():
        optimizer.zero_grad()
        found.mean.backward()
        optimizer.step()
    return reward, found.mean.detach()


class Trainer:
    """Holds what a run changes: policy, head, both optimizers, random state. `step()` does one training step."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, task: Task, config: TrainConfig, out: str | Path):
        if config.process_penalty and task.check_steps is None:
            raise ValueError("process_penalty needs a task with a step check (task.check_steps)")
        self.model, self.tokenizer, self.task, self.config, self.out = model, tokenizer, task, config, Path(out)
        device = model.embed_tokens.weight.device
        self.optimizer = Float32AdamW(model, config.learning_rate, config.weight_decay)
        self.reference = copy.deepcopy(model).requires_grad_(False) if config.kl_weight else None
        self.generator = torch.Generator(device).manual_seed(config.seed)
        self.head = self.head_optimizer = None
        if config.contrastive_weight:
            self.head, self.head_optimizer = self._make_head(device)
        self.saved_step, self.log_is_whole = 0, True
        self.step_number = 0  # of the step that is running, or that was the last to run
        self.problems_drawn = 0  # from the task, so far
        self.batch: dict[str, Tensor] = {}  # this step's tensors, written to disk if the step fails
        self.examples: list[tuple[Problem, str, bool]] = []  # this step's rollouts, to look at: is it right?

    def _make_head(self, device: torch.device) -> tuple[ContrastiveHead, torch.optim.Optimizer | None]:
        config = self.config
        with torch.random.fork_rng(devices=[]):  # nn.Linear draws from the global generator of the CPU
            torch.default_generator.manual_seed(config.seed)
            head = ContrastiveHead(self.model.config.hidden_size, config.head_size, config.head_kind).to(device)
        if config.head_learning_rate == 0 or config.head_kind == "none":
            return head, None
        rate, decay = config.head_learning_rate, config.head_weight_decay
        return head, torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=decay)

    def step(self) -> dict[str, float]:
        """One training step; returns its metrics."""
        started, config = time.perf_counter(), self.config
        self.step_number += 1

        # 1. Sample G rollouts of each of B prompts from the current policy, and
        # 2. verify: 1 for a right answer, 0 for a wrong one. The texts go to the verifier, never to the losses.
        if config.dynamic_sampling:
            (problems, rollouts, correct), extra = dynamic_sampling(self.collect, config.dynamic_sampling)
            self._keep_batch(rollouts, correct)
        else:
            (problems, rollouts, correct), extra = self.collect(), {}
        texts = self.tokenizer.decode_batch(rollouts.completion_ids())
        rewards = self.outcome_rewards(rollouts, correct)  # [N]

        # 3. Contrast: correct rollouts pay for lying far from the other correct ones of their prompt; the head learns.
        contrastive_rewards, head_loss = self.contrast(rollouts, correct)  # [N], scalar
        rewards = rewards + contrastive_rewards

        # (Our extension: they earn something for being likelier under their own prompt than under others.)
        if config.prompt_contrast_weight:
            gain = self.prompt_contrast(rollouts)  # [N]
            rewards = rewards + config.prompt_contrast_weight * gain * correct
            extra["prompt_contrast"] = masked_mean(gain, correct).item()

        # (The oracle, and nobody else, is told which steps are wrong.)
        if config.process_penalty:
            faithful, _ = self.check_steps(problems, texts)
            rewards = rewards - config.process_penalty * (correct & ~faithful).float()

        # 4. Advantages: each reward against the rewards of its group.
        advantages = group_advantages(
            rewards, config.group_size, scale=config.advantage_scale, epsilon=config.advantage_epsilon
        )  # [N]
        self.batch |= {"rewards": rewards, "advantages": advantages}
        self.examples = [(problems[i // config.group_size], *row) for i, row in enumerate(zip(texts, correct.tolist()))]

        # 5. Update the policy, unless the head is still warming up.
        warming_up = self.step_number <= config.head_warmup_steps
        update = {} if warming_up else self.update_policy(rollouts, advantages)

        # 6. Measure.
        metrics = {"step": self.step_number} | extra
        metrics |= rollout_metrics(rollouts, correct, rewards, contrastive_rewards)
        if self.task.check_steps is not None:
            metrics |= faithfulness_metrics(correct, *self.check_steps(problems, texts))
        return metrics | {"contrastive_loss": head_loss.item()} | update | {"seconds": time.perf_counter() - started}

    def collect(self) -> tuple[list[Problem], Rollouts, Tensor]:
        """The next B problems, G rollouts of each, and the verdict on each rollout [N]."""
        first, self.problems_drawn = self.problems_drawn, self.problems_drawn + self.config.prompts_per_step
        problems = [self.task.draw(f"training {self.config.seed}", i) for i in range(first, self.problems_drawn)]
        rollouts = self.sample(problems)
        correct = self.verify(problems, rollouts, self.tokenizer.decode_batch(rollouts.completion_ids()))
        self._keep_batch(rollouts, correct)
        return problems, rollouts, correct

    def _keep_batch(self, rollouts: Rollouts, correct: Tensor) -> None:
        """What a step that fails leaves on the disk."""
        self.batch = {f"prompt_{b}": torch.tensor(prompt) for b, prompt in enumerate(rollouts.prompts)}
        names = ("completions", "mask", "logprobs", "pooled", "finished")
        self.batch |= {name: getattr(rollouts, name) for name in names} | {"correct": correct}

    def sample(self, problems: list[Problem]) -> Rollouts:
        prompts = self.tokenizer.encode_batch([problem.prompt for problem in problems])
        self.batch = {f"prompt_{b}": torch.tensor(prompt) for b, prompt in enumerate(prompts)}
        config = self.config
        return sample(
            self.model,
            prompts,
            config.group_size,
            config.max_new_tokens,
            temperature=config.temperature,
            eos_ids=self.tokenizer.eos_ids,
            generator=self.generator,
            rows_at_once=config.sampling_rows or None,
        )

    def verify(self, problems: list[Problem], rollouts: Rollouts, texts: list[str]) -> Tensor:
        """Verdict of the outcome check on each rollout, [N] bool."""
        G, finished = self.config.group_size, rollouts.finished.tolist()
        verdicts = [self.task.check_outcome(problems[i // G], text, finished[i]) for i, text in enumerate(texts)]
        return torch.tensor(verdicts, device=rollouts.mask.device)

    def outcome_rewards(self, rollouts: Rollouts, correct: Tensor) -> Tensor:
        """1 for a right answer, 0 for a wrong one, less DAPO's price on length if there is one: [N]."""
        config, rewards = self.config, correct.float()
        if config.overlong_penalty:
            price = dict(buffer=config.overlong_buffer * config.max_new_tokens, penalty=config.overlong_penalty)
            rewards = rewards + overlong_penalty(rollouts.mask.sum(1), config.max_new_tokens, **price)
        return rewards

    def check_steps(self, problems: list[Problem], texts: list[str]) -> tuple[Tensor, Tensor]:
        """What the step check says of each rollout: (is every step right? [N] bool, number of steps checked [N])."""
        G, device = self.config.group_size, self.model.embed_tokens.weight.device
        verdicts = [self.task.check_steps(problems[i // G], text) for i, text in enumerate(texts)]
        faithful, checked = [all(steps) for steps in verdicts], [len(steps) for steps in verdicts]
        return torch.tensor(faithful, device=device), torch.tensor(checked, device=device)

    def contrast(self, rollouts: Rollouts, correct: Tensor) -> tuple[Tensor, Tensor]:
        """(contrastive reward [N], mean contrastive loss), both 0 for plain GRPO. Updates the head."""
        if self.head is None:
            return torch.zeros_like(correct, dtype=torch.float32), torch.zeros(())
        config = self.config
        pooled = center_by_group(rollouts.pooled, rollouts.group) if config.contrastive_center else rollouts.pooled
        return contrastive_step(
            self.head,
            self.head_optimizer,
            pooled,
            correct,
            rollouts.group,
            weight=config.contrastive_weight,
            floor=config.contrastive_floor,
            constant=config.contrastive_constant,
            **self.contrastive_options(),
        )

    def contrastive_options(self) -> dict:
        """What `contrastive_loss` is told besides the embeddings and whose they are."""
        names = ("loss", "level", "temperature", "similarity", "anchors")
        options = {name: getattr(self.config, f"contrastive_{name}") for name in names}
        return options | {"generator": self.generator}

    def prompt_contrast(self, rollouts: Rollouts) -> Tensor:
        """How much more likely each rollout is under its own prompt than under others of the batch, [N] in nats."""
        config = self.config
        others = draw_other_prompts(len(rollouts.prompts), config.prompt_contrast_others, self.generator)  # [K, B]
        other_logprobs = logprobs_under(
            self.model,
            rollouts,
            others,
            temperature=config.temperature,
            micro_batch_tokens=config.micro_batch_tokens,
        )
        return prompt_contrast(rollouts.logprobs, other_logprobs, rollouts.mask)

    def update_policy(self, rollouts: Rollouts, advantages: Tensor) -> dict[str, float]:
        """One pass over the rollouts in random mini-batches, an optimizer step each; the mini-batches' mean metrics."""
        rollouts = dataclasses.replace(rollouts, logprobs=self.old_logprobs(rollouts))
        order = torch.randperm(len(advantages), generator=self.generator, device=advantages.device)
        parts = [self.update_on(rollouts, advantages, rows) for rows in order.chunk(self.config.mini_batches)]
        return {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}

    def old_logprobs(self, rollouts: Rollouts) -> Tensor:
        """The log-probs that ratios are taken to, [N, T].

        In float32 those of the sampling. In half precision token by token and all at once round differently, by as much
        as GSPO's clip range is wide: there they are computed again, the way that the update computes them.
        """
        config = self.config
        if self.model.embed_tokens.weight.dtype not in (torch.bfloat16, torch.float16):
            return rollouts.logprobs
        limit = dict(temperature=config.temperature, micro_batch_tokens=config.micro_batch_tokens)
        return rollout_logprobs(self.model, rollouts, **limit)

    def update_on(self, rollouts: Rollouts, advantages: Tensor, rows: Tensor) -> dict[str, float]:
        """One optimizer step on the given rows; raises FloatingPointError before the weights are touched by a NaN."""
        config, mask = self.config, rollouts.mask[rows]
        weights = torch.zeros_like(rollouts.mask, dtype=torch.float32)  # [N, T], of the whole mini-batch
        weights[rows] = token_weights(mask, config.aggregation, config.max_new_tokens)
        self.optimizer.zero_grad()
        metrics: dict[str, float] = {}
        for part in micro_batches(rollouts, rows, config.micro_batch_tokens):
            share = (rollouts.mask[part].sum() / mask.sum()).item()  # of the mini-batch's tokens
            loss, found = self.loss_of(rollouts, advantages, weights, part)
            if not loss.isfinite():
                raise FloatingPointError(f"the loss is {loss.item()}")
            loss.backward()
            self.optimizer.collect_gradients()
            for name, value in found.items():
                metrics[name] = metrics.get(name, 0.0) + share * value.item()
            metrics["policy_loss"] = metrics.get("policy_loss", 0.0) + loss.item()
        gradient_norm = self.optimizer.clip_gradients(config.max_grad_norm)
        if not gradient_norm.isfinite():
            raise FloatingPointError(f"the norm of the gradient is {gradient_norm.item()}")
        self.optimizer.step()
        return metrics | {"gradient_norm": gradient_norm.item()}

    def loss_of(
        self, rollouts: Rollouts, advantages: Tensor, weights: Tensor, rows: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The share of these rows in the loss of their mini-batch, whose token weights are [N, T]; and mean metrics."""
        config, width = self.config, int(rollouts.mask[rows].sum(1).max())
        of_rows = lambda x: x[rows, :width]  # [rows, width]: no padding beyond the longest of these rows
        mask, weights = of_rows(rollouts.mask), of_rows(weights)
        prompts = [rollouts.prompts[i // rollouts.group_size] for i in rows.tolist()]
        batch = (prompts, of_rows(rollouts.completions), mask)
        logprobs, entropy = completion_logprobs(self.model, *batch, temperature=config.temperature)
        found = policy_loss(
            logprobs,
            of_rows(rollouts.logprobs),
            advantages[rows],
            mask,
            ratio=config.ratio,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            dual_clip=config.dual_clip or None,
            weights=weights,
        )
        loss, metrics = found.loss, {}
        if self.reference is not None:
            with torch.no_grad():
                ref_logprobs, _ = completion_logprobs(self.reference, *batch, temperature=config.temperature)
            penalty = kl_penalty(logprobs, ref_logprobs, config.kl_kind)  # [rows, width]
            loss = loss + config.kl_weight * aggregate(penalty, weights)
            metrics["kl_reference"] = masked_mean(penalty.detach(), mask)
        return loss, metrics | {
            "kl": found.kl,
            "clip_fraction": found.clip_fraction,
            "dual_clip_fraction": found.dual_clip_fraction,
            "entropy": masked_mean(entropy, mask),
        }

    def run(
        self,
        description: str = "training",
        *,
        resume: bool = False,
        after_step: Callable[[int], None] | None = None,
    ) -> list[dict[str, float]]:
        """Train for config.steps; a log line a step on the screen, a JSON line a step in out/metrics.jsonl.

        Every save_every steps the model goes to out/model and the training state to out/states; `resume` goes on from
        the newest state there. `after_step` is called with the number of the step at the start and after each step.
        A step that fails numerically leaves its batch in out/failed_batch.safetensors and the last saved model where it
        is, and raises FloatingPointError saying so. Where writing fails (a full disk), the run says so and goes on;
        OSError is raised at the start and at the end only.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        if resume:
            history = self.resume()
        else:
            history = []
            remove_states(saved_states(self.out / "states"))  # of an earlier run here; its model goes, too
        write_lines(self.out / "metrics.jsonl", history)
        self.save()  # after resuming, too: the process may have died between saving the state and saving the model
        with tqdm(total=self.config.steps, initial=self.step_number, desc=description, disable=None) as bar:
            if after_step is not None:
                after_step(self.step_number)
            while self.step_number < self.config.steps:
                try:
                    history.append(self.step())
                    tqdm.write(log_line(description, history[-1], self.config.steps))
                    bar.update()
                    self.or_warn(self.log, history)
                    if self.step_number % self.config.save_every == 0 and self.step_number < self.config.steps:
                        self.or_warn(self.save)
                    if after_step is not None:
                        self.or_warn(after_step, self.step_number)
                except FloatingPointError as error:
                    raise self._failure(error) from error
            if self.saved_step < self.step_number:
                self.save()
        return history

    def log(self, history: list[dict[str, float]]) -> None:
        """Append the newest metrics to out/metrics.jsonl; after a write that failed half-way, write all of them."""
        if self.log_is_whole:
            self.log_is_whole = False
            with open(self.out / "metrics.jsonl", "a") as log:
                log.write(json.dumps(history[-1]) + "\n")
        else:
            write_lines(self.out / "metrics.jsonl", history)
        self.log_is_whole = True

    def or_warn(self, write: Callable, *arguments) -> None:
        """Write something, but a full disk or a lost folder does not end a run that may have taken hours."""
        try:
            write(*arguments)
        except OSError as error:
            tqdm.write(f"step {self.step_number}: {error}. It could not be written; training goes on")

    def save(self) -> None:
        """Write the model to out/model and the state to out/states, unless the model cannot compute any more: then
        the good weights stay there."""
        with torch.no_grad():
            if self.batch:  # one row will do: a weight that is not finite spoils every one
                hidden = self.model(self.batch["completions"][:1])[0, -1]
                if not self.model.logits(hidden).isfinite().all():
                    raise FloatingPointError("the updated model's logits are not finite")
        if self.config.keep_states:
            save_state(self.out / "states", self.step_number, *self.state(), keep=self.config.keep_states)
        save_model(self.model, self.tokenizer, self.out / "model")
        self.saved_step = self.step_number

    def state(self) -> tuple[dict[str, dict[str, Tensor]], dict]:
        """Everything that the next step depends on besides config, model shape and task: (tensors by file, numbers).

        Problems are drawn by number, so how many have been drawn is the position in the data.
        """
        tensors = {
            "policy": self.optimizer.masters,
            "policy_moments": moments(self.optimizer.adamw, self.optimizer.masters),
            "random": {"generator": self.generator.get_state()},
        }
        if self.head is not None and self.config.head_kind != "none":
            tensors["head"] = dict(self.head.named_parameters())
        if self.head_optimizer is not None:
            tensors["head_moments"] = moments(self.head_optimizer, tensors["head"])
        return tensors, {"step": self.step_number, "problems_drawn": self.problems_drawn}

    @torch.no_grad()
    def load_state(self, tensors: dict[str, dict[str, Tensor]], numbers: dict) -> None:
        """Go on from what `state` returned. Raises ValueError naming what is missing or of another shape."""
        mine, _ = self.state()
        shapes = lambda named: {name: tensor.shape for name, tensor in named.items()}
        for file in sorted(mine.keys() | tensors.keys()):
            if file.endswith("_moments"):  # this run has none before its first step: `load_moments` looks at them
                fits = file in mine and file in tensors
            else:
                fits = shapes(mine.get(file, {})) == shapes(tensors.get(file, {}))
            if not fits:
                raise ValueError(f"the saved {file} has other tensors than this run: the settings are not the same")
        self.optimizer.load(tensors["policy"], tensors["policy_moments"])
        self.generator.set_state(tensors["random"]["generator"].cpu())
        if "head" in tensors:
            self.head.load_state_dict(tensors["head"])
        if self.head_optimizer is not None:
            load_moments(self.head_optimizer, dict(self.head.named_parameters()), tensors["head_moments"])
        self.step_number = self.saved_step = numbers["step"]
        self.problems_drawn = numbers["problems_drawn"]

    def resume(self) -> list[dict[str, float]]:
        """Load the newest training state in out/states; returns the metrics of the steps up to it, [] if there are
        none. Raises ValueError if there are steps but no state: to start anew would overwrite what they led to."""
        history, state = read_lines(self.out / "metrics.jsonl"), newest_state(self.out / "states")
        if state is None and history:
            raise ValueError(
                f"{self.out} holds {len(history)} steps, but no training state to go on from (keep_states was 0, or "
                "they were removed). Choose another folder, or start anew without --resume"
            )
        if state is not None:
            self.load_state(*state)
        return history[: self.step_number]

    def _failure(self, error: FloatingPointError) -> FloatingPointError:
        path = self.out / "failed_batch.safetensors"
        save_tensors(self.batch, path)
        return FloatingPointError(
            f"step {self.step_number}: {error}. The batch is in {path}, the weights after step {self.saved_step} are "
            f"in {self.out / 'model'}. A smaller learning_rate or max_grad_norm is the first thing to try."
        )
