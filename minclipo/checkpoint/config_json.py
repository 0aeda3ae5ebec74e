"""config.json to GPTConfig and back.

Reads the keys that nearly all published checkpoints have (rope_theta, rope_scaling) and those that transformers 5
writes (rope_parameters). A setting that this model does not have is refused by name, never ignored: otherwise it would
be a different model that seems to work.
"""

import math
from dataclasses import MISSING, asdict, dataclass, fields

import torch

from minclipo.checkpoint.rope import KINDS
from minclipo.model import GPTConfig


@dataclass(frozen=True)
class Family:
    """What distinguishes a model_type from the others here."""

    architecture: str
    qkv_bias: bool = False
    qk_norm: bool = False
    unrotated_layers: bool = False
    # What holds where config.json does not say:
    head_dim: int | None = None  # None: width / heads
    rope_theta: float = 10000.0
    tie_embeddings: bool = False


# A Mistral within its window is a Llama and is saved as one: the first family that fits.
FAMILIES = {
    "llama": Family("LlamaForCausalLM"),
    "qwen2": Family("Qwen2ForCausalLM", qkv_bias=True),
    "qwen3": Family("Qwen3ForCausalLM", qk_norm=True, head_dim=128),
    "mistral": Family("MistralForCausalLM"),
    "ministral": Family("MinistralForCausalLM"),
    "smollm3": Family("SmolLM3ForCausalLM", unrotated_layers=True, rope_theta=2e6, tie_embeddings=True),
}

# Keys that change what a model computes -> the values with which they change nothing.
HARMLESS = {
    "hidden_act": ("silu",),
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "partial_rotary_factor": (None, 1),
    "original_max_position_embeddings": (None,),  # only meaningful inside rope_scaling
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "quantization_config": (None,),
}
# Keys of rope_scaling that every kind may have.
ROPE_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"}


def config_from_json(config: dict) -> GPTConfig:
    """The GPTConfig that a config.json asks for. ValueError naming the key that is missing, wrong or not supported."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ValueError(f"model_type must be one of {', '.join(FAMILIES)}; found {kind!r}")
    family = FAMILIES[kind]
    num_layers, num_heads = _integer(config, "num_hidden_layers"), _integer(config, "num_attention_heads")
    _refuse_unsupported(config)
    positions = _integer(config, "max_position_embeddings")
    num_kv_heads = _integer(config, "num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise ValueError(f"num_key_value_heads {num_kv_heads} does not divide num_attention_heads {num_heads}")
    hidden_size = _integer(config, "hidden_size")
    head_dim = _integer(config, "head_dim") if _given(config, "head_dim") else family.head_dim
    if head_dim is None and hidden_size % num_heads:
        raise ValueError(
            f"hidden_size {hidden_size} is not a multiple of num_attention_heads {num_heads}: give head_dim"
        )
    if (head_dim or hidden_size // num_heads) % 2:
        raise ValueError(f"head_dim must be even, found {head_dim or hidden_size // num_heads}")
    rope_theta, rope_scaling = _rope(config, family)
    return GPTConfig(
        vocab_size=_integer(config, "vocab_size"),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        intermediate_size=_integer(config, "intermediate_size"),
        head_dim=head_dim,
        max_positions=min(positions, _sliding_window(config, num_layers) or positions),
        norm_eps=_number(config, "rms_norm_eps"),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        unrotated_layers=_unrotated_layers(config, num_layers) if family.unrotated_layers else (),
        tie_embeddings=_flag(config, "tie_word_embeddings", family.tie_embeddings),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
    )


def config_to_json(config: GPTConfig, dtype: torch.dtype) -> dict:
    """config.json in the keys that published checkpoints have; the special tokens are the tokenizer's to add."""
    has = {"qkv_bias": config.qkv_bias, "qk_norm": config.qk_norm, "unrotated_layers": bool(config.unrotated_layers)}
    kind = next((name for name, family in FAMILIES.items() if has.items() <= asdict(family).items()), None)
    if kind is None:
        raise ValueError(f"no model family has {', '.join(key for key in has if has[key])} together")
    dtype_name = str(dtype).removeprefix("torch.")
    result = {
        "architectures": [FAMILIES[kind].architecture],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": _rope_scaling_to_json(config.rope_scaling),
        "tie_word_embeddings": config.tie_embeddings,
        "dtype": dtype_name,
        "torch_dtype": dtype_name,  # the name of the same key before transformers 4.56
    }
    if FAMILIES[kind].unrotated_layers:
        result["no_rope_layers"] = [int(i not in config.unrotated_layers) for i in range(config.num_layers)]
    return result


def _refuse_unsupported(config: dict) -> None:
    for key, harmless in HARMLESS.items():
        if key == "attention_bias" and config["model_type"] == "qwen2":
            continue  # Qwen2 always has its biases
        if key in config and config[key] not in harmless:
            raise ValueError(f"{key} {config[key]!r} is not supported, only {' or '.join(map(repr, harmless))}")


