"""Beyond GRPO and CLIPO: what only an option switches on, micro-batches, and AdamW for bfloat16. README.md has more."""
