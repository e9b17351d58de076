"""Bad calls of the public functions, as users make them, run where no type checker stands before the library.

Under pytest every annotation is checked by beartype first; so the tests run this file in a process of its own. It
prints, as JSON, how many calls were refused, and every call that ended otherwise than working or in one line of ours.
"""

import json
import math
import random
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from random_lens import benchmark_lens
from test_capacity import a_capacity

import hybridlens as hl
from analyses.heads import entropy, manipulation, needle_heads, sparsification
from analyses.heads.ranking import HeadRanking
from analyses.patching import metrics, pairs
from analyses.stream.linear_probe import linear_probe
from analyses.stream.steering import steer
from analyses.study import compare_studies
from analyses.study.capacity import UNTOUCHED
from analyses.study.overview import overview
from hybridlens import niah
from hybridlens.boundary_words import shown
from hybridlens.errors import HybridLensError


def the_examples() -> list[tuple[Callable[..., Any], dict[str, Any]]]:
    """Public functions with arguments that are right."""
    lens = benchmark_lens("jamba")
    tokenizer, layers, n_heads = lens.tokenizer, lens.cfg.attention_layers, lens.cfg.n_heads
    ranking = HeadRanking(torch.rand(len(layers), n_heads), layers, "chance", True)
    fox = niah.full_match_rubric("A fox")
    paper, oslo = niah.PAPER_NEEDLE, niah.NEEDLES["oslo"]
    windy = niah.best_thing("windy", "San Francisco", "eat a sandwich", "sit", "Dolores Park", "windy")
    prompt = niah.grid(tokenizer, [120], [50])[0]
    some: dict[str, Any] = {"lengths": [120], "depths": [0, 100], "jrt": False, "semantics": "clean", "seed": 0}
    whole = {"haystack": niah.essays(1, 50), "needle": paper, "template": "base"}
    kept = torch.ones(2, len(layers), n_heads, dtype=torch.bool)
    return [
        (compare_studies, {"folders": ["nowhere", "elsewhere"]}),
        (overview, {"folder": "nowhere"}),
        (niah.grid, {"tokenizer": tokenizer, **some, **whole}),
        (niah.controls, {"tokenizer": tokenizer, **some, **whole}),
        (niah.shortest_length, {"tokenizer": tokenizer, **{k: v for k, v in some.items() if k != "lengths"}, **whole}),
        (niah.default_lengths, {"max_length": 400, "shortest": 100, "count": 3}),
        (niah.essays, {"seed": 3, "n_sentences": 4}),
        (niah.read_haystack, {"folder": "nowhere"}),
        (niah.Haystack, {"name": "a", "text": "A text."}),
        (niah.Needle, {"name": "n", "sentence": "A fox.", "question": "Who?", "rubric": fox}),
        (niah.best_thing, dict(zip(("name", "city", "first", "second", "park", "weather"), "abcdef", strict=True))),
        (niah.in_steps, {"name": "n", "sentence": "A b c d.", "question": "q", "first": "A", "second": "c"}),
        (niah.score, {"text": "eat a sandwich", "rubric": niah.PAPER_RUBRIC}),
        (niah.check_rubric, {"rubric": paper.rubric, "needle": paper.sentence, "source": "it"}),
        (niah.load_rubric, {"path": "nowhere.json", "needle": None}),
        (niah.load_needles, {"path": "nowhere.json"}),
        (lens.to_tokens, {"text": "a city"}),
        (lens.to_single_token, {"text": "city"}),
        (lens.to_string, {"tokens": [1, 5]}),
        (lens.to_str_tokens, {"tokens": [1, 5]}),
        (lens, {"tokens": torch.tensor([[1, 5], [6, 7]]), "lengths": [2, 1]}),
        *the_front(lens),
        *the_cache(lens),
        (sparsification.top_k, {"lens": lens, "k": 1, "phase": "decode", "scope": "layer", "semantics": "clean"}),
        (sparsification.keep_heads, {"lens": lens, "ranking": ranking, "n": 2, "phase": "both", "scope": "model"}),
        (sparsification.silence_heads, {"lens": lens, "ranking": ranking, "n": 2, "phase": "both", "scope": "layer"}),
        (sparsification.keep_each, {"lens": lens, "heads": [((1, 0),), None], "phase": "both"}),
        (sparsification.keep_rows, {"lens": lens, "kept": kept, "phase": "both"}),
        (manipulation.manipulate, {"lens": lens, "mode": "omit", "span": (1, 3), "phase": "both"}),
        (manipulation.is_causal, {"mode": "omit", "semantics": "clean"}),
        (entropy.head_entropy, {"pattern": torch.ones(1, 2, 3, 3)}),
        (entropy.rank_heads, {"lens": lens, "tokens": [[1, 5, 6]], "queries": "all", "batch_size": 2}),
        (HeadRanking, {"scores": torch.rand(2, 4), "layers": (1, 5), "source": "s", "lower_is_better": True}),
        (ranking.kept, {"n": 2, "scope": "layer"}),
        (ranking.score, {"layer": 1, "head": 0}),
        (needle_heads.look, {"lens": lens, "prompt": prompt.tokens, "answer": [5], "needles": prompt.needle_spans}),
        (needle_heads.crop, {"n_prompt": 50, "n_answer": 3, "needle": (4, 8), "most": 20, "around": 2}),
        (metrics.LogitDifference, {"right": 3, "wrong": 4}),
        (metrics.LogProbability, {"answer": (1, 2)}),
        (metrics.Rank, {"token": 3}),
        (metrics.KullbackLeibler, {"reference": torch.zeros(5)}),
        (metrics.NeedleScore, {"rubric": niah.PAPER_RUBRIC, "max_new_tokens": 3}),
        (pairs.other_needle, {"lens": lens, "needle": paper, "other": windy, "length": 120, "depth": 50, "seed": 1}),
        (pairs.counterpart, {"needle": paper, "other": oslo}),
        (a_capacity().of, {"condition": UNTOUCHED, "facts": 2, "control": True}),
        (a_capacity().recall, {"condition": UNTOUCHED, "facts": 4}),
    ]


