"""Several studies side by side: verdicts of each, and the claims that only several models can decide.

Stored results are read and nothing else: no model is opened.

Modules:
    reading: a study's folder
    unlike: settings that make studies incomparable
    paired: accuracies side by side, prompt by prompt where the prompts are the same
    across: the claims that only several models can decide
    results: the comparison as a typed result
    report: its page
"""

from analyses.study.comparing.results import ClaimRow, Comparison, SideBySide, compare_studies

__all__ = ["ClaimRow", "Comparison", "SideBySide", "compare_studies"]
