"use strict";
// What circuitsvis asks while it draws: colours of a light or a dark page, and the true positions of cropped tokens.
var HybridlensPattern = {
  drawn: 0,
  themed(dark) {
    Object.assign(this, dark
      ? { paper: "#1c2022", masked: "#2b3033", gap: "#15181a", ink: "#c9cbca", below: "#e6a27a", above: "#6fc3bd" }
      : { paper: "#ffffff", masked: "#e3e0da", gap: "#f6f1e8", ink: "#4a5154", below: "#b4532a", above: "#0f6e74" });
  },
  // What stands on the axes: no two alike; a gap has no number.
  labels(tokens) {
    const places = tokens.places || tokens.map((_, i) => i);
    return tokens.map((text, i) => (places[i] === null
      ? `⋯${"\u200b".repeat(i)}` : `${text.replace(/\s/g, "")} (${places[i]})`));
  },
  where(tokens, cell) {
    const places = tokens.places || tokens.map((_, i) => i);
    return `(${places[cell.destIdx]}, ${places[cell.srcIdx]})`;
  },
  draw(host, props, dark) {
    this.themed(dark);
    const inner = document.createElement("div");
    inner.id = `hybridlens-pattern-${this.drawn += 1}`;
    host.replaceChildren(inner);
    const tokens = Object.assign(props.tokens.slice(), { places: props.places });
    CircuitsVis.render(inner.id, CircuitsVis.AttentionHeads,
      { ...props, tokens, negativeColor: this.below, positiveColor: this.above });
  },
};
HybridlensPattern.themed(false);
