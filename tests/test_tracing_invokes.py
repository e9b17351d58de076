"""Several prompts in one trace: each invoke sees, writes and counts what a trace of its own prompts would."""

import pytest
import torch
from bounds import FORWARD, apart, close
from models import make, tokens

from hybridlens import Edit, HybridLens, HybridLensError, Sampling

KINDS = ("recurrentgemma", "jamba", "qwen3_next")


@pytest.fixture(scope="module", params=KINDS)
def lens(request) -> HybridLens:
    return HybridLens(make(request.param))


@pytest.fixture(scope="module")
def jamba() -> HybridLens:
    return HybridLens(make("jamba"))


def prompt(length: int) -> list[int]:
    return tokens(1, length, seed=length)[0].clamp(min=3).tolist()  # the embedding of padding is 0


def test_each_invoke_sees_what_it_sees_alone(lens):
    """Every point, of a long prompt, a short one, and two rows of two lengths; shapes are those of each alone."""
    names = list(lens.hook_points)
    short, long, pair = prompt(4), prompt(9), [prompt(6), prompt(3)]
    with torch.no_grad():
        alone = [lens.run_with_cache(given, names)[1] for given in (long, short)]
        with lens.trace(pair):
            both = {}.save()
            for name in names:
                both[name] = lens.hook_dict[name].output
        with lens.trace() as tracer:
            a, b, c = {}.save(), {}.save(), {}.save()
            with tracer.invoke(long):
                for name in names:
                    a[name] = lens.hook_dict[name].output
            with tracer.invoke(short):
                for name in names:
                    b[name] = lens.hook_dict[name].output
            with tracer.invoke(pair):
                for name in names:
                    c[name] = lens.hook_dict[name].output
    for name in names:
        for ours, theirs in zip((a, b, c), (*alone, both), strict=True):
            finite = torch.isfinite(theirs[name])
            assert torch.equal(torch.isfinite(ours[name]), finite), name
            close(ours[name][finite].double(), theirs[name][finite].double(), FORWARD, dtype=torch.float32, what=name)


@pytest.mark.parametrize("way", ["in place", "assigned", "read twice", "edits"])
def test_what_an_invoke_writes_reaches_its_own_rows_alone(lens, way):
    """The other invoke's logits stay bit for bit what they are in the same batch without the edit."""
    short, long, name = prompt(4), prompt(9), "blocks.1.hook_resid_post"

    def add(x, hook):
        x[:, -1] += x[:, 0]

    def run(write):
        with lens.trace() as tracer:
            with tracer.invoke(short, edits=[Edit(name, add)] if write and way == "edits" else []):
                point = lens.hook_dict[name]
                if write and way == "in place":
                    before = point.output
                    before[:, -1] += before[:, 0]
                if write and way == "assigned":
                    changed = point.output.clone()
                    changed[:, -1] += changed[:, 0]
                    point.output = changed
                if write and way == "read twice":
                    point.output[:, -1] += point.output[:, 0]
                edited = lens.hook_logits.output.save()
            with tracer.invoke(long):
                other = lens.hook_logits.output.save()
        return edited, other

    with torch.no_grad():
        (plain, beside), (edited, untouched) = run(write=False), run(write=True)
        if way == "edits":  # a hook function is given the batch's padding as well, and so edits the last of that
            assert torch.equal(edited, plain)
        else:
            close(edited, lens.run_with_hooks(short, [(name, add)]), FORWARD)
            assert apart(edited, plain)
    assert torch.equal(untouched, beside)


def test_edits_of_an_invoke_count_its_own_rows(jamba):
    name = "blocks.1.hook_resid_post"
    silent = Edit(name, lambda x, hook: x * 0, rows=[-1])
    with torch.no_grad(), jamba.trace() as tracer:
        with tracer.invoke(prompt(5)):
            first = jamba.blocks[1].output.save()
        with tracer.invoke([prompt(5), prompt(6)], edits=[silent]):
            second = jamba.blocks[2].input.save()
    assert first.any(dim=-1).all()
    assert second[0, :5].any(dim=-1).all()
    assert not second[1].any()


