// Draws a page of sections from the JSON in #data: figures, patterns, tables of answers, the explorer of all answers.
(async () => {
  const { data, byId, dark, element, written, percent, average, smallMap, fill } = Page;

  // --- tables of answers, made when they are opened ------------------------------------------------------
  const AT_ONCE = 100;
  for (const place of document.querySelectorAll("[data-answers]")) {
    const { header, texts, rows } = data.answers[Number(place.dataset.answers)];
    const body = element("tbody");
    const more = element("button", { type: "button", className: "more" });
    const entry = (value, i) => (texts.includes(i)
      ? element("td", { className: "said" }, written(data.texts[value]))
      : element("td", { textContent: value }));
    const show = () => {
      const from = body.children.length;
      body.append(...rows.slice(from, from + AT_ONCE).map((row) => element("tr", {}, ...row.map(entry))));
      more.hidden = body.children.length === rows.length;
      more.textContent = `show more (${body.children.length} of ${rows.length} shown)`;
    };
    more.addEventListener("click", show);
    place.closest("details").addEventListener("toggle", (event) => {
      if (!event.target.open || place.children.length) return;
      const names = header.map((name) => element("th", { scope: "col", textContent: name }));
      place.append(element("table", { className: "answers" },
        element("thead", {}, element("tr", {}, ...names)), body), more);
      show();
    });
  }

  await Libraries.run();

  // --- the explorer --------------------------------------------------------------------------------------
  const explorer = data.explorer;
  const now = { sheet: 0, group: 0, map: 0, row: 0, column: 0 };
  const sheet = () => explorer.sheets[now.sheet];
  const group = () => sheet().groups[now.group];
  const map = () => group().maps[now.map];
  const share = (points) => (points === null ? null : (100 * points) / explorer.maxScore);
  const shares = (one) => one.points.map((row) => row.map(share));
  const depthWords = (depth) => {
    if (depth === null) return explorer.leftOut;
    return explorer.ends[depth] ? `${depth} %, ${explorer.ends[depth]}` : `${depth} %`;
  };
  const promptWords = () => {
    const depth = sheet().depths[now.row];
    return `${sheet().lengths[now.column]} tokens, ${depth === null ? explorer.leftOut : `needle at ${depth} %`}`;
  };
  const hasAnswer = (one, row, column) => one.points[row][column] !== null;

  // Where to begin: the map nearest to half, in the group's middle, at the longest prompt.
  const open = (number) => {
    Object.assign(now, { sheet: number, group: 0, map: 0 });
    const means = group().maps.map((one) => average(needleRows(one)) ?? Infinity);
    now.map = means.reduce((best, mean, i) => (Math.abs(mean - 50) < Math.abs(means[best] - 50) ? i : best), 0);
    now.row = Math.floor((needleRows(map()).length - 1) / 2);
    now.column = sheet().lengths.length - 1;
    while (now.column > 0 && !hasAnswer(map(), now.row, now.column)) now.column -= 1;
  };
  const needleRows = (one) => shares(one).filter((_, row) => sheet().depths[row] !== null);

  const drawStrip = () => {
    byId("strip").replaceChildren(...sheet().groups.flatMap(({ title, note, maps }, g) => [
      element("div", { className: "band" },
        element("strong", { textContent: title }), element("span", { textContent: note })),
      element("div", { className: "maps" }, ...maps.map((one, m) => {
        const rows = needleRows(one);
        const mean = rows.length ? average(rows) : null;
        const label = one.label.split("\n").flatMap((line, i) => (i ? [element("br"), line] : [line]));
        const button = element("button", { type: "button", title: one.words },
          ...(rows.length ? [smallMap(rows)] : []),
          ...(label.length > 1 ? [...label] : []),
          element("em", { className: label.length > 1 ? "below" : "", textContent: mean === null ? "" : percent(mean) }),
          ...(label.length > 1 ? [] : label));
        button.dataset.map = `${g}|${m}`;
        button.addEventListener("click", () => choose({ group: g, map: m }));
        return button;
      })),
    ]));
  };
  const drawMap = () => {
    const { lengths, depths } = sheet();
    const gapRow = depths.indexOf(null);
    const labels = depths.map((depth) => depthWords(depth).replace(", ", "<br>"));
    if (gapRow >= 0) labels.splice(gapRow, 0, " ");
    Page.drawMap("map", explorer, { x: lengths.map(String), y: labels }, shares(map()), gapRow, [now.row, now.column]);
    byId("map-title").textContent = map().words;
  };
  const drawOutput = () => {
    const box = element("div", { className: "answer" });
    if (!hasAnswer(map(), now.row, now.column)) {
      box.append(element("p", { className: "empty", textContent: "This prompt was not run here." }));
    } else {
      const points = map().points[now.row][now.column];
      box.append(
        element("p", { className: "score" }, `${points} of ${explorer.maxScore} points`,
          element("small", { textContent: ` (${percent(share(points))})` })),
        element("pre", {}, written(data.texts[map().texts[now.row][now.column]])),
        element("dl", {}, element("dt", { textContent: "condition" }), element("dd", { textContent: map().words }),
          element("dt", { textContent: "prompt" }), element("dd", { textContent: promptWords() }),
          ...explorer.facts.flatMap((name, i) => [element("dt", { textContent: name }),
            element("dd", { textContent: map().facts[now.row][now.column][i] })])),
      );
    }
    byId("output").replaceChildren(box);
  };
  const drawAcross = () => {
    byId("across-title").textContent = `The same prompt (${promptWords()}) under: ${group().title}`;
    const rows = group().maps.flatMap((one, m) => {
      if (!hasAnswer(one, now.row, now.column)) return [];
      const row = element("tr", { className: m === now.map ? "now" : "" },
        element("td", { textContent: one.label.replace("\n", ", ") }),
        element("td", { textContent: one.points[now.row][now.column] }),
        element("td", {}, written(data.texts[one.texts[now.row][now.column]])));
      row.addEventListener("click", () => choose({ map: m }));
      return [row];
    });
    const head = element("tr", {},
      ...["condition", "points", "text"].map((name) => element("th", { scope: "col", textContent: name })));
    byId("across").replaceChildren(
      element("table", { className: "across" }, element("thead", {}, head), element("tbody", {}, ...rows)));
  };
  function choose(change) {
    Object.assign(now, change);
    now.map = Math.min(now.map, group().maps.length - 1);
    for (const button of document.querySelectorAll("[data-map]")) {
      button.setAttribute("aria-pressed", String(button.dataset.map === `${now.group}|${now.map}`));
    }
    for (const [id, words, chosen] of [
      ["pick-sheet", () => explorer.sheets.map(({ title }) => title), now.sheet],
      ["pick-group", () => sheet().groups.map(({ title }) => title), now.group],
      ["pick-map", () => group().maps.map(({ label }) => label.replace("\n", ", ")), now.map],
      ["pick-length", () => sheet().lengths.map(String), now.column],
      ["pick-depth", () => sheet().depths.map(depthWords), now.row],
    ]) if (byId(id)) fill(id, words(), chosen);
    drawMap();
    drawOutput();
    drawAcross();
  }

  // --- start ---------------------------------------------------------------------------------------------
  const draw = () => {
    data.charts.forEach((figure, i) => Page.drawChart(`chart-${i}`, figure));
    if (!explorer) return;
    drawStrip();
    choose({});
  };
  if (explorer) open(0);
  draw();
  Page.drawPatterns(data.patterns);
  dark.addEventListener("change", () => { draw(); Page.drawPatterns(data.patterns); });
  if (!explorer) return;
  byId("map").on?.("plotly_click", (event) => {
    const [row, column] = Page.squareOf(event, sheet().depths.indexOf(null));
    choose({ row, column });
  });
  byId("pick-sheet")?.addEventListener("change", (event) => {
    open(event.target.selectedIndex);
    drawStrip();
    choose({});
  });
  for (const [id, name] of [["group", "group"], ["map", "map"], ["length", "column"], ["depth", "row"]]) {
    byId(`pick-${id}`)?.addEventListener("change", (event) => choose({ [name]: event.target.selectedIndex }));
  }
})();
