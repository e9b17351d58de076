"""The residual stream's basics, at any hook point: what it says so far, what it holds, and what moves it."""
