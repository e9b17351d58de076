"""Where the filler comes from: the built-in essays, or a user's folder of text files.

A haystack is one text. The clean builder uses its sentences (`split_sentences`), the published builder
its tokens from the start. A folder is read in the order of its files' relative paths, never in file-system
order, so that the same folder gives the same prompts on every machine.

How it fails: sentences are found by punctuation, so "Dr. Smith" is cut after "Dr."; a haystack that is
shorter than the longest prompt is used again from its start, as the authors' builder does.
"""

import hashlib
import random
import re
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

from hybridlens.boundary import Length, Seed, public
from hybridlens.display import Displayed, Piece, Words, many
from hybridlens.errors import InputError
from hybridlens.niah.essays import essay_sentences

TEXT_SUFFIXES = (".txt", ".md", ".text")
"""File endings (lower case) that `read_haystack` takes for text."""

CHARS_PER_TOKEN = 64
"""Of a long haystack the first `CHARS_PER_TOKEN` · longest prompt characters are used, at least."""

_PARAGRAPH = re.compile(r"\n\s*\n")
_SENTENCE_END = re.compile(
    r"(?<=[.!?…])[\"'”’)\]]*\s+(?=[^a-z\s])"  # white space, and a new start
    r"|(?<=[。！？｡])[」』”’）》\"'\])。！？｡…]*\s*(?=\S)"  # scripts that put no space between sentences
    r"|(?<=…)[」』”’）》]*(?=[\u2e80-\uffef])(?![。！？｡…，、；：」』”’）》])"
)


@public
@dataclass(frozen=True)
class Haystack(Displayed):
    """A text to hide needles in.

    Attributes:
        name: what results call it: ``essays-<seed>``, or the folder.
        text: the whole text.
    """

    name: str
    text: str

    def summary(self) -> str:
        """Its name and size."""
        return f"{self.name}: {many(len(self.text), 'character')} in {many(len(self.sentences), 'sentence')}"

    def view(self) -> tuple[Piece, ...]:
        """Its text: both ends of a long one."""
        return (Words(self.text, literal=True),)

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        """The text's sentences in order, each with its punctuation and single spaces."""
        return split_sentences(self.text)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the text, in hexadecimal."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()


@public
def split_sentences(text: str) -> tuple[str, ...]:
    """The sentences of `text`: cut at blank lines, and after what ends a sentence before a new start.

    After ``.``, ``!``, ``?`` and ``…`` a new start is white space followed by anything but a lower-case letter; after
    ``。``, ``！`` and ``？`` it is whatever follows, and after ``…`` an East Asian character too. Pieces without a
    letter or digit (rules, stray punctuation) are dropped.
    """
    sentences: list[str] = []
    for paragraph in _PARAGRAPH.split(text):
        line = " ".join(paragraph.split())
        start = 0
        for match in _SENTENCE_END.finditer(line):
            sentences.append(line[start : match.end()].strip())
            start = match.end()
        sentences.append(line[start:])
    return tuple(sentence for sentence in sentences if re.search(r"\w", sentence))


@public
def essays(seed: Seed = 0, n_sentences: Length = 1000) -> Haystack:
    """The built-in haystack: `n_sentences` sentences of the essay generator.

    A longer haystack of the same seed starts with the shorter one's text.

    Args:
        seed: the generator's seed.
        n_sentences: how many sentences; about 12 words each.
    """
    sentences = islice(essay_sentences(random.Random(seed)), n_sentences)
    return Haystack(f"essays-{seed}", " ".join(sentences))


@public
def read_haystack(folder: str | Path) -> Haystack:
    """A haystack out of every text file below `folder`, in the order of their relative paths.

    Args:
        folder: a folder with files that end in .txt, .md or .text, at any depth, in UTF-8.

    Raises:
        InputError: no such folder, no text file in it, a file that cannot be read, or no sentence in any.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"haystack {str(folder)!r} is not a folder; give a folder of text files")
    try:
        files = sorted(
            (path for path in root.rglob("*") if path.suffix.lower() in TEXT_SUFFIXES and not path.is_dir()),
            key=lambda path: path.relative_to(root).as_posix(),
        )
    except OSError as error:
        raise InputError(f"haystack {str(folder)!r} cannot be listed ({error.strerror})") from error
    if not files:
        raise InputError(
            f"haystack {str(folder)!r} is empty: no file ends in {', '.join(TEXT_SUFFIXES)}; put text files there"
        )
    haystack = Haystack(str(folder), "\n\n".join(_read_file(path) for path in files))
    if not haystack.sentences:
        raise InputError(f"haystack {str(folder)!r} is empty: its {len(files)} text files hold no words")
    return haystack


def _read_file(path: Path) -> str:
    """The text of one file, or an `InputError` that names it."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"haystack file {str(path)!r} is not UTF-8 text (byte {error.start}); convert or remove it"
        ) from error
    except OSError as error:
        raise InputError(f"haystack file {str(path)!r} cannot be read ({error.strerror})") from error
