"""Direct logit attribution: the shares add up to the model's own logit, and each is what the part wrote, projected.

The logits that they have to add up to, before the soft cap, are taken from the untouched Hugging Face model's own
unembedding. All weights of the random models, biases and norms among them, are away from their defaults, so a part left
out, counted twice, or given to another head or expert is off by more than a hundred times the tolerance.
"""

import math

import pytest
import torch
from bounds import FORWARD, LAYER, close, near
from models import FAMILIES, MATRIX, make, make_calm, tokens
from niah_tokenizers import byte_bpe

import hybridlens as hl
from analyses.patching.direct import DirectAttribution, direct_logit_attribution
from analyses.patching.metrics import LogitDifference
from analyses.patching.writers import BIASES, Writer
from hybridlens.errors import InputError, UnknownNameError
from hybridlens.weights import Weights

LENGTH = 19  # more than twice the window of the small RecurrentGemma
CASES = [
    ("recurrentgemma", {}), ("recurrentgemma", {"num_key_value_heads": 2, "attention_bias": True}),
    ("recurrentgemma", {"tie_word_embeddings": False}),
    ("jamba", {}), ("jamba", {"mamba_proj_bias": True, "tie_word_embeddings": True}),
    ("jamba", {"num_experts": 5, "num_experts_per_tok": 3}),
]  # fmt: skip
MATRIX_CASES = [
    ("mamba2", {}), ("mamba2", {"use_bias": True, "tie_word_embeddings": True}),
    ("mamba2", {"residual_in_fp32": False}), ("falcon_h1", {}),
    ("falcon_h1", {"attention_bias": True, "mlp_bias": True, "projectors_bias": True, "mamba_proj_bias": True}),
    ("falcon_h1", {"mamba_rms_norm": True, "mamba_norm_before_gate": False}),
    ("qwen3_next", {}), ("qwen3_next", {"attention_bias": True, "norm_topk_prob": False, "num_experts_per_tok": 3}),
    ("kimi_linear", {"attention_bias": True, "num_experts_per_tok": 3}),
]  # fmt: skip
RECURRENT_OUT = {
    "mamba2": "mixer.out_proj", "qwen3_next": "linear_attn.out_proj", "kimi_linear": "self_attn.o_proj"
}  # fmt: skip
"""A layer's recurrent output projection, where it is not `mamba.out_proj`."""
FINAL_NORM = {"mamba2": "norm_f", "falcon_h1": "final_layernorm"}
"""The last norm, where it is not `norm`."""
SHARED = {
    "qwen3_next": lambda mlp, x: torch.sigmoid(mlp.shared_expert_gate(x)) * mlp.shared_expert(x),
    "kimi_linear": lambda mlp, x: mlp.shared_experts(x),
}
"""What a mixture's shared expert writes."""
QUESTIONS = [3, LogitDifference(7, 11), 52, LogitDifference(3, 7)]
POSITIONS = (-1, 0, 12, 5)


def run(family, changes, seed=3, dtype=torch.float32):
    lens = hl.HybridLens(make_calm(family, seed, **changes).to(dtype))
    prompt = tokens(1, LENGTH, seed)
    return lens, prompt, direct_logit_attribution(lens, prompt, QUESTIONS, POSITIONS)


def asked(logits):
    """The answers to `QUESTIONS` at `POSITIONS`, from logits [p v]."""
    columns = [
        logits[:, q.right] - logits[:, q.wrong] if isinstance(q, LogitDifference) else logits[:, q] for q in QUESTIONS
    ]
    return torch.stack(columns, dim=1)[list(POSITIONS)].double()


def untouched(model, prompt):
    """Logits [p v] before any soft cap, and after it, of the Hugging Face model."""
    kept = []
    handle = model.get_output_embeddings().register_forward_hook(lambda module, given, out: kept.append(out))
    with torch.no_grad():
        logits = model(prompt, use_cache=False).logits
    handle.remove()
    scale = getattr(model.config, "lm_head_multiplier", 1.0) / getattr(model.config, "logits_scaling", 1.0)
    return kept[0][0] * scale, logits[0]


def room(found):
    """How far sums of float32 numbers may be apart: each rounds to 6e-8 of its size, and some hundred add up."""
    return 1e-5 * float(found.shares.abs().sum(dim=0).max())


