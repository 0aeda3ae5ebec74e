"""A published model to GPT and back: a Hugging Face directory, or a model on the hub. README.md has more."""

from minclipo.checkpoint.tokenizer import Tokenizer, load_tokenizer
from minclipo.checkpoint.weights import Checkpoint, load_model, save_model, save_tensors

__all__ = ["Checkpoint", "Tokenizer", "load_model", "load_tokenizer", "save_model", "save_tensors"]
