"""Placeholder until the branch on loading is merged."""
from typing import Any


class Fingerprint:
    def __init__(self, model: Any) -> None:
        self.model = model
    def now(self) -> str:
        return ""
