"""Several threads on one lens: each run has its own hooks, caches, traces and gradients.

Each thread does what it does alone first, so that its tensors are known; a hook, a cached tensor or a trace of
another thread in any of its runs would show. The threads meet before each run, so that the runs overlap.
"""

import threading
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import torch
from models import FAMILIES, make, tokens

from analyses.heads.sparsification import top_k
from hybridlens import Edit, HybridLens
from hybridlens.hooks import by_query

THREADS, ROUNDS = 4, 6


@pytest.fixture(params=FAMILIES)
def lens(request):
    return HybridLens(make(request.param))


def at_once(jobs):
    """The jobs' results, each made `ROUNDS` times in a thread of its own, all threads beginning a round together."""
    meeting = threading.Barrier(len(jobs), timeout=60)

    def work(job):
        results = []
        for _ in range(ROUNDS):
            meeting.wait()
            results.append(job())
        return results

    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result() for future in [pool.submit(work, job) for job in jobs]]


def agree(jobs):
    """Whether each job gives at once, bit for bit, what it gives alone."""
    alone = [job() for job in jobs]
    for expected, results in zip(alone, at_once(jobs), strict=True):
        for result in results:
            assert result.keys() == expected.keys()
            assert all(torch.equal(result[name], expected[name]) for name in expected)


def no_grad(job):
    def run():
        with torch.no_grad():
            return job()

    return run


def test_a_plain_run_hears_nothing_of_another_threads_hooks(lens):
    ids = tokens(1, 12)

    def silence():
        return {"logits": lens.run_with_hooks(ids, [("hook_embed", lambda x, hook: x * 0)])}

    jobs = [no_grad(silence), *[no_grad(lambda: {"logits": lens(ids)})] * (THREADS - 1)]
    assert not torch.equal(jobs[0]()["logits"], jobs[1]()["logits"])
    agree(jobs)


def test_each_cache_holds_its_own_run(lens):
    """Four prompts of one shape, every name: a tensor of another prompt has other values."""
    names = list(lens.hook_points)

    def job(seed):
        return no_grad(lambda: dict(lens.run_with_cache(tokens(1, 10, seed=seed), names)[1].items()))

    agree([job(seed) for seed in range(THREADS)])


