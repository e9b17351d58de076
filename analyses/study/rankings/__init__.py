"""Rankings of attention heads compared: which keeps retrieval with the fewest heads, and at what cost elsewhere.

Modules:
    prompts: where a prompt's needle is
    retrieval: what heads look at while answering
    ablation: what is lost without one
    candidates: every ranking that is compared, and random ones
    calibration: what is compared on which prompts
    fillers: those of later looks
    curves: areas, heads needed and their intervals
    agreement: rank correlations
    deciding: looks at more and more prompts, and what each can tell
    results: the comparison as a typed result
    words: the comparison in sentences
    ability: loss on held-out filler, and the local tasks, with some heads kept
    report: the report, section by section
    sweep: all of it
"""
