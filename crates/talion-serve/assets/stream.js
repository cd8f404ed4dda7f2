// Server-sent events from the body of an answer: EventSource cannot send a POST or a header.

/** @typedef {{event: string, data: any}} Message */

/** One event's lines; null where there is no data (a comment that keeps the line open). @returns {?Message} */
function parse(block) {
  let event = "message";
  const data = [];
  for (const line of block.split("\n")) {
    const [, field, value] = /^([^:]*):? ?(.*)$/.exec(line);
    if (field === "event") event = value;
    if (field === "data") data.push(value);
  }
  return data.length ? { event, data: JSON.parse(data.join("\n")) } : null;
}

/**
 * The events of a stream, however its chunks are cut. What follows the last blank line is no event.
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<Message>}
 */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += value;
      // a line feed that belongs to a carriage return at the end may still be on its way
      const end = rest.endsWith("\r") ? rest.length - 1 : rest.length;
      const blocks = rest.slice(0, end).replace(/\r\n?/g, "\n").split("\n\n");
      rest = blocks.pop() + rest.slice(end);
      for (const message of blocks.map(parse)) if (message) yield message;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
