"""hybridlens: read, edit and differentiate anything inside hybrid language models.

The public names are loaded when they are first used, so that ``import hybridlens`` is quick.

Modules:
    errors: the exceptions raised on purpose; each message is one line
    habits: what users of other libraries type, and what to type here: data
    habit_modules: the same for names of modules, and in them
    habit_parts: the same for a layer's parts
    elsewhere: the errors that say it
    imports: names that a package has not: where they are
    supported: what was checked of each family, and what came out
    effort: how much of something long is done: stages, and the passes that go into them
    progress: bars of what takes long, in notebooks and terminals
    hub_words: what the hub's client raises, as one line of what to do
    hub: a hub id: its commit, what files that has, those that are needed
    checkpoint_files: a checkpoint's JSON and its index, looked at before any library opens them
    boundary_words: what the public boundary says of a value that it refuses
    boundary: public calls, checked once by their annotations
    adapters: adapters of PEFT: followed, merged, or refused by name
    shapes: axis letters and the jaxtyping aliases made of them
    display: how results show themselves: one line, a notebook's HTML, a table of pandas
    devices: where modules compute, and weights that are away
    machine: what the machine has free: where a model fits, how much may be used
    slot_plan: lengths and key slots as numbers on the host, so that no pass waits for the device
    slots: which keys a query may look at, and where they stand in the text
    indices: row numbers, in whatever form they are given
    peers: what is taken of TransformerLens, 3.9 or 4
    act_names: get_act_name: shorthands of hook points, recurrences' too
    aliases: other names of hook points: Mamba-2's letters, TransformerLens' bridges'
    hook_functions: what a hook function is, how it is marked, what it may give back
    at_once: how much is done at once, by what the device holds
    visits: what the hooks of one thread's runs are doing now
    hook_handles: the functions that stand at a hook point: whose they are, in which order, until when
    hook_points: HookPoint and HookSpec
    near_points: what a part of a layer says when asked for a point that it has not
    first_row: output[0] of a layer, the stream elsewhere, refused
    hooks: Edit; resolving names; attaching for the length of a run
    recurrences: recurrences as operators, no model in them
    memory: what one mixer remembers; keys that grow without being copied
    state: HybridState: a memory per layer and mixer
    bos: the token before a text, one at most
    layer_config: what one layer is made of, and how large
    peer_config: names of TransformerLens' configuration
    config: LensConfig: a model, layer by layer
    passes: one forward pass: positions, padding, what each window sees
    state_origin: of which model a state is, and whether another may go on from it
    fixed_state: a state with room for steps to come, and the pass that goes on from it in place
    fingerprint: which weights a model has now
    read_only: tensors that can be read and not written to
    projections: linear maps of a model, found anew at each use
    named_weights: weights of a layer's parts under TransformerLens' names
    norms: root-mean-square norms, plain and hooked
    stream: how parts write to the residual stream and read it, as they say it of themselves
    mixers: what mixes tokens: each owns its memory and says what it writes and reads
    routing: how a router's logits become experts and weights
    mlps: the MLP, gated or not, and mixtures of experts
    shared_block: attention and an MLP beside the stream, which several layers share
    blocks: a layer: a list of residual branches
    writes: what experts and biases added to the stream in a run
    families: a row of data a family, one file each
    following: whether a lens still runs the model that it was opened on
    network: the forward pass from state to state
    weights: the model's linear maps, per head and per branch, norms folded
    padding: padding found, moved to the right, and put back in what comes out
    losses: next-token losses
    caching: hook functions that keep activations and gradients
    peer_notices: what a tool of TransformerLens leaves out on a hybrid, in a warning
    hooking: the front's hooks: added, removed, listed, for a block, for caching
    run_options: what every run takes and gives, in TransformerLens' words
    tokens: text, ids and tensors to rows, and back
    text: tokens and text as TransformerLens has them, for the front
    prompting: how an answer ranks behind a prompt, for the front
    bridges: the Hugging Face model inside a TransformerLens bridge
    cache: HybridCache: what a run computed, as TransformerLens' cache has it
    weight_front: the front's weights under TransformerLens' names
    act_patching: TransformerLens' activation patching, over the layers that have the point
    choosing: which token comes next: greedy or drawn, how close it was, and logits that allow none
    decoding_batch: a batch on its way: rows that have ended, what they said, when the host looks
    recorded: work on tensors recorded once and done again: a CUDA graph, or a list of operations
    fixed_steps: decode steps of fixed shapes, captured; what cannot be is refused
    decoding: the one loop over steps: edits by phase and row, both boundaries, rows that end
    generation: what generate does and gives: rows of tokens and texts
    siblings: names that the blocks of several invokes share
    interleaving: nnsight's interleaver, one state for each thread, and what a block is given
    hf_modules: the Hugging Face model's modules in a trace, under their own names
    inline: a trace whose block runs where it is written, for want of its source
    reloaded: the source of a block in a file that was loaded again
    invokes: several prompts in one trace: rows of one batch
    written: what a trace's source says that would go wrong without a word
    tracers: nnsight's tracers, with what is ours in them
    weightless: a copy of a network on the meta device, for scans
    traces: what a trace goes over and runs
    moving: the front as a torch module: device, dtype, parameters, modes
    running: the front's runs with hooks and caches
    continuing: the front's states
    generating: the front's generation, in TransformerLens' words too
    sae: sparse autoencoders, as SAELens saves them
    splicing: the front's autoencoders, standing in for an activation
    tracing: the front's traces
    model: HybridLens, the front of it all
    head_detector: TransformerLens' detect_head, over the layers that have heads
    untrained: the random-init control: the same make of model, nothing learned
    engine: many prompts under many treatments, with nothing computed twice
    counting: what running would take, before it is run
    niah: needle in a haystack, with no model in it
    tiny: the embedded checkpoints and how they are trained
    gguf_files: a model in one GGUF file: what transformers reads of it, and what it would leave out
    placing: where a device_map may put a model, and what it left on the disk
    loading: load: an embedded checkpoint, a folder or a hub id
    results: typed results on disk
    viz: typed results to pictures; loads no model
    doctor: what an installation is, and whether it computes what it should
    __main__: python -m hybridlens: the command
"""

