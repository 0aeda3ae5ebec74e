"""config.json to GPTConfig and back.

Reads the keys that nearly all published checkpoints have (rope_theta, rope_scaling) and those that transformers 5
writes (rope_parameters). A setting that this model does not have is refused by name, never ignored: otherwise it would
be a different model that seems to work.
"""

import math
from dataclasses import dataclass

import torch

from minclipo.model import GPTConfig, RopeScaling


@dataclass(frozen=True)
class Family:
    """What distinguishes a model_type from the others here."""

    architecture: str
    qkv_bias: bool = False
    qk_norm: bool = False
    head_dim: int | None = None  # where config.json does not say; None: width / heads


# A Mistral without its window is a Llama and is saved as one: the first family that fits.
FAMILIES = {
    "llama": Family("LlamaForCausalLM"),
    "qwen2": Family("Qwen2ForCausalLM", qkv_bias=True),
    "qwen3": Family("Qwen3ForCausalLM", qk_norm=True, head_dim=128),
    "mistral": Family("MistralForCausalLM"),
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
LLAMA3_KEYS = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
ROPE_KEYS = {
    "default": {"original_max_position_embeddings"},
    "linear": {"factor", "original_max_position_embeddings"},
    "llama3": {"factor", *LLAMA3_KEYS},
}


def config_from_json(config: dict) -> GPTConfig:
    """The GPTConfig that a config.json asks for. ValueError naming the key that is missing, wrong or not supported."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ValueError(f"model_type must be one of {', '.join(FAMILIES)}; found {kind!r}")
    family = FAMILIES[kind]
    num_layers, num_heads = _integer(config, "num_hidden_layers"), _integer(config, "num_attention_heads")
    _refuse_unsupported(config)
    _refuse_sliding_window(config, num_layers)
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
    rope_theta, rope_scaling = _rope(config)
    return GPTConfig(
        vocab_size=_integer(config, "vocab_size"),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        intermediate_size=_integer(config, "intermediate_size"),
        head_dim=head_dim,
        max_positions=_integer(config, "max_position_embeddings"),
        norm_eps=_number(config, "rms_norm_eps"),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        tie_embeddings=_flag(config, "tie_word_embeddings"),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
    )


def config_to_json(config: GPTConfig, dtype: torch.dtype) -> dict:
    """config.json in the keys that published checkpoints have; the special tokens are the tokenizer's to add."""
    flags = (config.qkv_bias, config.qk_norm)
    kind = next((name for name, family in FAMILIES.items() if (family.qkv_bias, family.qk_norm) == flags), None)
    if kind is None:
        raise ValueError(f"no model family has qkv_bias {config.qkv_bias} together with qk_norm {config.qk_norm}")
    dtype_name = str(dtype).removeprefix("torch.")
    return {
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


def _refuse_unsupported(config: dict) -> None:
    for key, harmless in HARMLESS.items():
        if key == "attention_bias" and config["model_type"] == "qwen2":
            continue  # Qwen2 always has its biases
        if key in config and config[key] not in harmless:
            raise ValueError(f"{key} {config[key]!r} is not supported, only {' or '.join(map(repr, harmless))}")


def _refuse_sliding_window(config: dict, num_layers: int) -> None:
    """ValueError if any layer would attend to a window only, by the rules of its family.

    Qwen2 and Qwen3 name a window that use_sliding_window switches on, for the layers from max_window_layers on, unless
    layer_types says it layer by layer. Mistral's is on unless it is null. Left out, the window is 4096.
    """
    layer_types = config.get("layer_types")
    if layer_types is not None and layer_types != ["full_attention"] * num_layers:
        raise ValueError(f"layer_types must be {num_layers} times 'full_attention', found {layer_types!r}")
    window = config.get("sliding_window", None if config["model_type"] == "llama" else 4096)
    if config["model_type"].startswith("qwen"):
        switched_on = _flag(config, "use_sliding_window") and layer_types is None
        if not switched_on or _integer(config, "max_window_layers", 28, at_least=0) >= num_layers:
            return
    if window is not None:
        raise ValueError(f"sliding_window {window!r} is active, which this model does not have")


def _rope(config: dict) -> tuple[float, RopeScaling | None]:
    """Base of the rotary wavelengths, and their scaling."""
    for key in ("rope_scaling", "rope_parameters"):
        if _given(config, key) and not isinstance(config[key], dict):
            raise ValueError(f"{key} must be an object or null, found {config[key]!r}")
    old, new = config.get("rope_scaling") or {}, config.get("rope_parameters") or {}
    if old and new and old != new:
        raise ValueError(f"rope_scaling {old!r} and rope_parameters {new!r} contradict each other")
    rope = old or new
    thetas = [_number(place, "rope_theta") for place in (rope, config) if _given(place, "rope_theta")]
    if len(set(thetas)) > 1:
        raise ValueError(f"rope_theta is given twice, as {thetas[0]} and as {thetas[1]}")
    return (thetas or [10000.0])[0], _rope_scaling(rope)


def _rope_scaling(rope: dict) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(kind, str) or kind not in ROPE_KEYS or rope.get("type", kind) != kind:
        raise ValueError(f"rope_scaling must be of type {', '.join(ROPE_KEYS)}; found {rope!r}")
    if rope.get("partial_rotary_factor", 1) not in (None, 1):
        raise ValueError(f"partial_rotary_factor {rope['partial_rotary_factor']!r} is not supported, only 1")
    unknown = rope.keys() - ROPE_KEYS[kind] - {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    if unknown:
        raise ValueError(f"rope_scaling of type {kind!r} does not know {', '.join(sorted(unknown))}; found {rope!r}")
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling(kind, _number(rope, "factor"))
    low, high = _number(rope, "low_freq_factor"), _number(rope, "high_freq_factor")
    if low >= high:
        raise ValueError(f"low_freq_factor {low} must be below high_freq_factor {high}")
    original = _integer(rope, "original_max_position_embeddings")
    return RopeScaling(kind, _number(rope, "factor"), low, high, original)


def _rope_scaling_to_json(scaling: RopeScaling | None) -> dict | None:
    if scaling is None:
        return None
    result = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        values = (scaling.low_frequency_factor, scaling.high_frequency_factor, scaling.original_context)
        result |= dict(zip(LLAMA3_KEYS, values))
    return result


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


def _flag(config: dict, key: str) -> bool:
    """config[key], true or false; false where it is missing."""
    value = config.get(key, False)
    if type(value) is not bool:
        raise ValueError(f"{key} must be true or false, found {value!r}")
    return value
