// What both pages share: asking the server, saying what went wrong, and the token if the server wants one.

const KEY = "talion-token";

/** @returns {?string} */
export const token = () => sessionStorage.getItem(KEY);

/**
 * Asks the server; any answer but a good one is thrown as an error with the server's message and the status.
 * @param {string} path @param {RequestInit} [options] @returns {Promise<Response>}
 */
export async function call(path, options = {}) {
  const headers = { ...options.headers, ...(token() && { authorization: `Bearer ${token()}` }) };
  const response = await fetch(path, { ...options, headers }).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("The server was not reached. Is it still running?");
  });
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const message = body?.error?.message ?? `The server answered with status ${response.status}.`;
  throw Object.assign(new Error(message), { status: response.status });
}

/** Says what went wrong; what was stopped on purpose did not go wrong. @param {Error & {status?: number}} error */
export function report(error) {
  if (error.name === "AbortError") return;
  const close = Object.assign(document.createElement("button"), { type: "button", textContent: "Dismiss" });
  close.addEventListener("click", clearError);
  const text = Object.assign(document.createElement("p"), { textContent: error.message });
  document.getElementById("error").replaceChildren(text, close);
  if (error.status === 401) {
    document.getElementById("token").hidden = false;
    document.getElementById("token-input").focus();
  }
}

/** Takes back what {@link report} said. */
export const clearError = () => document.getElementById("error").replaceChildren();

/** Runs what fills the page, now and again with every token that is given. @param {() => Promise<void>} fill */
export function start(fill) {
  const form = document.getElementById("token");
  const run = () => fill().catch(report);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(KEY, document.getElementById("token-input").value);
    form.hidden = true;
    clearError();
    run();
  });
  run();
}
