"""The subcommands of `hybridlens`, a module each; `analyses.cli` puts them together."""
