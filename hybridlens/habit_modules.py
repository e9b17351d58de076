"""What users type from habit as names of modules and in modules: `hybridlens.habits` for what is imported.

``from hybridlens import HookedTransformer``, ``import hybridlens.utils``, ``analyses.patching.get_act_patch_mlp_out``:
by the package that is asked, each with what stands in its place. A ``*`` in a name stands for anything. Data alone:
`hybridlens.imports` makes lines of it, and `tests/test_coming_from.py` runs every one.
"""

from __future__ import annotations

from hybridlens.habits import CACHE, LOAD, RUNNING, SAES, TOOLS, TRACES, WEIGHTS, Habit

_PATCHING = Habit("from hybridlens import act_patching", TOOLS)
_SILENCE = Habit(
    "from analyses.heads.sparsification import silence_heads", TOOLS, "edits that silence the best heads of a ranking"
)
_WORDS = ("silence", "ablate", "zero", "drop", "mask", "prune", "remove", "knockout", "knock_out")
_SILENCES = {f"{word}_heads": _SILENCE for word in _WORDS} | {"ablate_head": _SILENCE, "head_ablation": _SILENCE}
_ACT_NAME = Habit('hl.get_act_name("z", 2)', TOOLS, "their other utilities are in transformer_lens.utilities")

_CACHED = Habit("lens.prefill(tokens).state", RUNNING, "a HybridState: keys, values, states and convolutions")

HYBRIDLENS = {
    "HookedTransformer": LOAD,
    "from_pretrained": LOAD,
    "boot_transformers": LOAD,
    "HookedTransformerConfig": Habit("lens.cfg", RUNNING, "a lens opens trained models, whose configuration it has"),
    "HookedRootModule": LOAD,
    "HookedEncoder*": LOAD._replace(note="causal language models alone"),
    "HookedAudioEncoder": LOAD._replace(note="causal language models alone"),
    "BertNextSentencePrediction": LOAD._replace(note="causal language models alone"),
    "EasyTransformer": LOAD,
    "TransformerBridge": LOAD._replace(note="hl.HybridLens.from_bridge(bridge) opens one that there is"),
    "TransformerBridgeConfig": Habit("lens.cfg", RUNNING, "a lens opens trained models, whose configuration it has"),
    "loading_from_pretrained": LOAD,
    "HookedMamba": LOAD,
    "LanguageModel": LOAD._replace(section=TRACES),
    "TransformersModel": LOAD._replace(section=TRACES),
    "StandardizedTransformer": LOAD._replace(section=TRACES),
    "NNsight": Habit("hl.HybridLens(lens.hf_model, lens.tokenizer)", TRACES, "a lens on a model that there is"),
    "Envoy": Habit("lens.model.layers[2]", TRACES, "Hugging Face's modules; lens.blocks[2] has the hook points"),
    "CONFIG": Habit("with lens.trace(tokens): pass", TRACES, "a lens runs here and needs no configuration"),
    "session": Habit("with lens.session(): pass", TRACES),
    "trace": Habit("with lens.trace(tokens): pass", TRACES),
    "ActivationCache": Habit("hl.HybridCache", CACHE),
    "HookedTransformerKeyValueCache*": _CACHED,
    "TransformerLensKeyValueCache*": _CACHED,
    "FactoredMatrix": Habit("from transformer_lens import FactoredMatrix", WEIGHTS, "lens.OV and lens.QK are theirs"),
    "SVDInterpreter": Habit("from transformer_lens import SVDInterpreter", TOOLS, "it takes a lens"),
    "evals": Habit("from transformer_lens import evals", TOOLS, "it takes a lens"),
    "train": Habit("lens.parameters()", RUNNING, "for any optimizer of torch"),
    "utils": _ACT_NAME,
    "utilities": _ACT_NAME,
    "test_prompt": Habit("lens.test_prompt(prompt, ' eat', print_details=False)", RUNNING),
    "HookedSAETransformer": LOAD._replace(section=SAES),
    "SAETransformerBridge": LOAD._replace(section=SAES),
    "SAE": Habit("hl.load_sae(folder)", SAES),
    "SAEConfig": Habit("sae.cfg", SAES, "of what hl.load_sae opened"),
    "*SAERunner*": Habit("hl.load_sae(folder)", SAES, "SAELens trains them, a lens splices them in"),
    "SAETrainingRunner": Habit("hl.load_sae(folder)", SAES, "SAELens trains them, a lens splices them in"),
    "run_evals": Habit("from analyses.stream import loss_recovered", SAES),
    "patching": _PATCHING,
    "get_act_patch_*": _PATCHING,
    **_SILENCES,
}
"""Names asked of the library."""

MODULES = {
    "hybridlens": HYBRIDLENS,
    "analyses": {**_SILENCES, "get_act_patch_*": _PATCHING},
    "analyses.heads": _SILENCES,
    "analyses.patching": {
        "get_act_patch_*": _PATCHING,
        "generic_activation_patch": Habit("from analyses.patching.running import activation_patch", TOOLS),
    },
}
"""By the package that is asked."""
