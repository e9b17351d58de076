"use strict";
// Light and dark for figures of Plotly, in reports and in notebooks.
const Theme = (() => {
  const LIGHTER = { "#0f6e74": "#6fc3bd", "#b4532a": "#e6a27a", "#5b4a9e": "#b3a6ef", "#7d6608": "#dcc25a",
    "#5c6468": "#b5babc", "#2b2b2b": "#e6e4df", "#a8326e": "#ee9cc8",
    "#f3ece2": "#2a2e30", "#7db8b1": "#2f7d7c", "#0c5359": "#a6ebdd", "#d9956f": "#9c5a35", "#7c3210": "#f6c3a2",
    "#000001": "#ffffff", "#fffffe": "#000000" };
  // A layout in the colours of its page: ink, page, grid, card, line.
  const layout = (given, colors) => {
    const copy = structuredClone(given);
    copy.font = { ...copy.font, color: colors.ink };
    for (const note of copy.annotations || []) note.bgcolor = colors.page;
    for (const name of Object.keys(copy)) if (/^[xy]axis\d*$/.test(name)) copy[name].gridcolor = colors.grid;
    copy.hoverlabel = { bgcolor: colors.card, bordercolor: colors.line, font: { color: colors.ink } };
    return copy;
  };
  // Numbers in the squares of a heatmap only where they fit.
  const spare = (trace, width) => {
    if (!trace.texttemplate || !Array.isArray(trace.text)) return;
    const longest = Math.max(...trace.text.flat().map((text) => text.replace(/<[^>]*>/g, "").length));
    if ((width - 130) / trace.x.length < 6 + 6.5 * longest) delete trace.texttemplate;
  };
  // Traces and layout of a figure, as Plotly draws it on a page of such a width and such colours.
  const figure = (given, dark, colors, width) => {
    const text = JSON.stringify([given.data, given.layout]);
    const [traces, own] = JSON.parse(dark ? text.replace(/#[0-9a-f]{6}/g, (hex) => LIGHTER[hex] || hex) : text);
    for (const trace of traces) if (trace.type === "heatmap") spare(trace, width);
    return [traces, layout(own, colors)];
  };
  return { layout, figure };
})();
