"""A folder of results as a whole: what was run, what each run found, and one page that leads to all their reports.

`results` has the values, `reading` takes them from a folder without opening a model, `questions` says which runs answer
which of the paper's questions, `page` writes them down.
"""

from analyses.study.overview.reading import overview
from analyses.study.overview.results import FoundPage, FoundRun, FoundZoo, Overview, Unread

__all__ = ["FoundPage", "FoundRun", "FoundZoo", "Overview", "Unread", "overview"]
