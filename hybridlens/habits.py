"""What users of TransformerLens, nnsight, MambaLens, SAELens and Hugging Face type from habit, and what to type here.

Names, keywords and hook points that a lens has not, each with what stands in its place, as code that runs as it is
written, and the section of docs/coming-from.md that tells more. Data alone: `hybridlens.elsewhere` makes lines of it,
and `tests/test_coming_from.py` runs every one. In the code, `lens` is a lens, `tokens` a prompt, `cache` what
``lens.run_with_cache(tokens)`` gave, `hl` this library; layer 2 stands for any with attention, layer 1 for any without.

What users type and what a lens has alike (`run_with_cache`, `W_Q`, `.output`) is in the page, not here.
"""

from __future__ import annotations

from typing import NamedTuple

PAGE = "docs/coming-from.md"

HOOKS, RUNNING, WEIGHTS, CACHE, TOOLS = "Hooks", "Running", "Weights", "The cache", "Tools"
TRACES, STATES, SAES = "Traces", "States", "SAEs"
SECTIONS = (HOOKS, RUNNING, WEIGHTS, CACHE, TOOLS, TRACES, STATES, SAES)
"""Headings of the page."""


class Habit(NamedTuple):
    """What to type instead of something."""

    here: str
    """Code that runs as it stands."""
    section: str
    """Of the page."""
    note: str = ""
    """What else is to be known."""


class PointHabit(NamedTuple):
    """What to hook instead of a hook point of theirs."""

    theirs: str
    """A regular expression of its name, without ``blocks.LAYER.``."""
    here: tuple[str, ...]
    """Hook points, those of layers without ``blocks.LAYER.``; the first that the layer has is named."""
    section: str
    note: str = ""


LOAD = Habit('hl.load("tiny-jamba")', RUNNING, "or a folder, or a hub id")
"""What opens a model."""
_FOLDED = Habit("lens.weights(folded=True)", WEIGHTS, "norms are folded in what is asked for, never in the model")
_SPLICE = Habit('lens.splice("blocks.2.hook_resid_post", sae)', SAES, "a `with` block")
_ADDED = Habit('lens.add_hook("blocks.2.hook_resid_post", fn)', HOOKS, "fn(tensor, hook)")
_THEIRS = Habit("lens.model.layers[2]", TRACES, "Hugging Face's modules, under Hugging Face's names")
_CONFIG = Habit("lens.cfg", RUNNING, "Hugging Face's own is lens.hf_model.config")
_STEPS = Habit("lens.trace(tokens, max_new_tokens=3)", TRACES, "`for step in tracer.iter[:]` walks its passes")

CLASS = {
    "from_pretrained": LOAD,
    "from_pretrained_no_processing": LOAD,
    "boot_transformers": LOAD,
    "boot_native": LOAD,
    "boot_tl_legacy": LOAD,
    "list_supported_models": Habit(
        "from hybridlens.families import FAMILIES", RUNNING, "`hybridlens families` shows them"
    ),
    "check_model_support": LOAD._replace(note="says in one line what it cannot open"),
}
"""Names asked of the class, as in ``HybridLens.from_pretrained``, or of a lens."""

