// What the guard is, as far as the server tells.

import { chart, el, table } from "./draw.js";
import { percent, rate } from "./words.js";

const number = (value) => (value == null ? "unknown" : value.toLocaleString("en"));
const mebibytes = (bytes) => `${Number((bytes / 2 ** 20).toFixed(1))} MiB`;

const tenths = (share) => (100 * share).toFixed(1);

/** A share with its interval. @param {?{share: ?number, low: number, high: number}} value */
const interval = (value) =>
  value?.share == null ? "unknown" : `${percent(value.share)} (${tenths(value.low)}-${tenths(value.high)})`;

/** @param {string} view */
const knowledge = (view) =>
  ({ none: "nobody: random noise", oblivious: "does not know the defence" })[view] ?? "knows the defence";

/** A network's weights and the sum of its file. @param {string} what @param {any} network */
function identity(what, network) {
  const sum = el("code", {}, network?.sha256 ?? "unknown");
  return el("span", {}, `${what}, ${number(network?.weights)} weights, SHA-256 `, sum);
}

/** @param {any} input */
function size(input) {
  if (!input) return "unknown";
  const colour = input.channels === 1 ? "grey" : `${input.channels} channels`;
  return `${input.width} × ${input.height} pixels, ${colour}; images of another size are resized`;
}

/** @param {any} limits */
function bounds(limits) {
  if (!limits) return "unknown";
  return (
    `${mebibytes(limits.max_body_bytes)} a request, ${number(limits.max_pixels)} pixels an image, ` +
    `${number(limits.max_images)} images a request, ${limits.deadline_ms / 1000} s for an answer`
  );
}

/** Terms and what they are here. @param {any} model */
function list(model) {
  const { classifier, trn } = model;
  const terms = [
    ["Name", model.name ?? "unknown"],
    ["Classifier", identity(`${classifier?.architecture}, trained on ${classifier?.dataset}`, classifier)],
    ["Restoration network", identity(`TRN with ${trn?.estimator} gradient maps`, trn)],
    ["Input", size(model.input)],
    ["Classes", model.class_names?.join(", ") ?? number(model.classes)],
    ["Limits", bounds(model.limits)],
  ];
  return el("dl", {}, ...terms.map(([term, meaning]) => el("div", {}, el("dt", {}, term), el("dd", {}, meaning))));
}

/** How well attacked images are told from clean ones. @param {any} calibration @returns {Node[]} */
function alarm(calibration) {
  if (!calibration) {
    const missing = "This server has no calibration: it cannot say how suspicious an image is.";
    return [el("h3", {}, "Alarm"), el("p", {}, missing)];
  }
  const { false_alarm_rate, clean_images, measured } = calibration;
  const alarms = measured?.false_alarms;
  const stated =
    `An image is flagged when it looks more suspicious than all but ${rate(false_alarm_rate)} of ` +
    `${number(clean_images)} clean images: the stated false-alarm rate is ${rate(false_alarm_rate)}. Measured, with ` +
    `95\u00a0% interval: ${interval(alarms)}, ${number(alarms?.count)} of ${number(alarms?.total)} clean images.`;
  const curves = measured?.curves ?? [];
  return [el("h3", {}, "Alarm"), el("p", {}, stated), ...(curves.length ? detection(curves) : [])];
}

/** @param {any[]} curves @returns {Node[]} */
function detection(curves) {
  const title = (curve) => `${curve.attack}, ${curve.budget}`;
  const rows = curves.map((curve) => [
    title(curve),
    knowledge(curve.view),
    number(curve.samples),
    curve.auc?.toFixed(3) ?? "unknown",
    interval(curve.detected),
    number(curve.missed_and_fooled),
  ]);
  const head = ["Attack", "The attacker", "Images", "AUC", "Detected (95 % interval)", "Fooled it unflagged"];
  const drawing = chart({
    title: "Share of attacked images that are flagged, over the share of clean images that are; areas in the table",
    up: "Attacked images flagged, at each false-alarm rate",
    across: "false-alarm rate",
    end: 1,
    traces: curves.map((curve) => ({ name: `${title(curve)}; ${knowledge(curve.view)}`, points: curve.points ?? [] })),
  });
  const limit =
    "None of these attackers tries to keep the suspicion low. One who knows the score can: a missing flag is no proof.";
  const wide = { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Detection of attacks" };
  return [el("div", wide, table("Detection of attacked images", head, rows)), el("p", {}, limit), drawing];
}

/** @param {any} model what `/v1/model` answers @returns {Node[]} */
export const facts = (model) => [list(model), ...alarm(model.calibration)];
