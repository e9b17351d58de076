"""The experiments that are commands, and what ``--help`` says of them."""

from __future__ import annotations

from analyses.commands.declared import Declared
from analyses.experiment.options.capacity import CapacityConfig
from analyses.experiment.options.circuits import CircuitsConfig
from analyses.experiment.options.crossover import CrossoverConfig
from analyses.experiment.options.curves import CurvesConfig
from analyses.experiment.options.patch import PatchConfig
from analyses.experiment.options.rankings import RankingsConfig
from analyses.experiment.options.reduce import ReduceConfig
from analyses.experiment.options.states import StatesConfig
from analyses.experiment.options.study import NiahConfig, ReproduceConfig

EXPERIMENTS: tuple[Declared, ...] = (
    Declared(
        "niah",
        NiahConfig,
        "analyses.study.niah:NiahRun",
        """Needle in a haystack while the k heads of lowest entropy are kept: the paper's figure 2.

        Lists are written 0,4,8 or 0..8. The same command goes on where a run was stopped.
        """,
        "",
    ),
    Declared(
        "reproduce",
        ReproduceConfig,
        "analyses.study.running:StudyRun",
        """The paper's experiments, and what they say of its claims: one report with every figure and the verdicts.

        All experiments when none is named. The same command goes on where a study was stopped, and other
        experiments of the same model may be added to its folder.
        """,
        "study",
        positional="experiments",
    ),
    Declared(
        "circuits",
        CircuitsConfig,
        "analyses.circuits.experiment:CircuitsRun",
        "What each attention head does, from its weights: copying, matching, previous token, composition, induction.",
    ),
    Declared(
        "rankings",
        RankingsConfig,
        "analyses.study.rankings.sweep:RankingsRun",
        """Which ranking of the heads keeps retrieval with the fewest: the best n of each are kept, n from none to all.

        Rankings made by running the model (entropy, retrieval score, needle mass, ablation) and from its weights alone
        (copying, matching, induction, retrieval strength), beside random ones and the paper's entropy at run time.
        Compared is the area under accuracy, 0 to 1, over the numbers of heads kept. Prompts are added until each
        ranking is either told apart from the best or shown to be within --precision of it, or until --prompts are read.
        The same command goes on where it was stopped, with more --prompts too.
        """,
    ),
    Declared(
        "reduce",
        ReduceConfig,
        "analyses.study.reduced.experiment:ReduceRun",
        """How small attention may be and still retrieve: fewer or narrower heads, fewer bits, a window, the best keys.

        Each of these stands in attention's place while needle prompts are read and answered. What it retrieves is set
        against its cost: bytes of keys and values held for each token of context, and multiplications for each token
        decoded. Each is measured as it stands, and after a short fine-tune of attention alone, which needs the tiny
        models' tokenizer: give --steps 0 for other models. The same command goes on where a run was stopped, with other
        sizes too.
        """,
    ),
    Declared(
        "patch",
        PatchConfig,
        "analyses.patching.experiment:PatchRun",
        """Which component carries the needle: activations of one prompt put into another, place by place.

        The same command goes on where a run was stopped, and other sweeps may be added to its folder.
        """,
    ),
    Declared(
        "crossover",
        CrossoverConfig,
        "analyses.kv_cache.experiment:CrossoverRun",
        """Which memory holds the needle: keys and values of one prompt, recurrent states of another, and which is told.

        The same command goes on where a run was stopped.
        """,
    ),
    Declared(
        "states",
        StatesConfig,
        "analyses.states.experiment:StatesRun",
        """What recurrent states hold, of which tokens and how long: half-lives, ranks, writes, recalls and erasures.

        Heads that hold most of the needle are silenced beside random ones, and linear probes read it from the states
        beside shuffled labels. The same command goes on where a run was stopped.
        """,
    ),
    Declared(
        "capacity",
        CapacityConfig,
        "analyses.study.capacity.experiment:CapacityRun",
        """Recall as the number of facts grows: how many a model holds, with attention and with it taken away.

        A fact is a sentence such as the best thing to do in one city; a prompt hides some in filler and asks for one of
        them. All prompts have one length, whatever the number of facts. Each has a control in which the asked fact is
        left out. For any causal model, hybrid or pure. The same command goes on where a run was stopped.
        """,
    ),
    Declared(
        "curves",
        CurvesConfig,
        "analyses.study.training_curves.experiment:CurvesRun",
        """Training as curves: what each kept checkpoint retrieves, from which memory, and how strong its heads are.

        RUNS are folders of trainings that kept checkpoints: python -m hybridlens.tiny.train NAME --keep-every N writes
        .training/NAME-SEED, and may still be at it. The same command later measures what has come since; a checkpoint
        that has been measured may be deleted, but for one of each run.
        """,
        positional="runs",
    ),
)