def the_front(lens: hl.HybridLens) -> list[tuple[Callable[..., Any], dict[str, Any]]]:
    """The lens's own calls, of a small model; files go into the folder where this runs."""
    state = lens.prefill([[1, 5, 6], [7, 8, 9]]).state
    rows, pairs, fn = torch.tensor([[1, 5], [6, 7]]), [("hook_embed", lambda x, hook: None)], lambda x, hook: None
    how = hl.Sampling(seed=1)
    state.save("held")
    return [
        (lens.prefill, {"tokens": rows, "edits": [hl.Edit("hook_embed", fn)], "lengths": [2, 1], "last_only": True}),
        (lens.extend, {"state": state, "tokens": rows, "edits": (), "phase": "decode", "last_only": False}),
        (lens.generate, {"tokens": rows, "max_new_tokens": 2, "boundary": "first_new_token", "capture": True}),
        (lens.generate, {"tokens": rows, "max_new_tokens": 2, "stop_at_eos": True, "sampling": how, "lengths": [2, 1]}),
        (lens.key_positions, {"state": state, "new_tokens": 2}),
        (lens.run_with_hooks, {"tokens": rows, "fwd_hooks": pairs, "lengths": [2, 1]}),
        (lens.run_with_cache, {"tokens": rows, "names_filter": ["hook_embed"], "device": "cpu", "pos_slice": (0, 1)}),
        (lens.run_with_cache, {"tokens": [[1, 5]], "names_filter": "hook_embed", "remove_batch_dim": True}),
        (entered(lens.hooks), {"fwd_hooks": pairs, "bwd_hooks": pairs, "reset_hooks_end": True}),
        (lens, {"tokens": rows, "return_type": "both", "loss_per_token": True, "padding_side": "left"}),
        (lens, {"tokens": lens(rows, stop_at_layer=1), "start_at_layer": 1, "stop_at_layer": -1, "lengths": [2, 1]}),
        (lens.loss_fn, {"logits": lens(rows), "tokens": rows, "attention_mask": [[1, 1], [1, 0]], "per_token": True}),
        (lens.run_with_cache, {"tokens": rows, "return_type": "loss", "incl_bwd": False, "return_cache_object": False}),
        (without_hooks(lens, lens.add_hook), {"name": "hook_embed", "hook": fn, "dir": "bwd", "level": 1}),
        (lens.reset_hooks, {"clear_contexts": True, "direction": "fwd", "including_permanent": True, "level": 2}),
        (lens.list_hooks, {"name_filter": None, "dir": "both", "including_permanent": False}),
        (lens.get_caching_hooks, {"names_filter": "hook_embed", "incl_bwd": True, "cache": {}, "pos_slice": -1}),
        (lens.to, {"device": "cpu", "dtype": torch.float32}),
        (lens.train, {"mode": False}),
        (hl.Edit, {"hook": "hook_embed", "fn": fn, "phase": "decode", "rows": [0, 1], "ahead": False}),
        (hl.Sampling, {"seed": 1, "temperature": 0.5, "top_k": 3, "top_p": 0.9}),
        (hl.load, {"name": "nowhere", "revision": None, "dtype": "float32", "device": "cpu", "device_map": None}),
        (hl.load, {"name": "nowhere", "device_map": "cpu", "max_memory": {"cpu": "1GB"}, "offload_folder": "away"}),
        (hl.load_weights, {"name": "nowhere", "revision": "main", "device": "cpu"}),
        (hl.load, {"name": "nowhere", "adapter": "nowhere/either", "merge": True}),
        (hl.load_weights, {"name": "nowhere", "adapter": "nowhere/either", "merge": True}),
        (state.split, {"window": 2}),
        (state.select, {"rows": [1, 0]}),
        (state.repeat, {"n": 2}),
        (state.to, {"device": "cpu"}),
        (state.save, {"path": "saved"}),
        (hl.HybridState.load, {"path": "held"}),
        (hl.HybridState.cat, {"states": [state, state]}),
    ]


