"""The cache as TransformerLens' users know it: names, rows, positions, states.

References are plain loops, and rows run by themselves.
"""

import copy

import pytest
import torch
from bounds import FORWARD, LAYER, close
from cached_runs import LENGTH, lens_of, run
from models import make_calm, tokens
from transformer_lens.ActivationCache import ActivationCache
from transformer_lens.utilities.slice import Slice

import hybridlens as hl
from hybridlens.errors import InputError, NotCachedError, RowsError, UnknownNameError

# Names.


def test_it_is_transformerlens_cache_and_knows_its_shorthands():
    lens, _, _, found = run("recurrentgemma")
    assert isinstance(found, ActivationCache)
    assert isinstance(found, hl.HybridCache)
    for key, name in (
        (("z", 2), "blocks.2.attn.hook_z"),
        ("z2", "blocks.2.attn.hook_z"),
        (("resid_post", -1), "blocks.3.hook_resid_post"),
        (("scale", 1, "ln2"), "blocks.1.ln2.hook_scale"),
        ("scale", "ln_final.hook_scale"),
        ("embed", "hook_embed"),
        (("embed", None), "hook_embed"),
        (("attn", 2), "blocks.2.attn.hook_pattern"),
        (("ssm_out", 0), "blocks.0.hook_ssm_out"),
        (("state", -4), "blocks.0.ssm.hook_state"),
        (("pattern", 1, "ssm"), None),
        (("pre", 2, "mlp"), "blocks.2.mlp.hook_pre"),
    ):
        if name is not None:
            assert found[key] is found.cache_dict[name], key
            assert key in found
    assert list(found) == list(found.keys()) == list(found.cache_dict)
    assert len(found) == len(found.values()) == len(found.items())
    assert repr(found).startswith(f"<HybridCache: {len(found)} activations of a recurrentgemma model, 3 rows, ")
    frame = found.to_pandas()
    assert frame.loc[frame["name"] == "blocks.2.attn.hook_z"].values.tolist() == [
        ["blocks.2.attn.hook_z", "b p h e", "3 × 8 × 4 × 8", "float32"]
    ]
    assert "h head" in frame.attrs["meanings"]["axes"]
    assert len(found._repr_html_()) < 12_000
    assert lens.run_with_cache([5, 6], "hook_embed", remove_batch_dim=True)[1].has_batch_dim is False
    _, _, _, found = run("mamba2")
    assert found["blocks.0.ssm.hook_x"] is found["blocks.0.ssm.hook_v"]  # an alias


def test_a_name_that_a_layer_lacks_says_which_layers_have_it():
    lens, prompt, _, found = run("recurrentgemma")
    for key in (("attn_out", 0), "blocks.0.hook_attn_out", ("attn_out", -4)):
        assert key not in found
        assert found.get(key) is None
        assert found.get(key, 7) == 7
        with pytest.raises(NotCachedError) as caught:
            found[key]
        assert (
            str(caught.value) == "hook point 'blocks.0.hook_attn_out' does not exist: layers with hook_attn_out are 2"
        )
        assert isinstance(caught.value, KeyError)
        assert isinstance(caught.value, UnknownNameError)
    for key, line in (
        (("z", 9), "layer 9 given, but the model has layers 0..3"),
        (("z", 1.5), "layer 1.5 given in"),
        (7, "7 names no activation; expected a hook point's name, or (name, layer)"),
        (("z", 2, "attn", 0), "names no activation; expected"),
        ("nonsense", "hook point 'hook_nonsense' does not exist"),
    ):
        with pytest.raises(NotCachedError, match=r"^[^\n]+$") as caught:
            found[key]
        assert line in str(caught.value)
    _, part = lens.run_with_cache(prompt, "hook_embed")
    with pytest.raises(NotCachedError, match=r"^blocks.2.attn.hook_z is not in this cache; run_with_cache keeps it if"):
        part["z", 2]
    _, plain = lens.run_with_cache(prompt)
    with pytest.raises(NotCachedError, match=r"names_filter names it$"):  # leaving it out would not do
        plain["blocks.0.ssm.hook_pattern"]


def test_stacks_are_of_the_layers_that_have_the_name():
    _, _, _, found = run("jamba")
    assert found.layers_with("z") == [1]
    assert found.layers_with("conv") == [0, 2, 3]
    assert found.layers_with("scale", "ln2") == [0, 1, 2, 3]
    stack, labels = found.stack_activation("ssm_out", return_labels=True)
    assert labels == ["0_ssm_out", "2_ssm_out", "3_ssm_out"]
    for entry, layer in zip(stack, (0, 2, 3), strict=True):
        assert torch.equal(entry, found["ssm_out", layer])
    assert torch.equal(found.stack_activation("ssm_out", 3), stack[:2])
    assert torch.equal(found.stack_activation("scale", 1, "ln1")[0], found["scale", 0, "ln1"])
    with pytest.raises(InputError, match=r"no layer before 1 has z; layers 1 have it"):
        found.stack_activation("z", 1)
    with pytest.raises(NotCachedError, match=r"'blocks.0.hook_nonsense' does not exist"):
        found.stack_activation("nonsense")


