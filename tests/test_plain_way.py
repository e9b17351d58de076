"""Figure 2 against the plain way: the untouched model's `generate`, one prompt at a time, heads zeroed by hand.

Nothing of hybridlens computes on the plain side but the prompts. It shares no code path with the sweep: another
forward pass, another cache, another entropy, another way to silence a head.
"""

import numpy as np
import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask
from transformers.models.jamba.modeling_jamba import eager_attention_forward

import hybridlens as hl
from analyses.heads.answering import Treated
from analyses.heads.treatment import Treatment
from hybridlens import niah
from hybridlens.engine import Job, Sweep


def plain_generate(lens, tokens, k, phases):
    """Greedy text of 40 tokens with the k heads of lowest entropy kept in each layer, by a plain loop over heads."""

    def attend(module, q, key, value, mask, scaling, **kwargs):
        z, pattern = eager_attention_forward(module, q, key, value, mask, scaling)  # z: [batch, pos, head, d_head]
        if ("decode" if q.shape[2] == 1 else "prefill") in phases:
            for position in range(q.shape[2]):
                weights = pattern[0, :, position].double().numpy()
                bits = [-sum(w * np.log2(w) for w in row if w > 0) for row in weights]
                dropped = sorted(range(len(bits)), key=lambda head: (bits[head], head))[k:]
                z[0, position, dropped] = 0
        return z, pattern

    AttentionInterface.register("hybridlens_test_plain", attend)
    AttentionMaskInterface.register("hybridlens_test_plain", eager_mask)
    model = lens.hf_model
    before = model.config._attn_implementation
    model.set_attn_implementation("hybridlens_test_plain")
    for module in model.modules():  # the library keeps recurrent state on its modules
        for name in ("conv1d_state", "recurrent_states"):
            if hasattr(module, name):
                setattr(module, name, None)
    try:
        ids = torch.tensor([tokens])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)
    finally:
        model.set_attn_implementation(before)
    return lens.tokenizer.decode(out[0, len(tokens) :], skip_special_tokens=True)


@pytest.mark.parametrize(("version", "phases"), [("generation", ["decode"]), ("prefill", ["prefill", "decode"])])
@pytest.mark.parametrize("name", ["tiny-recurrentgemma", "tiny-jamba"])
def test_the_sweep_says_what_the_plain_way_says(name, version, phases):
    """Text for text at several k, the ones where retrieval breaks among them: a wrong head or phase changes words."""
    lens = hl.load(name)
    prompts = niah.grid(lens.tokenizer, lengths=[150], depths=[0, 56])
    kept = (0, 1, 3, 8) if version == "generation" else (1, 4)
    jobs = [
        Job(prompt.tokens, Treatment(k) if version == "prefill" else None, Treatment(k))
        for prompt in prompts
        for k in kept
    ]
    ours = {
        answered.job: answered.answer.text
        for batch in Sweep(lens, Treated(lens), boundary="first_new_token").run(jobs)
        for answered in batch
    }
    with torch.no_grad():
        plain = [plain_generate(lens, job.tokens, job.answering.k, phases) for job in jobs]
    assert [ours[index] for index in range(len(jobs))] == plain
