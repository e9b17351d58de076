"""Tokenizers of the kinds that published models have, and what they do to a prompt unseen."""

import copy
import datetime
import importlib
import itertools
import random
import tarfile
import warnings
from pathlib import Path
from typing import Any

import pytest
from niah_tokenizers import LLAMA3_CHAT, PUBLISHED_KINDS, byte_bpe, llama3, sentencepiece, word_level
from tokenizers import normalizers

from hybridlens import niah
from hybridlens.errors import InputError
from hybridlens.niah import published, templates

bench: Any = importlib.import_module("tests.benchmarks.tokenizers")

PARTS = (
    *("the museum", "a river", "people", "I'm", "naïve", "Zażółć gęślą", "1,234", "x=3.14", "“so”", "—", "C++"),
    *("东京", "日本語", "🙂", "👩‍👩‍👧", "ﬁ", "½", "हिन्दी", "עברית", "\u200b", "<b>", "a_b", "𝔘", "\t"),
)
SPLIT = next(needle for needle in bench.needles() if "👩" in needle.sentence)


def rubble(seed: int) -> niah.Haystack:
    """Sentences of one to ten parts in any script, few of them known, with any white space between."""
    draw = random.Random(seed)
    sentences = [
        " ".join(draw.choices(PARTS, k=draw.randint(1, 10))).strip().capitalize() + draw.choice(".!?。…")
        for _ in range(300)
    ]
    return niah.Haystack(f"rubble-{seed}", draw.choice([" ", "  ", "\n", "\n\n"]).join(sentences))


@pytest.mark.parametrize("kind", PUBLISHED_KINDS)
@pytest.mark.parametrize("template", ["base", "instruct"])
@pytest.mark.parametrize("jrt", [False, True])
def test_grids_of_published_kinds(kind: str, template: str, jrt: bool) -> None:
    """Token counts, the needle in its span to the letter, one BOS, places in order; essays, then rubble; both builders.

    Bytes of a character that no piece covers have offsets of their own, which a wrong rule would cut from the span.
    """
    tokenizer = PUBLISHED_KINDS[kind]()
    seed = len(kind) + len(template) + jrt
    for haystack, needle in ((None, niah.PAPER_NEEDLE), (rubble(seed), SPLIT)):
        lengths = [900, 1101] if jrt else [500, 701]
        for semantics in niah.SEMANTICS:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # sentences of rubble may be longer than the room between two depths
                prompts = niah.grid(tokenizer, lengths, [0, 33, 66, 100], haystack, needle, template, jrt, semantics)
            assert [(p.length, p.depth) for p in prompts] == list(itertools.product(lengths, [0, 33, 66, 100]))
            assert bench.check(tokenizer, prompts, needle) == 8
            assert {bench.begins(tokenizer, prompt) for prompt in prompts} == {1}
            assert all(prompt.tokens[0] == tokenizer.bos_token_id for prompt in prompts)
            for prompt in prompts:
                before = prompt.text.split(needle.sentence)[0].rstrip()
                if semantics == "published" and prompt.depth in (33, 66):
                    assert before[-1] in ".。！？…:"


@pytest.mark.parametrize("kind", PUBLISHED_KINDS)
def test_every_needle_at_random_lengths(kind: str) -> None:
    """Needles of another form and in other scripts, each at a length of its own, clean: exact, and found."""
    tokenizer, draw = PUBLISHED_KINDS[kind](), random.Random(len(kind))
    for needle in bench.needles()[-6:]:
        prompts = niah.grid(tokenizer, [draw.randint(500, 700)], [50, 100], needle=needle)
        assert bench.check(tokenizer, prompts, needle) == 2


@pytest.mark.parametrize("kind", PUBLISHED_KINDS)
def test_published_depths_have_places_of_their_own(kind: str) -> None:
    """Depths 0 to 89 all stood at the start with a "." that is another piece inside a text; and nothing was said."""
    tokenizer = PUBLISHED_KINDS[kind]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prompts = niah.grid(tokenizer, [2500], semantics="published")
    assert len({prompt.needle_spans for prompt in prompts}) == 10
    alone = tokenizer(".", add_special_tokens=False)["input_ids"]
    inside = tokenizer("We went. Home", add_special_tokens=False)["input_ids"]
    assert (alone[-1] in inside) == (kind != "llama2")


