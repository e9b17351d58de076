"""The residual stream's basics, at any hook point: what it says so far, what it holds, and what moves it.

* `logit_lens`, `tuned_lens`: what the stream would say at every place; `fit_tuned_lens` fits the latter's maps.
* `steering`: directions by difference of means or by principal components, put in as edits; what they do.
* `probe`: what a linear map reads of activations, beside shuffled labels.
* `loss_recovered`, `feature_attribution`, `top_tokens`: of a sparse autoencoder where it stands (`HybridLens.splice`),
  what the model loses by it, what its features add to a logit, and where they are active.

Modules:
    dots: accuracies of a probe as dots
    linear_probe: a linear probe beside shuffled labels
    reading: activations of prompts of any lengths; a stream unembedded
    lens_result: the stream unembedded, as a typed result
    logit_lens: the stream unembedded at every place
    translators: affine maps before the unembedding, saved and read
    tuned_lens: the same fitted, and the stream read behind them
    directions: a direction at a hook point
    places: which tokens an edit acts on
    steering_effect: what directions do beside random ones
    steering: directions of pairs of prompts, as edits
    probe: a probe at any hook point
    sae_quality: the loss an autoencoder recovers
    sae_attribution: what its features add to a logit
    sae_examples: the tokens at which features are most active
"""

from analyses.stream.directions import Direction
from analyses.stream.lens_result import StreamLens
from analyses.stream.logit_lens import logit_lens, stream_places
from analyses.stream.probe import FittedProbe
from analyses.stream.sae_attribution import FeatureAttribution, feature_attribution
from analyses.stream.sae_examples import FeatureExamples, top_tokens
from analyses.stream.sae_quality import SaeQuality, loss_recovered, norm_scaling_factor
from analyses.stream.steering_effect import SteeringEffect
from analyses.stream.translators import TunedLens, load_published
from analyses.stream.tuned_lens import fit_tuned_lens, tuned_lens

__all__ = [
    "StreamLens",
    "logit_lens",
    "stream_places",
    "TunedLens",
    "load_published",
    "fit_tuned_lens",
    "tuned_lens",
    "Direction",
    "SteeringEffect",
    "FittedProbe",
    "SaeQuality",
    "loss_recovered",
    "norm_scaling_factor",
    "FeatureAttribution",
    "feature_attribution",
    "FeatureExamples",
    "top_tokens",
]
