"use strict";
// Attention as Python packs it (hybridlens.viz.patterns): in base64, whole numbers of 16 bits, the low byte first, which
// times `step` are the weights: head by head and query by query, of all keys, or where it is causal of those up to the
// query. Unpacked it is what circuitsvis takes, [head][query][key], null in the gaps between cropped tokens.
const Packed = {
  open({ packed, step, ...props }) {
    const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
    const numbers = new DataView(bytes.buffer);
    let at = 0;
    const next = () => Number((numbers.getInt16(2 * at++, true) * step).toPrecision(4));
    const { places, maskUpperTri: causal } = props;
    const row = (query) => places.map((place, key) => {
      if (place === null || places[query] === null) return null;
      return causal && key > query ? 0 : next();
    });
    const attention = props.attentionHeadNames.map(() => places.map((_, query) => row(query)));
    return { ...props, attention };
  },
};
