"""The options of every experiment, typed and checked in one way: what the command line offers of it stands here.

They import no model, so that ``--help`` answers at once.

Modules:
    base: options, and how they are refused
    needles: what experiments on needle prompts share, and the one way to name needles
    prompts: prompt pairs of a user's own, from a file
    benchmarks: lm-eval's tasks
    study: the paper's experiments
    circuits: head circuits
    rankings: rankings compared
    reduce: smaller modules in attention's place
    planning: a study's, on a machine
    patch: activations of two prompts
    crossover: memories of two prompts
    states: recurrent states
    capacity: recall against the number of facts
    curves: the checkpoints of training
    zoo: many models
    cluster: where the work is shared among jobs
"""
