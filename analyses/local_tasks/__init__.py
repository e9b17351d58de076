"""Tasks for lm-eval that this project makes for the tiny models: they need no network.

Each is a YAML file of lm-eval's form beside a JSON Lines file of items; ``lm-eval`` itself can run them with
``--include_path`` on this folder. `make` makes the items, `data` hands them to lm-eval.

How it fails: an installation without its package data has no items, and lm-eval says which file is missing.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
"""Where the YAML files are."""

NAMES: tuple[str, ...] = ("tiny_retrieval", "tiny_recite", "tiny_facts", "tiny_grammar")
"""The tasks: a needle among three others, the same said word by word, facts learned in training, agreement."""
