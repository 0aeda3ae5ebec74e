"""What the extensions add to the rewards of a training step: 0 unless an option switches one of them on."""

import torch
from torch import Tensor

from minclipo.extensions.dapo import overlong_penalty
from minclipo.extensions.prompt_contrast import own_prompt_gain
from minclipo.extensions.sharding import whole
from minclipo.grpo import masked_mean


def length_penalty(config, rollouts) -> Tensor | float:
    """DAPO's penalty on completions that are nearly as long as they may be, [N], 0 or less.

    config: the run's TrainConfig; rollouts: N rows.
    """
    if not config.overlong_penalty:
        return 0.0
    lengths, longest = rollouts.mask.sum(1), config.max_new_tokens
    buffer = config.overlong_buffer * longest
    return overlong_penalty(lengths, longest, buffer=buffer, penalty=config.overlong_penalty)


def extra_rewards(config, step, model, task, generator: torch.Generator) -> Tensor | float:
    """What prompt contrast and the oracle add to the rewards, [N]; `step` keeps the gain and the step verdicts.

    config: the run's TrainConfig; step: a `Step` of the trainer whose rollouts have been verified; task: its Task.
    """
    extra = 0.0
    if config.prompt_contrast_weight:  # is a right answer likelier under its own prompt than under others?
        tokens, others = config.micro_batch_tokens, config.prompt_contrast_others
        gain = own_prompt_gain(whole(model), step.rollouts, others, generator, config.temperature, tokens)  # [N]
        step.metrics["prompt_contrast"] = masked_mean(gain, step.correct).item()
        extra = config.prompt_contrast_weight * gain * step.correct
    if config.process_penalty:  # the oracle, and nobody else, is told which steps are wrong
        step.step_verdicts = task.steps(step.problems, step.texts, step.correct.tolist())
        hallucinated = [verdicts is not None and not all(verdicts) for verdicts in step.step_verdicts]
        extra = extra - config.process_penalty * torch.tensor(hallucinated, device=step.correct.device).float()
    return extra
