"""One training step of GRPO and CLIPO, and the loop around it.

`Trainer.step` reads like the algorithm box of a paper: sample, verify, contrast, advantages, update, measure. GRPO is
the case contrastive_weight = 0; the policy update knows nothing of the contrastive part, which only changes rewards.
The toy and real checkpoints run this same code.
Left out: several workers, gradient accumulation, learning-rate schedules.

B prompts, G rollouts a prompt, N = B * G rows, T completion tokens.
"""

import copy
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from minclipo.checkpoint import save_model, save_tensors
from minclipo.contrastive import (
    HEADS,
    LEVELS,
    LOSSES,
    SIMILARITIES,
    ContrastiveHead,
    center_by_group,
    contrastive_loss,
    contrastive_reward,
)
from minclipo.grpo import (
    AGGREGATIONS,
    KL_KINDS,
    SCALES,
    aggregate,
    group_advantages,
    kl_penalty,
    masked_mean,
    policy_loss,
)
from minclipo.metrics import faithfulness_metrics, log_line, rollout_metrics
from minclipo.model import GPT
from minclipo.options import check_options, option
from minclipo.sampler import Rollouts, completion_logprobs, sample
from minclipo.tasks import Problem, Task
from minclipo.tokenizer import Tokenizer


@dataclass
class TrainConfig:
    """Everything a run depends on besides model, tokenizer and task."""

    steps: int = option(60, "training steps, head warm-up included", at_least=1)
    prompts_per_step: int = option(32, "prompts of a step (B)", at_least=1)
    group_size: int = option(16, "rollouts of each prompt (G)", at_least=1)
    max_new_tokens: int = option(16, "longest completion, in tokens", at_least=1)
    temperature: float = option(1.0, "sampling temperature of the rollouts, and of all log-probs", above=0)
    seed: int = option(
        0, "seed of the problems, of the sampling and of the head's weights", at_least=0, at_most=2**63 - 1
    )

    learning_rate: float = option(3e-4, "AdamW's learning rate for the policy", above=0)
    weight_decay: float = option(0.0, "AdamW's weight decay for the policy", at_least=0)
    max_grad_norm: float = option(1.0, "the policy's gradient is scaled down to this L2 norm if it is longer", above=0)
    mini_batches: int = option(2, "optimizer steps that a step's rollouts are split into", at_least=1)
    advantage_scale: str = option("std", "what divides advantages; none is Dr. GRPO's choice", choices=SCALES)
    advantage_epsilon: float = option(1e-6, "added to that divisor", at_least=0)
    clip_low: float = option(0.2, "ratios below 1 - this are clipped", at_least=0, at_most=1)
    clip_high: float = option(0.2, "ratios above 1 + this are clipped", at_least=0)
    dual_clip: float = option(0.0, "ratio (above 1) that bounds the loss of negative advantages; 0: none", at_least=0)
    aggregation: str = option("token_mean", "how token losses become one number", choices=AGGREGATIONS)
    kl_weight: float = option(0.0, "weight of a KL penalty to the initial policy, in the loss; 0: none", at_least=0)
    kl_kind: str = option("k3", "estimator of that KL penalty", choices=KL_KINDS)

    contrastive_weight: float = option(0.0, "lambda, weight of the contrastive loss in the reward; 0: GRPO", at_least=0)
    contrastive_loss: str = option("soft_nn", "which contrastive loss", choices=LOSSES)
    contrastive_level: str = option("cross", "where positives and negatives come from", choices=LEVELS)
    contrastive_temperature: float = option(0.5, "tau, divides the similarities", above=0)
    contrastive_similarity: str = option("cosine", "similarity of two embeddings", choices=SIMILARITIES)
    contrastive_anchors: str = option("correct", "rollouts that train the head", choices=("correct", "all"))
    contrastive_center: bool = option(True, "subtract the mean pooled state of the prompt's group before the head")
    contrastive_floor: float = option(-0.5, "lowest contrastive reward", at_most=0)
    contrastive_constant: float = option(0.0, "added to the contrastive reward of every rollout")
    head_kind: str = option("linear", "shape of the contrastive head", choices=HEADS)
    head_size: int = option(32, "width of the embeddings", at_least=1)
    head_learning_rate: float = option(1e-3, "AdamW's learning rate for the head; 0 freezes it", at_least=0)
    head_weight_decay: float = option(0.01, "AdamW's weight decay for the head", at_least=0)
    head_warmup_steps: int = option(0, "first steps, in which only the head learns", at_least=0)

    process_penalty: float = option(
        0.0, "the oracle: what a wrong step costs a correct rollout; 0: never looks", at_least=0
    )
    save_every: int = option(20, "steps between two copies of the model on disk", at_least=1)

    def __post_init__(self):
        check_options(self)
        if 0 < self.dual_clip <= 1:
            raise ValueError(f"dual_clip must be above 1, or 0 for none; found {self.dual_clip}")
        if self.head_warmup_steps >= self.steps:
            raise ValueError(f"head_warmup_steps {self.head_warmup_steps} leaves the policy none of {self.steps} steps")
        if self.head_warmup_steps and not self.contrastive_weight:
            raise ValueError(f"head_warmup_steps is {self.head_warmup_steps}, but contrastive_weight 0 has no head")


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
    """Holds what a run changes: policy, head, both optimizers, random states. `step()` does one training step."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, task: Task, config: TrainConfig, out: str | Path):
        if config.process_penalty and task.is_faithful is None:
            raise ValueError("process_penalty needs a task with a step check (task.is_faithful)")
        self.model, self.tokenizer, self.task, self.config, self.out = model, tokenizer, task, config, Path(out)
        device = model.embed_tokens.weight.device
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.reference = copy.deepcopy(model).requires_grad_(False) if config.kl_weight else None
        self.problem_rng = random.Random(config.seed)  # apart from sampling: all methods see the same problems
        self.generator = torch.Generator(device).manual_seed(config.seed)
        self.head = self.head_optimizer = None
        if config.contrastive_weight:
            self.head, self.head_optimizer = self._make_head(device)
        self.step_number = 0  # of the step that is running, or that was the last to run
        self.batch: dict[str, Tensor] = {}  # this step's tensors, written to disk if the step fails

    def _make_head(self, device: torch.device) -> tuple[ContrastiveHead, torch.optim.Optimizer | None]:
        config = self.config
        with torch.random.fork_rng(devices=[]):  # nn.Linear draws from the global generator
            torch.manual_seed(config.seed)
            head = ContrastiveHead(self.model.config.hidden_size, config.head_size, config.head_kind).to(device)
        if config.head_learning_rate == 0:
            return head, None
        rate, decay = config.head_learning_rate, config.head_weight_decay
        return head, torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=decay)

    def step(self) -> dict[str, float]:
        """One training step; returns its metrics."""
        started, config = time.perf_counter(), self.config
        self.step_number += 1

        # 1. Sample: G rollouts of each of B prompts from the current policy.
        problems = [self.task.draw(self.problem_rng) for _ in range(config.prompts_per_step)]
        rollouts = self.sample(problems)

        # 2. Verify: 1 for a right answer, 0 for a wrong one. The texts go to the verifier, never to the losses.
        texts = self.tokenizer.decode_batch(rollouts.completion_ids())
        correct = self.verify(problems, rollouts, texts)  # [N] bool
        rewards = correct.float()  # [N]
        self.batch["correct"] = correct

        # 3. Contrast: correct rollouts pay for lying far from the other correct ones of their prompt; the head learns.
        contrastive_rewards, head_loss = self.contrast(rollouts, correct)  # [N], scalar
        rewards = rewards + contrastive_rewards

        # (The oracle, and nobody else, is told which steps are wrong.)
        if config.process_penalty:
            rewards = rewards - config.process_penalty * (correct & ~self.check_faithful(problems, texts)).float()

        # 4. Advantages: each reward against the rewards of its group.
        advantages = group_advantages(
            rewards, config.group_size, scale=config.advantage_scale, epsilon=config.advantage_epsilon
        )  # [N]
        self.batch |= {"rewards": rewards, "advantages": advantages}

        # 5. Update the policy, unless the head is still warming up.
        warming_up = self.step_number <= config.head_warmup_steps
        update = {} if warming_up else self.update_policy(rollouts, advantages)

        # 6. Measure.
        metrics = {"step": self.step_number} | rollout_metrics(rollouts, correct, rewards, contrastive_rewards)
        if self.task.is_faithful is not None:
            metrics |= faithfulness_metrics(correct, self.check_faithful(problems, texts))
        return metrics | {"contrastive_loss": head_loss.item()} | update | {"seconds": time.perf_counter() - started}

    def sample(self, problems: list[Problem]) -> Rollouts:
        prompts = self.tokenizer.encode_batch([problem.prompt for problem in problems])
        self.batch = {f"prompt_{b}": torch.tensor(prompt) for b, prompt in enumerate(prompts)}
        config = self.config
        rollouts = sample(
            self.model,
            prompts,
            config.group_size,
            config.max_new_tokens,
            temperature=config.temperature,
            eos_ids=self.tokenizer.eos_ids,
            generator=self.generator,
        )
        self.batch |= {
            name: getattr(rollouts, name) for name in ("completions", "mask", "logprobs", "pooled", "finished")
        }
        return rollouts

    def verify(self, problems: list[Problem], rollouts: Rollouts, texts: list[str]) -> Tensor:
        """Verdict of the outcome check on each rollout, [N] bool."""
        G, finished = self.config.group_size, rollouts.finished.tolist()
        verdicts = [self.task.check_outcome(problems[i // G], text, finished[i]) for i, text in enumerate(texts)]
        return torch.tensor(verdicts, device=rollouts.mask.device)

    def check_faithful(self, problems: list[Problem], texts: list[str]) -> Tensor:
        """Verdict of the step check on each rollout, [N] bool."""
        G = self.config.group_size
        verdicts = [self.task.is_faithful(problems[i // G], text) for i, text in enumerate(texts)]
        return torch.tensor(verdicts, device=self.model.embed_tokens.weight.device)

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
            loss=config.contrastive_loss,
            level=config.contrastive_level,
            temperature=config.contrastive_temperature,
            similarity=config.contrastive_similarity,
            anchors=config.contrastive_anchors,
            generator=self.generator,
        )

    def update_policy(self, rollouts: Rollouts, advantages: Tensor) -> dict[str, float]:
        """One pass over the rollouts in random mini-batches, an optimizer step each; the mini-batches' mean metrics."""
        order = torch.randperm(len(advantages), generator=self.generator, device=advantages.device)
        parts = [self.update_on(rollouts, advantages, rows) for rows in order.chunk(self.config.mini_batches)]
        return {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}

    def update_on(self, rollouts: Rollouts, advantages: Tensor, rows: Tensor) -> dict[str, float]:
        """One optimizer step on the given rows; raises FloatingPointError before the weights are touched by a NaN."""
        config = self.config
        prompts = [rollouts.prompts[i // rollouts.group_size] for i in rows.tolist()]
        completions, mask = rollouts.completions[rows], rollouts.mask[rows]
        logprobs, entropy = completion_logprobs(self.model, prompts, completions, mask, temperature=config.temperature)
        found = policy_loss(
            logprobs,
            rollouts.logprobs[rows],
            advantages[rows],
            mask,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            dual_clip=config.dual_clip or None,
            aggregation=config.aggregation,
            max_length=config.max_new_tokens,
        )
        loss, metrics = found.loss, {}
        if self.reference is not None:
            penalty = self.reference_penalty(logprobs, prompts, completions, mask)  # [rows, T]
            loss = loss + config.kl_weight * aggregate(penalty, mask, config.aggregation, config.max_new_tokens)
            metrics["kl_reference"] = masked_mean(penalty.detach(), mask).item()

        self.optimizer.zero_grad()
        loss.backward()
        gradient_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.max_grad_norm)
        if not (loss.isfinite() and gradient_norm.isfinite()):
            raise FloatingPointError(f"the loss is {loss.item()}, its gradient norm {gradient_norm.item()}")
        self.optimizer.step()
        return metrics | {
            "policy_loss": loss.item(),
            "kl": found.kl.item(),
            "clip_fraction": found.clip_fraction.item(),
            "dual_clip_fraction": found.dual_clip_fraction.item(),
            "gradient_norm": gradient_norm.item(),
            "entropy": masked_mean(entropy, mask).item(),
        }

    def reference_penalty(
        self, logprobs: Tensor, prompts: list[list[int]], completions: Tensor, mask: Tensor
    ) -> Tensor:
        """KL penalty of each token to the initial policy, with gradient to logprobs; all [rows, T]."""
        with torch.no_grad():
            ref_logprobs, _ = completion_logprobs(
                self.reference, prompts, completions, mask, temperature=self.config.temperature
            )
        return kl_penalty(logprobs, ref_logprobs, self.config.kl_kind)

    def run(self, description: str = "training") -> list[dict[str, float]]:
        """Train for config.steps; a log line a step on the screen, a JSON line a step in out/metrics.jsonl.

        Every save_every steps the model goes to out/model. A step that fails numerically leaves its batch in
        out/failed_batch.safetensors and the last saved model where it is, and raises FloatingPointError saying so.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        history = []
        with (
            open(self.out / "metrics.jsonl", "w") as log,
            tqdm(total=self.config.steps, desc=description, disable=None) as bar,
        ):
            saved = self.save()
            while self.step_number < self.config.steps:
                try:
                    metrics = self.step()
                    if self.step_number % self.config.save_every == 0 or self.step_number == self.config.steps:
                        saved = self.save()
                except FloatingPointError as error:
                    raise self._failure(error, saved) from error
                history.append(metrics)
                log.write(json.dumps(metrics) + "\n")
                log.flush()
                tqdm.write(log_line(description, metrics, self.config.steps))
                bar.update()
        return history

    def save(self) -> int:
        """Write the model to out/model, unless it cannot compute: good weights stay there then. Returns the step."""
        with torch.no_grad():
            if self.batch and not self.model.logits(self.model(self.batch["completions"])).isfinite().all():
                raise FloatingPointError("the updated model's logits are not finite")
        save_model(self.model, self.tokenizer, self.out / "model")
        return self.step_number

    def _failure(self, error: FloatingPointError, saved: int) -> FloatingPointError:
        path = self.out / "failed_batch.safetensors"
        save_tensors(self.batch, path)
        return FloatingPointError(
            f"step {self.step_number}: {error}. The batch is in {path}, the weights after step {saved} are in "
            f"{self.out / 'model'}. A smaller learning_rate or max_grad_norm is the first thing to try."
        )
