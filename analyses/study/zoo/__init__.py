"""Many models, the same questions of each: the project's experiments side by side, and what they say together.

`parts` says which experiments are run of every model, `making` runs what is not done yet, in processes of its own,
`reading` takes numbers from a finished experiment (`of_study` those of a study), `results` is what comes out,
`rules` answers the questions that need several models, `report` is the page.
"""

from analyses.study.zoo.results import Zoo, read_zoo

__all__ = ["Zoo", "read_zoo"]
