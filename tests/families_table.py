"""Write what works for each family into the package: ``make families-table``, or ``python tests/families_table.py``.

Given names of families, their rows alone are made anew, unless the others are of another version of transformers.
"""

import sys

import transformers
from family_checks import checked, table

from analyses.commands.family_table import family_table
from hybridlens.errors import UnknownNameError
from hybridlens.families import FAMILIES
from hybridlens.supported import FILE, Supported, supported


def made_anew(before, names):
    """The table, in the order of `FAMILIES`, with the rows of some families made anew.

    Args:
        before: the table there is.
        names: of families; none for all.

    Raises:
        UnknownNameError: there is no such family.
    """
    every = [family.name for family in FAMILIES]
    unknown = sorted(set(names) - set(every))
    if unknown:
        raise UnknownNameError(f"family {unknown[0]!r} does not exist; expected some of {', '.join(every)}")
    if not names or before.transformers != transformers.__version__:
        return table(every)
    rows = {row.family: row for row in before.rows} | {name: checked(name) for name in names}
    return Supported(before.transformers, tuple(rows[name] for name in every if name in rows))


if __name__ == "__main__":
    FILE.write_text(made_anew(supported(), sys.argv[1:]).json(), encoding="utf-8")
    print(family_table())
