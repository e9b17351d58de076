"""The one way to run something long: options, stages in a locked folder, signed artefacts, resume, report, table.

The folder and its artefacts are `hybridlens.results`.

Modules:
    text: results as plain text
    options: what every experiment can be asked, typed and checked
    artefacts: tensors and plain values as files
    per_prompt: functions of one prompt take lists of prompts
    checkpoints: opening what --model names
    filler: held-out text with nothing to retrieve
    drawing: which code draws a report
    parts: parts of an experiment's work, and how processes share them
    room: how much memory a run's work is cut by, and how much of it is here
    running: Experiment and conduct: a locked folder, signed stages, resume, report
    cluster: an experiment's work shared among jobs, through submitit
"""
