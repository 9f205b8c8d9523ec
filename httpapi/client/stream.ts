// One event of a stream (https://html.spec.whatwg.org/multipage/server-sent-events.html).
export interface StreamEvent {
  id: number;
  event: string;
  data: string;
}

// eventNames are those that the server sends.
export const eventNames = [
  'task.created', 'task.updated', 'task.completed', 'task.reopened', 'task.deleted', 'task.restored', 'erased',
] as const;

// readEvents reads a stream by fetch, which unlike EventSource can send a bearer token. It ends with the stream, or
// when not even a heartbeat, which comes every 15 s, was heard for `silence` milliseconds. Fetch it with cache:
// 'no-store', as EventSource does: else Chromium, having kept a part of the stream before, asks twice, and leaves one
// open for 5 s.
export async function* readEvents(body: ReadableStream<Uint8Array>, silence = 45_000): AsyncGenerator<StreamEvent> {
  const reader = body.pipeThrough(new TextDecoderStream() as ReadableWritablePair<string, Uint8Array>).getReader();
  let [rest, id, event, data] = ['', '', 'message', [] as string[]];
  try {
    for (;;) {
      const timer = setTimeout(() => void reader.cancel().catch(() => {}), silence);
      const { done, value } = await reader.read().finally(() => clearTimeout(timer));
      if (done) return; // an event without its blank line does not count
      const lines = (rest + value).split('\n');
      rest = lines.pop() ?? '';
      for (const line of lines) {
        const [, field = '', text = ''] = /^([^:]*)(?:: ?(.*))?$/s.exec(line.replace(/\r$/, '')) ?? [];
        if (field === 'id') id = text;
        else if (field === 'event') event = text;
        else if (field === 'data') data.push(text);
        else if (line === '' || line === '\r') {
          if (data.length > 0) yield { id: Number(id), event, data: data.join('\n') };
          [event, data] = ['message', []];
        }
      }
    }
  } finally {
    await reader.cancel().catch(() => {}); // also when the caller has heard enough
  }
}
