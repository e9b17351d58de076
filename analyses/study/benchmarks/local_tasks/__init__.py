"""Tasks for lm-eval that this project makes for the tiny models: they need no network.

Each is a YAML file of lm-eval's form beside a JSON Lines file of items; ``lm-eval`` itself can run them with
``--include_path`` on this folder. `data` hands the items to
lm-eval.

How it fails: an installation without its package data has no items, and lm-eval says which file is missing.

Modules:
    data: how lm-eval gets the items
"""

from pathlib import Path

FOLDER = Path(__file__).parent
"""Where the YAML files are."""
