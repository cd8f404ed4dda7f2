// One of the two attacks: its pictures, its classes, its verdict, and the way back over its steps.

import { bars, chart, el, picture, table } from "./draw.js";
import { percent, suspicionText, verdict } from "./words.js";

/** @typedef {import("./words.js").Frame} Frame */
/** @typedef {import("./words.js").Begin} Begin */
/** @typedef {import("./words.js").End} End */

const PICTURES = ["clean", "adversarial", "gradient map", "restored", "difference"];
const TABLES = [
  "Clean image, bare classifier",
  "Adversarial image, bare classifier",
  "Restored image, through the defence",
];

/** Follows one attack, shows its newest step, and when it is over any step. */
export class Target {
  /** @type {Frame[]} the clean image and what each step made of it */
  frames = [];
  /** @type {number[]} the number of each frame's step, since a server may skip some */
  #steps = [];
  /** @type {?End} */
  end = null;
  /** @type {Begin} */
  #begin;
  #name;
  #waiting = 0;
  #pictures = PICTURES.map(picture);
  #tables = TABLES.map((caption) => bars(caption));
  #verdict = el("p", { className: "verdict" });
  #suspicion = el("p", { className: "suspicion" });
  #cost = el("p", { className: "soft" });
  #slider = el("input", { type: "range", min: "0", max: "0", value: "0", disabled: true });
  #at = el("span");
  #course = el("div");
  #heading = el("h3");
  #table = el("details", {}, el("summary", {}, "The curve as a table"));

  /** @param {string} kind `bare` or `defended` @param {(label: number) => string} name */
  constructor(kind, name) {
    this.kind = kind;
    this.#name = name;
    this.#heading.textContent =
      kind === "bare"
        ? "Attack on the bare classifier (does not know the defence)"
        : "Attack through the defence (knows it, exact gradients)";
    this.#slider.addEventListener("input", () => this.#show(Number(this.#slider.value)));
    this.#table.hidden = true;
    this.element = el(
      "section",
      { className: `target ${kind}` },
      this.#heading,
      el("div", { className: "pictures" }, ...this.#pictures.map(({ element }) => element)),
      el("label", { className: "steps" }, "Step", this.#slider, this.#at),
      this.#verdict,
      this.#suspicion,
      el("div", { className: "classes" }, ...this.#tables.map(({ element }) => element)),
      this.#course,
      this.#table,
      this.#cost,
    );
  }

  /** @param {Begin} begin */
  begin(begin) {
    this.#begin = begin;
    this.add(begin.clean, 0);
  }

  /** Takes a step in, and shows it when the browser next paints. @param {Frame} frame @param {number} step */
  add(frame, step) {
    this.frames.push(frame);
    this.#steps.push(step);
    this.#waiting ||= requestAnimationFrame(() => this.#show(this.frames.length - 1));
  }

  /** Nothing more will come: the steps can be gone through. */
  finish() {
    if (!this.frames.length) return;
    this.#show(this.frames.length - 1);
    this.#slider.disabled = this.frames.length < 2;
    const right = (frame) => [frame.bare, frame.defended].map((all) => percent(all?.[this.#begin.label]));
    const rows = this.frames.map((frame, index) => [String(this.#steps[index]), ...right(frame)]);
    this.#table.append(table("Probability of the true class", ["Step", "bare", "through the defence"], rows));
    this.#table.hidden = false;
    if (!this.end) return;
    const { gradients, forward, seconds } = this.end;
    this.#cost.textContent = `${gradients} gradients, ${forward} forward passes, ${seconds?.toFixed(1)} s`;
    if (this.kind === "defended" && gradients === 0) {
      this.#heading.textContent = "Attack through the defence (aimed at it, but without gradients)";
    }
  }

  /** The number of the newest step. */
  get step() {
    return this.#steps.at(-1) ?? 0;
  }

  /** How many steps there will be, or have been. */
  #last() {
    return this.end?.steps ?? Math.max(this.#begin.steps ?? 1, this.step);
  }

  /** @param {number} index */
  #show(index) {
    cancelAnimationFrame(this.#waiting);
    this.#waiting = 0;
    const frame = this.frames[index];
    Object.assign(this.#slider, { max: String(this.frames.length - 1), value: String(index) });
    this.#at.textContent = index ? `${this.#steps[index]} of ${this.#last()}` : "0, clean";
    this.#slider.setAttribute("aria-valuetext", this.#at.textContent);
    this.#showPictures(frame, index);
    const shares = [this.#begin.clean.bare, frame.bare, frame.defended];
    this.#tables.forEach((each, which) => each.show(shares[which], this.#name, percent));
    this.#verdict.textContent = verdict(frame, this.#begin, this.#name, index > 0);
    const held = frame[`${this.kind}_label`] === this.#begin.label;
    this.#verdict.className = `verdict ${held ? "right" : "wrong"}`;
    this.#suspicion.textContent = suspicionText(frame.suspicion);
    this.#course.replaceChildren(this.#curve(index));
  }

  /** @param {Frame} frame @param {number} index */
  #showPictures(frame, index) {
    const truth = this.#name(this.#begin.label);
    const change = frame.largest_change == null ? "" : `; largest change ${frame.largest_change.toFixed(3)}`;
    const seen = `${this.#name(frame.defended_label)}, ${percent(frame.defended?.[frame.defended_label])}`;
    const sources = [this.#begin.clean.image, frame.image, frame.gradient_map, frame.restored, frame.difference];
    const alts = [
      `The clean image: ${truth}`,
      `The image after step ${this.#steps[index]}; the bare classifier says ${this.#name(frame.bare_label)}`,
      "How the bare classifier's loss changes with each pixel, as the defence estimates it",
      `What the defence restores; the classifier then says ${seen}`,
      `What the attack has changed, grey where nothing${change}`,
    ];
    this.#pictures.forEach((each, which) => each.show(sources[which], alts[which]));
  }

  /** @param {number} index the frame that is shown */
  #curve(index) {
    const truth = this.#name(this.#begin.label);
    const of = (key) => this.frames.map((frame, at) => [this.#steps[at], frame[key]?.[this.#begin.label] ?? 0]);
    return chart({
      title: `Probability of ${truth} at each step, bare and through the defence; also as a table`,
      up: `Probability of the true class, ${truth}`,
      across: "step",
      end: this.#last(),
      mark: this.#steps[index],
      traces: [
        { name: "bare classifier", points: of("bare") },
        { name: "through the defence", points: of("defended") },
      ],
    });
  }
}
