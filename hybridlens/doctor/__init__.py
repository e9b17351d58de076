"""What an installation is and whether it computes what it should: `hybridlens doctor`, for a bug report.

`examine` gives a `Diagnosis`, whose `text` holds no path, no name of a user and none of a machine.

Modules:
    private: texts of libraries without paths and names
    scans: which scan each family uses on each device, as the code that chooses it says
    agreement: a lens beside the untouched model: logits and a decode step
    diagnosis: what was found, as text for a bug report
    examining: all of it, looked at
"""

from hybridlens.doctor.agreement import Agreement
from hybridlens.doctor.diagnosis import Diagnosis
from hybridlens.doctor.examining import examine

__all__ = ["Agreement", "Diagnosis", "examine"]
