"use strict";
// Draws the page from the JSON in #data. Text from a model or a user is set as textContent, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const quiet = { displayModeBar: false, responsive: true };

  const keyOf = (phase, k, length, depth) => [phase, k, length, depth === null ? "control" : depth].join("|");
  const cells = new Map(data.cells.map(([phase, k, length, depth, score, span, seconds, prompt, text]) =>
    [keyOf(phase, k, length, depth), { phase, k, length, depth, score, span, seconds, prompt, text }]));
  const titles = Object.fromEntries(data.phases.map((phase) => [phase.id, phase.title]));

  // What is shown: the tipping point of the first phase, or the fewest heads, at the longest prompt.
  const first = data.phases[0].id;
  const now = {
    phase: first,
    k: data.tip[first] === null ? data.ks[first][0] : data.tip[first],
    length: data.lengths[data.lengths.length - 1],
    depth: data.depths[Math.floor((data.depths.length - 1) / 2)],
  };

  const element = (name, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };
  const depthWords = (depth) => (depth === null ? data.leftOut : `${depth} %`);
  const percent = (value) => `${value > 0 && value < 1 ? value.toFixed(1) : Math.round(value)} %`;
  const average = (rows) => {
    const values = rows.flat().filter((value) => value !== null);
    return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
  };
  const needleRows = (phase, k) => data.maps[phase][k].filter((_, row) => data.depths[row] !== null);

  // --- colours -------------------------------------------------------------------------------------------
  const stops = () => ["--low", "--mid", "--high"].map(color);
  const channel = (hex, i) => parseInt(hex.slice(1 + 2 * i, 3 + 2 * i), 16);
  const shade = (value, [low, mid, high]) => {
    const [from, to, share] = value < 50 ? [low, mid, value / 50] : [mid, high, value / 50 - 1];
    const mix = [0, 1, 2].map((i) => Math.round(channel(from, i) + (channel(to, i) - channel(from, i)) * share));
    return `rgb(${mix.join(",")})`;
  };
  const themed = (layout) => {
    const copy = structuredClone(layout);
    copy.font.color = color("--ink");
    for (const axis of [copy.xaxis, copy.yaxis]) axis.gridcolor = color("--grid");
    copy.hoverlabel = { bgcolor: color("--card"), bordercolor: color("--line"), font: { color: color("--ink") } };
    return copy;
  };

  // --- accuracy against k --------------------------------------------------------------------------------
  const drawCurve = () => {
    const traces = structuredClone(data.curve.data);
    if (dark.matches) {
      const lighter = { "#0f6e74": "#6fc3bd", "#b4532a": "#e6a27a" };
      for (const trace of traces) trace.line.color = lighter[trace.line.color] || trace.line.color;
    }
    Plotly.react("curve", traces, themed(data.curve.layout), quiet);
  };

  // --- small maps, one a k -------------------------------------------------------------------------------
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
  const drawStrip = () => {
    byId("strip").replaceChildren(...data.phases.flatMap((phase) => [
      element("div", { className: "band" },
        element("strong", { textContent: phase.title }), element("span", { textContent: phase.note })),
      element("div", { className: "maps" }, ...data.ks[phase.id].map((k) => {
        const rows = needleRows(phase.id, k);
        const mean = average(rows);
        const button = element("button", { type: "button", title: `${phase.title}, ${k} heads kept` }, smallMap(rows),
          element("em", { textContent: mean === null ? "" : percent(mean) }), `k ${k}`);
        button.dataset.map = `${phase.id}|${k}`;
        button.addEventListener("click", () => choose({ phase: phase.id, k }));
        return button;
      })),
    ]));
  };

  // --- the chosen map ------------------------------------------------------------------------------------
  const gapRow = data.depths.indexOf(null);
  const drawMap = () => {
    const rows = data.maps[now.phase][now.k].slice();
    if (gapRow >= 0) rows.splice(gapRow, 0, rows[0].map(() => null));
    const trace = structuredClone(data.map.data[0]);
    trace.z = rows;
    const scale = stops();
    trace.colorscale = [[0, scale[0]], [0.5, scale[1]], [1, scale[2]]];
    const layout = themed(data.map.layout);
    const row = data.depths.indexOf(now.depth) + (gapRow >= 0 && now.depth === null ? 1 : 0);
    const column = data.lengths.indexOf(now.length);
    layout.shapes = [{ type: "rect", x0: column - 0.5, x1: column + 0.5, y0: row - 0.5, y1: row + 0.5,
      line: { color: color("--ink"), width: 2 } }];
    Plotly.react("map", [trace], layout, quiet);
    byId("map-title").textContent = `${titles[now.phase]}, ${now.k} of ${Math.max(...data.ks[now.phase])} heads kept`;
  };

  // --- the outputs behind a cell -------------------------------------------------------------------------
  const points = (cell) => `${cell.score} of ${data.maxScore} points`;
  const written = (text) => (text === ""
    ? element("span", { className: "empty", textContent: "(nothing)" })
    : document.createTextNode(text));
  const drawOutput = () => {
    const cell = cells.get(keyOf(now.phase, now.k, now.length, now.depth));
    const box = element("div", { className: "answer" });
    if (cell === undefined) {
      box.append(element("p", { className: "empty", textContent: "This cell was not run." }));
    } else {
      const rows = [
        ["heads kept", `${cell.k}, ${titles[cell.phase].toLowerCase()}`],
        ["prompt", `${cell.length} tokens, ${cell.depth === null ? data.leftOut : `needle at ${depthWords(cell.depth)}`}`],
        ["needle", cell.span === null ? "not in the prompt" : `tokens ${cell.span[0]} to ${cell.span[1] - 1}`],
        ["time", `${cell.seconds} s`],
        ["prompt hash", cell.prompt],
      ];
      box.append(
        element("p", { className: "score" }, points(cell),
          element("small", { textContent: ` (${percent((100 * cell.score) / data.maxScore)})` })),
        element("pre", {}, written(cell.text)),
        element("dl", {}, ...rows.flatMap(([name, value]) =>
          [element("dt", { textContent: name }), element("dd", { textContent: value })])),
      );
    }
    byId("output").replaceChildren(box);
  };
  const drawAcross = () => {
    byId("across-title").textContent =
      `The same prompt with every number of heads (${now.length} tokens, ${
        now.depth === null ? data.leftOut : `needle at ${depthWords(now.depth)}`}, ${titles[now.phase].toLowerCase()})`;
    const body = element("tbody");
    for (const k of data.ks[now.phase].slice().reverse()) {
      const cell = cells.get(keyOf(now.phase, k, now.length, now.depth));
      if (cell === undefined) continue;
      const row = element("tr", { className: k === now.k ? "now" : "" },
        element("td", { textContent: k }), element("td", { textContent: cell.score }),
        element("td", {}, written(cell.text)));
      row.addEventListener("click", () => choose({ k }));
      body.append(row);
    }
    const head = element("thead", {}, element("tr", {},
      ...["heads", "points", "text"].map((name) => element("th", { scope: "col", textContent: name }))));
    byId("across").replaceChildren(element("table", { className: "across" }, head, body));
  };

  // --- choosing ------------------------------------------------------------------------------------------
  const fill = (id, values, words, chosen) => {
    const select = byId(id);
    select.replaceChildren(...values.map((value, i) => element("option", { value: i, textContent: words(value) })));
    select.selectedIndex = values.indexOf(chosen);
  };
  function choose(change) {
    Object.assign(now, change);
    if (!data.ks[now.phase].includes(now.k)) now.k = data.ks[now.phase][data.ks[now.phase].length - 1];
    for (const button of document.querySelectorAll("[data-map]")) {
      button.setAttribute("aria-pressed", String(button.dataset.map === `${now.phase}|${now.k}`));
    }
    fill("pick-phase", data.phases.map((phase) => phase.id), (phase) => titles[phase], now.phase);
    fill("pick-k", data.ks[now.phase], String, now.k);
    fill("pick-length", data.lengths, String, now.length);
    fill("pick-depth", data.depths, depthWords, now.depth);
    drawMap();
    drawOutput();
    drawAcross();
  }
  const picks = [["pick-phase", "phase", () => data.phases.map((phase) => phase.id)],
    ["pick-k", "k", () => data.ks[now.phase]], ["pick-length", "length", () => data.lengths],
    ["pick-depth", "depth", () => data.depths]];
  for (const [id, name, values] of picks) {
    byId(id).addEventListener("change", (event) => choose({ [name]: values()[event.target.selectedIndex] }));
  }

  // --- start ---------------------------------------------------------------------------------------------
  const draw = () => {
    drawCurve();
    drawStrip();
    choose({});
  };
  draw();
  byId("map").on("plotly_click", (event) => {
    const [row, column] = event.points[0].pointIndex ?? event.points[0].pointNumber;
    choose({ length: data.lengths[column], depth: data.depths[gapRow >= 0 && row > gapRow ? row - 1 : row] });
  });
  dark.addEventListener("change", draw);

  // circuitsvis takes seconds for large patterns, so each is drawn in a turn of its own, after the rest.
  data.patterns.forEach((props, i) => setTimeout(() => {
    byId(`pattern-${i}`).textContent = "";
    CircuitsVis.render(`pattern-${i}`, CircuitsVis.AttentionHeads, props);
  }, 50 * (i + 1)));
})();