@pytest.mark.parametrize(("family", "changes"), CASES + MATRIX_CASES)
def test_shares_and_biases_add_up_to_the_logit(family, changes):
    """The untouched model's logit before the cap, at every position and question asked."""
    lens, prompt, found = run(family, changes)
    before, after = untouched(lens.hf_model, prompt)
    size = float(found.shares.abs().sum(dim=0).max())  # what was added up
    close(found.total, asked(before), FORWARD, scale=size, dtype=torch.float32)
    close(found.before_cap, asked(before), FORWARD, scale=size, dtype=torch.float32)
    close(found.logits, asked(after), FORWARD, scale=size, dtype=torch.float32)
    close(found.remainder, torch.zeros_like(found.remainder), FORWARD, scale=size, dtype=torch.float32)
    assert found.positions == (18, 0, 12, 5)
    assert found.shares.abs().mean() > 1e-2
    if family == "recurrentgemma":
        cap = lens.hf_model.config.logits_soft_cap
        single = [0, 2]
        close(found.logits[:, single], cap * (found.total[:, single] / cap).tanh(), FORWARD, dtype=torch.float32)
    else:
        close(found.logits, found.before_cap, LAYER, dtype=torch.float32)


@pytest.mark.parametrize("name", ["tiny-recurrentgemma", "tiny-jamba"])
def test_trained_models_too(name):
    lens = hl.load(name)
    prompt = torch.randint(0, lens.cfg.d_vocab, (1, 90), generator=torch.Generator().manual_seed(4))
    questions = [5, 17, LogitDifference(20, 40)]
    found = direct_logit_attribution(lens, prompt, questions, range(0, 90, 7))
    before, _ = untouched(lens.hf_model, prompt)
    before = before[::7]
    truth = torch.stack([before[:, 5], before[:, 17], before[:, 20] - before[:, 40]], dim=1).double()
    close(found.total, truth, FORWARD, dtype=torch.float32)
    assert truth.std() > 0.5


@pytest.mark.parametrize(("family", "changes"), CASES)
def test_each_share_is_its_writers_output_projected(family, changes):
    """Every head, layer, expert and bias by itself: its output from the untouched modules, in float64."""
    lens, prompt, found = run(family, changes)
    model, cfg = lens.hf_model, lens.cfg
    _, cache = lens.run_with_cache(prompt, None)
    norm = model.model.final_norm.weight + 1 if family == "recurrentgemma" else model.model.final_layernorm.weight
    unembedding = (model.lm_head.weight * norm).detach().double()
    scale = cache["ln_final.hook_scale"][0].double()
    places = list(POSITIONS)
    wanted = [Writer("embed")]

    def check(writer, written):
        expected = asked((written.detach().double() / scale) @ unembedding.T)
        close(found.of(writer), expected, FORWARD, dtype=torch.float32)
        wanted.append(writer)

    check(wanted.pop(), cache["hook_embed"][0])
    for layer, kind in enumerate(cfg.layer_types):
        hf, name = model.model.layers[layer], f"blocks.{layer}"
        if family == "recurrentgemma":
            out_bias = hf.temporal_block.o_proj.bias if kind == "attention" else hf.temporal_block.linear_out.bias
            mlp_bias = hf.mlp_block.down_proj.bias
        else:
            out_bias = None if kind == "attention" else hf.mamba.out_proj.bias
            mlp_bias = None
        nothing = torch.zeros(LENGTH, cfg.d_model)
        if kind == "attention":
            for head in range(cfg.n_heads):
                check(Writer("head", layer, head), cache[f"{name}.attn.hook_result"][0, :, head])
        else:
            written = cache[f"{name}.hook_ssm_out"][0]
            check(Writer("ssm", layer), written if out_bias is None else written - out_bias)
        if out_bias is not None:
            check(Writer("attn_bias" if kind == "attention" else "ssm_bias", layer), nothing + out_bias)
        written = cache[f"{name}.hook_mlp_out"][0]
        if layer in cfg.moe_layers:
            x = hf.pre_ff_layernorm(cache[f"{name}.hook_resid_mid"][0])
            indices, weights = (cache[f"{name}.mlp.hook_expert_{what}"][0] for what in ("indices", "weights"))
            for expert in range(cfg.n_experts):
                alone = hf.feed_forward.experts(x, indices, weights * (indices == expert))
                check(Writer("expert", layer, expert), alone)
                idle = ~(indices == expert).any(dim=1)[places]
                assert (found.of(Writer("expert", layer, expert))[idle] == 0).all()
            whole = found.of(Writer("mlp", layer))
            close(whole, asked((written.double() / scale) @ unembedding.T), FORWARD, dtype=torch.float32)
        else:
            check(Writer("mlp", layer), written if mlp_bias is None else written - mlp_bias)
            if mlp_bias is not None:
                check(Writer("mlp_bias", layer), nothing + mlp_bias)
    assert found.writers == tuple(wanted)


