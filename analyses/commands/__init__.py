"""The subcommands of `hybridlens`, a module each; `analyses.cli` puts them together.

Modules:
    declared: a command made of an experiment's options
    experiments: those that there are
    hook_points: `hooks`: names and shapes of a model
    embedded: `models`: the embedded checkpoints
    family_table: `families`: what works for each
    look: `heads`: entropies on a prompt
    status: how far a run is
    doctor: a look at the installation
    planning: what a study would take
    compare: studies side by side
    zoo: many models
    report: the start page of a folder
"""
