"use strict";
// The code of others that stands in this page packed (hybridlens.viz.templating.packed), which is a third of its size:
// unpacked here, and run in its order. A browser that cannot unpack it has no figures, and says so in their place.
const Libraries = {
  needs: "This figure needs a newer browser: Chrome 80, Firefox 113, Safari 16.4 or later.",
  async code(text) {
    const bytes = Uint8Array.from(atob(text.trim()), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  },
  async run() {
    const held = [...document.querySelectorAll("script[type='application/gzip;base64']")];
    if (held.length && typeof DecompressionStream === "undefined") return;
    for (const code of await Promise.all(held.map((one) => this.code(one.textContent)))) {
      document.head.append(Object.assign(document.createElement("script"), { textContent: code }));
    }
  },
  // Whether a library is there; the place of its figure says what is missing where it is not.
  has(there, place) {
    if (!there) place.textContent = this.needs;
    return there;
  },
};
