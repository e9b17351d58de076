"""The adapter for lm-eval against lm-eval's own model over the untouched Hugging Face model, on the local tasks."""

import copy
import dataclasses
import logging

import pytest
import torch
from bounds import EMBEDDED, FORWARD, apart, close
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from models import make
from random_lens import benchmark_lens

import hybridlens as hl
from analyses.heads.sparsification import top_k
from analyses.study.benchmarks.harness import NO_LIMIT, HarnessModel, longest
from analyses.study.benchmarks.tasks import load_tasks
from hybridlens import niah
from hybridlens.errors import InputError

TINY = ("tiny-recurrentgemma", "tiny-jamba")
CHOICES = ("tiny_retrieval", "tiny_facts", "tiny_grammar")
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</{{ m['role'] }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

logging.getLogger("lm_eval").setLevel(logging.ERROR)


@pytest.fixture(scope="module", params=TINY)
def lens(request):
    return hl.load(request.param)


def requests_of(name, limit, **options):
    """The requests that lm-eval makes of a local task."""
    task = load_tasks([name]).tasks[name]
    task.set_config("num_fewshot", 0)
    task.build_all_requests(limit=limit, **options)
    return task.instances


def texts_of(limit, new=12):
    """Requests of `tiny_recite` for shorter texts, so that the untouched model, token by token, is soon done."""
    options = {"until": ["\n"], "max_gen_toks": new, "do_sample": False}
    return [
        Instance("generate_until", {}, (request.args[0], dict(options)), index)
        for index, request in enumerate(requests_of("tiny_recite", limit))
    ]


def plain(lens, batch_size=4, **options):
    """lm-eval's own model over the untouched one, whose own number of new tokens would override the task's."""
    lens.hf_model.generation_config.max_new_tokens = None
    tokenizer = copy.deepcopy(lens.tokenizer)
    return HFLM(pretrained=lens.hf_model, tokenizer=tokenizer, batch_size=batch_size, **{"max_length": 256, **options})


def without_attention(model):
    """Plain hooks of PyTorch that put zeros where the heads' outputs enter the output projection."""
    names = [name for name, _ in model.named_modules() if name.endswith(".o_proj")]
    return [
        model.get_submodule(name).register_forward_pre_hook(lambda module, args: (torch.zeros_like(args[0]),))
        for name in names
    ]


def ask(*pairs):
    return [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]


def agree(ours, theirs):
    assert [is_greedy for _, is_greedy in ours] == [is_greedy for _, is_greedy in theirs]
    close([value for value, _ in ours], [value for value, _ in theirs], EMBEDDED, dtype=torch.float32)


@pytest.mark.parametrize("k", [8, 0])
def test_answers_are_those_of_the_untouched_model(lens, k):
    """Likelihoods and texts beside HFLM's; at k = 0 its model has attention zeroed by plain hooks.

    A context cut at the wrong token, an answer for the wrong request, or a head that was left on moves a
    log-likelihood by far more than rounding.
    """
    ours = HarnessModel(lens, top_k(lens, k, "both"), batch_size=8, max_length=256)
    likelihood = [r for name in CHOICES for r in requests_of(name, 2)]
    texts = texts_of(2)
    handles = without_attention(lens.hf_model) if k == 0 else []
    try:
        scores = plain(lens).loglikelihood(likelihood, disable_tqdm=True)
        said = plain(lens, batch_size=1).generate_until(texts, disable_tqdm=True)  # it pads on the left
    finally:
        for handle in handles:
            handle.remove()
    agree(ours.loglikelihood(likelihood), scores)
    assert ours.generate_until(texts) == said
    assert ours.truncated == 0
    assert len({round(value, 3) for value, _ in scores}) > len(scores) // 2


@pytest.mark.parametrize(("name", "phase", "k"), [(TINY[0], "both", 2), (TINY[1], "decode", 1)])
def test_batches_change_nothing(name, phase, k):
    """Batches of one and of five, contexts and continuations of many lengths: padding or a mixed-up row shows.

    The five prompts of the texts are of three lengths, so an adapter that batches different lengths pads some.
    """
    lens = hl.load(name)
    edits = top_k(lens, k, phase)
    likelihood = [r for task in CHOICES for r in requests_of(task, 2)]
    texts = texts_of(9, 4)[::2]
    assert len({len(lens.to_tokens(request.args[0])[0]) for request in texts}) == 3
    alone, together = HarnessModel(lens, edits, 1), HarnessModel(lens, edits, 5)
    agree(together.loglikelihood(likelihood), alone.loglikelihood(likelihood))
    assert together.generate_until(texts) == alone.generate_until(texts)


@pytest.mark.parametrize("family", ["recurrentgemma", "jamba"])
def test_texts_do_not_depend_on_the_batch(family, monkeypatch):
    """Random models, whose next token follows from everything read: padding on the left changes what they say."""
    lens = benchmark_lens(family)
    prompts = [" ".join(niah.vocabulary()[i : i + 3 + i % 4]) for i in range(12)]
    options = {"until": [], "max_gen_toks": 8}
    requests = [Instance("generate_until", {}, (text, dict(options)), i) for i, text in enumerate(prompts)]
    seen = []
    run = HarnessModel._model_generate

    def watched(self, context, **rest):
        seen.append(context)
        return run(self, context, **rest)

    monkeypatch.setattr(HarnessModel, "_model_generate", watched)
    together, alone = (HarnessModel(lens, top_k(lens, 2, "both"), rows).generate_until(requests) for rows in (8, 1))
    assert together == alone
    assert len(set(alone)) > 6
    real = sum(len(lens.to_tokens(text)[0]) for text in prompts)
    assert sum(context.numel() for context in seen) == 2 * real  # no place is padding
    assert max(context.shape[0] for context in seen) == 3


@pytest.mark.parametrize(
    ("phase", "boundary"),
    [("both", "last_prompt_token"), ("decode", "last_prompt_token"), ("decode", "first_new_token")],
)
def test_edits_act_where_their_phase_says(phase, boundary):
    """Beside a walk over single tokens: which pass reads a token under which edits is then plain to see."""
    lens = benchmark_lens("jamba")
    edits = top_k(lens, 1, phase)
    context, continuation = "The best thing to do in Lima is", " to sail a boat and read a good book."
    ids = lens.tokenizer(context)["input_ids"]
    answer = lens.tokenizer(context + continuation)["input_ids"][len(ids) :]
    head = len(ids) - (boundary == "last_prompt_token")
    state, logits = lens.prefill([ids[:head]], edits)
    total = 0.0
    for place, token in enumerate([*ids[head:], *answer]):
        if place >= len(ids) - head:
            total += logits[0, -1].detach().log_softmax(-1)[token].item()
        state, logits = lens.extend(state, [[token]], edits)
    model = HarnessModel(lens, edits, boundary=boundary)
    [(value, _)] = model.loglikelihood(ask((context, continuation)))
    close(value, total, FORWARD, dtype=torch.float32)
    [(untouched, _)] = HarnessModel(lens).loglikelihood(ask((context, continuation)))
    assert apart(untouched, total, dtype=torch.float32)


def test_long_requests_lose_their_beginning_and_are_counted(lens):
    """HFLM cuts at the same token; a cut one token off moves the likelihood. The count is what the table reports."""
    likelihood = requests_of("tiny_retrieval", 2)
    whole = [("", "The best thing to do in Lima is sail a boat and nap in Hyde Park on a cold day.")]
    model = HarnessModel(lens, max_length=40)
    agree(model.loglikelihood(likelihood), plain(lens, max_length=40).loglikelihood(likelihood, True))
    assert model.truncated == len(likelihood)
    rolling = [Instance("loglikelihood_rolling", {}, (text,), 0) for _, text in whole]
    short = HarnessModel(lens, max_length=7)
    theirs = plain(lens, max_length=7, batch_size=2).loglikelihood_rolling(rolling, True)
    close(short.loglikelihood_rolling(rolling), theirs, EMBEDDED, dtype=torch.float32)
    agree(model.loglikelihood(ask(*whole)), plain(lens).loglikelihood(ask(*whole), True))


def test_a_row_ends_at_its_stop_sequence(lens):
    """The text is what comes before it, and no forward pass follows once every row has ended."""
    texts = [r.args[0] for r in requests_of("tiny_recite", 2)]

    def said(until, new=20):
        options = {"until": until, "max_gen_toks": new, "do_sample": False}
        passes = []
        with lens.hooks([("hook_logits", lambda x, hook: passes.append(x.shape[1]))]):
            found = HarnessModel(lens).generate_until(
                [Instance("generate_until", {}, (text, dict(options)), i) for i, text in enumerate(texts)]
            )
        return found, len(passes)

    whole, _ = said(["\n"])
    cut, passes = said([" is"])
    assert cut == [text.split(" is")[0] for text in whole]
    assert cut != whole
    assert passes < 20
    assert said(["\n"], new=3)[0] == [" ".join(text.split()[:3]) for text in whole]


def test_chat_templates_and_turns_read_as_lm_eval_writes_them():
    """Examples as turns, against the conversation written out by hand; and HFLM's own wording of the same."""
    lens = copy.copy(hl.load(TINY[0]))
    lens.tokenizer = copy.deepcopy(lens.tokenizer)
    lens.tokenizer.chat_template = CHAT
    task = load_tasks(["tiny_facts"]).tasks["tiny_facts"]
    task.set_config("num_fewshot", 2)
    prompts = []
    for model in (HarnessModel(lens), plain(lens)):
        task.set_fewshot_seed(7)
        options = {"apply_chat_template": True, "fewshot_as_multiturn": True, "system_instruction": "Answer."}
        task.build_all_requests(limit=2, chat_template=model.apply_chat_template, **options)
        prompts.append([request.args[0] for request in task.instances])
    assert prompts[0] == prompts[1]
    docs = {doc["prompt"] + doc["subject"]: doc for doc in task.test_docs()}
    prompt = prompts[0][0]
    assert prompt.startswith("<system>Answer.</system><user>QUESTION:")
    assert prompt.endswith("<assistant>")
    turns = prompt.removeprefix("<system>Answer.</system>").removesuffix("<assistant>").split("<user>")[1:]
    assert len(turns) == 3
    for turn in turns[:2]:
        question, answer = turn.removesuffix("</assistant>").split("</user><assistant>")
        doc = docs[question]
        assert answer == doc["choices"][doc["label"]]
    assert turns[2] == task.doc_to_text(next(iter(docs.values()))) + "</user>"


def test_sampling_is_seeded():
    """The same seed says the same; another one, at this temperature, something else."""
    lens = hl.load(TINY[0])
    text = requests_of("tiny_recite", 1)[0].args[0]
    options = {"until": ["\n"], "max_gen_toks": 12, "do_sample": True, "temperature": 3.0, "top_p": 0.99}
    request = Instance("generate_until", {}, (text, options), 0)
    first, again, other = (HarnessModel(lens, seed=seed).generate_until([request])[0] for seed in (1, 1, 2))
    assert first == again != other


def test_nothing_is_cut_where_no_limit_is_stated():
    """A RecurrentGemma states none: lm-eval alone would cut at 2048 without a word."""
    lens = benchmark_lens("recurrentgemma")
    assert lens.cfg.n_ctx is None
    assert longest(lens) == HarnessModel(lens).max_length == NO_LIMIT
    assert longest(hl.load(TINY[0])) == 256
    assert longest(benchmark_lens("jamba")) == 400


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch size 0 given, expected at least 1"),
        ({"max_length": 1}, "max_length 1 given, expected 2..400"),
        ({"max_length": 401}, "max_length 401 given, expected 2..400"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        HarnessModel(benchmark_lens("jamba"), **options)


def test_requests_that_cannot_be_run_are_refused():
    lens = benchmark_lens("jamba")
    with pytest.raises(InputError, match="the tokenizer is NoneType, expected one of transformers"):
        HarnessModel(hl.HybridLens(make("jamba")))
    model = HarnessModel(lens, max_length=20)
    with pytest.raises(InputError, match="empty continuation"):
        model.loglikelihood(ask(("The best thing", "")))
    with pytest.raises(InputError, match="continuation of 21 tokens given, but max_length is 20"):
        model.loglikelihood(ask(("The", " best" * 21)))
    with pytest.raises(InputError, match="no chat template; leave apply_chat_template out"):
        model.apply_chat_template([{"role": "user", "content": "What is it?"}])
    for options, message in (
        ({"max_gen_toks": 20}, "the task generates 20 tokens, but max_length is 20"),
        ({"max_gen_toks": 4, "num_beams": 3}, "generate with num_beams = 3, which a lens cannot do"),
    ):
        with pytest.raises(InputError, match=message):
            model.generate_until([Instance("generate_until", {}, ("The best thing", options), 0)])


def test_logits_that_are_not_finite_are_no_score():
    """A log-likelihood of NaN and a text of the first token would go into the table; the first spoilt token is named.

    The edit spoils one token of a continuation, of the text, or of the context, whose first new token is number 0.
    """
    lens = benchmark_lens("jamba")
    asked = ask(("The best thing to do in Lima is", " to sail a boat"))

    def model(phase, place):
        def spoil(x, hook):
            x[:, place] = float("nan")

        return HarnessModel(lens, [hl.Edit("hook_logits", spoil, phase)], boundary="first_new_token")

    with pytest.raises(hl.HybridLensError, match="row 0, new token 2: the model's logits are not finite"):
        model("decode", 1).loglikelihood(asked)
    with pytest.raises(hl.HybridLensError, match="row 0, new token 0: the model's logits are not finite"):
        model("prefill", -1).loglikelihood(asked)
    text = Instance("generate_until", {}, ("The best thing", {"until": ["\n"], "max_gen_toks": 4}), 0)
    with pytest.raises(hl.HybridLensError, match="row 0, new token 1: the model's logits are not finite"):
        model("decode", 0).generate_until([text])


def test_a_stop_sequence_needs_no_end_of_text_token(monkeypatch):
    """A model that names none still stops where its text holds a stop sequence, and reads no more."""
    lens = benchmark_lens("recurrentgemma")
    monkeypatch.setattr(lens.network, "cfg", dataclasses.replace(lens.network.cfg, eos_token_ids=()))

    def said(until):
        passes = []
        with lens.hooks([("hook_logits", lambda x, hook: passes.append(x.shape[1]))]):
            options = {"until": until, "max_gen_toks": 10, "do_sample": False}
            [text] = HarnessModel(lens).generate_until([Instance("generate_until", {}, ("The best thing", options), 0)])
        return text, len(passes)

    whole, passes = said([])
    third = whole.split()[2]
    assert whole.split().index(third) == 2
    cut, fewer = said([third])
    assert cut == whole.split(third)[0]
    assert fewer < passes