@pytest.mark.filterwarnings("ignore:.*was never reached")
@pytest.mark.parametrize("boundary", ["last_prompt_token", "first_new_token"])
def test_generating_each_invoke_has_its_own_steps(jamba, boundary):
    """Rows of 9, 4 and 1 tokens that end at different steps: what each saw, step by step, is what it sees alone.

    A fifth of the vocabulary ends a row. The row of one token reads nothing before the first decode step.
    """
    given = [prompt(9), prompt(4), prompt(1)]
    free = [jamba.generate(row, 7, boundary=boundary, stop_at_eos=False).tokens[0].tolist() for row in given]
    lens = HybridLens(make("jamba", eos_token_id=[free[1][2], free[2][4]]))
    point, words = lens.blocks[1].hook_resid_post, {"max_new_tokens": 7, "boundary": boundary}
    alone = []
    for row in given:
        with lens.trace(row, **words) as tracer:
            seen = [].save()
            for _ in tracer.iter[:]:
                seen.append(point.output)
        alone.append(seen)
    with lens.trace(**words) as tracer:
        a, b, c = [].save(), [].save(), [].save()
        with tracer.invoke(given[0]):
            for _ in tracer.iter[:]:
                a.append(point.output)
        with tracer.invoke(given[1]):
            for _ in tracer.iter[:]:
                b.append(point.output)
        with tracer.invoke(given[2]):
            for _ in tracer.iter[:]:
                c.append(point.output)
    with lens.trace(**words) as tracer:
        with tracer.invoke(given[0]):
            first = tracer.result.save()
        with tracer.invoke(given[1]):
            second = tracer.result.save()
    said = [lens.generate(row, **words).tokens for row in given]
    assert len({len(steps) for steps in alone}) == 3
    for ours, theirs in zip((a, b, c), alone, strict=True):
        assert [step.shape for step in ours] == [step.shape for step in theirs]
        for mine, other in zip(ours, theirs, strict=True):
            close(mine, other, 8 * FORWARD)
    assert torch.equal(first.tokens, said[0])
    assert torch.equal(second.tokens, said[1])
    assert second.state.batch == 1


def test_gradients_of_an_invoke_are_its_own(lens):
    short, long = prompt(4), prompt(9)
    point = lens.blocks[0].hook_resid_post

    with lens.trace(short):
        resid = point.output
        loss = lens.hook_logits.output[:, -1].square().sum()
        with loss.backward():
            alone = resid.grad.save()
    with lens.trace() as tracer:
        with tracer.invoke(long):
            other = point.output.save()
        with tracer.invoke(short):
            resid = point.output
            loss = lens.hook_logits.output[:, -1].square().sum()
            with loss.backward():
                beside = resid.grad.save()
    assert other.shape[1] == 9
    close(beside, alone, 3 * FORWARD)


def test_a_frozen_state_of_an_invoke_is_its_own(jamba):
    """A mask over one row freezes no other: what was done to its first state ends at the second, which is kept."""
    name = f"blocks.{jamba.cfg.ssm_layers[0]}.ssm.hook_state"
    point = jamba.hook_dict[name]

    def hold(x, hook):
        x[:, 0] *= 3
        mask = torch.zeros(x.shape[:2], dtype=torch.bool)
        mask[:, 1] = True
        hook.freeze(mask[..., None, None])

    def change(x, hook):
        x[:, 0] *= 3

    with torch.no_grad():
        expected, free = (jamba.run_with_hooks(prompt(4), [(name, fn)]) for fn in (hold, change))
        plain = jamba.run_with_hooks(prompt(9), [(name, change)])
        with jamba.trace() as tracer:
            with tracer.invoke(prompt(9)):
                point.output[:, 0] *= 3
                other = jamba.hook_logits.output.save()
            with tracer.invoke(prompt(4)):
                point.output[:, 0] *= 3
                mask = torch.zeros(1, 4, 1, 1, dtype=torch.bool)
                mask[:, 1] = True
                point.freeze(mask)
                frozen = jamba.hook_logits.output.save()
    close(frozen, expected, FORWARD)
    close(other, plain, FORWARD)
    assert apart(frozen, free)


