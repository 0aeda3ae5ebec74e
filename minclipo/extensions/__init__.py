"""Beyond GRPO and CLIPO: what runs only where an option asks for it. README.md has more."""
