"""Beyond GRPO and CLIPO: what only an option switches on, and AdamW for bfloat16. README.md has more."""
