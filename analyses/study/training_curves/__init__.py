"""Training as measured curves: what each kept checkpoint retrieves, from which memory, and what its weights say.

Modules:
    runs: a run of training on disk: checkpoints and log
    results: the curves as a typed result
    measuring: one checkpoint: retrieval, memories, strengths from weights
    rules: what curves say, by rule
    report: the report, section by section
    experiment: all of it
"""
