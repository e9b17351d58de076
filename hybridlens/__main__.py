"""``python -m hybridlens``: the `hybridlens` command, as the installation names it.

How it fails: where the library stands in a folder without being installed, one line says so, with exit status 2.
"""

import sys
from importlib.metadata import entry_points


def main() -> int:
    """Run the command; returns the exit status."""
    for command in entry_points(group="console_scripts", name="hybridlens"):
        return command.load()()
    print("hybridlens: no command is installed; type pip install . in the project's folder", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
