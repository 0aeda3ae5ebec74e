"""Learning-rate schedules: the factor on the learning rate at each training step.

A pure function of the step's number, so a run that is resumed needs no further state to go on bit-equal.
"""

import math


def learning_rate_factor(kind: str, step: int, steps: int, warmup: int) -> float:
    """Factor at `step` (from 1) of `steps`: first a linear rise over `warmup` steps, then constant, linear or cosine.

        n / W                                   n <= W: the first step has 1 / W, step W has 1
        1                                       constant
        1 - p                                   linear      p = (n - 1 - W) / (N - W), from 0 at step W + 1
        (1 + cos(pi p)) / 2                     cosine      to 1 - 1 / (N - W) at step N

    The factor of step N + 1 would be 0. So the last step still teaches: its factor is 1 / (N - W) with linear.

    >>> [learning_rate_factor("linear", n, 4, 0) for n in (1, 2, 3, 4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    assert kind in ("constant", "linear", "cosine") and 1 <= step, f"impossible: {kind=}, {step=}"
    if step <= warmup:
        return step / warmup
    passed = step - 1 - warmup
    if kind == "cosine":
        return 0.5 * (1 + math.cos(math.pi * passed / max(1, steps - warmup)))
    return 1.0 if kind == "constant" else 1 - passed / max(1, steps - warmup)


def is_scheduled(config) -> bool:
    return config.learning_rate_schedule != "constant" or config.learning_rate_warmup > 0


def set_learning_rate(optimizer, config, step: int) -> dict[str, float]:
    """Set this step's learning rate; {"learning_rate": rate}, or {} for a run without a schedule.

    The steps of the head's warm-up count: a policy that is updated from step 14 on starts with the factor of step 14.
    """
    if not is_scheduled(config):
        return {}
    factor = learning_rate_factor(config.learning_rate_schedule, step, config.steps, config.learning_rate_warmup)
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * factor
    return {"learning_rate": config.learning_rate * factor}
