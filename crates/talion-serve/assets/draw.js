// Elements, pictures, tables and charts. Everything that comes from outside becomes text, never markup.

/**
 * An HTML element; attributes that are properties are set as such.
 * @param {string} tag @param {Object<string, any>} [attributes] @param {...(Node|string)} children
 */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** An SVG element. @param {string} tag @param {Object<string, any>} attributes @param {...(Node|string)} children */
function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A picture with a caption, whose source changes. @param {string} caption */
export function picture(caption) {
  const frame = el("div", { className: "frame" });
  const element = el("figure", {}, frame, el("figcaption", {}, caption));
  const image = el("img", { alt: "" });
  /** @param {?string} src @param {string} alt */
  const show = (src, alt) => {
    if (!src) return frame.replaceChildren("none");
    Object.assign(image, { src, alt });
    if (image.parentNode !== frame) frame.replaceChildren(image);
  };
  return { element, show };
}

/**
 * A table whose first cells name the rows.
 * @param {string} caption @param {string[]} head @param {(string|Node)[][]} rows
 */
export function table(caption, head, rows) {
  const row = ([name, ...cells]) =>
    el("tr", {}, el("th", { scope: "row" }, name), ...cells.map((cell) => el("td", {}, cell)));
  return el(
    "table",
    {},
    el("caption", {}, caption),
    el("thead", {}, el("tr", {}, ...head.map((title) => el("th", { scope: "col" }, title)))),
    el("tbody", {}, ...rows.map(row)),
  );
}

/** The likeliest classes as a table with bars. @param {string} caption @param {number} [count] */
export function bars(caption, count = 4) {
  const body = el("tbody");
  const element = el("table", { className: "bars" }, el("caption", {}, caption), body);
  /** @param {?number[]} probabilities @param {(label: number) => string} name @param {(p: number) => string} percent */
  const show = (probabilities, name, percent) => {
    const ranked = (probabilities ?? []).map((share, label) => ({ share, label }));
    ranked.sort((a, b) => b.share - a.share);
    const rows = ranked.slice(0, count).map(({ share, label }) => {
      const bar = el("span", { className: "bar" });
      bar.style.inlineSize = `${100 * share}%`;
      const track = el("td", { className: "track", "aria-hidden": "true" }, bar);
      return el("tr", {}, el("th", { scope: "row" }, name(label)), el("td", {}, percent(share)), track);
    });
    body.replaceChildren(...rows);
  };
  return { element, show };
}

const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [340, 190, 34, 330, 10, 152];

/** The lines that name a chart's traces. @param {string[]} names */
const legend = (names) =>
  el("ul", { className: "legend" }, ...names.map((name, index) => {
    const line = svg("line", { x1: 0, y1: 5, x2: 26, y2: 5, class: `trace trace-${index % 6}` });
    return el("li", {}, svg("svg", { viewBox: "0 0 26 10", "aria-hidden": "true" }, line), name);
  }));

/**
 * Lines over [0, end] x [0, 1].
 * @param {{title: string, across: string, up: string, end: number, mark?: number,
 *   traces: {name: string, points: number[][]}[]}} chart
 */
export function chart({ title, across, up, end, mark, traces }) {
  const x = (value) => LEFT + ((RIGHT - LEFT) * value) / (end || 1);
  const y = (value) => BOTTOM - (BOTTOM - TOP) * value;
  const text = (content, at, anchor) => svg("text", { ...at, "text-anchor": anchor }, content);
  const grid = [0, 0.5, 1].flatMap((value) => [
    svg("line", { x1: LEFT, x2: RIGHT, y1: y(value), y2: y(value), class: "grid" }),
    text(String(value), { x: LEFT - 5, y: y(value) + 4 }, "end"),
  ]);
  const lines = traces.map(({ points }, index) =>
    svg("polyline", {
      points: points.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" "),
      class: `trace trace-${index % 6}`,
    }));
  const marker = mark == null ? [] : [svg("line", { x1: x(mark), x2: x(mark), y1: TOP, y2: BOTTOM, class: "mark" })];
  const drawing = svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title, class: "chart" },
    ...grid,
    text("0", { x: LEFT, y: BOTTOM + 16 }, "middle"),
    text(String(end), { x: RIGHT, y: BOTTOM + 16 }, "end"),
    text(across, { x: (LEFT + RIGHT) / 2, y: BOTTOM + 32 }, "middle"),
    ...marker,
    ...lines,
  );
  return el("figure", { className: "plot" }, el("figcaption", {}, up), drawing, legend(traces.map(({ name }) => name)));
}