# Rows and positions.


@torch.no_grad()
def test_one_row_without_its_axis_gives_what_the_batch_gives():
    """Everything that stacks, at all positions, some, and one."""
    for family in ("jamba", "falcon_h1"):
        _, _, _, found = run(family)
        alone = found.apply_slice_to_batch_dim(1)
        assert type(alone) is hl.HybridCache
        assert not alone.has_batch_dim
        for pos in (None, (1, 3), [0, 5], -1, Slice(-1)):
            for name, arguments in (
                ("accumulated_resid", {"apply_ln": True}),
                ("accumulated_resid", {"layer": 1, "apply_ln": True}),
                ("decompose_resid", {"apply_ln": True}),
                ("get_full_resid_decomposition", {}),
                ("get_full_resid_decomposition", {"apply_ln": True, "project_output_onto": torch.ones(32, 2)}),
                ("stack_head_results", {"apply_ln": True, "incl_remainder": True}),
                ("stack_neuron_results", {"neuron_slice": (2,), "incl_remainder": True}),
            ):
                whole = getattr(found, name)(pos_slice=pos, **arguments)
                close(getattr(alone, name)(pos_slice=pos, **arguments), whole[:, 1], LAYER)
                every = getattr(found, name)(**arguments)
                close(whole, Slice(pos if not isinstance(pos, Slice) else -1).apply(every, 2), LAYER)


@torch.no_grad()
def test_positions_count_among_each_rows_own_tokens():
    """Rows of 4, 8 and 6 tokens, padded on either side: -1 is the last of each, as in the row run by itself."""
    lens = lens_of("jamba")
    rows = [tokens(1, n, n)[0] for n in (4, 8, 6)]
    mask = torch.stack([torch.arange(8) < len(row) for row in rows]).long()
    right = torch.stack([torch.cat([row, row.new_zeros(8 - len(row))]) for row in rows])
    left = torch.stack([torch.cat([row.new_zeros(8 - len(row)), row]) for row in rows])
    answers = torch.tensor([3, 4, 5])
    for given in ({"input_ids": right, "attention_mask": mask}, {"input_ids": left, "attention_mask": mask.flip(1)}):
        _, found = lens.run_with_cache(given)
        several = found.decompose_resid(pos_slice=[0, -1], apply_ln=True)
        stack = found.get_full_resid_decomposition(pos_slice=-1)
        shares = found.logit_attrs(stack, answers, pos_slice=-1)
        read = found.logit_lens(targets=answers)
        some = found.apply_slice_to_batch_dim([2, 0])
        close(some.decompose_resid(pos_slice=-1), found.decompose_resid(pos_slice=-1)[:, [2, 0]], LAYER)
        for row, one in enumerate(rows):
            logits, alone = lens.run_with_cache(one[None])
            close(several[:, row], alone.decompose_resid(pos_slice=[0, -1], apply_ln=True)[:, 0], FORWARD)
            close(stack[:, row], alone.get_full_resid_decomposition(pos_slice=-1)[:, 0], FORWARD)
            close(shares[:, row].sum(), logits[0, -1, answers[row]], FORWARD, scale=float(shares.abs().sum(0).max()))
            close(read.values[-1, row, 0], logits[0, -1, answers[row]], FORWARD)
            assert not found.apply_slice_to_batch_dim(row).has_batch_dim
        with pytest.raises(InputError, match=r"pos_slice 5 given, but a row has the positions 0\.\.3"):
            found.decompose_resid(pos_slice=5)


@torch.no_grad()
@pytest.mark.parametrize("choice", [[1.5], torch.ones(2), torch.tensor([[1, 2]]), [[1], [2, 3]]])
def test_choices_that_are_no_whole_numbers_in_a_row_are_refused(choice):
    """Cut to whole numbers, or with more axes, they would choose what nobody asked for."""
    _, cache = hl.HybridLens(make_calm("jamba")).run_with_cache(tokens(2, 4))
    for method in (cache.decompose_resid, cache.accumulated_resid, cache.stack_head_results):
        with pytest.raises(InputError, match=r"pos_slice = .* given, expected one index"):
            method(pos_slice=choice)