LENS = CLASS | {
    "process_weights": _FOLDED,
    "process_weights_": _FOLDED,
    "enable_compatibility_mode": _FOLDED,
    "fold_layer_norm": _FOLDED,
    "fold_value_biases": _FOLDED,
    "center_writing_weights": _FOLDED._replace(note="root-mean-square norms take no mean away, so nothing is centred"),
    "center_unembed": _FOLDED._replace(note="differences of logits need no centring"),
    "refactor_factored_attn_matrices": Habit("lens.OV", WEIGHTS, "FactoredMatrix.svd() gives its factors"),
    "OV_for_attn_layers": Habit("lens.OV", WEIGHTS, "over lens.attn_layers"),
    "QK_for_attn_layers": Habit("lens.QK", WEIGHTS, "over lens.attn_layers"),
    "composition_layer_indices": Habit("lens.attn_layers", WEIGHTS),
    "attn_head_labels": Habit("lens.all_head_labels", WEIGHTS),
    "stack_params_for": Habit("lens.W_Q", WEIGHTS, "over lens.attn_layers; lens.weights() has those of recurrences"),
    "tl_named_parameters": Habit("lens.tl_parameters().items()", WEIGHTS),
    "get_params": Habit("lens.tl_parameters()", WEIGHTS),
    "W_E_pos": Habit("lens.W_E", WEIGHTS, "no family learns an embedding of positions"),
    "pos_embed": Habit("lens.embed(tokens)", WEIGHTS, "no family learns an embedding of positions"),
    "hook_pos_embed": Habit("lens.hook_embed", HOOKS, "no family learns an embedding of positions"),
    "n_params_total": Habit("lens.n_parameters.total", WEIGHTS),
    "embedding": Habit("lens.embed", WEIGHTS),
    "norm": Habit("lens.ln_final", HOOKS),
    "original_model": Habit("lens.hf_model", RUNNING),
    "hf_generate": Habit("lens.hf_model.generate(tokens, max_new_tokens=3)", RUNNING, "without hooks"),
    "generate_stream": Habit("lens.generate(tokens, max_new_tokens=3, verbose=True)", RUNNING),
    "input_to_embed": Habit("lens(tokens, stop_at_layer=0)", RUNNING),
    "get_residual": Habit("lens(tokens, stop_at_layer=0)", RUNNING),
    **dict.fromkeys(
        ("sample_datapoint", "load_sample_training_dataset", "dataset"),
        Habit("lens.to_tokens(prompt)", RUNNING, "of a text of one's own: a lens brings no training data"),
    ),
    "layer_types": Habit("lens.cfg.layer_types", RUNNING),
    "config": _CONFIG,
    "save_pretrained": Habit("lens.hf_model.save_pretrained", RUNNING),
    "attn": Habit("lens.blocks[2].attn", HOOKS),
    "mlp": Habit("lens.blocks[2].mlp", HOOKS),
    "ln1": Habit("lens.blocks[2].ln1", HOOKS),
    "ln2": Habit("lens.blocks[2].ln2", HOOKS),
    "block_hooks": Habit("lens.blocks[2]", HOOKS, "its hook points are attributes"),
    "block_submodules": Habit("lens.model.layers[2]", TRACES, "Hugging Face's modules"),
    "n_params": Habit("lens.n_parameters.non_embedding", WEIGHTS),
    "num_params": Habit("lens.n_parameters.total", WEIGHTS),
    "init_weights": Habit("from hybridlens.untrained import reinitialized", WEIGHTS, "a lens with weights drawn anew"),
    "load_and_process_state_dict": Habit("lens.load_state_dict(lens.state_dict())", WEIGHTS, "nothing is processed"),
    "fill_missing_keys": Habit("lens.load_state_dict(lens.state_dict())", WEIGHTS, "keys are Hugging Face's"),
    "set_ungroup_grouped_query_attention": Habit("lens.W_K", WEIGHTS, "repeated to query heads; hook_k is not"),
    "move_model_modules_to_device": Habit('lens.to("cpu")', RUNNING),
    "mps": Habit("lens.to(lens.device)", RUNNING, 'on a Mac "mps"'),
    "type": Habit("lens.to(torch.float32)", RUNNING),
    "compile": Habit("lens.hf_model", RUNNING, "Hugging Face's model may be compiled; runs of a lens are not"),
    "clear_hook_registry": Habit("lens.reset_hooks(including_permanent=True)", HOOKS),
    **dict.fromkeys(
        (
            "encoder_output",
            "predict_next_sentence",
            "to_sentence_pair_tokens",
            "diffusion_generate",
            "prepare_multimodal_inputs",
        ),
        Habit("lens.generate(tokens, max_new_tokens=3)", RUNNING, "a lens opens causal language models alone"),
    ),
    "get_hook_point": Habit('lens.hook_dict["blocks.2.hook_resid_post"]', HOOKS),
    "mod_dict": Habit("lens.hook_dict", HOOKS),
    "setup": Habit("lens.hook_dict", HOOKS, "points have their names from the first"),
    "hook_tokens": Habit("lens.hook_embed", HOOKS),
    "check_and_add_hook": _ADDED,
    "is_caching": Habit("lens.run_with_cache(tokens)", CACHE, "nothing is cached but in its own run"),
    "hook_aliases": Habit("lens.hook_points", HOOKS),
    "cache_all": Habit("lens.add_caching_hooks()", HOOKS, "lens.reset_hooks() ends it"),
    "cache_some": Habit('lens.add_caching_hooks(["blocks.2.hook_resid_post"])', HOOKS, "lens.reset_hooks() ends it"),
    "register_forward_hook": _ADDED,
    "register_forward_pre_hook": _ADDED,
    "register_full_backward_hook": _ADDED._replace(
        here='lens.add_hook("blocks.2.hook_resid_post", fn, "bwd")', note="fn(gradient, hook)"
    ),
    "children": Habit("lens.hf_model.children()", RUNNING, "a lens is no torch module"),
    "get_submodule": Habit('lens.hf_model.get_submodule("model.layers.2")', RUNNING, "a lens is no torch module"),
    "apply": Habit("lens.hf_model.apply(lambda module: None)", RUNNING, "a lens is no torch module"),
    "transformer": _THEIRS,
    "gpt_neox": _THEIRS,
    "backbone": _THEIRS,
    "layers": _THEIRS,
    "_model": Habit("lens.hf_model", TRACES),
    "generator": Habit("lens.generate(tokens, max_new_tokens=3).tokens", TRACES, "in a trace, tracer.result.tokens"),
    "logits": Habit("lens.hook_logits", TRACES, "in a trace .output; lens(tokens) returns them"),
    "output": Habit("lens.hook_logits", TRACES, "in a trace lens.hook_logits.output, tracer.result.logits"),
    "input": Habit("lens.hook_embed", TRACES, "in a trace lens.hook_embed.output"),
    "inputs": Habit("lens.hook_embed", TRACES, "in a trace lens.hook_embed.output"),
    "source": Habit("lens.hook_points", TRACES, "what is computed inside modules has hook points"),
    "iter": _STEPS,
    "all": _STEPS,
    "next": _STEPS,
    "clear_edits": Habit("lens.edit()", TRACES, "an edit is of the copy that its block gives, never of the lens"),
    "add_sae": _SPLICE,
    "run_with_saes": _SPLICE,
    "run_with_cache_with_saes": _SPLICE._replace(note="a `with` block, and lens.run_with_cache(tokens) in it"),
    "run_with_hooks_with_saes": _SPLICE._replace(note="a `with` block, and lens.run_with_hooks in it"),
    "saes": _SPLICE,
    "reset_saes": _SPLICE._replace(note="a `with` block, at whose end it is gone"),
    "acts_to_saes": _SPLICE,
}
"""Names asked of a lens."""

