"""The paper's questions, and which runs answer which: the order of the start page.

How it fails: pure; runs of a command that is not here stand under `OTHERS`.
"""

from __future__ import annotations

from typing import NamedTuple


class Question(NamedTuple):
    """A section of the start page.

    Attributes:
        name: of the section's element.
        title: the question.
        words: how the paper asks it, and what the runs here do.
        jobs: names of commands -> what each asks, in a few words.
    """

    name: str
    title: str
    words: str
    jobs: dict[str, str]


QUESTIONS = (
    Question(
        "retrieval",
        "Does retrieval need attention, and how many heads?",
        "The paper keeps the k attention heads of lowest entropy in each layer, silences the others, and asks for a "
        "needle in a haystack; then it changes the attention weights around the needle. These runs do the same to "
        "these models, and judge each of the paper's claims by a rule that is printed beside it.",
        {
            "reproduce": "the paper's experiments and claims",
            "niah": "heads dropped one by one (the paper's figure 2)",
            "benchmarks": "benchmarks with few heads",
        },
    ),
    Question(
        "memory",
        "In which memory is the needle?",
        "The paper's first hypothesis is that retrieval depends on attention alone. A hybrid remembers a prompt in "
        "keys and values (the KV cache), recurrent states and convolution inputs. Here each is exchanged for that of "
        "another prompt, and the answer tells which of them held the needle.",
        {
            "crossover": "memories of two prompts exchanged",
            "capacity": "how many facts fit",
        },
    ),
    Question(
        "heads",
        "Which heads retrieve, and can they be told beforehand?",
        "The paper ranks heads by the entropy of their attention while the model runs, and wishes for a ranking from "
        "the weights alone. Both are made here; what is left of retrieval with the best heads of each decides.",
        {
            "rankings": "rankings of the heads compared",
            "circuits": "heads judged by their weights",
            "reduce": "smaller attention",
        },
    ),
    Question(
        "path",
        "What carries the needle to the answer?",
        "Activations of one prompt are put into another that differs in the needle alone, place by place: what "
        "restores the answer carries the needle.",
        {"patch": "activation patching"},
    ),
    Question(
        "states",
        "What do the recurrent states hold?",
        "The paper finds that recurrent (SSM) layers do not make up for lost attention. These runs look into their "
        "states: how long a token stays, how much of the needle is in them, and whether it can be read off.",
        {"states": "recurrent states"},
    ),
    Question(
        "training",
        "How does retrieval come about in training?",
        "Checkpoints that a training kept are asked the same questions.",
        {"curves": "curves of training"},
    ),
)

OTHERS = Question("others", "Other runs", "Runs of commands that this version of hybridlens does not have.", {})