@pytest.mark.parametrize(("family", "changes"), MATRIX_CASES)
def test_shares_of_recurrent_heads_experts_and_biases(family, changes):
    """Every writer by itself, projected in float64: what its own columns write, what the untouched expert gives."""
    lens, prompt, found = run(family, changes)
    model = lens.hf_model
    stem = model.backbone if family == "mamba2" else model.model
    weight = getattr(stem, FINAL_NORM.get(family, "norm")).weight + (family == "qwen3_next")
    head = (model.lm_head.weight * weight).detach().double() * getattr(model.config, "lm_head_multiplier", 1.0)
    with torch.no_grad():
        cache = lens.run_with_cache(prompt)[1]
    scale, wanted = cache["ln_final.hook_scale"][0].double(), []

    def check(writer, written):
        alone = asked((written.detach().double().expand(LENGTH, -1) / scale) @ head.T)
        torch.testing.assert_close(found.of(writer), alone, atol=room(found), rtol=1e-5)
        wanted.append(writer)

    def bias(kind, layer, module, by=1.0):
        if module.bias is not None:
            check(Writer(f"{kind}_bias", layer), module.bias * by)
        return 0.0 if module.bias is None else module.bias * by

    check(Writer("embed"), cache["hook_embed"][0])
    config = model.config
    for layer, hf in enumerate(stem.layers):
        name, has = f"blocks.{layer}", lens.cfg.layers[layer]
        if has.ssm is not None:
            for i in range(has.ssm.n_heads):
                check(Writer("ssm_head", layer, i), cache[f"{name}.ssm.hook_result"][0, :, i])
            out = hf.get_submodule(RECURRENT_OUT.get(family, "mamba.out_proj"))
            bias("ssm", layer, out, getattr(config, "ssm_out_multiplier", 1.0))
        if has.attn is not None:
            for i in range(has.attn.n_heads):
                check(Writer("head", layer, i), cache[f"{name}.attn.hook_result"][0, :, i])
            bias("attn", layer, hf.self_attn.o_proj, getattr(config, "attention_out_multiplier", 1.0))
        if has.mlp is None:
            continue
        written = cache[f"{name}.hook_mlp_out"][0]
        if has.mlp.n_experts is None:
            dense = hf.feed_forward if family == "falcon_h1" else hf.mlp
            by = config.mlp_multipliers[1] if family == "falcon_h1" else 1.0
            constant = 0.0 if dense.down_proj.bias is None else dense.down_proj.bias * by
            check(Writer("mlp", layer), written - constant)
            bias("mlp", layer, dense.down_proj, by)
            continue
        x = hf.post_attention_layernorm(cache[f"{name}.hook_resid_mid"][0])
        indices, weights = (cache[f"{name}.mlp.hook_expert_{what}"][0] for what in ("indices", "weights"))
        for expert in range(has.mlp.n_experts):
            check(Writer("expert", layer, expert), hf.mlp.experts(x, indices, weights * (indices == expert)))
        check(Writer("shared_expert", layer), SHARED[family](hf.mlp, x))
    assert found.writers == tuple(wanted)
    for layer, has in enumerate(lens.cfg.layers):  # wholes are the sums of their parts
        if has.ssm is not None:
            out = cache[f"blocks.{layer}.hook_ssm_out"][0]
            constant = lens.blocks[layer].ssm.out_bias()
            check(Writer("ssm", layer), out if constant is None else out - constant)
        if has.mlp is not None and has.mlp.n_experts is not None:
            check(Writer("mlp", layer), cache[f"blocks.{layer}.hook_mlp_out"][0])
    sizes = found.shares.abs().amax(dim=(1, 2))
    assert (sizes > 100 * room(found)).double().mean() > 0.8  # far above what the comparison allows