PART = {
    "attn": Habit("lens.cfg.attention_layers", HOOKS, "the layers that have it"),
    "ssm": Habit("lens.cfg.ssm_layers", HOOKS, "the layers that have it"),
    "mlp": Habit("lens.cfg.mlp_layers", HOOKS, "the layers that have it"),
}
"""Parts that a layer may lack."""

BLOCK = PART | {
    "self_attn": Habit("lens.blocks[2].attn", HOOKS, "Hugging Face's is in lens.model.layers[2]"),
    "attention": Habit("lens.blocks[2].attn", HOOKS, "Hugging Face's is in lens.model.layers[2]"),
    "mamba": Habit("lens.blocks[1].ssm", HOOKS, "Hugging Face's is in lens.model.layers[1]"),
    "mixer": Habit("lens.blocks[1].ssm", HOOKS, "Hugging Face's is in lens.model.layers[1]"),
    "linear_attn": Habit("lens.blocks[1].ssm", HOOKS, "Hugging Face's is in lens.model.layers[1]"),
    "temporal_block": Habit("lens.blocks[1].ssm", HOOKS, "Hugging Face's is in lens.model.layers[1]"),
    "feed_forward": Habit("lens.blocks[2].mlp", HOOKS, "Hugging Face's is in lens.model.layers[2]"),
    "hook_in": Habit("lens.blocks[2].hook_resid_pre", HOOKS),
    "hook_out": Habit("lens.blocks[2].hook_resid_post", HOOKS),
    "norm": Habit("lens.blocks[2].ln1", HOOKS),
    "input_layernorm": Habit("lens.blocks[2].ln1", HOOKS),
    "inputs": Habit("lens.blocks[2]", TRACES, "in a trace .input, the stream itself"),
    "next": _STEPS,
    "source": Habit("lens.hook_points", TRACES, "what is computed inside modules has hook points"),
    "skip": Habit("lens.trace(tokens)", TRACES, "in its block, lens.blocks[2].output = lens.blocks[2].input"),
}
"""Names asked of a layer."""

