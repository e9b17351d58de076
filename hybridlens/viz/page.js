// Draws the page of a sweep over k from the JSON in #data.
(() => {
  const { data, byId, dark, element, written, percent, average, smallMap, fill } = Page;

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

  const depthWords = (depth) => (depth === null ? data.leftOut : `${depth} %`);
  const needleRows = (phase, k) => data.maps[phase][k].filter((_, row) => data.depths[row] !== null);

  // --- small maps, one a k -------------------------------------------------------------------------------
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
    const at = [data.depths.indexOf(now.depth), data.lengths.indexOf(now.length)];
    Page.drawMap("map", data.map, {}, data.maps[now.phase][now.k], gapRow, at);
    byId("map-title").textContent = `${titles[now.phase]}, ${now.k} of ${Math.max(...data.ks[now.phase])} heads kept`;
  };

  // --- the outputs behind a cell -------------------------------------------------------------------------
  const points = (cell) => `${cell.score} of ${data.maxScore} points`;
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
  const picks = [
    ["pick-phase", "phase", () => data.phases.map((phase) => phase.id), (phase) => titles[phase]],
    ["pick-k", "k", () => data.ks[now.phase], String],
    ["pick-length", "length", () => data.lengths, String],
    ["pick-depth", "depth", () => data.depths, depthWords],
  ];
  function choose(change) {
    Object.assign(now, change);
    if (!data.ks[now.phase].includes(now.k)) now.k = data.ks[now.phase][data.ks[now.phase].length - 1];
    for (const button of document.querySelectorAll("[data-map]")) {
      button.setAttribute("aria-pressed", String(button.dataset.map === `${now.phase}|${now.k}`));
    }
    for (const [id, name, values, words] of picks) {
      fill(id, values().map(words), values().indexOf(now[name]));
    }
    drawMap();
    drawOutput();
    drawAcross();
  }
  for (const [id, name, values] of picks) {
    byId(id).addEventListener("change", (event) => choose({ [name]: values()[event.target.selectedIndex] }));
  }

  // --- start ---------------------------------------------------------------------------------------------
  const draw = () => {
    Page.drawChart("curve", data.curve);
    drawStrip();
    choose({});
  };
  draw();
  byId("map").on("plotly_click", (event) => {
    const [row, column] = Page.squareOf(event, gapRow);
    choose({ length: data.lengths[column], depth: data.depths[row] });
  });
  dark.addEventListener("change", draw);

  Page.drawPatterns(data.patterns);
})();
