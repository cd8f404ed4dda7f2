// What is said about a frame, a run and a suspicion, in sentences.

/**
 * @typedef {{score: number, quantile: number, flagged: boolean, false_alarm_rate: number}} Suspicion
 * @typedef {{image: string, gradient_map: ?string, restored: string, difference: string, bare: number[],
 *   defended: number[], bare_label: number, defended_label: number, largest_change: ?number,
 *   suspicion: ?Suspicion}} Frame
 * @typedef {{attack: string, budget: string, steps: ?number, label: number, label_name: ?string,
 *   label_from: string, clean: Frame}} Begin
 * @typedef {{target: string, steps: number, fooled: boolean, first_fooled: ?number, gradients: number,
 *   forward: number, seconds: number}} End
 * @typedef {{frames: Frame[], end: ?End}} Course an attack on one target; its first frame is the clean image
 * @typedef {(label: number) => string} Naming
 */

/** A measured share, to a tenth of a per cent. @param {?number} share */
export const percent = (share) => (share == null ? "unknown" : `${(100 * share).toFixed(1)}\u00a0%`);

/** A share that somebody chose, in as many digits as it takes. @param {?number} share */
export const rate = (share) => (share == null ? "unknown" : `${Number((100 * share).toFixed(2))}\u00a0%`);

/** What a class is called. @param {?string[]} names @returns {Naming} */
export const naming = (names) => (label) => names?.[label] ?? `class ${label}`;

/** @param {?Suspicion} suspicion */
export function suspicionText(suspicion) {
  if (!suspicion) return "";
  const value = (suspicion.quantile ?? suspicion.score).toFixed(2);
  const found = suspicion.flagged ? "flagged" : "not flagged";
  return `suspicion ${value}: ${found} at a ${rate(suspicion.false_alarm_rate)} false-alarm rate`;
}

/**
 * Both classifiers' answers to one frame.
 * @param {Frame} frame @param {Begin} begin @param {Naming} name @param {boolean} attacked
 */
export function verdict(frame, begin, name, attacked) {
  const said = (probabilities, label) => `${name(label)} (${percent(probabilities?.[label])})`;
  const bare = frame.bare_label === begin.label ? "right" : "wrong";
  const fooled = begin.clean.defended_label === begin.label
    ? "WRONG: the defence has been fooled"
    : "WRONG, as it was on the clean image";
  const wrong = attacked ? fooled : "WRONG before any attack";
  const defended = frame.defended_label === begin.label ? "right" : wrong;
  return (
    `The bare classifier ${attacked ? "now says" : "says"} ${said(frame.bare, frame.bare_label)}, ${bare}. ` +
    `Through the defence: ${said(frame.defended, frame.defended_label)}, ${defended}.`
  );
}

/** @param {End} end */
const when = (end) => (end.first_fooled == null ? "" : ` at step ${end.first_fooled}`);

/** That a target held, and by how little. @param {End} end */
const meanwhile = (end) =>
  end.first_fooled == null ? "" : ` at the end, though it was wrong for a while from step ${end.first_fooled}`;

/** What the attack on the bare classifier showed. @param {Begin} begin @param {Course} bare @param {Naming} name */
function unaware(begin, { frames, end }, name) {
  const { clean, label } = begin;
  const last = frames.at(-1);
  const restored = last.defended_label === label;
  const seen = name(last.defended_label);
  const before = clean.defended_label === label ? "" : ", as it was with the clean image";
  if (clean.bare_label !== label) {
    const taken = name(clean.bare_label);
    return `The bare classifier takes the clean image for ${taken} already, so an attack on it shows nothing.`;
  }
  if (end.fooled) {
    const undone = restored ? "the defence undid it" : `the defence did not undo it (it says ${seen}${before})`;
    return `This attack fooled the bare classifier${when(end)}; ${undone}.`;
  }
  const through = restored
    ? "and through the defence its image is right too"
    : `but through the defence its image is WRONG (${seen}${before})`;
  return `This attack did not fool the bare classifier${meanwhile(end)}, ${through}.`;
}

/** What the attack through the defence showed. @param {Begin} begin @param {Course} defended @param {Naming} name */
function aware(begin, { end }, name) {
  const { clean, label } = begin;
  const blind = end.gradients === 0;
  const who = blind
    ? "The same attack, aimed at the defended classifier but without gradients,"
    : "An attacker who knows the defence";
  if (clean.defended_label !== label) {
    return (
      `Through the defence the clean image is taken for ${name(clean.defended_label)} already: ` +
      "here it fails without any attack, and an attacker has nothing left to do."
    );
  }
  if (end.fooled) {
    return `${who} fooled it${when(end)}: the defence does not protect this image against such an attacker.`;
  }
  const limits = blind ? "an attacker who uses the exact gradients may well succeed" : "a stronger one may succeed";
  return `${who} did not fool it${meanwhile(end)}; that is one attack with one budget and one seed, and ${limits}.`;
}

/**
 * What the attack showed, so that nobody leaves with more than was seen.
 * @param {Begin} begin @param {Course} bare @param {Course} defended @param {Naming} name
 */
export function summary(begin, bare, defended, name) {
  const sentences = [unaware(begin, bare, name), aware(begin, defended, name)];
  if (begin.label_from === "classifier") {
    const assumed = `${name(begin.label)}, the bare classifier's answer to it clean, counts as right.`;
    sentences.unshift(`No true class is known for this image: ${assumed}`);
  }
  return sentences.join(" ");
}
