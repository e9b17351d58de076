"""Write what works for each family into the package: ``make families-table``, or ``python tests/families_table.py``."""

from family_checks import table

from analyses.commands.family_table import family_table
from hybridlens.families import FAMILIES
from hybridlens.supported import FILE

if __name__ == "__main__":
    found = table([family.name for family in FAMILIES])
    FILE.write_text(found.json(), encoding="utf-8")
    print(family_table())
