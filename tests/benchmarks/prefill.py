"""Prefill against the untouched model, time and memory: ``python -m tests.benchmarks.prefill [--runs N]``.

2,048 tokens, batch 1, no hooks: a RecurrentGemma of width 512 with 12 layers, a Jamba of width 512 with 8. The
floors: RecurrentGemma no slower; Jamba at least twice as fast with at most a quarter of the extra memory.
Prints one JSON line per model, with the ratios theirs ÷ ours of medians.
"""

import argparse
import json

import torch
from transformers import JambaConfig, JambaForCausalLM, RecurrentGemmaConfig, RecurrentGemmaForCausalLM

from hybridlens import HybridLens
from tests.benchmarks.measure import machine, paired_seconds, peak_bytes

TOKENS, WIDTH, VOCAB = 2048, 512, 1000


def models() -> dict[str, torch.nn.Module]:
    """The two models, with random weights."""
    torch.manual_seed(0)
    recurrentgemma = RecurrentGemmaConfig(
        num_hidden_layers=12, hidden_size=WIDTH, vocab_size=VOCAB, intermediate_size=6 * WIDTH,
        num_attention_heads=8, num_key_value_heads=1,
    )  # fmt: skip
    jamba = JambaConfig(
        num_hidden_layers=8, hidden_size=WIDTH, vocab_size=VOCAB, intermediate_size=2 * WIDTH,
        num_attention_heads=8, num_key_value_heads=2, num_experts=4,
    )  # fmt: skip
    return {
        "recurrentgemma": RecurrentGemmaForCausalLM(recurrentgemma).eval(),
        "jamba": JambaForCausalLM(jamba).eval(),
    }


def main() -> None:
    """Measure both models and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    print(machine())
    tokens = torch.randint(0, VOCAB, (1, TOKENS), generator=torch.Generator().manual_seed(1))
    for name, model in models().items():
        lens = HybridLens(model)
        with torch.no_grad():

            def ours(lens: HybridLens = lens) -> object:
                return lens.prefill(tokens)

            def theirs(model: torch.nn.Module = model) -> object:
                return model(tokens, use_cache=True)

            difference = float((lens(tokens) - model(tokens, use_cache=False).logits).abs().max())
            mine, library = paired_seconds(ours, theirs, options.runs)
            memory = peak_bytes(ours), peak_bytes(theirs)
        print(json.dumps({
            "model": name, "seconds": round(mine, 3), "library_seconds": round(library, 3),
            "times_faster": round(library / mine, 2), "extra_mb": round(memory[0] / 2**20, 1),
            "library_extra_mb": round(memory[1] / 2**20, 1), "share_of_memory": round(memory[0] / memory[1], 3),
            "largest_logit_difference": difference,
        }))  # fmt: skip


if __name__ == "__main__":
    main()
