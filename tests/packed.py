"""What `hybridlens/viz/assets/packed.js` makes of the properties of a pattern, in Python."""

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np


def attention(props: Mapping[str, Any]) -> list[list[list[float | None]]]:
    """The weights [head][query][key]; None in the gaps between cropped tokens, 0 for keys that causal queries miss."""
    numbers = iter(np.frombuffer(base64.b64decode(props["packed"]), "<i2") * props["step"])
    places, causal = props["places"], props["maskUpperTri"]

    def row(query: int) -> list[float | None]:
        there = [places[query] is not None and place is not None for place in places]
        return [0.0 if kept and causal and key > query else float(next(numbers)) if kept else None
                for key, kept in enumerate(there)]  # fmt: skip

    found = [[row(query) for query in range(len(places))] for _ in props["attentionHeadNames"]]
    assert next(numbers, None) is None
    return found