def the_cache(lens: hl.HybridLens) -> list[tuple[Callable[..., Any], dict[str, Any]]]:
    """The cache, weights and directions, with arguments that are right."""
    cache = lens.run_with_cache([[1, 5, 9], [1, 6, 7]])[1]
    stack = cache.decompose_resid()
    vector = torch.ones(lens.cfg.d_model)
    return [
        (cache.decompose_resid, {"layer": 2, "mlp_input": False, "mode": "all", "apply_ln": False, "pos_slice": None}),
        (cache.accumulated_resid, {"layer": 2, "incl_mid": True, "apply_ln": True, "pos_slice": -1}),
        (cache.stack_head_results, {"layer": 2, "incl_remainder": True, "pos_slice": None, "apply_ln": False}),
        (cache.get_neuron_results, {"layer": 0, "neuron_slice": 1, "project_output_onto": vector}),
        (cache.apply_ln_to_stack, {"residual_stack": stack, "layer": 2, "batch_slice": None, "has_batch_dim": True}),
        (cache.logit_attrs, {"residual_stack": stack, "tokens": 5, "incorrect_tokens": 6, "pos_slice": None}),
        (cache.logit_lens, {"layers": [0], "positions": -1, "vocab": None, "targets": [3], "chunk_size": 3}),
        (cache.compute_ssm_state, {"layer": 0, "time_step": 1}),
        (cache.apply_slice_to_batch_dim, {"batch_slice": 0}),
        (cache.to, {"device": "cpu"}),
        (lens.blocks_with, {"part": "ssm"}),
        (lens.tokens_to_residual_directions, {"tokens": 5}),
        (lens.accumulated_bias, {"layer": 2, "mlp_input": False, "include_mlp_biases": True}),
        (linear_probe, {"features": torch.eye(4), "labels": [0, 1, 0, 1], "folds": 2, "shuffles": 1, "strength": 0.1}),
        (steer, {"name": "hook_embed", "direction": vector, "scale": 1.0, "positions": [0], "lengths": [3]}),
    ]


def without_hooks(lens: hl.HybridLens, add: Callable[..., Any]) -> Callable[..., None]:
    """A call that adds hooks, and leaves none."""

    def call(**options: Any) -> None:
        try:
            add(**options)
        finally:
            lens.reset_hooks(including_permanent=True)

    return call


def entered(hooks: Callable[..., Any]) -> Callable[..., None]:
    """A call that enters and leaves what `hooks` gives."""

    def call(**options: Any) -> None:
        with hooks(**options):
            pass

    return call


JUNK: tuple[Any, ...] = (
    None, True, 0, 1, -1, 2.5, 1.0, math.nan, math.inf, 10**30, 10**5000, "", "bogus", "a\nb", "x\ud800", b"bytes", [],
    (), {}, {1, 2}, [1.5], [math.nan], [True], [None], [-1], [10**30], [[1], [2, 3]], ["a", 1], range(3), (1, 2, 3),
    int, len, object(), np.int64(3), np.array([1.5]), np.array(["a"]), np.zeros((2, 2, 2)), torch.tensor(2),
    torch.ones(2), torch.zeros(0), torch.tensor([[1, 2]]), slice(None), {"input_ids": [[1]]}, {"a": 1}, Ellipsis, 1j,
)  # fmt: skip