POINT = {
    "next": _STEPS,
    "all": _STEPS,
    "iter": _STEPS,
    "value": Habit("lens.blocks[2].hook_resid_post", TRACES, "in a trace .output.save(), whose value it is"),
    "source": Habit("lens.hook_points", TRACES, "what is computed inside modules has hook points"),
    "skip": Habit("lens.blocks[2].hook_resid_post", TRACES, "in a trace, assign to .output"),
}
"""Names asked of a hook point."""

_LIVE = 'lens.hook_dict["blocks.2.hook_resid_post"]'
SPEC = {
    **dict.fromkeys(("output", "input", "inputs"), Habit(_LIVE, TRACES, "in a trace .output.save()")),
    **dict.fromkeys(("add_hook", "add_perma_hook", "fwd_hooks"), Habit(_LIVE, HOOKS)),
    "shape": Habit('lens.hook_points["hook_embed"].sizes', HOOKS, "as far as the model fixes them; all of it in a run"),
}
"""Names asked of what is known of a hook point before anything runs, which lens.hook_points has."""

_ATTENTION = "lens.weights().attention(2)"
_NO_WEIGHTS = Habit("lens.hf_model.config", RUNNING, "a lens opens trained models and draws no weights")
_THEIR_CONFIG = Habit("lens.hf_model.config", RUNNING, "has it if the model has")

CONFIG = {
    "n_params": Habit("lens.n_parameters", WEIGHTS, "has the counts"),
    "attn_layers": Habit("lens.cfg.attention_layers", RUNNING, "lens.attn_layers are those of stacks of weights"),
    "to_dict": Habit("lens.cfg.to_pandas()", RUNNING, "dataclasses.asdict makes a dict"),
    "attn_types": Habit("lens.cfg.layer_types", RUNNING, "lens.cfg.windows says how far each layer looks"),
    "use_local_attn": Habit("lens.cfg.windows", RUNNING, "of each layer, or lens.cfg.window of all"),
    "use_attn_scale": Habit(f"{_ATTENTION}.scale", WEIGHTS, "what scores are multiplied by"),
    "attn_scale": Habit(f"{_ATTENTION}.scale", WEIGHTS, "what scores are multiplied by"),
    "attn_scores_soft_cap": Habit(f"{_ATTENTION}.soft_cap", WEIGHTS),
    "rotary_dim": Habit(f"{_ATTENTION}.rotary", WEIGHTS, "None where nothing turns"),
    "rotary_base": Habit(f"{_ATTENTION}.rotary", WEIGHTS, "None where nothing turns"),
    "rotary_adjacent_pairs": Habit(f"{_ATTENTION}.rotary", WEIGHTS, "None where nothing turns"),
    "layer_norm_folding": _FOLDED,
    "seed": _NO_WEIGHTS,
    "init_mode": _NO_WEIGHTS,
    "init_weights": _NO_WEIGHTS,
    "initializer_range": _NO_WEIGHTS,
    "n_devices": Habit("lens.device", RUNNING, "lens.hf_model.hf_device_map, if parts are on several"),
    "default_padding_side": Habit('lens.to_tokens(["a", "a b"], padding_side="left")', RUNNING, "padding on either "
                                  "side changes nothing of what a row gives"),
    "architecture": Habit("lens.cfg.original_architecture", RUNNING),
    "is_stateful": Habit("lens.cfg.state_layers", STATES, "the layers that hold a state"),
    "use_qk_norm": _THEIR_CONFIG,
    "hidden_size": Habit("lens.cfg.d_model", RUNNING),
    "num_hidden_layers": Habit("lens.cfg.n_layers", RUNNING),
    "n_layer": Habit("lens.cfg.n_layers", RUNNING),
    "num_attention_heads": Habit("lens.cfg.n_heads", RUNNING, "of a layer with attention"),
    "num_key_value_heads": Habit("lens.cfg.n_key_value_heads", RUNNING, "of a layer with attention"),
    "head_dim": Habit("lens.cfg.d_head", RUNNING),
    "intermediate_size": Habit("lens.cfg.d_mlp", RUNNING),
    "vocab_size": Habit("lens.cfg.d_vocab", RUNNING),
    "max_position_embeddings": Habit("lens.cfg.n_ctx", RUNNING),
    "sliding_window": Habit("lens.cfg.window", RUNNING),
    "model_type": Habit("lens.cfg.family", RUNNING),
    "eos_token_id": Habit("lens.cfg.eos_token_ids", RUNNING),
    "layers_block_type": Habit("lens.cfg.layer_types", RUNNING),
    "d_inner": Habit("lens.cfg.d_channels", STATES),
    "d_in": Habit("lens.cfg.d_channels", STATES),
    "mamba_d_state": Habit("lens.cfg.d_state", STATES),
    "mamba_d_conv": Habit("lens.cfg.d_conv", STATES),
    "dt_rank": Habit("lens.hf_model.config.mamba_dt_rank", STATES),
}  # fmt: skip
"""Names asked of ``lens.cfg``."""

