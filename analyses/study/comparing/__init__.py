"""Several studies side by side: verdicts of each, and the claims that only several models can decide.

Stored results are read and nothing else: no model is opened. `reading` takes the folders, `unlike` says what makes two
of them incomparable, `paired` sets accuracies side by side, `across` decides the claims over models, `results` is what
comes out, `report` its page.
"""

from analyses.study.comparing.results import ClaimRow, Comparison, SideBySide, compare_studies

__all__ = ["ClaimRow", "Comparison", "SideBySide", "compare_studies"]
