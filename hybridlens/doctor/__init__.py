"""What an installation is and whether it computes what it should: `hybridlens doctor`, for a bug report.

`examine` gives a `Diagnosis`, whose `text` holds no path, no name of a user and none of a machine.

* private.py: texts of libraries without paths and names
* scans.py: which scan each family uses on each device, as the code that chooses it says
* agreement.py: a lens beside the untouched model, its logits and a decode step
* diagnosis.py: what was found, as text for a bug report
* examining.py: all of it, looked at
"""

from hybridlens.doctor.agreement import Agreement
from hybridlens.doctor.diagnosis import Diagnosis
from hybridlens.doctor.examining import examine

__all__ = ["Agreement", "Diagnosis", "examine"]
