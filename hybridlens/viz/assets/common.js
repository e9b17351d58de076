"use strict";
// What every page shares. Text from a model or a user is set as textContent, never as HTML.
const Page = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const quiet = { displayModeBar: false, responsive: true };

  const element = (name, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };
  const written = (text) => (text === ""
    ? element("span", { className: "empty", textContent: "(nothing)" })
    : document.createTextNode(text));
  const percent = (value) => `${value > 0 && value < 1 ? value.toFixed(1) : Math.round(value)} %`;
  const average = (rows) => {
    const values = rows.flat().filter((value) => value !== null);
    return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
  };

  // --- colours -------------------------------------------------------------------------------------------
  const stops = () => ["--low", "--mid", "--high"].map(color);
  const channel = (hex, i) => parseInt(hex.slice(1 + 2 * i, 3 + 2 * i), 16);
  const shade = (value, [low, mid, high]) => {
    const [from, to, share] = value < 50 ? [low, mid, value / 50] : [mid, high, value / 50 - 1];
    const mix = [0, 1, 2].map((i) => Math.round(channel(from, i) + (channel(to, i) - channel(from, i)) * share));
    return `rgb(${mix.join(",")})`;
  };
  const colors = () => Object.fromEntries(["ink", "page", "grid", "card", "line"].map((name) => [name, color(`--${name}`)]));
  const themed = (layout) => Theme.layout(layout, colors());

  // --- figures -------------------------------------------------------------------------------------------
  const drawn = (place) => Libraries.has(typeof Plotly !== "undefined", place);
  const drawChart = (id, figure) => {
    if (!drawn(byId(id))) return;
    const [traces, layout] = Theme.figure(figure, dark.matches, colors(), byId(id).clientWidth);
    Plotly.react(id, traces, layout, quiet);
  };
  // circuitsvis takes seconds for large patterns, so each is drawn in a turn of its own, after the rest.
  const drawPatterns = (patterns) => patterns.forEach((props, i) => setTimeout(() => {
    const place = byId(`pattern-${i}`);
    if (!Libraries.has(typeof CircuitsVis !== "undefined", place)) return;
    HybridlensPattern.draw(place, Packed.open(props), dark.matches);
  }, 50 * (i + 1)));
  const smallMap = (rows) => {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const [wide, high] = [rows[0].length, rows.length];
    svg.setAttribute("viewBox", `0 0 ${wide} ${high}`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    const scale = stops();
    rows.forEach((row, y) => row.forEach((value, x) => {
      if (value === null) return;
      const square = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      for (const [name, number] of [["x", x + 0.04], ["y", y + 0.04], ["width", 0.92], ["height", 0.92]]) {
        square.setAttribute(name, number);
      }
      square.setAttribute("fill", shade(value, scale));
      svg.append(square);
    }));
    return svg;
  };
  // A map of percentages with one square marked; the controls, where there are some, below an empty row.
  const drawMap = (id, { figure, inks }, change, percentages, gapRow, [row, column]) => {
    if (!drawn(byId(id))) return;
    const trace = Object.assign(structuredClone(figure.data[0]), change);
    trace.z = percentages.slice();
    if (gapRow >= 0) trace.z.splice(gapRow, 0, trace.z[0].map(() => null));
    const ink = inks[dark.matches ? 1 : 0];
    trace.text = trace.z.map((values) => values.map((value) => (value === null
      ? "" : `<span style="color:${ink[Math.round(value)]}">${value.toFixed(0)}</span>`)));
    const scale = stops();
    trace.colorscale = [[0, scale[0]], [0.5, scale[1]], [1, scale[2]]];
    const layout = themed(figure.layout);
    const y = row + (gapRow >= 0 && row >= gapRow ? 1 : 0);
    layout.shapes = [{ type: "rect", x0: column - 0.5, x1: column + 0.5, y0: y - 0.5, y1: y + 0.5,
      line: { color: color("--ink"), width: 2 } }];
    Plotly.react(id, [trace], layout, quiet);
  };
  // What a click on such a map means: [row, column].
  const squareOf = (event, gapRow) => {
    const [row, column] = event.points[0].pointIndex ?? event.points[0].pointNumber;
    return [gapRow >= 0 && row > gapRow ? row - 1 : row, column];
  };
  const fill = (id, words, chosen) => {
    const select = byId(id);
    select.replaceChildren(...words.map((textContent, value) => element("option", { value, textContent })));
    select.selectedIndex = chosen;
  };

  return { data, byId, dark, element, written, percent, average, drawChart, drawPatterns, smallMap, drawMap, squareOf,
    fill };
})();
