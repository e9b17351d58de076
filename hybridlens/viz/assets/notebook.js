// One figure of a notebook. Its library stands in one output of the notebook; until it is there, or where that output was
// cleared, the figure is drawn plainly. Text is set as textContent, never as HTML.
const show = (id, library, data, height) => {
  const host = document.getElementById(id);
  if (!host) return;
  const element = (name, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };
  const channels = () => {
    const pen = element("canvas", { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
    pen.fillStyle = getComputedStyle(host).color;
    pen.fillRect(0, 0, 1, 1);
    return pen.getImageData(0, 0, 1, 1).data;
  };
  // What a page has light text on is dark.
  const isDark = () => { const [red, green, blue] = channels(); return 0.3 * red + 0.59 * green + 0.11 * blue > 128; };
  const tint = (value, most, dark) => {
    const [red, green, blue] = value < 0 ? (dark ? [230, 162, 122] : [180, 83, 42]) : (dark ? [111, 195, 189] : [15, 110, 116]);
    return `rgba(${red},${green},${blue},${Math.min(1, Math.abs(value || 0) / (most || 1))})`;
  };
  const squares = (rows, dark) => {
    const most = Math.max(...rows.flat().map((value) => Math.abs(value || 0)));
    const picture = element("canvas", { width: rows[0].length, height: rows.length });
    const pen = picture.getContext("2d");
    rows.forEach((row, y) => row.forEach((value, x) => {
      pen.fillStyle = tint(value, most, dark);
      pen.fillRect(x, y, 1, 1);
    }));
    picture.style.cssText = "width:100%;max-width:320px;image-rendering:pixelated;border:1px solid rgba(128,128,128,.4);display:block";
    return picture;
  };
  const curve = (trace) => {
    const list = (values) => Array.from(values || [], (value, i) => (Number.isFinite(+value) && value !== null ? +value : i));
    const [xs, ys] = [list(trace.x), list(trace.y)];
    const span = (values) => [Math.min(...values), Math.max(...values)];
    const [[x0, x1], [y0, y1]] = [span(xs), span(ys)];
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    svg.setAttribute("viewBox", "-2 -2 324 104");
    line.setAttribute("points", xs.map((x, i) =>
      `${320 * (x - x0) / ((x1 - x0) || 1)},${100 - 100 * (ys[i] - y0) / ((y1 - y0) || 1)}`).join(" "));
    line.setAttribute("fill", "none");
    line.setAttribute("stroke", "currentColor");
    svg.style.cssText = "width:100%;max-width:320px;display:block";
    svg.append(line);
    return svg;
  };
  const plainly = (dark) => {
    const parts = library === "circuitsvis"
      ? Packed.open(data).attention.map((rows, i) => [data.attentionHeadNames[i], squares(rows, dark)])
      : data.data.map((trace) => [trace.name || trace.type || "", Array.isArray(trace.z) ? squares(trace.z, dark) : curve(trace)]);
    const figures = parts.map(([name, picture]) => {
      const made = element("div", {}, element("div", { textContent: name }), picture);
      made.style.cssText = "flex:1 1 140px;max-width:320px;font-size:12px";
      return made;
    });
    const strip = element("div", {}, ...figures);
    strip.style.cssText = "display:flex;flex-wrap:wrap;gap:12px;margin:6px 0";
    host.style.height = "auto";
    host.replaceChildren(strip, element("div", { textContent: "Drawn plainly: a notebook holds the code of "
      + `${library} once, and the output that held it is not here. Run the notebook from its start to have it back.` }));
  };
  const libraries = {
    circuitsvis: {
      there: () => window.CircuitsVis && window.HybridlensPattern,
      draw: (dark) => { host.style.maxWidth = "760px"; HybridlensPattern.draw(host, Packed.open(data), dark); },
    },
    plotly: {
      there: () => window.Plotly,
      draw: (dark) => {
        host.style.height = `${height}px`;
        const [red, green, blue] = channels();
        const ink = `rgb(${red},${green},${blue})`;
        const [page, card] = dark ? ["#15181a", "#1c2022"] : ["#fbfaf8", "#ffffff"];
        const colors = { ink, page, card, grid: "rgba(128,128,128,.22)", line: "rgba(128,128,128,.5)" };
        const ours = data.layout.paper_bgcolor === "rgba(0,0,0,0)";  // others are as their maker has them
        const [traces, layout] = ours ? Theme.figure(data, dark, colors, host.clientWidth) : [data.data, data.layout];
        const quiet = { displayModeBar: false, responsive: true };
        if (drawn && drawn.startsWith("true")) { Plotly.react(host, traces, layout, quiet); return; }
        host.replaceChildren();
        Plotly.newPlot(host, traces, layout, quiet);
      },
    },
  };
  let drawn = null;
  const draw = () => {
    if (!host.isConnected) return;
    const dark = isDark();
    const there = Boolean(libraries[library].there());
    const now = `${there} ${dark}`;
    if (drawn === now) return;
    if (there) libraries[library].draw(dark); else plainly(dark);
    drawn = now;
  };
  draw();
  window.addEventListener(`hybridlens-${library}`, draw);
  window.addEventListener("load", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  new MutationObserver(draw).observe(document.body, { attributes: true, attributeFilter: ["class", "data-jp-theme-name"] });
};