_SWITCHED = Habit("lens.hook_points", HOOKS, "nothing is to be switched on: what is hooked is computed")

ASSIGNED = {
    **dict.fromkeys(("use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in"), _SWITCHED),
    "default_prepend_bos": Habit("lens.to_tokens(prompt, prepend_bos=False)", RUNNING, "said at each call"),
    "device": Habit('lens.to("cpu")', RUNNING),
    "dtype": Habit("lens.to(torch.float32)", RUNNING),
}
"""Names of ``lens.cfg`` that users assign to."""
OPENED_ANEW = Habit("hl.HybridLens(lens.hf_model, lens.tokenizer)", RUNNING, "a lens on a model as it is by then")
"""Instead of an assignment to any other."""

_TOKENIZED = Habit('lens(lens.tokenizer(["a", "a b"], padding=True, return_tensors="pt"))', RUNNING,
                   "a tokenizer's output is taken whole, with its mask")  # fmt: skip
_EXTEND = Habit("lens.extend(state, tokens)", STATES, "from `state, logits = lens.prefill(tokens)`")
_CACHED = Habit("lens.run_with_cache(tokens)", CACHE)
_WITH_HOOKS = Habit('lens.run_with_hooks(tokens, fwd_hooks=[("hook_embed", fn)])', HOOKS,
                    "`with lens.hooks(fwd_hooks=...)` around any other call")  # fmt: skip
_FOLDING = Habit("lens.weights(folded=True)", WEIGHTS, "what is loaded is the model as it is")
_EDITS = Habit('lens.generate(tokens, 3, edits=[hl.Edit("hook_embed", fn)])', HOOKS)
_LOOP = Habit("lens.generate([prompt] * 2, 3, do_sample=True)", RUNNING)
_GIVEN = Habit("lens.generate(tokens, max_new_tokens=3)", RUNNING, "its tokens, text and state")

_RUN = {
    "input_ids": _TOKENIZED,
    "attention_mask": _TOKENIZED,
    "past_kv_cache": _EXTEND,
    "past_key_values": _EXTEND,
    "use_cache": Habit("lens.prefill(tokens)", STATES),
    "edits": Habit('lens.prefill(tokens, edits=[hl.Edit("hook_embed", fn)])', HOOKS),
    "output_hidden_states": _CACHED,
    "output_attentions": _CACHED,
    "labels": Habit('lens(tokens, return_type="loss")', RUNNING, "lens.loss_fn(logits, tokens) of any logits"),
    "use_error_term": _SPLICE,
    "saes": _SPLICE,
}