@pytest.mark.parametrize("family", MATRIX)
def test_a_recurrent_head_that_writes_nothing_has_no_share(family):
    """With the columns of one head set to zero in the output projection, its share alone is zero."""
    model = make_calm(family, 5)
    lens = hl.HybridLens(model)
    layer = lens.cfg.ssm_layers[-1]
    width = lens.cfg.recurrence(layer).state_shape[1]
    project = lens.blocks[layer].ssm.out
    with torch.no_grad():
        project.module.weight[:, 2 * width : 3 * width] = 0
    found = direct_logit_attribution(lens, tokens(1, LENGTH), QUESTIONS, POSITIONS)
    for writer in found.writers:
        if writer.kind != "expert":
            silent = float(found.of(writer).abs().max()) < 1e-6
            assert silent == (writer == Writer("ssm_head", layer, 2)), writer.words


@pytest.mark.parametrize("family", FAMILIES + MATRIX)
def test_bfloat16_leaves_rounding_as_remainder(family):
    """The shares add up to the logit within bfloat16's rounding, and `remainder` says by how much they do not."""
    lens, prompt, found = run(family, {}, dtype=torch.bfloat16)
    before, _ = untouched(lens.hf_model, prompt)
    spread = asked(before).std()
    assert (found.total - asked(before)).abs().max() < 0.1 * spread
    close(found.total + found.remainder, found.before_cap)
    assert found.remainder.abs().max() > 1e-4  # it is not zero by construction


@pytest.mark.parametrize("family", FAMILIES)
def test_a_part_that_writes_nothing_has_no_share(family):
    """With a head's output columns and a recurrent layer's output map set to zero, these shares are zero alone."""
    model = make(family, 5)
    lens = hl.HybridLens(model)
    attention, recurrent = lens.cfg.attention_layers[0], lens.cfg.ssm_layers[-1]
    width = lens.cfg.d_head
    with torch.no_grad():
        layers = model.model.layers
        if family == "recurrentgemma":
            layers[attention].temporal_block.o_proj.weight[:, width : 2 * width] = 0
            layers[recurrent].temporal_block.linear_out.weight.zero_()
        else:
            layers[attention].self_attn.o_proj.weight[:, width : 2 * width] = 0
            layers[recurrent].mamba.out_proj.weight.zero_()
    found = direct_logit_attribution(lens, tokens(1, LENGTH), QUESTIONS, POSITIONS)
    silent = [Writer("head", attention, 1), Writer("ssm", recurrent)]
    for writer in found.writers:
        if writer.kind != "expert":
            nothing = near(found.of(writer), torch.zeros_like(found.of(writer)), scale=float(found.total.abs().max()))
            assert nothing == (writer in silent), writer.words


def test_the_logits_are_taken_in_blocks_of_positions(monkeypatch):
    """Few logits at a time give the same numbers."""
    lens, prompt, found = run("jamba", {})
    monkeypatch.setattr("analyses.patching.direct.LOGITS", 1)
    again = direct_logit_attribution(lens, prompt, QUESTIONS, POSITIONS)
    close(again.logits, found.logits, dtype=torch.float32)


def test_biases_of_the_weight_views():
    """The MLP's bias of every layer, as stored; Jamba has none."""
    model = make("recurrentgemma", 3)
    weights = Weights.of_model(hl.HybridLens(model))
    for layer in range(4):
        assert torch.equal(weights.mlp_bias(layer), model.model.layers[layer].mlp_block.down_proj.bias)
    assert Weights.of_model(hl.HybridLens(make("jamba", 3))).mlp_bias(1) is None
    with pytest.raises(InputError, match=r"layer 4 given, but the model has layers 0\.\.3"):
        weights.mlp_bias(4)


def test_a_tie_of_two_tokens_and_the_largest_shares():
    lens, prompt, found = run("jamba", {})
    single = direct_logit_attribution(lens, prompt, [7, 11], POSITIONS)
    close(found.shares[..., 1], single.shares[..., 0] - single.shares[..., 1], dtype=torch.float32)
    top = found.top(5, position=2, question=1)
    sizes = [abs(share) for _, share in top]
    assert len(top) == 5
    assert sizes == sorted(sizes, reverse=True)
    assert math.isclose(sizes[0], float(found.shares[:, 2, 1].abs().max()))
    writer, share = top[0]
    assert float(found.of(writer)[2, 1]) == share


