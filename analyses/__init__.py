"""Experiments on hybrid language models, built on `hybridlens`: each module returns typed results.

`hybridlens` never imports from here. Every module that is an experiment also runs as a command:
``python -m analyses.entropy``, ``python -m analyses.niah``; `analyses.cli` is the `hybridlens` command.
"""
