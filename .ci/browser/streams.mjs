// Live changes in the browser: EventSource with the session's cookie through a reverse proxy, a reader by fetch with a
// bearer token from another origin, and the client of httpapi/client, which uses the one or the other.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { createServer, request } from 'node:http';

const dist = new URL('../../httpapi/client/dist/', import.meta.url);
const changes = 240;
const pace = 40; // milliseconds between them

// openProxy listens on a port of the loopback: it serves a page and the client, and hands /api on to taskledger, as a
// proxy does that buffers nothing. While `down`, it hangs up on requests to /api.
export async function openProxy(port, target) {
  const proxy = { down: false };
  const streams = new Set();
  const server = createServer(async (incoming, answer) => {
    const { method, url, rawHeaders } = incoming;
    const [, file] = /^\/client\/([a-z]+\.js)$/.exec(url) ?? [];
    if (file) return answer.setHeader('Content-Type', 'text/javascript').end(await readFile(new URL(file, dist)));
    if (!url.startsWith('/api/')) {
      return answer.setHeader('Content-Type', 'text/html').end('<!doctype html><title>page</title>');
    }
    if (proxy.down) return incoming.destroy();
    const outgoing = request(target + url, { method, headers: rawHeaders, agent: false, setHost: false }, (result) => {
      answer.writeHead(result.statusCode, result.rawHeaders);
      result.on('error', () => answer.destroy()).pipe(answer);
      if (url === '/api/events') streams.add(answer);
    });
    answer.on('close', () => (outgoing.destroy(), streams.delete(answer)));
    outgoing.on('error', () => answer.destroy());
    incoming.pipe(outgoing);
  });
  server.listen(port, '127.0.0.1');
  await once(server, 'listening');
  proxy.cut = () => [...streams].map((answer) => answer.destroy()).length;
  proxy.close = () => (server.close(), server.closeAllConnections());
  return proxy;
}

// liveChanges makes changes in Node while readers in the page are cut off at random moments, and holds that each hears
// every change once, in order.
export async function liveChanges({ context, proxy, origin, direct, frontend, session, title, done }) {
  console.log('live changes');
  const headers = { Authorization: `Bearer ${session}`, 'Content-Type': 'application/json' };
  const write = async (method, path, body) => {
    for (;;) {
      const answer = await fetch(`${direct}/api/tasks${path}`, { method, headers, body: body && JSON.stringify(body) });
      if (answer.ok) return answer.status === 204 ? null : answer.json();
      assert.equal(answer.status, 429);
      await later(1000 * Number(answer.headers.get('Retry-After')));
    }
  };
  const [page, framed] = [await context.newPage(), await context.newPage()];
  await Promise.all([page.goto(origin), framed.goto(`${frontend}/board`)]);
  const first = (await write('POST', '', { title })).version;
  await page.evaluate(listenByFetch, { url: `${direct}/api/events`, session, after: first });
  await Promise.all([page, framed].map((one) => one.evaluate(listenBySource)));
  await Promise.all([page, framed].map((one) => one.waitForFunction(() => globalThis.bySource.opened > 0)));

  let [id, last, cuts] = [null, first, 0];
  for (let n = 0; n < changes; n++) {
    if (n % 4 === 0) ({ id, version: last } = await write('POST', '', { title: `${title} ${n}` }));
    else if (n % 4 === 3) last = await write('DELETE', `/${id}`).then(() => last + 1);
    else ({ version: last } = await write('PUT', `/${id}`, { is_completed: n % 4 === 1 }));
    // Who is cut off before its first event has no Last-Event-ID, and begins anew at that moment.
    if (n === 0) await Promise.all([page, framed].map((one) => one.waitForFunction(() => bySource.heard.length > 0)));
    else if (Math.random() < 0.05) cuts += proxy.cut();
    await later(pace);
  }
  const want = Array.from({ length: changes }, (_, n) => first + 1 + n);
  assert.equal(last, want.at(-1));
  const heard = async (one, reader) => {
    await one.waitForFunction(([reader, last]) => globalThis[reader].heard.at(-1) === last, [reader, last]);
    const { heard, opened } = await one.evaluate((reader) => globalThis[reader], reader);
    assert.deepEqual(heard, want, reader);
    return opened;
  };
  const bySource = await heard(page, 'bySource');
  assert.ok(bySource > 1 && cuts > 0, `opened ${bySource} times, cut ${cuts} times`);
  done(`EventSource with a cookie, through a proxy: ${changes} changes, once, in order, on ${bySource} connections`);
  const byFetch = await heard(page, 'byFetch');
  assert.ok(byFetch > 5, `opened ${byFetch} times`);
  done(`fetch with a bearer from another origin: the same, on ${byFetch} connections`);
  await heard(framed, 'bySource');
  done('EventSource through the rewrite of Next.js: the same');
  await Promise.all([page.close(), framed.close()]);
}