WORDS = {
    "RunFront.__call__": {
        **_RUN, "fwd_hooks": _WITH_HOOKS, "bwd_hooks": _WITH_HOOKS, "names_filter": _CACHED,
    },
    "RunFront.run_with_hooks": {**_RUN, "names_filter": _CACHED},
    "RunFront.run_with_cache": {
        **_RUN,
        **dict.fromkeys(
            ("fwd_hooks", "bwd_hooks"),
            Habit('with lens.hooks(fwd_hooks=[("hook_embed", fn)]): lens.run_with_cache(tokens)', HOOKS),
        ),
    },
    "GenerateFront.generate": {
        "input_ids": _GIVEN,
        "attention_mask": Habit(
            'lens.generate(lens.tokenizer(["a", "a b"], padding=True, return_tensors="pt"), 3)', RUNNING
        ),
        "use_past_kv_cache": _GIVEN._replace(note="it always goes on from a state, never reads anything twice"),
        "past_kv_cache": Habit("lens.generate(lens.prefill(tokens), 3)", STATES),
        "num_return_sequences": _LOOP,
        "num_beams": _LOOP._replace(note="there is no beam search"),
        "max_length": _GIVEN,
        "fwd_hooks": _EDITS,
        "hooks": _EDITS,
        "output_logits": Habit("lens.prefill(tokens).logits", RUNNING, "lens.extend, or a trace, has those of steps"),
        "return_dict_in_generate": _GIVEN,
        "repetition_penalty": Habit("lens.generate(tokens, 3, freq_penalty=0.5)", RUNNING),
        "return_cache": _STEPS,
    },
    "TraceFront.trace": {
        "remote": Habit("lens.trace(tokens)", TRACES, "a lens runs here"),
        "invoker_args": Habit("lens.trace(tokens)", TRACES),
        "validate": Habit("lens.trace(tokens, scan=True)", TRACES),
        "output_attentions": Habit("lens.blocks[2].attn.hook_pattern", TRACES, "in a trace, .output"),
        "generate": _STEPS,
    },
    "load": {
        "fold_ln": _FOLDING,
        "fold_value_biases": _FOLDING,
        "center_writing_weights": _FOLDING,
        "center_unembed": _FOLDING,
        "refactor_factored_attn_matrices": _FOLDING,
        "torch_dtype": Habit('hl.load("tiny-jamba", dtype="bfloat16")', RUNNING),
        "n_devices": Habit('hl.load("tiny-jamba", device_map="cpu")', RUNNING, '"auto" spreads over what there is'),
        "dispatch": Habit('hl.load("tiny-jamba")', TRACES, "it is loaded at once"),
        "rename": Habit('hl.load("tiny-jamba")', TRACES, "all families have the same names already"),
        "hf_model": Habit("hl.HybridLens(lens.hf_model, lens.tokenizer)", RUNNING),
        "tokenizer": Habit("hl.HybridLens(lens.hf_model, lens.tokenizer)", RUNNING),
        "trust_remote_code": Habit('hl.load("tiny-jamba")', RUNNING, "never runs code from a checkpoint"),
        "default_prepend_bos": Habit("lens.to_tokens(prompt, prepend_bos=False)", RUNNING, "said at each call"),
        "default_padding_side": Habit('lens.to_tokens(["a", "a b"], padding_side="left")', RUNNING, "said at each "
                                      "call; it changes nothing of what a row gives"),
    },
}  # fmt: skip
"""Keywords, by the function that is given them."""

