"""Needle in a haystack: prompts, haystacks, needles and scoring, with no model in it.

`grid` makes the prompts of the paper's benchmark (ten lengths by ten depths), `controls` the same
prompts with the needle left out, `score` grades an answer from 0 to 5 by a rubric. Everything is a
function of a tokenizer and a seed; nothing here runs a model.
"""