def test_the_hugging_face_models_modules_keep_invokes_apart(lens):
    """Maps see [rows, positions], experts all tokens in one row: both an invoke's own, read and written."""
    maps = lens.lm_head
    mlp = lens.model.layers[lens.cfg.moe_layers[0] if lens.cfg.moe_layers else 1]
    site = getattr(mlp, "feed_forward", None) or getattr(mlp, "mlp", None) or mlp.mlp_block.down_proj
    site = getattr(site, "experts", site)
    short, long = prompt(4), prompt(9)
    with torch.no_grad():
        with lens.trace(short):
            alone = site.output.save()
            alone_logits = maps.output.save()
        with lens.trace() as tracer:
            with tracer.invoke(long):
                other = lens.hook_logits.output.save()
            with tracer.invoke(short):
                beside = site.output.save()
                logits = maps.output.save()
        with lens.trace() as tracer:
            with tracer.invoke(long):
                untouched = lens.hook_logits.output.save()
            with tracer.invoke(short):
                site.output[:] = 0
                edited = maps.output.save()
        with lens.trace(short):
            site.output[:] = 0
            expected = maps.output.save()
    close(beside, alone, FORWARD)
    close(logits, alone_logits, FORWARD)
    close(edited, expected, FORWARD)
    assert apart(edited, logits)
    close(untouched, other, FORWARD)  # experts take other numbers of tokens at once


def test_an_invoke_knows_where_its_own_tokens_stand(jamba):
    """In a decode step rows of different lengths are at different positions; slots are those of its rows."""
    layer = jamba.cfg.attention_layers[0]
    scores = jamba.blocks[layer].attn.hook_attn_scores
    with jamba.trace(max_new_tokens=2, stop_at_eos=False) as tracer:
        with tracer.invoke(prompt(9)):
            jamba.hook_embed.output.save()
        with tracer.invoke([prompt(4), prompt(6)]):
            scores.output.save()
            read = scores.positions.save()
            for _ in tracer.iter[1]:
                scores.output.save()
                stepped = scores.positions.save()
                slots = scores.slots.query_positions.save()
    assert read.tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    assert stepped.tolist() == [[4], [6]]
    assert slots.tolist() == [[4], [6]]


def test_an_empty_invoke_sees_all_rows_and_what_others_wrote(jamba):
    with torch.no_grad(), jamba.trace() as tracer:
        with tracer.invoke(prompt(6)):
            jamba.blocks[0].output[:] = 0
        with tracer.invoke(prompt(3)):
            kept = jamba.blocks[0].output.save()
        with tracer.invoke():
            every = jamba.blocks[0].output.save()
    assert every.shape[:2] == (2, 6)
    assert not every[0].any()
    assert torch.equal(every[1:, :3], kept)


def test_a_value_passes_from_one_invoke_to_another_at_a_barrier(jamba):
    """The embedding of one prompt put into another's run, which then says what the first one says."""
    with torch.no_grad():
        expected = jamba(prompt(5))
        with jamba.trace() as tracer:
            meet = tracer.barrier(2)
            with tracer.invoke(prompt(5)):
                embedded = jamba.hook_embed.output
                meet()
            with tracer.invoke(tokens(1, 5, seed=11)):
                meet()
                jamba.hook_embed.output = embedded
                logits = jamba.hook_logits.output.save()
    close(logits, expected, FORWARD)


def test_sampling_in_a_trace_draws_as_generate_does(jamba):
    how = Sampling(5, 0.9, 20)
    made = jamba.generate(prompt(5), 6, sampling=how, stop_at_eos=False)
    with jamba.trace(prompt(5), max_new_tokens=6, sampling=how, stop_at_eos=False) as tracer:
        chosen = [].save()
        for _ in tracer.iter[:6]:
            chosen.append(jamba.hook_logits.output)
        drawn = tracer.result.save()
    assert torch.equal(drawn.tokens, made.tokens)
    assert len(chosen) == 6
    assert not torch.equal(torch.cat(chosen, 1).argmax(-1), made.tokens)  # they are draws, not the likeliest


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (
            lambda point: setattr(point, "output", torch.zeros(1, 9, 32)),
            r"returned shape \[1, 9, 32\], expected \[1, 4, 32\]",
        ),
        (lambda point: setattr(point, "output", torch.zeros(1, 1, 32)), r"returned shape \[1, 1, 32\]"),
        (lambda point: setattr(point, "output", torch.zeros(1, 4, 32).double()), "returned dtype torch.float64"),
    ],
)
def test_what_does_not_fit_an_invokes_rows_is_refused(jamba, write, match):
    def run():
        with torch.no_grad(), jamba.trace() as tracer:
            with tracer.invoke(prompt(4)):
                write(jamba.blocks[1].hook_resid_post)
            with tracer.invoke(prompt(9)):
                jamba.hook_logits.output.save()

    with pytest.raises(HybridLensError, match=match) as caught:
        run()
    assert "blocks.1.hook_resid_post.output" in str(caught.value)
    assert "\n" not in str(caught.value)
