"""The needle experiment on families with matrix states: every cell is what one row gives alone, with a report."""

from pathlib import Path

import pytest
import torch
from models import ATTENDING, ROWS, make
from niah_tokenizers import KINDS

from analyses.experiment.options.study import NiahConfig
from analyses.experiment.running import conduct
from analyses.heads.sparsification import top_k
from analyses.study.niah import NiahRun
from hybridlens import HybridLens, niah

LOUD = ("q_proj", "k_proj", "v_proj", "o_proj", "linear")
"""The last is of shared blocks, whose attention is heard through a norm."""


def reading_lens(family: str) -> HybridLens:
    """A random model with a tokenizer, whose attention is heard: its matrices are larger than the others."""
    tokenizer = KINDS["word"]()
    ends = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    model = make(family, 1, **ends, **ROWS[family].room)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(".weight") and name.split(".")[-2] in LOUD:
                weight.mul_(4.0)
    return HybridLens(model, tokenizer)


@pytest.mark.usefixtures("small_bundles")
@pytest.mark.parametrize("family", ATTENDING)
def test_every_cell_is_what_it_is_alone(family: str, tmp_path: Path):
    """Both phases and several k, answered together from shared beginnings, against `generate` on one row each."""
    lens = reading_lens(family)
    grid = {"lengths": (110,), "depths": (0, 60), "heads": (0, 2, 4), "control": False}
    options = NiahConfig(model="random", **grid, max_new_tokens=4)
    experiment = NiahRun(lens, options)
    done = conduct(experiment, tmp_path / "run")
    assert len(done.result) == len(experiment.grid) == 12
    for cell in done.result:
        edits = top_k(lens, cell.k, "decode" if cell.phase == "generation" else "both")
        alone = lens.generate([list(experiment.grid[cell.key].tokens)], 4, edits, options.boundary)
        assert (cell.text, cell.score) == (alone.text[0], niah.score(cell.text))
    texts = {(cell.phase, cell.k): cell.text for cell in done.result if cell.depth == 60}
    assert texts["generation", 4] == texts["prefill", 4]
    assert len(set(texts.values())) > 2
    assert done.report.stat().st_size > 0