// listenBySource runs in the page.
function listenBySource() {
  const reader = (globalThis.bySource = { heard: [], opened: 0 });
  const source = new EventSource('/api/events');
  source.onopen = () => reader.opened++;
  for (const name of ['task.created', 'task.completed', 'task.reopened', 'task.deleted']) {
    source.addEventListener(name, ({ lastEventId, data }) => {
      const { seq, task, changes } = JSON.parse(data);
      const whole = name === 'task.deleted' ? task === null && changes.deleted.to : task.version === seq;
      reader.heard.push(whole && Number(lastEventId) === seq ? seq : data);
    });
  }
}

// listenByFetch runs in the page too. It hangs up at random moments, and goes on behind the last event it heard.
async function listenByFetch({ url, session, after }) {
  const reader = (globalThis.byFetch = { heard: [], opened: 0 });
  const { readEvents } = await import('/client/stream.js');
  const listen = async () => {
    for (;;) {
      const headers = { Authorization: `Bearer ${session}`, 'Last-Event-ID': String(reader.heard.at(-1) ?? after) };
      const hangUp = new AbortController();
      try {
        const answer = await fetch(url, { headers, credentials: 'omit', cache: 'no-store', signal: hangUp.signal });
        if (!answer.ok) await new Promise((later) => setTimeout(later, 500));
        else {
          reader.opened++;
          setTimeout(() => hangUp.abort(), 200 + Math.random() * 1500);
          for await (const { id } of readEvents(answer.body)) reader.heard.push(id);
        }
      } catch (error) {
        if (error.name !== 'AbortError') throw error;
      }
    }
  };
  void listen();
}

// theClient has the client in the page, with the cookie and an IndexedDB: it works offline, and over a new start.
export async function theClient({ context, proxy, origin, direct, session, title, done }) {
  console.log('the client');
  const page = await context.newPage();
  const open = async () => {
    await page.goto(origin);
    await page.evaluate(async () => {
      const { Client, browserStorage } = await import('/client/client.js');
      const told = (globalThis.told = []);
      const tell = (what) => (about) => void told.push([what, about]);
      const storage = browserStorage('tasks');
      const callbacks = { conflict: tell('conflict'), refused: tell('refused'), erased: tell('erased') };
      globalThis.client = await Client.open({ url: '', storage, ...callbacks });
    });
  };
  const becomes = (state, pending, title) =>
    page.waitForFunction(
      ([state, pending, title]) =>
        client.state === state &&
        client.pending.length === pending &&
        (!title || client.tasks.some((task) => task.title === title)),
      [state, pending, title],
    );
  await open();
  await becomes('current', 0);
  proxy.down = true;
  proxy.cut();
  await page.evaluate(async (title) => client.complete(await client.create({ title })), `${title} offline`);
  await becomes('offline', 2, `${title} offline`);
  await open();
  await becomes('offline', 2, `${title} offline`);
  proxy.down = false;
  await page.evaluate(() => client.wake());
  await becomes('current', 0, `${title} offline`);
  const headers = { Authorization: `Bearer ${session}`, 'Content-Type': 'application/json' };
  const list = await (await fetch(`${direct}/api/tasks`, { headers })).json();
  assert.deepEqual(await page.evaluate(() => client.tasks), list);
  assert.deepEqual(list.filter((task) => task.title === `${title} offline`).map((task) => task.is_completed), [true]);
  done('offline, a new start of the page, online: sent once');
  await fetch(`${direct}/api/tasks`, { method: 'POST', headers, body: JSON.stringify({ title: `${title} live` }) });
  await becomes('current', 0, `${title} live`);
  assert.deepEqual(await page.evaluate(() => told), []);
  done('what others do is shown without asking');
  for (const task of list) await page.evaluate((id) => client.delete(id), task.id);
  await page.close();
}

function later(milliseconds) {
  return new Promise((done) => setTimeout(done, milliseconds));
}
