"""A trial on a real Slurm, outside the tests: see `trial`."""
