"""Steps of a traced generation are nnsight's: step i chooses the i-th new token, and there is one for each."""

import pytest
import torch
from models import make, tokens

from hybridlens import Edit, HybridLens, HybridLensError

N = 4
ROWS = [[5, 9, 23, 4, 31, 7], [8, 3, 12]]


@pytest.fixture(scope="module", params=["jamba", "recurrentgemma"])
def lens(request):
    return HybridLens(make(request.param))


def untouched(lens, ids):
    """What Hugging Face's own generation makes, an end-of-text token or not."""
    lens.hf_model.generation_config.eos_token_id = None
    made = lens.hf_model.generate(ids, max_new_tokens=N, do_sample=False, pad_token_id=0)
    return made[:, ids.shape[1] :]


@pytest.mark.filterwarnings("ignore:.*was never reached")
def test_each_step_chooses_its_token(lens):
    """Walked, by number, in a slice from the middle, and by `tracer.all`: the untouched model's tokens."""
    ids = tokens(1, 7)
    expected = untouched(lens, ids)[0].tolist()
    with lens.trace(ids, max_new_tokens=N, stop_at_eos=False) as tracer:
        walked = [].save()
        for step in tracer.iter[:N]:
            walked.append((step, lens.hook_logits.output[:, -1].argmax(-1).item()))
        result = tracer.result.save()
    assert walked == list(enumerate(expected))
    assert result.tokens.tolist() == [expected]
    for number in range(N):
        with lens.trace(ids, max_new_tokens=N, stop_at_eos=False) as tracer:
            for _ in tracer.iter[number]:
                read = lens.hook_embed.output.shape[1].save()
                chosen = lens.lm_head.output[:, -1].argmax(-1).item().save()
        assert chosen == expected[number]
        assert read == (1 if number else 7)
    with lens.trace(ids, max_new_tokens=N, stop_at_eos=False) as tracer:
        rest = [].save()
        for _ in tracer.iter[2:N]:
            rest.append(lens.hook_logits.output[:, -1].argmax(-1).item())
    assert rest == expected[2:]
    with lens.trace(ids, max_new_tokens=N, stop_at_eos=False) as tracer:
        every = [].save()
        for _ in tracer.all():
            every.append(lens.hook_logits.output[:, -1].argmax(-1).item())
    assert every == expected


def test_rows_and_invokes_have_the_same_steps(lens):
    """Rows of different lengths in one trace, and as invokes of another; a session's trace and an edited copy's too."""
    made = lens.generate(ROWS, N, stop_at_eos=False).tokens.tolist()
    with lens.edit() as (_, edited):
        lens.hook_logits.output = lens.hook_logits.output + 0
    for traced in (lens, edited):
        with traced.trace(ROWS, max_new_tokens=N, stop_at_eos=False) as tracer:
            walked = [].save()
            for _ in tracer.iter[:N]:
                walked.append(lens.hook_logits.output[:, -1].argmax(-1))
        assert torch.stack(walked, 1).tolist() == made
    with lens.session():  # noqa: SIM117 - a trace is a block of its own
        with lens.trace(max_new_tokens=N, stop_at_eos=False) as tracer:
            with tracer.invoke(ROWS[0]):
                first = [].save()
                for _ in tracer.iter[:N]:
                    first.append(lens.hook_logits.output[0, -1].argmax(-1).item())
            with tracer.invoke(ROWS[1]):
                second = [].save()
                for _ in tracer.iter[:N]:
                    second.append(lens.hook_logits.output[0, -1].argmax(-1).item())
    assert [first, second] == made


def test_the_papers_boundary_is_had_by_saying_so(lens):
    """One pass more, of which the first chooses nothing; as `generate` does it without a word."""
    ids, record = tokens(1, 7), []
    made = lens.generate(
        ids, N, [Edit("hook_embed", lambda x, hook: record.append(x.shape[1]))], stop_at_eos=False
    ).tokens
    with lens.trace(ids, max_new_tokens=N, boundary="last_prompt_token", stop_at_eos=False) as tracer:
        seen, chosen = [].save(), [].save()
        for step in tracer.iter[: N + 1]:
            seen.append(lens.hook_embed.output.shape[1])
            if step:
                chosen.append(lens.hook_logits.output[:, -1].argmax(-1).item())
    assert seen == record == [6, 1, 1, 1, 1]
    assert chosen == made[0].tolist()


def test_an_edit_of_one_phase_says_where_the_phases_meet(lens):
    """Else the same edits would act on other tokens in a trace than in `generate`; in an invoke likewise."""
    ids = tokens(1, 7)
    zero = Edit("blocks.1.hook_mixer_out", lambda x, hook: x * 0, "decode")
    both = Edit("blocks.1.hook_mixer_out", lambda x, hook: x * 0)

    def in_an_invoke():
        with lens.trace(max_new_tokens=N) as tracer:  # noqa: SIM117 - an invoke is a block of its own
            with tracer.invoke(ids, edits=[zero]):
                lens.hook_embed.output.save()

    said = r"hook_mixer_out' acts in decode alone.*boundary=\"last_prompt_token\", as generate has it, or \"first_new"
    for call in (lambda: lens.trace(ids, max_new_tokens=N, edits=[both, zero]), in_an_invoke):
        with pytest.raises(HybridLensError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)
    for boundary in ("last_prompt_token", "first_new_token"):
        with lens.trace(ids, max_new_tokens=N, edits=[zero], boundary=boundary, stop_at_eos=False) as tracer:
            made = tracer.result.save()
        assert torch.equal(made.tokens, lens.generate(ids, N, [zero], boundary, stop_at_eos=False).tokens)
    with lens.trace(ids, max_new_tokens=N, edits=[both], stop_at_eos=False) as tracer:
        made = tracer.result.save()
    assert torch.equal(made.tokens, lens.generate(ids, N, [both], stop_at_eos=False).tokens)
