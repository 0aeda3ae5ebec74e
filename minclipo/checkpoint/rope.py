"""How a checkpoint stretches its rotary frequencies to contexts longer than it was first trained on.

One class for each `rope_type` of config.json, its fields under the names that they have there. `stretch` takes the
plain frequencies [C / 2] of theta, in radians per position; queries and keys are multiplied by `attention_factor`.
Left out: what changes with the length of the sequence ("dynamic", "longrope").
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Linear:
    """Every frequency is divided by the factor (Chen et al. 2023, arXiv 2306.15595)."""

    kind = "linear"
    attention_factor = 1.0

    factor: float  # how many times longer the context became

    def stretch(self, frequencies: Tensor, theta: float) -> Tensor:
        return frequencies / self.factor


@dataclass
class Llama3:
    """Fast waves stay, slow waves are divided by the factor, and those between are blended by how many turns they make
    within the original context (Llama 3.1)."""

    kind = "llama3"
    attention_factor = 1.0

    factor: float
    low_freq_factor: float  # waves of fewer turns than this are slow
    high_freq_factor: float  # waves of more turns than this are fast
    original_max_position_embeddings: int  # context length before the stretching, in tokens

    def __post_init__(self):
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor {self.low_freq_factor} must be below high_freq_factor {self.high_freq_factor}"
            )

    def stretch(self, frequencies: Tensor, theta: float) -> Tensor:
        turns = self.original_max_position_embeddings * frequencies / (2 * math.pi)
        low, high = self.low_freq_factor, self.high_freq_factor
        return blend(frequencies, self.factor, keep=((turns - low) / (high - low)).clamp(0, 1))


@dataclass
class Yarn:
    """As Llama3, blended by the number of the wave; and attention becomes sharper (Peng et al. 2023, arXiv 2309.00071).

    In the paper's equation the blend is linear in the turns. In the code of its authors, and so in every checkpoint, it
    is linear in the number c of the wave, between the waves that make beta_fast and beta_slow turns.
    """

    kind = "yarn"

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0  # waves of more turns than this are fast
    beta_slow: float = 1.0  # waves of fewer turns than this are slow
    truncate: bool = True  # round to whole numbers of waves
    mscale: float | None = None  # with mscale_all_dim: another attention factor (DeepSeek V2)
    mscale_all_dim: float | None = None
    attn_factor: float | None = None  # multiplies the usual attention factor
    attention_factor: float | None = None  # queries and keys are multiplied by this; None: as the paper says

    def __post_init__(self):
        if self.beta_slow >= self.beta_fast:
            raise ValueError(f"beta_slow {self.beta_slow} must be below beta_fast {self.beta_fast}")
        # The paper: softmax(q k / (t sqrt(C))) with sqrt(1 / t) = 0.1 ln(factor) + 1.
        usual = 0.1 * math.log(max(self.factor, 1)) + 1
        if self.mscale and self.mscale_all_dim:
            up, down = (0.1 * m * math.log(max(self.factor, 1)) + 1 for m in (self.mscale, self.mscale_all_dim))
            usual = up / down
        # YaRN's own code and vLLM know attn_factor, transformers 5 only attention_factor. Filled in here and saved, it
        # makes the same model of a trained checkpoint everywhere.
        if self.attention_factor is None:
            self.attention_factor = usual * (self.attn_factor or 1)
        elif self.attn_factor and not math.isclose(self.attention_factor, usual * self.attn_factor, rel_tol=1e-3):
            raise ValueError(
                f"attention_factor {self.attention_factor} and attn_factor {self.attn_factor} contradict each other: "
                f"attn_factor multiplies {usual:.4g}. Remove one of them"
            )

    def stretch(self, frequencies: Tensor, theta: float) -> Tensor:
        (half,) = frequencies.shape  # C / 2

        def wave(turns: float) -> float:
            """The c whose frequency theta^(-c / half) makes so many turns within the original context."""
            return half * math.log(self.original_max_position_embeddings / (2 * math.pi * turns)) / math.log(theta)

        low, high = wave(self.beta_fast), wave(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * half - 1)
        steps = torch.arange(half, dtype=torch.float32, device=frequencies.device) - low
        return blend(frequencies, self.factor, keep=1 - (steps / (high - low or 0.001)).clamp(0, 1))


KINDS = {scaling.kind: scaling for scaling in (Linear, Llama3, Yarn)}


def blend(frequencies: Tensor, factor: float, keep: Tensor) -> Tensor:
    """Where `keep` is 1 the frequency as it is, where 0 divided by the factor."""
    return frequencies * keep + frequencies / factor * (1 - keep)
