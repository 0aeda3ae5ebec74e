"""Does a training state fit the run that is to go on from it? Asked before anything is loaded or overwritten."""

from torch import Tensor

GATHERED = {"state", "param_groups"}  # an optimizer's; at the start of a run the first is empty


def misfit(state: dict, wanted: dict, step: int) -> str | None:
    """What keeps a run from going on with `state`, in words; None if nothing does.

    wanted: what the run's trainer would save now, for the names and shapes; step: by the name of the state's file.
    """
    for name in wanted:
        if name not in state:
            return f"it has no {name}"
    for name in state:
        if name not in wanted:
            return f"it holds {name}, which this run does not have"
    if type(state["step"]) is not int or state["step"] != step:
        return f"by its name it is of step {step}, its content says {state['step']!r}"
    if type(state["problems_drawn"]) is not int or state["problems_drawn"] < 0:
        return f"problems_drawn is {state['problems_drawn']!r}"
    found = (_differs(state[name], wanted[name], name) for name in wanted)
    return next((text for text in found if text), None) or _moments_differ(state, wanted)


def _differs(saved, wanted, name: str) -> str | None:
    """The first difference in the names and shapes of two trees of dicts and tensors."""
    if isinstance(wanted, dict):
        if not isinstance(saved, dict):
            return f"{name} is no dict but {type(saved).__name__}"
        apart = sorted(map(str, (saved.keys() ^ wanted.keys()) - GATHERED))
        if apart:
            return f"only one of the two has {name}.{apart[0]}"
        parts = (_differs(saved[key], wanted[key], f"{name}.{key}") for key in wanted.keys() - GATHERED)
        return next((text for text in parts if text), None)
    if isinstance(wanted, Tensor) and (not isinstance(saved, Tensor) or saved.shape != wanted.shape):
        return f"{name} is {_shape(saved)}, not {_shape(wanted)}"
    return None


def _moments_differ(state: dict, wanted: dict) -> str | None:
    """What AdamW needs for its next step: both moments of each weight that has had a gradient."""
    weights = {"optimizer": wanted["optimizer"]["masters"], "head_optimizer": wanted.get("head")}
    for name in weights.keys() & wanted.keys():
        shapes = [weight.shape for weight in weights[name].values()]
        missing = GATHERED - state[name].keys()
        if missing:
            return f"{name} has no {min(missing)}"
        for number, moments in state[name]["state"].items():
            for moment in ("exp_avg", "exp_avg_sq"):
                if getattr(moments.get(moment), "shape", None) != shapes[number]:
                    return f"{name}: {moment} of weight {number} is missing or of another shape"
    return None


def _shape(value) -> str:
    return f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