def test_hooks_edits_and_plain_runs_beside_each_other(lens):
    """One hooks the state, one edits a row in each decode step, one reads blocks of the pattern, one only runs."""
    state, ids = f"blocks.{lens.cfg.ssm_layers[0]}.ssm.hook_state", tokens(2, 9)
    pattern = f"blocks.{lens.cfg.attention_layers[0]}.attn.hook_pattern"

    def freezing():
        def late(x, hook):
            hook.freeze((torch.arange(x.shape[1]) == 5).view(1, -1, *[1] * (x.ndim - 2)))
            return torch.where((torch.arange(x.shape[1]) == 3).view(1, -1, *[1] * (x.ndim - 2)), 0.0, x)

        return {"logits": lens.run_with_hooks(ids, [(state, late)])}

    def decoding():
        edit = Edit("blocks.1.hook_mixer_out", lambda x, hook: x * -2, rows=[1])
        return {"tokens": lens.generate(ids, 5, [edit], stop_at_eos=False).tokens}

    def reading():
        seen = {}

        @by_query
        def look(x, hook):
            seen["keys"], seen["pattern"] = hook.slots.key_positions.clone(), x.clone()

        lens.run_with_hooks(ids, [(pattern, look)])
        return seen

    agree([no_grad(job) for job in (freezing, decoding, reading, lambda: {"logits": lens(ids)})])


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_threads_under_the_same_edits_choose_their_own_heads(lens, scope):
    """Each thread has read its scores before any drops a head: with another's entropies it would drop other heads."""
    edits, layer = top_k(lens, 1, "both", scope), lens.cfg.attention_layers[0]
    meeting = threading.Barrier(2, timeout=60)

    def job(seed, meet):
        def pause(pattern, hook):
            meet()

        waiting = Edit(f"blocks.{layer}.attn.hook_pattern", pause, ahead=scope == "model")
        return no_grad(lambda: lens.prefill(tokens(1, 9, seed=seed), edits=[*edits, waiting]).logits)

    alone = [job(seed, lambda: None)() for seed in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        together = [pool.submit(job(seed, meeting.wait)) for seed in (0, 1)]
    assert all(torch.equal(one, made.result()) for one, made in zip(alone, together, strict=True))


def test_threads_take_turns_with_weights_that_are_away():
    """One comes in while another has a layer's weights at hand, which it would have taken away: now it waits."""
    from accelerate import cpu_offload

    lens = HybridLens(make("jamba"))
    cpu_offload(lens.hf_model, execution_device=torch.device("cpu"))
    other, second = no_grad(lambda: lens(tokens(1, 9, seed=1))), []

    def come_in(x, hook):
        if not second:
            second.append(pool.submit(other))
            wait(second, timeout=0.2)  # more than it takes, if it may

    with ThreadPoolExecutor(1) as pool:
        hooked = no_grad(lambda: lens.run_with_hooks(tokens(1, 9), [("blocks.0.ssm.hook_in", come_in)]))()
    assert torch.equal(hooked, no_grad(lambda: lens(tokens(1, 9)))())
    assert torch.equal(second[0].result(), other())


def test_traces_at_once(lens):
    """Two threads trace other prompts, one edits in its trace, one runs plainly: nobody sees anybody."""
    layer = lens.cfg.attention_layers[0]

    def trace(seed):
        ids = tokens(1, 9, seed=seed)
        with torch.no_grad(), lens.trace(ids):
            resid = lens.blocks[0].hook_resid_post.output.save()
            pattern = lens.blocks[layer].attn.hook_pattern.output.save()
        return {"resid": resid, "pattern": pattern}

    def edit():
        with torch.no_grad(), lens.trace(tokens(1, 9)):
            lens.blocks[layer].hook_resid_pre.output[:] = 0
            logits = lens.hook_logits.output.save()
        return {"logits": logits}

    agree([lambda: trace(1), lambda: trace(2), edit, no_grad(lambda: {"logits": lens(tokens(1, 9))})])


def test_the_first_traces_of_a_lens_may_come_at_once():
    lens = HybridLens(make("jamba"))
    expected = lens.run_with_cache(tokens(1, 7), "hook_embed")[1]["hook_embed"]

    def trace():
        with torch.no_grad(), lens.trace(tokens(1, 7)):
            embedded = lens.hook_embed.output.save()
        return embedded  # noqa: RET504 - the block's own name is what nnsight gives back

    assert all(torch.equal(value, expected) for results in at_once([trace] * THREADS) for value in results)


def test_an_edit_that_is_kept_acts_in_every_threads_trace():
    """The second thread traces while the first one's pass is at its first point, where the edit waits for its own."""
    lens, seen = HybridLens(make("jamba")), []
    ids = tokens(1, 6)
    with lens.edit() as (_, edited):
        lens.blocks[1].hook_resid_post.output[:] = 0

    def second():
        with edited.trace(ids):
            resid = lens.blocks[1].hook_resid_post.output.save()
        seen.append(resid)

    def meanwhile(x, hook):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()

    with edited.trace(ids, edits=[Edit("hook_embed", meanwhile)]):
        first = lens.blocks[1].hook_resid_post.output.save()
    assert len(seen) == 1
    assert not first.any()
    assert not seen[0].any()


def test_gradients_go_by_the_hooks_of_their_own_forward_pass(lens):
    ids = tokens(1, 8)
    names = ["hook_embed", f"blocks.{lens.cfg.ssm_layers[0]}.ssm.hook_state"]

    def job(seed):
        weights = torch.randn(53, generator=torch.Generator().manual_seed(seed))

        def run():
            grads = {}
            with lens.hooks(bwd_hooks=[(names, lambda g, hook: grads.__setitem__(hook.name, g.clone()))]):
                loss = (lens(ids)[0, -1] * weights).sum()
                torch.autograd.grad(loss, lens.hf_model.get_input_embeddings().weight)
            return grads

        return run

    agree([job(seed) for seed in range(THREADS)])


def test_a_backward_hook_acts_in_whatever_thread_gradients_are_computed(lens):
    ids, seen = tokens(1, 6), []
    with lens.hooks(bwd_hooks=[("hook_embed", lambda g, hook: seen.append(threading.get_ident()))]):
        loss = lens(ids).sum()
        worker = threading.Thread(target=loss.backward)
        worker.start()
        worker.join()
    assert len(seen) == 1
    assert seen[0] != threading.get_ident()


def test_hooks_leave_with_their_block_whichever_thread_leaves_it(lens):
    block = lens.hooks([("hook_embed", lambda x, hook: x * 0)])
    block.__enter__()
    assert lens.hook_embed.asked()
    worker = threading.Thread(target=block.__exit__, args=(None, None, None))
    worker.start()
    worker.join()
    assert not lens.hook_embed.asked()


def test_a_hook_put_on_the_point_itself_acts_in_all_threads(lens):
    ids = tokens(1, 6)
    handle = lens.hook_embed.add_hook(lambda x, hook: x * 0)
    with torch.no_grad():
        here = lens(ids)
        with ThreadPoolExecutor(1) as pool:
            there = pool.submit(no_grad(lambda: lens(ids))).result()
        lens.hook_embed.remove_hooks()
        assert not torch.equal(here, lens(ids))
    assert handle.user_hook is not None
    assert torch.equal(here, there)
