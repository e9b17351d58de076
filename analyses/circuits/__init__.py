"""Head circuits from weights: what every attention head copies, matches and composes with, before any run.

`circuits` gives a `HeadCircuits`, whose metrics rank heads. `vocabulary`, `eigen`, `positions`, `paths`, `chance`,
`composition` and `strength` hold the mathematics, `running` puts it together, `experiment` and `report` write.
"""

from analyses.circuits.results import METRICS, HeadCircuits
from analyses.circuits.running import circuits

__all__ = ["METRICS", "HeadCircuits", "circuits"]