def test_a_run_that_kept_one_position_needs_no_choice_of_positions():
    lens, prompt, _, full = run("jamba")
    for pos in (Slice(-1), -1):
        _, found = lens.run_with_cache(prompt, pos_slice=pos)
        wanted = full.get_full_resid_decomposition(pos_slice=-1)
        shares = found.logit_attrs(found.decompose_resid(), 5)
        close(found.get_full_resid_decomposition(), wanted.unsqueeze(2) if pos == -1 else wanted, LAYER)
        expected = full.logit_attrs(full.decompose_resid(pos_slice=-1), 5, pos_slice=-1)
        close(shares, expected.unsqueeze(2) if pos == -1 else expected, LAYER)
    _, found = lens.run_with_cache(prompt, pos_slice=Slice(-1))
    with pytest.raises(InputError, match=r"pos_slice = 2 given, but this cache holds one position of each row"):
        found.decompose_resid(pos_slice=2)


def test_rows_are_dropped_and_chosen():
    lens, _, _, found = run("jamba")
    _, one = lens.run_with_cache(tokens(1, 4, 1))
    shapes = {name: value.shape for name, value in one.items()}
    for _ in range(2):  # a second time changes nothing
        assert one.remove_batch_dim() is one
        assert {name: value.shape for name, value in one.items()} == {name: s[1:] for name, s in shapes.items()}
    with pytest.raises(RowsError, match=r"remove_batch_dim needs one row, this cache has 3; choose with"):
        found.remove_batch_dim()
    with pytest.raises(AssertionError):  # as TransformerLens' is
        found.remove_batch_dim()
    with pytest.raises(InputError, match=r"batch_slice = 7 given, but there are 0\.\.2"):
        found.apply_slice_to_batch_dim(7)
    with pytest.raises(InputError, match=r"a cache of one prompt without an axis of rows"):
        one.apply_slice_to_batch_dim(0)
    with pytest.raises(InputError, match=r"device 'nowhere' cannot be used here"):
        one.to("nowhere")
    some = copy.copy(found)
    assert some.to("meta") is some
    assert all(value.device.type == "meta" for value in some.values())
    assert found["embed"].device.type == "cpu"
    some.model = None
    assert "blocks.0.hook_resid_pre" in some
    with pytest.raises(InputError, match=r"this cache's model was set to None"):
        some.decompose_resid()


def test_autodiff_is_toggled_as_there():
    with torch.no_grad():
        run("jamba")[-1].toggle_autodiff(mode=True)
        assert torch.is_grad_enabled()


# States.


def test_states_and_hidden_attention_are_those_of_the_hook_points():
    lens, prompt, _, found = run("mamba2")
    states = found.compute_ssm_state()
    assert torch.equal(states, torch.stack([found["state", i] for i in range(3)]))
    assert torch.equal(found.compute_ssm_state(1, time_step=-2), found["state", 1][:, -2])
    assert torch.equal(found.compute_ssm_effective_attention(-1), found["blocks.2.ssm.hook_pattern"])
    assert found.compute_ssm_effective_attention().shape == (3, 3, 4, LENGTH, LENGTH)
    assert found.ssm_layers() == [0, 1, 2]
    assert found.ssm_layers(type(lens.blocks[0].ssm)) == [0, 1, 2]
    assert found.ssm_layers(dict) == []
    with pytest.raises(InputError, match=r"include_dt_scaling=False was given, but hidden attention here is of each"):
        found.compute_ssm_effective_attention(0, False)
    _, _, _, found = run("jamba")
    assert list(found.compute_ssm_state()) == [0, 2, 3]
    assert list(found.compute_ssm_effective_attention()) == [0, 2, 3]
    with pytest.raises(
        InputError, match=r"no part of layer 1 holds a recurrent state; layers 0, 2, 3 have such a part"
    ):
        found.compute_ssm_state(1)
    with pytest.raises(InputError, match=r"layer 4 given, but the model has layers 0\.\.3"):
        found.compute_ssm_state(4)
    with pytest.raises(InputError, match=r"time_step = \[8\] given, but there are 0\.\.7"):
        found.compute_ssm_state(0, time_step=8)
    _, plain = lens.run_with_cache(prompt)
    with pytest.raises(NotCachedError, match=r"attention needs blocks.0.ssm.hook_pattern, .* names them$"):
        plain.compute_ssm_effective_attention()
    _, _, _, found = run("gemma2")
    with pytest.raises(InputError, match=r"compute_ssm_state needs recurrent states, but no layer of this gemma2"):
        found.compute_ssm_state()
    with pytest.raises(InputError, match=r"needs recurrent layers, but this gemma2 model has none"):
        found.compute_ssm_effective_attention()
    assert found.ssm_layers() == []