SILENT: list[tuple[str, Callable[[Any, Any], Any]]] = [
    ("tokens are a value of class HybridCache", lambda lens, ranking: lens(lens.run_with_cache([[1, 5]])[1])),
    ("n = 2.5 given", lambda lens, ranking: sparsification.keep_heads(lens, ranking, 2.5)),
    ("n = 1.0 given", lambda lens, ranking: sparsification.keep_heads(lens, ranking, 1.0)),
    ("phase 'bogus' does not exist", lambda lens, _: sparsification.keep_rows(lens, torch.ones(1, 2, 4) > 0, "bogus")),
    ("depths[0] = nan given", lambda lens, _: niah.grid(lens.tokenizer, [120], [math.nan])),
    ("depths[0] = True given", lambda lens, _: niah.grid(lens.tokenizer, [120], [True])),
    ("seed = None given", lambda lens, _: niah.grid(lens.tokenizer, [120], seed=None)),
    ("seed = 2.7 given", lambda lens, _: niah.grid(lens.tokenizer, [120], seed=2.7)),
    ("jrt = [] given", lambda lens, _: niah.grid(lens.tokenizer, [120], jrt=[])),
    ("seed = 'Lima' given", lambda *_: niah.essays(seed="Lima")),
    ("wrong = True given", lambda *_: metrics.LogitDifference(10, True)),
    ("length = 1000000000000 given", lambda lens, _: pairs.no_needle(lens, niah.PAPER_NEEDLE, 10**12, 50)),
    ("1000 tokens given, but the", lambda lens, _: pairs.no_needle(lens, niah.PAPER_NEEDLE, 1000, 50)),
    ("token 1000000 is outside the vocabulary", lambda lens, _: lens.to_string([10**6])),
    ("tokens are b'bytes'", lambda lens, _: lens(b"bytes")),
    ("tokens are {", lambda lens, _: lens({9, 1, 5})),
    ("window = 0 given", lambda lens, _: lens.prefill([[1, 5]]).state.split(0)),
    ("window = -1 given", lambda lens, _: lens.prefill([[1, 5]]).state.split(-1)),
    ("window = [1.5] given", lambda lens, _: lens.prefill([[1, 5]]).state.split([1.5])),
    ("device = torch.float16 given", lambda lens, _: lens.prefill([[1, 5]]).state.to(torch.float16)),
    ("device 'nowhere' cannot be used here", lambda lens, _: lens.prefill([[1, 5]]).state.to("nowhere")),
    ("path = a value of class slice given", lambda lens, _: lens.prefill([[1, 5]]).state.save(slice(None))),
    ("last_only = 'decode' given", lambda lens, _: lens.prefill([[1, 5]], last_only="decode")),
    ("remove_batch_dim = a value of class", lambda lens, _: lens.run_with_cache([[1, 5]], remove_batch_dim=...)),
    ("stop_at_eos = the class int given", lambda lens, _: lens.generate([[1, 5]], stop_at_eos=int)),
    ("new_tokens = 0.5 given", lambda lens, _: lens.key_positions(lens.prefill([[1, 5]]).state, new_tokens=0.5)),
    ("ahead = () given", lambda *_: hl.Edit("hook_embed", lambda x, hook: x, ahead=())),
    ("boundary 'middle' does not exist", lambda lens, _: lens.trace([[1, 5]], boundary="middle")),
    ("lengths = b'x' given", lambda lens, _: lens(torch.tensor([[1, 2]]), lengths=b"x")),
]


def silent() -> list[list[str]]:
    """What each of `SILENT` should begin with, and what it says."""
    lens = benchmark_lens("jamba")
    layers = lens.cfg.attention_layers
    ranking = HeadRanking(torch.rand(len(layers), lens.cfg.n_heads), layers, "chance", True)
    said: list[list[str]] = []
    for message, call in SILENT:
        try:
            said.append([message, f"accepted: {shown(call(lens, ranking))}"])
        except HybridLensError as error:
            said.append([message, str(error)])
    return said


def called(fn: Any) -> str:
    """What a call is of; the lens itself has no name."""
    return str(getattr(fn, "__qualname__", type(fn).__name__))


def at_random(calls: int) -> dict[str, Any]:
    """Calls with one or two arguments exchanged for junk: how many were refused, and which ended in another way."""
    rng = random.Random(11)
    examples, refused, wrong = the_examples(), 0, list[str]()
    for fn, right in examples:
        fn(**right) if "nowhere" not in str(right) else None  # the examples themselves are right
    for _ in range(calls):
        fn, right = rng.choice(examples)
        changed = {name: rng.choice(JUNK) for name in rng.sample(sorted(right), min(len(right), rng.randint(1, 2)))}
        try:
            fn(**{**right, **changed})
        except HybridLensError as error:
            refused += 1
            if "\n" in str(error) or len(str(error)) > 1000:
                wrong.append(f"{called(fn)} of {shown(changed)}: {str(error)[:1500]}")
        except Exception as error:  # what is looked for
            wrong.append(f"{called(fn)} of {shown(changed)}: {type(error).__name__}: {str(error)[:300]}")
    return {"refused": refused, "wrong": wrong}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_grad_enabled(False)
    json.dump({"silent": silent(), **at_random(int(sys.argv[1]))}, sys.stdout)
