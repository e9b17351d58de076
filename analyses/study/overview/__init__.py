"""A folder of results as a whole: what was run, what each run found, and one page that leads to all their reports.

Modules:
    results: runs, zoos and pages as typed results
    reading: what a folder holds
    questions: which runs answer which of the paper's questions
    page: the page
"""

from analyses.study.overview.reading import overview
from analyses.study.overview.results import FoundPage, FoundRun, FoundZoo, Overview, Unread

__all__ = ["FoundPage", "FoundRun", "FoundZoo", "Overview", "Unread", "overview"]
