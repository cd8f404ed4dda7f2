// The guard's page: choose an image, see what the guard says of it, attack it.

import { call, clearError, report, start } from "./api.js";
import { bars, el, picture } from "./draw.js";
import { facts } from "./facts.js";
import { events } from "./stream.js";
import { Target } from "./target.js";
import { naming, percent, suspicionText, summary } from "./words.js";

/** @typedef {{blob: Blob, sample?: any}} Chosen an image; with what the server says of it if it is a sample */

const $ = (id) => document.getElementById(id);

const page = {
  /** @type {any} what `/v1/model` answered */
  model: {},
  /** @type {?Chosen} */
  image: null,
  /** @type {?string} */
  url: null,
  classifying: new AbortController(),
  attacking: new AbortController(),
  announced: 0,
};

const name = (label) => naming(page.model.class_names)(label);
const limit = (which) => page.model.limits?.[which] ?? Infinity;

// ---- the image

/** Refuses what the server would refuse, before it is sent. @param {Blob} blob */
async function check(blob) {
  const [bytes, most] = [blob.size, limit("max_body_bytes")].map((size) => (size / 2 ** 20).toFixed(1));
  if (blob.size > limit("max_body_bytes")) {
    throw new Error(`This file has ${bytes} MiB; the server takes at most ${most} MiB. It was not sent.`);
  }
  // what the browser cannot read, the server says more about
  const bitmap = await createImageBitmap(blob).catch(() => null);
  if (bitmap && bitmap.width * bitmap.height > limit("max_pixels")) {
    const pixels = `${bitmap.width} × ${bitmap.height} pixels`;
    throw new Error(`This image has ${pixels}; the server takes at most ${limit("max_pixels")}. It was not sent.`);
  }
  bitmap?.close();
}

/** Takes an image, and shows at once what the guard says of it. @param {Chosen} image */
async function choose(image) {
  page.attacking.abort();
  page.classifying.abort();
  const { signal } = (page.classifying = new AbortController());
  page.image = image;
  clearError();
  $("course").hidden = true;
  try {
    await check(image.blob);
    const headers = { "content-type": "application/octet-stream" };
    const request = { method: "POST", body: image.blob, headers, signal };
    const answer = await (await call("/v1/classify?restored=true&map=true", request)).json();
    if (!signal.aborted) showAnswer(answer.results[0], image);
  } catch (error) {
    if (signal.aborted) return;
    page.image = null;
    $("answer").hidden = true;
    report(error);
  }
}

/** @param {any} result @param {Chosen} image */
function showAnswer(result, image) {
  if (page.url) URL.revokeObjectURL(page.url);
  page.url = URL.createObjectURL(image.blob);
  const pictures = [
    ["given", page.url, "The image as it was given"],
    ["restored", result.restored, `What the defence restores; the classifier then says ${result.name}`],
    ["gradient map", result.gradient_map, "How the bare classifier's loss changes with each pixel, as estimated"],
  ].map(([caption, source, alt]) => {
    const { element, show } = picture(caption);
    show(source, alt);
    return element;
  });
  const tables = [["Bare classifier", result.bare], ["Through the defence", result]].map(([caption, said]) => {
    const { element, show } = bars(caption);
    show(said?.probabilities, name, percent);
    return element;
  });
  $("answer-pictures").replaceChildren(...pictures);
  $("answer-classes").replaceChildren(...tables);
  $("answer-text").textContent = answerText(result, image);
  $("answer").hidden = false;
}

/** @param {any} result @param {Chosen} image */
function answerText({ name: defended, confidence, bare, suspicion, resized_from }, { sample }) {
  const said = bare ? `The bare classifier says ${bare.name} (${percent(bare.confidence)}). ` : "";
  const sentences = [`${said}Through the defence: ${defended} (${percent(confidence)}).`];
  if (sample) sentences.push(`True class: ${sample.name}.`);
  if (suspicion) sentences.push(`${suspicionText(suspicion).replace(/^s/, "S")}.`);
  if (resized_from) sentences.push(`Resized from ${resized_from.join(" × ")} pixels.`);
  return sentences.join(" ");
}

/** One of the bundled images, to be chosen. @param {any} sample */
async function option(sample) {
  // with the token, which the source of an image could not send
  const blob = await (await call(sample.image)).blob();
  const input = el("input", { type: "radio", name: "sample", value: String(sample.id) });
  input.addEventListener("change", () => {
    $("file").value = "";
    choose({ blob, sample });
  });
  const image = el("img", { src: URL.createObjectURL(blob), alt: `Sample ${sample.id + 1}: ${sample.name}` });
  return el("label", { title: sample.name }, input, image);
}

/** @param {?FileList} files */
function takeFile(files) {
  if (!files?.length) return;
  for (const radio of document.querySelectorAll("#samples input:checked")) radio.checked = false;
  choose({ blob: files[0] });
}

