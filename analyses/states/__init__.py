"""What states say: half-lives, ranks, what tokens write, recall and erase, and which tokens a state holds.

Each measure is a function of a lens and prompts, and returns typed tensors:

* `spectrum`: half-lives and the decay spectrum.
* `sizes`: norm, effective and stable rank over time.
* `flow`: what each token leaves, writes, finds there already and erases; `erasures` says of which earlier token.
* `holding`: how much of a state each span of tokens still holds; `sinks` of the first tokens.
* `hidden_attention`, and `hidden_figure` for circuitsvis with tokens on its axes.
* `knock_out` and `knockout`: recurrent heads' writes and reads silenced by position, against random heads;
  `knockout_map` silences each head alone, block of positions by block.
* `probe_states`: how much of a label a linear probe reads from each state, against shuffled labels; `linear_probe` does
  the same with any activations.

Modules:
    watching: every layer's states in one run
    spectrum: half-lives
    sizes: norms and ranks over time
    flow: what each token leaves, writes, finds there and erases
    holding: which tokens a state holds
    hidden: what is read out of it
    silencing: recurrent heads' writes and reads silenced
    knocked: what silencing did, as a typed result
    knockout: the same beside random heads
    probe: a linear probe beside shuffled labels, of states
    texts: prompts
    looking: the heads worth drawing
    found: everything that a run gives
    sections: the report's sections
    report: the report, section by section
    experiment: all of it, prompt by prompt
"""

from analyses.states.flow import Flow, erasures, flow
from analyses.states.hidden import hidden_attention, hidden_figure
from analyses.states.holding import Holding, holding, sinks
from analyses.states.knocked import Knockout, KnockoutMap
from analyses.states.knockout import knockout, knockout_map
from analyses.states.probe import StateProbes, probe_states
from analyses.states.silencing import knock_out
from analyses.states.sizes import Sizes, sizes
from analyses.states.spectrum import Spectrum, spectrum
from analyses.stream.linear_probe import Probe, linear_probe

__all__ = [
    "Spectrum",
    "spectrum",
    "Sizes",
    "sizes",
    "Flow",
    "flow",
    "erasures",
    "Holding",
    "holding",
    "sinks",
    "hidden_attention",
    "hidden_figure",
    "knock_out",
    "Knockout",
    "knockout",
    "KnockoutMap",
    "knockout_map",
    "StateProbes",
    "probe_states",
    "Probe",
    "linear_probe",
]
