"""The options of every experiment, typed and checked in one way: what the command line offers of it stands here.

`base` says how; the others hold one experiment's each. They import no model, so that ``--help`` answers at once.
"""
