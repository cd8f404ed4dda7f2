// The runs that the server keeps, and their reports.

import { call, clearError, report, start, token } from "./api.js";
import { el } from "./draw.js";

const $ = (id) => document.getElementById(id);

/** A link to a report; where a token is wanted, which a link cannot send, it opens below. @param {string} id */
function link(id) {
  const href = `/runs/${encodeURIComponent(id)}`;
  const anchor = el("a", { href }, id);
  anchor.addEventListener("click", (event) => {
    if (!token()) return;
    event.preventDefault();
    clearError();
    open(id, href).catch(report);
  });
  return anchor;
}

/** Shows a report in a frame that may run nothing, and offers it as a file. @param {string} id @param {string} href */
async function open(id, href) {
  const html = await (await call(href)).text();
  const file = new Blob([html], { type: "text/html" });
  URL.revokeObjectURL($("save").href);
  Object.assign($("save"), { href: URL.createObjectURL(file), download: `${id}.html` });
  $("report-title").textContent = `Report of ${id}`;
  $("frame").srcdoc = html;
  $("report").hidden = false;
  $("report-title").focus();
}

/** @param {?number} seconds since 1970 */
function moment(seconds) {
  if (seconds == null) return "";
  const date = new Date(1000 * seconds);
  const text = date.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
  return el("time", { dateTime: date.toISOString() }, text);
}

/** @param {any} run */
function row(run) {
  if (run.error) {
    const error = el("td", { colSpan: 6, className: "damaged" }, `Damaged: ${run.error}`);
    return el("tr", {}, el("th", { scope: "row" }, run.id), error);
  }
  const done = run.done == null ? "" : `${Math.floor(100 * run.done)} %`;
  const cells = [run.protocol, run.data, run.images, run.seed, done, moment(run.begun)];
  return el("tr", {}, el("th", { scope: "row" }, link(run.id)), ...cells.map((cell) => el("td", {}, cell ?? "")));
}

async function fill() {
  const runs = await (await call("/v1/runs")).json();
  $("rows").replaceChildren(...runs.map(row));
  $("runs").hidden = !runs.length;
  $("empty").hidden = runs.length > 0;
}

$("close").addEventListener("click", () => {
  $("report").hidden = true;
  $("rows").querySelector("a")?.focus();
});
start(fill);
