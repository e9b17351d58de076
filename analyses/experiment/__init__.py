"""The one way to run something long: options, stages in a locked folder, signed artefacts, resume, report, table.

`options` holds what options are and how they are refused, `running` what an experiment declares and how it is run,
`answering` how cells get their answers. The folder and its artefacts are `hybridlens.results`.
"""