@pytest.mark.parametrize("semantics", niah.SEMANTICS)
def test_special_tokens_in_a_needle_are_refused(semantics: str) -> None:
    """The model would see an end of text, and the published builder lost the word without saying so."""
    tokenizer = sentencepiece(prefix=False)
    for what, texts in (("sentence", ("The <eos> fox hid.", "Who?")), ("question", ("The fox hid.", "Who <eos>?"))):
        needle = niah.Needle("mine", *texts, niah.full_match_rubric("fox hid" if what == "question" else "fox"))
        with pytest.raises(InputError, match=f"needle 'mine': its {what} '.*' holds '<eos>', which the") as caught:
            niah.grid(tokenizer, [400], needle=needle, semantics=semantics)
        assert "\n" not in str(caught.value)


def test_special_tokens_in_a_haystack_are_said() -> None:
    """A second BOS or an end of text inside the context; those that a chat template writes are in order."""
    tokenizer = sentencepiece(prefix=False)
    web = niah.Haystack("web", niah.essays(0, 60).text.replace(". ", ". <eos> "))
    with pytest.warns(UserWarning, match="haystack 'web' holds '<eos>', which .* in 2 of 2 prompts"):
        prompts = niah.grid(tokenizer, [400, 800], [50], web)
    assert all(tokenizer.eos_token_id in prompt.tokens for prompt in prompts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        niah.grid(tokenizer, [400], [50], template="instruct")
        niah.grid(tokenizer, [400], [50], web, semantics="published")  # their decoding leaves them out


def test_a_bos_that_only_the_chat_template_writes_is_missed() -> None:
    """Llama 3's first tokenizer.json had no template of its own: base prompts began without BOS, unsaid."""
    tokenizer = copy.deepcopy(llama3())
    tokenizer.backend_tokenizer.post_processor = byte_bpe().backend_tokenizer.post_processor
    with pytest.warns(UserWarning, match=r"prompts have no BOS: .* writes '<\|begin_of_text\|>', but it puts none"):
        niah.grid(tokenizer, [400], [50])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (chat,) = niah.grid(tokenizer, [400], [50], template="instruct")
        assert chat.tokens.count(tokenizer.bos_token_id) == 1
        tokenizer.add_bos_token = True  # what the warning says
        (base,) = niah.grid(tokenizer, [400], [50])
        assert (base.tokens[0], base.tokens.count(tokenizer.bos_token_id)) == (tokenizer.bos_token_id, 1)
        tokenizer.add_bos_token, tokenizer.chat_template = False, None  # may be a model without BOS
        niah.grid(tokenizer, [400], [50])


def test_a_bos_behind_white_space_is_no_reason_for_a_second() -> None:
    """A chat template may begin with a line break; the tokenizer then put its own BOS before that."""
    tokenizer = copy.deepcopy(sentencepiece(prefix=False))
    tokenizer.chat_template = "\n" + str(tokenizer.chat_template)
    (prompt,) = niah.grid(tokenizer, [400], [50], template="instruct")
    assert prompt.text.startswith("\n<bos>")
    assert prompt.tokens.count(tokenizer.bos_token_id) == 1


def test_a_needle_that_the_tokenizer_rewrites_is_said() -> None:
    """A normaliser makes other characters of some: the answer word by word then scores nothing."""
    tokenizer = copy.deepcopy(byte_bpe())
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    needle = niah.Needle("number", "The ½ № of Rosa.", "What?", niah.full_match_rubric("The ½ № of Rosa"))
    with pytest.warns(UserWarning, match="'The ½ № of Rosa.' as 'The 1⁄2 No of Rosa.', which scores 0 of 5"):
        niah.grid(tokenizer, [400], [50], needle=needle)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        niah.grid(byte_bpe(), [400], [50], needle=needle)
    said = " ".join(f"{needle.sentence} {needle.question}" for needle in niah.NEEDLES.values())
    for tokenizer, needle in itertools.product(
        [word_level(said), byte_bpe(), *(make() for make in PUBLISHED_KINDS.values())], niah.NEEDLES.values()
    ):
        spoken = tokenizer.decode(tokenizer(needle.sentence, add_special_tokens=False)["input_ids"])
        assert niah.score(str(spoken), needle.rubric) == niah.score(needle.sentence, needle.rubric)


def test_chat_prompts_are_the_same_every_day() -> None:
    """A template with the date gets one fixed day in its own format; one whose format is unknown is refused."""
    tokenizer = copy.deepcopy(llama3())
    (prompt,) = niah.grid(tokenizer, [500], [50], template="instruct")
    assert "Today: 01 Oct 2025\n" in prompt.text
    assert datetime.date.today() > templates.DAY
    assert tokenizer.chat_template == LLAMA3_CHAT
    tokenizer.chat_template = {"default": LLAMA3_CHAT.replace("%d %b %Y", "%B %d, %Y"), "rag": LLAMA3_CHAT}
    assert "Today: October 01, 2025\n" in niah.grid(tokenizer, [500], [50], template="instruct")[0].text
    tokenizer.chat_template = "{% set f = '%Y' %}" + LLAMA3_CHAT.replace("'%d %b %Y'", "f")
    with pytest.raises(InputError, match="writes the date of the day in a format of its own") as caught:
        niah.grid(tokenizer, [500], template="instruct")
    assert "\n" not in str(caught.value)
    niah.grid(tokenizer, [500], [50])


def test_a_prompt_is_tokenised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid of 256,000 pieces is seconds because nothing is read twice: haystack, frame, and each prompt once.

    Twice as many depths may cost their prompts alone, and corrections of some; they were read twice each.
    """
    read = [0, 0]
    original = type(llama3()).__call__

    def counted(tokenizer: Any, text: str, **kwargs: Any) -> Any:
        read[0] += len(text)
        return original(tokenizer, text, **kwargs)

    monkeypatch.setattr(type(llama3()), "__call__", counted)
    sizes: list[int] = []
    for depths in ([50], [0, 25, 50, 75, 100]):
        read[0] = 0
        prompts = niah.grid(llama3(), [1000], depths)
        sizes.append(read[0])
    longest = max(len(prompt.text) for prompt in prompts)
    assert sizes[1] - sizes[0] < 6 * longest
    haystack = niah.Haystack("long", niah.essays(0, 600).text * 10)
    read[0] = 0
    ids = published.haystack_ids(llama3(), haystack, 200)
    assert read[0] < len(haystack.text) / 20
    assert ids == tuple(original(llama3(), haystack.text, add_special_tokens=False)["input_ids"][:200])


def test_the_benchmark_prints_what_it_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder, and the same packed as npm packs it; a span moved by one token is found."""
    monkeypatch.setattr(bench, "needles", lambda: [SPLIT])
    llama3().save_pretrained(tmp_path / "mine")
    with tarfile.open(tmp_path / "mine.tgz", "w:gz") as packed:
        packed.add(tmp_path / "mine", "package/models")
    bench.main([str(tmp_path / "mine"), str(tmp_path / "mine.tgz"), "--lengths", "700"])
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [(row[0], row[3], row[4]) for row in lines[2:]] == [
        (*pair, "1") for pair in itertools.product(["mine", "mine.tgz"], ["base", "instruct"])
    ]
    assert {row[-1] for row in lines[2:]} == {str(4 * (10 + 3))}
    (prompt,) = niah.grid(llama3(), [400], [50])
    (start, end) = prompt.needle_spans[0]
    for moved in ((start + 1, end + 1), (start - 1, end), (start, end + 1)):
        wrong = copy.copy(prompt)
        object.__setattr__(wrong, "needle_spans", (moved,))
        with pytest.raises(AssertionError, match="its span"):
            bench.check(llama3(), [wrong], niah.PAPER_NEEDLE)