import sys
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hybridlens.imports import Pointers, asked

if TYPE_CHECKING:
    from hybridlens import niah, tiny
    from hybridlens.act_names import get_act_name
    from hybridlens.cache import HybridCache
    from hybridlens.choosing import Sampling
    from hybridlens.errors import HybridLensError
    from hybridlens.hooks import Edit, HookPoint, HookSpec
    from hybridlens.loading import load, load_weights
    from hybridlens.model import HybridLens
    from hybridlens.sae import load_sae
    from hybridlens.state import HybridState

if "ipykernel" in sys.modules:  # tqdm warns once where a notebook has no ipywidgets, and writes its bars as text
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")
        import_module("tqdm.auto")

Pointers.stand_ready()

__version__ = "0.2.0"

_HOMES = {
    "Edit": "hooks",
    "HookPoint": "hooks",
    "HookSpec": "hooks",
    "HybridCache": "cache",
    "HybridLens": "model",
    "HybridLensError": "errors",
    "HybridState": "state",
    "Sampling": "choosing",
    "get_act_name": "act_names",
    "load": "loading",
    "load_sae": "sae",
    "load_weights": "loading",
}

__all__ = [
    "Edit",
    "HookPoint",
    "HookSpec",
    "HybridCache",
    "HybridLens",
    "HybridLensError",
    "HybridState",
    "Sampling",
    "get_act_name",
    "load",
    "load_sae",
    "load_weights",
    "niah",
    "tiny",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    return asked(__name__, name) if home is None else getattr(import_module(f"hybridlens.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
