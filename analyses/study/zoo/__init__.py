"""Many models, the same questions of each: the project's experiments side by side, and what they say together.

Modules:
    of_study: numbers of a finished study
    reading: of every other experiment
    parts: which experiments
    making: running what is not done, in processes
    results: the models side by side as a typed result
    stored: the table that comes with the package
    rules: what they say together, by rule
    sections: the page's sections
    report: the page, section by section
"""

from analyses.study.zoo.results import Zoo, read_zoo

__all__ = ["Zoo", "read_zoo"]
