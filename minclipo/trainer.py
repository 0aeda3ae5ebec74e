"""One training step of GRPO and CLIPO.

`Trainer.step` is the algorithm box of the paper: sample, verify, contrast, advantages, update. GRPO is the case
contrastive_weight = 0; the policy update knows nothing of the contrastive part, which only changes rewards. The toy and
real checkpoints run this same code, in one process or in several. Files, screen, command line: minclipo/runs.

B prompts, G rollouts per prompt, N = B * G rows, T completion tokens.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from minclipo.config import TrainConfig
from minclipo.contrastive import ContrastiveHead, center_by_group, contrastive_loss, contrastive_reward
from minclipo.extensions.dapo import Batch, dynamic_sampling
from minclipo.extensions.float32_adamw import Float32AdamW
from minclipo.extensions.micro_batches import passes, scored
from minclipo.extensions.processes import gathered, mean_gradients, row_numbers, share, sum_gradients, summed
from minclipo.extensions.rewards import extra_rewards, length_penalty
from minclipo.extensions.schedule import set_learning_rate
from minclipo.extensions.sharding import frozen_copy, whole
from minclipo.grpo import aggregate, group_advantages, kl_penalty, masked_mean, policy_loss, token_weights
from minclipo.logprobs import MicroBatch, batch_logprobs
from minclipo.model import GPT
from minclipo.sampler import Rollouts, sample
from minclipo.tasks import Problem, Task


@dataclass
class Step:
    """What one training step saw and did. It is filled on the way, so a step that fails leaves what it had."""

    number: int  # from 1
    problems: list[Problem] = field(default_factory=list)  # B
    rollouts: Rollouts | None = None  # N rows
    texts: list[str] = field(default_factory=list)  # N decoded completions
    correct: Tensor | None = None  # [N] bool, the outcome check's verdicts
    step_verdicts: list[list[bool] | None] | None = None  # the step check's, once oracle or measurement have asked
    contrastive_rewards: Tensor | None = None  # [N]
    rewards: Tensor | None = None  # [N], everything added up
    advantages: Tensor | None = None  # [N]
    metrics: dict[str, float] = field(default_factory=dict)  # what only the stages know; runs/measure.py adds the rest


class Trainer:
    """Holds what a run changes: policy, head, both optimizers, random state. `step()` does one training step."""

    def __init__(self, model: GPT, tokenizer, task: Task, config: TrainConfig):  # tokenizer: see minclipo/checkpoint
        assert not config.process_penalty or task.check_steps, "process_penalty needs a task with a step check"
        self.model, self.tokenizer, self.task, self.config = model, tokenizer, task, config
        self.optimizer = Float32AdamW(model, config.learning_rate, config.weight_decay)
        self.reference = frozen_copy(model) if config.kl_weight else None
        self.generator = torch.Generator(model.embed_tokens.weight.device).manual_seed(config.seed)
        self.head = self.head_optimizer = None
        if config.contrastive_weight:
            with torch.random.fork_rng(devices=[]):  # nn.Linear draws from the global generator of the CPU
                torch.default_generator.manual_seed(config.seed)
                self.head = ContrastiveHead(model.config.hidden_size, config.head_size, config.head_kind)
            self.head.to(self.generator.device, torch.promote_types(model.embed_tokens.weight.dtype, torch.float32))
            if config.head_learning_rate and config.head_kind != "none":
                rate, decay = config.head_learning_rate, config.head_weight_decay
                self.head_optimizer = torch.optim.AdamW(self.head.parameters(), lr=rate, weight_decay=decay)
        parts = {"optimizer": self.optimizer, "head": self.head, "head_optimizer": self.head_optimizer}
        self.stateful = {name: part for name, part in parts.items() if part is not None}
        self.last = Step(0)  # the step that is running, or that was the last to run
        self.problems_drawn = 0  # from the task, so far

    def step(self) -> Step:
        """One training step. Should it raise FloatingPointError, `self.last` has what there was."""
        config = self.config
        step = self.last = Step(self.last.number + 1)

        # 1. Sample G rollouts of each of B prompts from the current policy, and
        # 2. verify: is the final answer right? The texts go to the verifier, never to the losses.
        if config.dynamic_sampling:  # DAPO: up to that many batches, of which informative prompts are kept
            batch, step.metrics = dynamic_sampling(self.collect, config.dynamic_sampling)
        else:
            batch = self.collect()
        step.problems, step.rollouts, step.texts, step.correct = batch
        rewards = step.correct.float() + length_penalty(config, step.rollouts)  # [N]; DAPO's penalty, 0 by default

        # 3. Contrast: correct rollouts pay for being far from the other correct ones of their prompt; the head learns.
        step.contrastive_rewards, head_loss = self.contrast(step.rollouts, step.correct)  # [N], scalar
        if self.head is not None:
            step.metrics["contrastive_loss"] = head_loss.item()
        extra = extra_rewards(config, step, self.model, self.task, self.generator)  # [N]: prompt contrast, oracle
        step.rewards = rewards + step.contrastive_rewards + extra  # [N]
        if not step.rewards.isfinite().all():
            raise FloatingPointError("the rewards are not finite")

        # 4. Advantages: each reward against the rewards of its group.
        scale, epsilon = config.advantage_scale, config.advantage_epsilon
        step.advantages = group_advantages(step.rewards, config.group_size, scale=scale, epsilon=epsilon)  # [N]

        # 5. Update the policy, unless the head is still warming up.
        if step.number > config.head_warmup_steps:
            step.metrics |= set_learning_rate(self.optimizer, config, step.number)
            step.metrics |= self.update_policy(step.rollouts, step.advantages)
        return step

    def collect(self) -> Batch:
        """Stages 1 and 2: the next B problems, G rollouts of each, their texts, and which of them are right [N]."""
        first, self.problems_drawn = self.problems_drawn, self.problems_drawn + self.config.prompts_per_step
        problems = [self.task.draw(f"training {self.config.seed}", i) for i in range(first, self.problems_drawn)]
        own, numbers = share(problems), share(range(first, self.problems_drawn))  # of several processes each its part
        self.last.problems, self.last.rollouts = own, None  # should the sampling fail, these are its problems
        self.last.rollouts = rollouts = self.sample(own, row_numbers(self.config, numbers, self.generator.device))
        return problems, *gathered(rollouts, *self.verify(own, rollouts))

    def sample(self, problems: list[Problem], uniform: Tensor | None = None) -> Rollouts:
        """G rollouts of each problem: N rows. uniform [N, max_new_tokens]: their random numbers, if not `generator`'s."""
        config = self.config
        return sample(
            whole(self.model),
            self.tokenizer.encode_batch([problem.prompt for problem in problems]),
            config.group_size,
            config.max_new_tokens,
            temperature=config.temperature,
            eos_ids=self.tokenizer.eos_ids,
            generator=self.generator,
            uniform=uniform,
            sampling_rows=config.sampling_rows,
        )

    def verify(self, problems: list[Problem], rollouts: Rollouts) -> tuple[list[str], Tensor]:
        """The rollouts' texts, and the outcome check's verdict on each, [N] bool, unfinished ones included."""
        texts = self.tokenizer.decode_batch(rollouts.completion_ids())
        verdicts = self.task.outcomes(problems, texts, rollouts.finished.tolist())
        return texts, torch.tensor(verdicts, device=rollouts.mask.device)

    def contrast(self, rollouts: Rollouts, correct: Tensor) -> tuple[Tensor, Tensor]:
        """Stage 3: (contrastive reward [N], mean contrastive loss), 0 for plain GRPO. One update of the head, unless
        no right rollout has both a positive and a negative: then there is no loss (NaN). The reward's embeddings are
        from before the update."""
        if self.head is None:
            return torch.zeros_like(correct, dtype=torch.float32), torch.zeros(())
        config = self.config
        pooled = center_by_group(rollouts.pooled, rollouts.group) if config.contrastive_center else rollouts.pooled
        embeddings = self.head(pooled)  # [N, E], unit rows
        if not embeddings.isfinite().all():
            raise FloatingPointError("the contrastive head's embeddings are not finite")
        found = contrastive_loss(
            embeddings,
            correct,
            rollouts.group,
            loss=config.contrastive_loss,
            level=config.contrastive_level,
            temperature=config.contrastive_temperature,
            similarity=config.contrastive_similarity,
            anchors=config.contrastive_anchors,
            generator=self.generator,
        )
        weight, floor = config.contrastive_weight, config.contrastive_floor
        reward = contrastive_reward(found.loss, correct, weight=weight, floor=floor)  # [N]
        if self.head_optimizer is not None and found.anchors.any():
            self.head_optimizer.zero_grad()
            found.mean.backward()
            mean_gradients(self.head.parameters())
            self.head_optimizer.step()
        return reward, found.loss.detach()[found.anchors].mean()

    def update_policy(self, rollouts: Rollouts, advantages: Tensor) -> dict[str, float]:
        """Stage 5: one pass over the rollouts in random mini-batches, one optimizer step each; their mean metrics."""
        order = torch.randperm(len(advantages), generator=self.generator, device=advantages.device)
        chunks, tokens = order.tensor_split(self.config.num_mini_batches), self.config.micro_batch_tokens
        mini_batches = [passes(self.model, rollouts, rows, tokens) for rows in chunks]
        # From here on the host waits for a GPU only once per optimizer step, to see whether its numbers are finite.
        old_logprobs = self.old_logprobs(rollouts, mini_batches)
        found = [self.update_on(*part, rollouts.mask, advantages) for part in zip(mini_batches, chunks, old_logprobs)]
        return {name: sum(metrics[name] for metrics in found) / len(found) for name in found[0]}

    def old_logprobs(self, rollouts: Rollouts, mini_batches: list[list[MicroBatch]]) -> list[Tensor | None]:
        """The log-probs [N, T] that each mini-batch's ratios are taken to; None: its own, as the policy has not moved.

        In float32, those of the sampling. In half precision decoding and a whole pass differ by as much as GSPO's clip
        range is wide. So there they come from the very passes of the update: same rows, same padding, same kernels."""
        if self.model.embed_tokens.weight.dtype.itemsize >= 4:
            return [rollouts.logprobs] * len(mini_batches)
        later = [part for parts in mini_batches[1:] for part in parts]
        old_logprobs = scored(self.model, rollouts, later, temperature=self.config.temperature)  # [N, T]
        return [None, *[old_logprobs] * (len(mini_batches) - 1)]

    def update_on(self, parts: list[MicroBatch], rows: Tensor, old: Tensor | None, mask: Tensor, advantages: Tensor):
        """One optimizer step on the mini-batch `rows`; FloatingPointError before a NaN touches the weights. mask [N, T]"""
        config = self.config
        weights = torch.zeros_like(mask, dtype=torch.float32)  # [N, T], of the whole mini-batch
        weights[rows] = token_weights(mask[rows], config.aggregation, config.max_new_tokens)
        self.optimizer.zero_grad()
        found = []
        for part in parts:
            loss, metrics = self.loss_of(part, old, weights, advantages)
            (part.counts * loss).backward()
            portion = part.mask.sum() / mask[rows].sum()  # of the mini-batch's tokens
            found.append(part.counts * torch.stack([loss.detach(), *(portion * value for value in metrics.values())]))
        sum_gradients(self.optimizer.masters.values())  # of all processes
        norm = whole(torch.nn.utils.clip_grad_norm_(self.optimizer.masters.values(), config.max_grad_norm))
        loss, *values = summed([sum(column) for column in zip(*torch.stack(found).tolist())])
        if not (norm + loss).isfinite():
            raise FloatingPointError(f"the loss is {loss}, the norm of its gradient {norm.item()}")
        self.optimizer.step()
        return dict(zip(metrics, values)) | {"policy_loss": loss, "gradient_norm": norm.item()}

    def loss_of(self, part: MicroBatch, old: Tensor | None, weights: Tensor, advantages: Tensor) -> tuple[Tensor, dict]:
        """(This part's share in the loss of its mini-batch, mean metrics). weights [N, T]: of all its tokens."""
        config, rows = self.config, part.rows
        logprobs, entropy = batch_logprobs(self.model, part, temperature=config.temperature)  # [rows, width]
        weights = weights[rows, : logprobs.shape[1]]
        old = logprobs.detach() if old is None else old[rows, : logprobs.shape[1]]
        found = policy_loss(
            logprobs,
            old,
            advantages[rows],
            part.mask,
            ratio=config.ratio,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            dual_clip=config.dual_clip,
            weights=weights,
        )
        loss, metrics = found.loss, {}
        if self.reference is not None:
            with torch.no_grad():
                ref_logprobs, _ = batch_logprobs(self.reference, part, temperature=config.temperature)
            penalty = kl_penalty(logprobs, ref_logprobs, config.kl_kind, part.mask)  # [rows, width]
            loss = loss + config.kl_weight * aggregate(penalty, weights)
            metrics["kl_reference"] = masked_mean(penalty.detach(), part.mask)
        return loss, metrics | {
            "kl": found.kl,
            "clip_fraction": found.clip_fraction,
            "dual_clip_fraction": found.dual_clip_fraction,
            "entropy": masked_mean(entropy, part.mask),
        }

    def state_dict(self) -> dict:
        """Everything that the next step depends on besides config, task and reference. Problems are drawn by number."""
        state = dict(step=self.last.number, problems_drawn=self.problems_drawn, generator=self.generator.get_state())
        return state | {name: part.state_dict() for name, part in self.stateful.items()}

    def load_state_dict(self, state: dict) -> None:
        """Go on from what `state_dict` returned; ValueError, KeyError or RuntimeError if it is another run's."""
        if state.keys() != self.state_dict().keys():
            raise ValueError(f"one of the two lacks {', '.join(sorted(state.keys() ^ self.state_dict().keys()))}")
        for name, part in self.stateful.items():
            part.load_state_dict(state[name])
        self.generator.set_state(state["generator"].cpu())
        self.last, self.problems_drawn = Step(state["step"]), state["problems_drawn"]
