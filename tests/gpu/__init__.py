"""What has to be seen on a GPU, part by part: `tests/gpu/run` runs them and prints one table."""