// ---- the attack

/** What the form asks for, as the body of a request. @param {Chosen} image */
async function request({ blob, sample }) {
  const what = sample ? { sample: sample.id } : { image: await base64(blob) };
  const form = { attack: $("attack").value, epsilon: $("budget").value, seed: $("seed").valueAsNumber };
  const body = JSON.stringify({ ...what, ...form, norm: "linf" });
  if (body.length > limit("max_body_bytes")) {
    throw new Error("This file can be classified, but for an attack it is too large: it would be sent a third larger.");
  }
  return body;
}

/** @param {Blob} blob @returns {Promise<string>} */
function base64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error("The file could not be read."));
    reader.readAsDataURL(blob);
  });
}

/** Shows the button that can be used now, and leaves the keyboard on it. @param {boolean} on */
function running(on) {
  const [shown, hidden] = on ? [$("stop"), $("go")] : [$("go"), $("stop")];
  const focused = document.activeElement === hidden;
  shown.hidden = false;
  hidden.hidden = true;
  if (focused) shown.focus();
  $("progress").hidden = !on;
}

/** Runs the attack that the form describes, and follows it. */
async function attack() {
  clearError();
  if (!page.image) return report(new Error("Choose an image first."));
  page.attacking.abort();
  const { signal } = (page.attacking = new AbortController());
  const targets = { bare: new Target("bare", name), defended: new Target("defended", name) };
  $("targets").replaceChildren(targets.bare.element, targets.defended.element);
  $("summary").textContent = "";
  $("course").hidden = false;
  running(true);
  const failed = await follow(targets, signal).catch((error) => error);
  // another attack may have taken this one's place
  if (page.attacking.signal !== signal) return;
  if (signal.aborted) $("summary").textContent = "Stopped: an attack that was not finished shows nothing either way.";
  else if (failed) report(failed);
  targets.bare.finish();
  targets.defended.finish();
  running(false);
}

/** @param {{bare: Target, defended: Target}} targets @param {AbortSignal} signal */
async function follow(targets, signal) {
  const headers = { "content-type": "application/json" };
  const body = await request(page.image);
  const response = await call("/v1/attack", { method: "POST", body, headers, signal });
  let begin;
  for await (const { event, data } of events(response.body)) {
    if (event === "failed") throw new Error(data.message);
    if (event === "done") {
      $("summary").textContent = summary(begin, targets.bare, targets.defended, name);
      return;
    }
    if (event === "begin") {
      begin = data;
      targets.bare.begin(begin);
      targets.defended.begin(begin);
    }
    if (event === "step") targets[data.target].add(data.frame, data.step);
    if (event === "end") targets[data.target].end = data;
    showProgress(targets, begin);
  }
  throw new Error("The attack broke off: the server ended its answer early.");
}

/** @param {{bare: Target, defended: Target}} targets @param {any} begin */
function showProgress({ bare, defended }, begin) {
  const bar = $("bar");
  const now = bare.end ? defended : bare;
  const of = begin.steps ? ` of ${begin.steps}` : "";
  const text = `Attack ${bare.end ? "through the defence" : "on the bare classifier"}: step ${now.step}${of}`;
  if (begin.steps) Object.assign(bar, { max: 2 * begin.steps, value: (bare.end ? begin.steps : 0) + now.step });
  else bar.removeAttribute("value");
  $("progress-text").textContent = text;
  // heard less often than seen
  if (Date.now() - page.announced < 1000) return;
  page.announced = Date.now();
  $("announce").textContent = text;
}

// ---- the page

/** @param {?{attacks: {name: string, title: string}[], budgets: string[]}} playground */
function offerAttacks(playground) {
  $("attack-form").hidden = !playground;
  $("no-playground").hidden = Boolean(playground);
  if (!playground) return;
  const attacks = playground.attacks.map(({ name, title }) => el("option", { value: name }, `${name}: ${title}`));
  $("attack").replaceChildren(...attacks);
  $("budget").replaceChildren(...playground.budgets.map((budget) => el("option", { value: budget }, budget)));
}

async function fill() {
  page.model = await (await call("/v1/model")).json();
  offerAttacks(page.model.playground);
  $("facts").replaceChildren(...facts(page.model));
  const samples = await (await call("/v1/samples")).json();
  $("samples").replaceChildren(...(await Promise.all(samples.map(option))));
  $("samples-field").hidden = !samples.length;
}

/** Files may be dropped anywhere; beside the page they would replace it. */
function dropping() {
  const drop = $("drop");
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  document.addEventListener("dragleave", () => drop.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    takeFile(event.dataTransfer?.files);
  });
}

$("file").addEventListener("change", (event) => takeFile(event.target.files));
$("stop").addEventListener("click", () => page.attacking.abort());
$("attack-form").addEventListener("submit", (event) => {
  event.preventDefault();
  attack();
});
dropping();
start(fill);
