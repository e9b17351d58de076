"""The items of a local task, as lm-eval asks for them (``custom_dataset`` in the YAML files).

They are read from the file beside this one, wherever the package is installed, and no cache is written.

How it fails: `FileNotFoundError` for a file that the installation lacks.
"""

import json
from pathlib import Path
from typing import Any


def read(items: str, **_: Any) -> dict[str, Any]:
    """The one split of a task.

    Args:
        items: name of the file, without its ending; the YAML file gives it.
        _: what lm-eval passes besides, such as the task's version.
    """
    import datasets

    lines = (Path(__file__).parent / f"{items}.jsonl").read_text(encoding="utf-8").splitlines()
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}