POINTS = (
    PointHabit("hook_pos_embed|pos_embed(\\..*)?", ("hook_embed",), HOOKS, "no family learns an embedding of "
               "positions: where there are any, attn.hook_rot_q and hook_rot_k have them"),
    PointHabit("embed\\.hook_(in|out)|hook_tokens", ("hook_embed",), HOOKS),
    PointHabit("unembed\\.hook_out", ("hook_logits",), HOOKS),
    PointHabit("unembed\\.hook_in|ln_final\\.hook_out|hook_norm", ("ln_final.hook_normalized",), HOOKS,
               "before the norm's weight"),
    PointHabit("ln_final\\.hook_in", ("hook_resid_post",), HOOKS, "of the last layer"),
    PointHabit("hook_in|hook_layer_input|ln1\\.hook_in", ("hook_resid_pre",), HOOKS),
    PointHabit("hook_out", ("hook_resid_post",), HOOKS),
    PointHabit("ln2\\.hook_in", ("hook_resid_mid",), HOOKS),
    PointHabit("hook_normalized|hook_normalized_input|ln1\\.hook_out|(attn|mixer|ssm|mamba)\\.hook_in|hook_attn_in",
               ("ln1.hook_normalized",), HOOKS, "before the norm's weight"),
    PointHabit("hook_scale", ("ln1.hook_scale",), HOOKS),
    PointHabit("ln2\\.hook_out|mlp\\.hook_in|hook_mlp_in", ("ln2.hook_normalized",), HOOKS, "before the norm's weight; "
               "hook_resid_mid is what the norm reads"),
    PointHabit("(attn|self_attn)(\\.o)?\\.hook_out", ("hook_attn_out",), HOOKS),
    PointHabit("attn\\.o\\.hook_in", ("attn.hook_z",), HOOKS, "by head"),
    PointHabit("hook_q_input|attn\\.q\\.hook_out", ("attn.hook_q",), HOOKS),
    PointHabit("hook_k_input|attn\\.k\\.hook_out", ("attn.hook_k",), HOOKS, "by key/value head"),
    PointHabit("hook_v_input|attn\\.v\\.hook_out", ("attn.hook_v",), HOOKS, "by key/value head"),
    PointHabit("mlp\\.hook_mid|mlp\\.out\\.hook_in", ("mlp.hook_post",), HOOKS),
    PointHabit("mlp\\.(in|gate)\\.hook_out", ("mlp.hook_pre",), HOOKS),
    PointHabit("mlp\\.hook_out|mlp\\.out\\.hook_out", ("hook_mlp_out",), HOOKS),
    PointHabit("(mixer|ssm|mamba|linear_attn)\\.hook_out|mixer\\.hook_ssm_out|linear_attn\\.hook_ssm_out|hook_out_proj",
               ("hook_ssm_out",), STATES),
    PointHabit("hook_skip", ("ssm.hook_gate",), STATES, "after its activation"),
    PointHabit("hook_in_proj|mixer\\.in_proj\\.hook_out", ("ssm.hook_in",), STATES),
    PointHabit("hook_conv|hook_conv_after_cutoff|hook_ssm_input|mixer\\.(conv1d\\.hook_out|hook_conv)",
               ("ssm.hook_conv",), STATES, "after its activation"),
    PointHabit("hook_delta(_1|_2)?|mixer\\.dt_proj\\.hook_out", ("ssm.hook_dt",), STATES, "after softplus"),
    PointHabit("hook_A(_bar)?", ("ssm.hook_decay",), STATES, "exp(Δ A), what multiplies the state"),
    PointHabit("hook_B", ("ssm.hook_B", "ssm.hook_k"), STATES),
    PointHabit("hook_C", ("ssm.hook_C", "ssm.hook_q"), STATES),
    PointHabit("hook_B_bar|mixer\\.hook_ssm_write", ("ssm.hook_write",), STATES, "Δ B x, what is added to the state"),
    PointHabit("hook_h\\.start|hook_h_start", ("ssm.hook_state",), STATES, "after each token; zeros come before the "
               "first, and lens.extend goes on from any state"),
    PointHabit("hook_h(\\.\\d+)?|(mixer|linear_attn)\\.hook_ssm_state", ("ssm.hook_state",), STATES,
               "of all positions, [:, 5] after token 5"),
    PointHabit("hook_y|hook_ssm_output", ("ssm.hook_y",), STATES, "before the gate; Mamba's with D x"),
    PointHabit("hook_after_skip", ("ssm.hook_y",), STATES, "times ssm.hook_gate, which the output map reads"),
)  # fmt: skip
"""Hook points of theirs; the first that fits counts."""