def test_questions_name_tokens_as_text_where_there_is_a_tokenizer():
    tokenizer = byte_bpe(300)
    lens = hl.HybridLens(make("jamba", 3), tokenizer)
    first, second = 7, 11
    found = direct_logit_attribution(lens, [3, 4], [first, LogitDifference(first, second)])
    one, other = (tokenizer.decode([token]) for token in (first, second))
    assert found.questions == (f"logit of “{one}”", f"logit of “{one}” minus that of “{other}”")


def test_saved_and_read_again(tmp_path):
    _, _, found = run("jamba", {})
    again = DirectAttribution.load(found.save(tmp_path / "direct.safetensors"))
    for name in ("shares", "before_cap", "logits", "scale"):
        assert torch.equal(getattr(again, name), getattr(found, name))
    for name in ("writers", "positions", "questions", "model", "tokens"):
        assert getattr(again, name) == getattr(found, name)
    assert again.questions[1] == "logit of token 7 minus that of token 11"
    (tmp_path / "other").write_bytes(b"{}")
    with pytest.raises(InputError, match="is not a saved DirectAttribution"):
        DirectAttribution.load(tmp_path / "other")
    with pytest.raises(InputError, match="cannot be read"):
        DirectAttribution.load(tmp_path / "none")


def test_nothing_is_left_behind():
    lens, prompt, _ = run("jamba", {})
    assert not any(point.has_hooks() for point in lens.hook_dict.values())
    with torch.no_grad():
        assert torch.equal(lens(prompt), lens(prompt))


def test_bad_input_is_one_line():
    lens, prompt, found = run("jamba", {})
    for positions, line in [
        ((19,), r"position 19 given, but the prompt has 0\.\.18"),
        ((), r"positions = \(\) given, expected a list of whole numbers, at least 1"),
    ]:
        with pytest.raises(InputError, match=line):
            direct_logit_attribution(lens, prompt, [3], positions)
    for questions, line in [
        ([53], "token 53 is outside the vocabulary"),
        ([], r"questions = \[\] given, expected a list of whole numbers or .*, at least 1"),
    ]:
        with pytest.raises(InputError, match=line):
            direct_logit_attribution(lens, prompt, questions)
    with pytest.raises(InputError, match="2 attributed prompts were given as one"):
        direct_logit_attribution(lens, tokens(2, 5), [3])
    with pytest.raises(InputError, match="there is no writer 'L1 recurrent'; there are embedding, L0 recurrent"):
        found.of(Writer("ssm", 1))


def test_writers_that_name_nothing_are_refused():
    lens = hl.HybridLens(make("jamba", 3))
    with pytest.raises(UnknownNameError, match="writer kind 'heads' does not exist; expected one of embed, head"):
        Writer("heads", 1, 2)
    with pytest.raises(InputError, match="writer 'head' was given index None, expected a number"):
        Writer("head", 1)
    with pytest.raises(InputError, match="writer 'embed' was given layer 0, expected none"):
        Writer("embed", 0)
    for writer, line in [
        (Writer("head", 0, 1), "writer 'L0 head 1': layer 0 has no heads; those are in layers 1"),
        (Writer("head", 1, 4), r"writer 'L1 head 4': the layer has heads 0\.\.3, but 4 was given"),
        (Writer("ssm", 1), "layer 1 has no recurrent layers; those are in layers 0, 2, 3"),
        (Writer("mlp", 4), "layer 4 has no MLPs; those are in layers 0, 1, 2, 3"),
        (Writer("expert", 0, 1), "layer 0 has no experts; those are in layers 1, 3"),
        (Writer("expert", 1, 4), r"the layer has experts 0\.\.3, but 4 was given"),
    ]:
        with pytest.raises(InputError, match=line):
            writer.check(lens)
    gemma = hl.HybridLens(make("recurrentgemma", 3))
    with pytest.raises(InputError, match="layer 1 has no experts; the model has none"):
        Writer("expert", 1, 0).check(gemma)
    for kind in BIASES:
        assert Writer(kind, 2).words == f"L2 {BIASES[kind]} bias"