def _sliding_window(config: dict, num_layers: int) -> int | None:
    """The window, if some layer attends to no more than the last so many tokens, by the rules of its family.

    A sequence that is no longer than the window does not feel it. So the window limits max_positions, and which layers
    have it does not matter. Qwen2, Qwen3 and SmolLM3 name a window that use_sliding_window switches on (Qwen's for the
    layers from max_window_layers on), unless layer_types says it layer by layer. Mistral's is on unless it is null.
    """
    kind, layer_types = config["model_type"], config.get("layer_types")
    types = ("full_attention", "sliding_attention")
    if layer_types is not None and (
        type(layer_types) is not list or len(layer_types) != num_layers or any(t not in types for t in layer_types)
    ):
        raise ValueError(f"layer_types must be {num_layers} times {' or '.join(types)}, found {layer_types!r}")
    named = layer_types is not None and "sliding_attention" in layer_types
    if layer_types is not None and kind != "mistral":
        on = named
    elif kind in ("mistral", "ministral"):
        on = True
    else:
        on = kind != "llama" and _flag(config, "use_sliding_window")
        if on and kind != "smollm3":
            on = _integer(config, "max_window_layers", 28, at_least=0) < num_layers
    window = config.get("sliding_window", None if kind in ("llama", "smollm3") else 4096)
    if named and window is None:
        raise ValueError(f"layer_types {layer_types!r} ask for a sliding_window, which is missing")
    return _integer(config, "sliding_window", 4096) if on and window is not None else None


def _unrotated_layers(config: dict, num_layers: int) -> tuple[int, ...]:
    """The layers whose entry in no_rope_layers is 0 (1 means that there is a rotation); by default every fourth."""
    if not _given(config, "no_rope_layers"):
        every = _integer(config, "no_rope_layer_interval", 4)
        return tuple(range(every - 1, num_layers, every))
    rotated = config["no_rope_layers"]
    if type(rotated) is not list or len(rotated) < num_layers or any(entry not in (0, 1) for entry in rotated):
        raise ValueError(f"no_rope_layers must be {num_layers} times 0 or 1, found {rotated!r}")
    return tuple(i for i in range(num_layers) if not rotated[i])


def _rope(config: dict, family: Family):
    """Base of the rotary wavelengths; and their scaling, an object of rope.py or None."""
    for key in ("rope_scaling", "rope_parameters"):
        if _given(config, key) and not isinstance(config[key], dict):
            raise ValueError(f"{key} must be an object or null, found {config[key]!r}")
    old, new = config.get("rope_scaling") or {}, config.get("rope_parameters") or {}
    if any(old[key] != new[key] for key in old.keys() & new.keys()):
        raise ValueError(f"rope_scaling {old!r} and rope_parameters {new!r} contradict each other")
    rope = old | new
    thetas = [_number(place, "rope_theta") for place in (rope, config) if _given(place, "rope_theta")]
    if len(set(thetas)) > 1:
        raise ValueError(f"rope_theta is given twice, as {thetas[0]} and as {thetas[1]}")
    if thetas and thetas[0] <= 1:
        raise ValueError(f"rope_theta must be above 1, found {thetas[0]}")
    return (thetas or [family.rope_theta])[0], _rope_scaling(rope)


def _rope_scaling(rope: dict):
    kind = rope.get("rope_type", rope.get("type", "default"))
    kinds = ("default", *KINDS)
    if kind not in kinds or rope.get("type", kind) != kind:
        raise ValueError(f"rope_scaling must be of type {', '.join(kinds)}; found {rope!r}")
    if rope.get("partial_rotary_factor", 1) not in (None, 1):
        raise ValueError(f"partial_rotary_factor {rope['partial_rotary_factor']!r} is not supported, only 1")
    settings = fields(KINDS[kind]) if kind in KINDS else ()
    unknown = rope.keys() - {setting.name for setting in settings} - ROPE_KEYS
    if unknown:
        raise ValueError(f"rope_scaling of type {kind!r} does not know {', '.join(sorted(unknown))}; found {rope!r}")
    read = {int: _integer, float: _number, float | None: _number, bool: _flag}
    values = {
        setting.name: read[setting.type](rope, setting.name)
        for setting in settings
        if _given(rope, setting.name) or setting.default is MISSING
    }
    return KINDS[kind](**values) if kind in KINDS else None


def _rope_scaling_to_json(scaling) -> dict | None:
    if scaling is None:
        return None
    return {"rope_type": scaling.kind} | {key: value for key, value in asdict(scaling).items() if value is not None}


def _given(config: dict, key: str) -> bool:
    return config.get(key) is not None


def _integer(config: dict, key: str, default: int | None = None, *, at_least: int = 1) -> int:
    """config[key], an integer; `default` where it is missing or null."""
    value = config.get(key) if _given(config, key) else default
    if value is None:
        raise ValueError(f"{key} is missing")
    if type(value) is not int or not at_least <= value < 2**31:  # not isinstance: true is an int
        raise ValueError(f"{key} must be an integer of at least {at_least}, found {value!r}")
    return value


def _number(config: dict, key: str) -> float:
    """config[key], a positive finite number."""
    if not _given(config, key):
        raise ValueError(f"{key} is missing")
    value = config[key]
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise ValueError(f"{key} must be a positive number, found {value!r}")
    return float(value)


def _flag(config: dict, key: str, default: bool = False) -> bool:
    """config[key], true or false; `default` where it is missing."""
    value = config.get(key, default)
    if type(value) is not bool:
        raise ValueError(f"{key} must be true or false, found {value!r}")
    return value
