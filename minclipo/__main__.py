"""minCLIPO: GRPO and CLIPO from scratch.

    python -m minclipo toy        the toy experiment: minutes on a laptop        (also: minclipo-toy, train_toy.py)
    python -m minclipo train      GRPO and CLIPO on a real checkpoint            (also: minclipo-train, train_llm.py)
    python -m minclipo chat       talk to a model                                (also: minclipo-chat)

Each has --help. `python -m minclipo --version` says which version this is.
"""

import importlib
import sys

import minclipo

COMMANDS = {"toy": "train_toy", "train": "train_llm", "chat": "minclipo.chat"}  # each a module with a `main`


def main() -> int:
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in COMMANDS:
        sys.argv[0] = f"minclipo {command}"  # what its own --help calls it
        return importlib.import_module(COMMANDS[command]).main(arguments)
    if command in ("-h", "--help", "--version"):
        print(minclipo.__version__ if command == "--version" else __doc__.strip())
        return 0
    print(f"minclipo: there is no {command!r}, but: {', '.join(COMMANDS)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
