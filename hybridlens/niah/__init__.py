"""Needle in a haystack: prompts, haystacks, needles and scoring, with no model in it.

`grid` makes the prompts of the paper's benchmark (ten lengths by ten depths), `controls` the same
prompts with the needle left out, `score` grades an answer from 0 to 5 by a rubric. Everything is a
function of a tokenizer and a seed; nothing here runs a model.

How it fails: string matching grades only what is said word by word, and the built-in essays are easier
to tell from a needle than real ones; read every accuracy beside its control.

Modules:
    templates: the paper's prompt templates
    essays: the built-in haystack: a seeded generator of essay-like text
    rubric: granular scoring, as data
    needles: built-in needles with their questions and rubrics
    needle_files: a user's needles; what is wrong is said with its line
    haystack: built-in essays or a user's folder
    encoding: ids with character offsets
    prompt: one prompt, and how its text is put together
    filler: sentences whose token counts sum to an exact number
    lengths: which lengths and depths a grid has
    clean: the clean builder
    published: the authors' builder
    checks: special tokens in texts, a lost BOS, a needle in other letters
    builder: grids and controls
"""

from hybridlens.niah.builder import RepeatedPromptWarning, controls, grid, shortest_length
from hybridlens.niah.encoding import Tokenizer, unknown_words
from hybridlens.niah.essays import essay_sentences, vocabulary
from hybridlens.niah.haystack import Haystack, essays, read_haystack
from hybridlens.niah.lengths import DEFAULT_DEPTHS, default_lengths
from hybridlens.niah.needle_files import load_needles
from hybridlens.niah.needles import (
    NEEDLES,
    PAPER_NEEDLE,
    PAPER_QUESTION,
    PAPER_SENTENCE,
    PUBLISHED_NEEDLE,
    STUDY_NEEDLES,
    Needle,
    best_thing,
    in_steps,
    needle_set,
)
from hybridlens.niah.prompt import SEMANTICS, Prompt, Prompts, Semantics, Span
from hybridlens.niah.rubric import (
    MAX_SCORE,
    PAPER_RUBRIC,
    PUBLISHED_RUBRIC,
    Rubric,
    Rule,
    check_rubric,
    full_match_rubric,
    load_rubric,
    normalise,
    score,
)
from hybridlens.niah.templates import TEMPLATES, Template, TemplateName

__all__ = [
    "DEFAULT_DEPTHS",
    "MAX_SCORE",
    "NEEDLES",
    "PAPER_NEEDLE",
    "PAPER_QUESTION",
    "PAPER_RUBRIC",
    "PAPER_SENTENCE",
    "PUBLISHED_NEEDLE",
    "PUBLISHED_RUBRIC",
    "SEMANTICS",
    "STUDY_NEEDLES",
    "TEMPLATES",
    "Haystack",
    "Needle",
    "Prompt",
    "Prompts",
    "RepeatedPromptWarning",
    "Rubric",
    "Rule",
    "Semantics",
    "Span",
    "Template",
    "TemplateName",
    "Tokenizer",
    "best_thing",
    "check_rubric",
    "controls",
    "default_lengths",
    "essay_sentences",
    "essays",
    "full_match_rubric",
    "grid",
    "in_steps",
    "load_needles",
    "load_rubric",
    "needle_set",
    "normalise",
    "read_haystack",
    "score",
    "shortest_length",
    "unknown_words",
    "vocabulary",
]
