// Runs the client against a server that is killed, and through connections that are cut, and holds what the client
// shows against what the server did. WORK is a folder with the program in it.

import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { promisify } from 'node:util';
import { Client, memoryStorage } from '../../httpapi/client/dist/client.js';
import { fileStorage } from '../../httpapi/client/dist/file.js';
import { openWire } from './wire.mjs';

const { WORK } = process.env;
const program = `${WORK}/taskledger`;
const env = { ...process.env, DATA_DIR: `${WORK}/data`, PORT: '0', ADMIN_ADDR: '' };
for (const name of ['DATABASE_URL', 'BETTER_AUTH_SECRET', 'BETTER_AUTH_URL', 'JWKS_URL']) delete env[name];
const commands = 200;
let checks = 0;
let server;
let broken; // what a client was told by a callback of ours that threw
const wires = [await openWire(), await openWire()];
const clients = new Set();
process.once('SIGTERM', () => (server?.kill('SIGTERM'), process.exit(1)));
try {
  await startServer();
  for (const part of [cutOff, inDoubt, offline, conflicts, refusals, erasure, limits]) {
    await part();
    await Promise.all([...clients].map(close));
  }
  await promisify(execFile)(program, ['verify'], { env });
  done('taskledger verify');
  console.log(`Node ${process.version}: ${checks} checks passed`);
} finally {
  await Promise.all([...clients].map(close));
  wires.forEach((wire) => wire.close());
  server.kill('SIGTERM');
  if (server.exitCode === null && server.signalCode === null) await once(server, 'exit');
}

async function startServer(settings = {}) {
  server = spawn(program, ['serve'], { env: { ...env, ...settings }, stdio: ['ignore', 'pipe', 'pipe'] });
  let log = '';
  server.stderr.on('data', (data) => (log += data));
  const port = await new Promise((resolve, reject) => {
    server.once('exit', (code) => reject(new Error(`the server ended with ${code}:\n${log}`)));
    let text = '';
    server.stdout.on('data', (data) => {
      text += data;
      const [, port] = /http:\/\/localhost:(\d+)\/api\n/.exec(text) ?? [];
      if (port) resolve(Number(port));
    });
  });
  server.removeAllListeners('exit');
  for (const wire of wires) wire.port = port;
}

async function killServer(settings) {
  const gone = once(server, 'exit');
  server.kill('SIGKILL');
  await gone;
  await startServer(settings);
}

// cutOff has one device write while the server is killed, answers get lost and the device itself is started again, and
// another one listen. The device's user is alone, so every command must be done once, in order.
async function cutOff() {
  const token = await tokenOf('ada');
  const storage = fileStorage(`${WORK}/ada`);
  const mine = { token: () => token, storage };
  let device = await openClient(mine, wires[0]);
  const listener = await openClient({ ...mine, storage: memoryStorage() }, wires[1]);
  wires[0].cut = 0.1;
  const model = new Map(); // title and completion of each task, by the title it was created with
  const expected = []; // what history must tell
  for (let n = 0; n < commands; n++) {
    if (n % 70 === 35) await killServer();
    if (n % 25 === 10) wires.forEach((wire) => wire.break());
    if (n % 40 === 20) {
      await close(device);
      device = await openClient(mine, wires[0]);
    }
    const tasks = device.tasks;
    assert.deepEqual(shownOf(tasks), shownOf(model.values()));
    const task = tasks[Math.floor(Math.random() * tasks.length)];
    await act(device, task, n, model, expected);
    await until('few commands are pending', () => device.pending.length < 15);
  }
  await current(device);
  wires[0].cut = 0;
  const { cut, replayed } = wires[0].seen;
  assert.ok(cut > 0 && replayed > 0, JSON.stringify(wires[0].seen));
  assert.deepEqual(await historyOf(token), expected);
  done(`${commands} commands as ${expected.length} events, each once, in order: 3 kills of the server, ` +
    `5 new starts of the client, ${cut} answers cut off, ${replayed} given again`);
  const stored = await get(token, '/api/tasks');
  assert.deepEqual(shownOf(stored), shownOf(model.values()));
  assert.deepEqual(device.tasks, stored);
  await until('the other device has all', () => listener.state === 'current' && sameVersions(listener.tasks, stored));
  assert.deepEqual(listener.tasks, stored);
  done('both devices show what the server has');
}

// act does something, and to the model too.
async function act(device, task, n, model, expected) {
  const kind = Math.random();
  if (!task || kind < 0.4) {
    const title = `create ${n}`;
    await device.create({ title });
    model.set(title, { title, is_completed: false });
    expected.push(`TaskCreated ${title}`);
    return;
  }
  const [key, known] = [...model].find(([, { title }]) => title === task.title);
  if (kind < 0.7) {
    await device.update(task.id, { title: `update ${n}` });
    known.title = `update ${n}`;
    expected.push(`TaskRenamed update ${n}`);
  } else if (kind < 0.85) {
    await (task.is_completed ? device.reopen(task.id) : device.complete(task.id));
    known.is_completed = !known.is_completed;
    expected.push(known.is_completed ? 'TaskCompleted' : 'TaskReopened');
  } else {
    await device.delete(task.id);
    model.delete(key);
    expected.push('TaskDeleted');
  }
}

// inDoubt has the answers to a creation get lost for as long as the client syncs in between.
async function inDoubt() {
  const token = await tokenOf('tony');
  const [wire] = wires;
  const device = await openClient({ token: () => token }, wire);
  await current(device);
  wire.cut = 1;
  let { cut } = wire.seen;
  const id = await device.create({ title: 'Buy milk' });
  await until('it was sent again', () => wire.seen.cut >= cut + 2);
  assert.deepEqual(shownOf(device.tasks), [['Buy milk', false]]);
  await device.delete(id);
  ({ cut } = wire.seen);
  await until('it was sent again', () => wire.seen.cut >= cut + 2);
  assert.deepEqual(device.tasks, []);
  wire.cut = 0;
  await current(device);
  assert.deepEqual(await historyOf(token), ['TaskCreated Buy milk', 'TaskDeleted']);
  assert.deepEqual(device.tasks, []);
  done('in doubt: what was sent is shown once, whether the server has it or not');
}

async function offline() {
  const token = await tokenOf('grace');
  const storage = fileStorage(`${WORK}/grace`);
  const [wire] = wires;
  wire.down = true;
  wire.break();
  let device = await openClient({ token: () => token, storage }, wire);
  const id = await device.create({ title: 'Buy milk' });
  await device.update(id, { description: 'Two litres' });
  await device.complete(id);
  await device.delete(await device.create({ title: 'Buy bread' }));
  const shown = device.tasks;
  assert.deepEqual(shownOf(shown), [['Buy milk', true]]);
  assert.equal(device.pending.length, 5);
  await close(device);
  device = await openClient({ token: () => token, storage }, wire);
  assert.deepEqual(device.tasks, shown);
  done('offline: what was done is shown, also after a new start');
  wire.down = false;
  device.wake();
  await current(device);
  const milk = ['TaskCreated Buy milk', 'TaskDescribed', 'TaskCompleted'];
  assert.deepEqual(await historyOf(token), [...milk, 'TaskCreated Buy bread', 'TaskDeleted']);
  assert.deepEqual(device.tasks, await get(token, '/api/tasks'));
  done('online: sent in order, under the ids that the server made');
}

async function conflicts() {
  const token = await tokenOf('edsger');
  const [wire, other] = wires;
  const asked = [];
  let choice;
  const conflict = (about) => (asked.push(about), choice);
  const here = await openClient({ token: () => token, conflict }, wire);
  const there = await openClient({ token: () => token }, other);
  await here.create({ title: 'Buy milk' });
  await until('the other device has it', () => there.tasks.length === 1 && there.state === 'current');
  const [{ id }] = there.tasks;
  // both has the two devices do something of which the other knows nothing.
  const both = async (thisOne, thatOne) => {
    wire.down = true;
    wire.break();
    await thisOne();
    await thatOne();
    await current(there);
    wire.down = false;
    here.wake();
    await until('the conflict is settled', () => here.pending.length === 0);
    await Promise.all([current(here), current(there)]);
    await until('both show the same', () => sameVersions(here.tasks, there.tasks));
    assert.deepEqual(here.tasks, there.tasks);
  };
  // A change that is told of while the copy is synced, and is not in the answer any more.
  await current(here); // or what is held up is the sync before the command
  let release;
  wire.hold = new Promise((resolve) => (release = resolve));
  await here.complete(id);
  await until('the other device has it', () => there.tasks[0].is_completed);
  const { streamed } = wire.seen;
  await there.update(id, { description: 'Two litres' });
  await until('it is told of', () => wire.seen.streamed > streamed);
  release();
  await until('it is shown', () => here.tasks[0].description === 'Two litres');
  done('told of in the middle of a sync');

  choice = 'theirs';
  await both(() => here.update(id, { title: 'Buy oat milk' }), () => there.update(id, { title: 'Buy soy milk' }));
  assert.deepEqual(asked.map(({ mine, theirs }) => [mine.title, theirs.title]), [['Buy oat milk', 'Buy soy milk']]);
  assert.equal(here.tasks[0].title, 'Buy soy milk');
  done('conflict, theirs');
  choice = 'mine';
  await both(
    async () => (await here.update(id, { title: 'Buy rice milk' }), await here.complete(id)),
    () => there.update(id, { title: 'Buy goat milk', description: 'Fresh' }),
  );
  assert.equal(asked.length, 2); // the second command was done on top of the first
  const { title, description, is_completed } = here.tasks[0];
  assert.deepEqual([title, description, is_completed], ['Buy rice milk', 'Fresh', true]);
  done('conflict, mine, on top of what the other left');
  wire.cut = 1;
  const { cut } = wire.seen;
  await here.update(id, { title: 'Buy hemp milk' });
  await until('the answer is cut off', () => wire.seen.cut > cut);
  [wire.down, wire.cut] = [true, 0];
  await until('the other device has it', () => there.tasks[0].title === 'Buy hemp milk');
  await both(async () => {}, () => there.update(id, { title: 'Buy soy milk' }));
  assert.deepEqual([asked.length, here.tasks[0].title], [2, 'Buy soy milk']);
  done('an answer that is given again does not undo what others did since');
  await both(() => here.update(id, { title: 'Buy no milk' }), () => there.delete(id));
  assert.equal(asked.at(-1).theirs, null);
  assert.equal(here.tasks[0]?.title, 'Buy no milk');
  done('conflict with a deletion, mine: restored');
  await both(() => here.delete(id), () => there.delete(id));
  assert.deepEqual([asked.length, here.tasks], [3, []]);
  done('deleted on both: no conflict');
}

async function refusals() {
  const token = await tokenOf('barbara');
  const [wire] = wires;
  const [refused, replaced] = [[], []];
  let signedIn = false;
  const device = await openClient({
    token: (old) => (old && replaced.push(old), signedIn ? token : 'a.b.c'),
    refused: (commands, problem) => refused.push([commands.map(({ op }) => op), problem.code]),
  }, wire);
  await device.create({ title: 'Buy milk' });
  await until('signed out', () => device.state === 'signed out');
  assert.deepEqual([device.pending.length, replaced], [1, ['a.b.c']]);
  signedIn = true;
  device.wake();
  await current(device);
  assert.equal((await historyOf(token)).length, 1);
  done('401: another token is asked for; what is queued waits for it');

  const head = ['HTTP/1.1 503 Service Unavailable', 'Retry-After: 2', 'Content-Type: application/problem+json'];
  const unavailable = [...head, 'Content-Length: 2', 'Connection: close', '', '{}'].join('\r\n');
  wire.break();
  wire.instead = [unavailable];
  const asked = Date.now();
  await device.create({ title: 'Buy bread' });
  await until('offline', () => device.state === 'offline');
  device.wake();
  await current(device);
  assert.deepEqual(wire.instead, []);
  assert.ok(Date.now() - asked >= 2000, `tried again after ${Date.now() - asked} ms`);
  done('503: tried again when the server said, not before');

  const id = await device.create({ title: 'x'.repeat(101) });
  await device.complete(id);
  await device.create({ title: 'Buy salt' });
  await current(device);
  assert.deepEqual(refused.flat(2).filter((text) => text !== 'complete').sort(), ['create', 'validation_error']);
  assert.deepEqual(await historyOf(token), ['TaskCreated Buy milk', 'TaskCreated Buy bread', 'TaskCreated Buy salt']);
  done('422: told, and taken out; the rest is sent');
}

async function erasure() {
  const token = await tokenOf('alan');
  const [wire, other] = wires;
  const erased = [];
  const tell = (commands) => erased.push(commands.map(({ op }) => op));
  const device = await openClient({ token: () => token, erased: tell }, wire);
  const listener = await openClient({ token: () => token, erased: () => erased.push('listener') }, other);
  await device.create({ title: 'Buy milk' });
  await until('both have it', () => [device, listener].every(({ tasks }) => tasks.length === 1));
  await current(device);
  wire.down = true;
  wire.break();
  await device.update(device.tasks[0].id, { title: 'Buy oat milk' });
  const headers = { Authorization: `Bearer ${token}` };
  const { status } = await fetch(`${other.url}/api/me`, { method: 'DELETE', headers });
  assert.equal(status, 204);
  await until('the listener knows', () => listener.tasks.length === 0);
  wire.down = false;
  device.wake();
  await current(device);
  assert.deepEqual(erased, ['listener', ['update']]);
  assert.deepEqual(device.tasks, []);
  await device.create({ title: 'Buy bread' });
  await current(device);
  await until('the listener has the new life', () => listener.tasks[0]?.title === 'Buy bread');
  assert.deepEqual(device.tasks, await get(token, '/api/tasks'));
  done('erased: the copies are emptied, nothing of the life before is sent, the next one works');
}

async function limits() {
  await killServer({ RATE_LIMIT_RPS: '2', RATE_LIMIT_BURST: '4' });
  const token = await tokenOf('donald');
  const device = await openClient({ token: () => token }, wires[0]);
  const titles = Array.from({ length: 8 }, (_, n) => `create ${n}`);
  for (const title of titles) await device.create({ title });
  await current(device);
  assert.deepEqual(await historyOf(token), titles.map((title) => `TaskCreated ${title}`));
  const { limited } = wires[0].seen;
  assert.ok(limited > 0 && limited < 20, `${limited} times 429`);
  done(`429: tried again when the server said; ${limited} times`);
}

async function openClient(options, wire) {
  const none = (what) => (...args) => assert.fail(`${what}: ${JSON.stringify(args)}`);
  const callbacks = { conflict: none('conflict'), refused: none('refused'), erased: none('erased') };
  const failed = (error) => void (error instanceof assert.AssertionError && (broken = error));
  const client = await Client.open({ ...callbacks, failed, url: wire.url, ...options });
  clients.add(client);
  return client;
}

async function close(client) {
  clients.delete(client);
  await client.close();
}

async function tokenOf(user) {
  return (await promisify(execFile)(program, ['token', '--user', user], { env })).stdout.trim();
}

async function get(token, path) {
  for (;;) {
    const answer = await fetch(wires[1].url + path, { headers: { Authorization: `Bearer ${token}` } });
    if (answer.status !== 429) {
      assert.equal(answer.status, 200);
      return answer.json();
    }
    await new Promise((later) => setTimeout(later, 1000 * Number(answer.headers.get('Retry-After'))));
  }
}

async function historyOf(token) {
  const entries = await get(token, '/api/history?order=asc&limit=500');
  return entries.map(({ type, changes }) => [type, changes.title?.to].filter(Boolean).join(' '));
}

function shownOf(tasks) {
  return [...tasks].map(({ title, is_completed }) => [title, is_completed]).sort();
}

function sameVersions(a, b) {
  return a.map(({ version }) => version).join() === b.map(({ version }) => version).join();
}

function current(client) {
  return until('all is sent and synced', () => client.pending.length === 0 && client.state === 'current');
}

async function until(what, holds) {
  const deadline = Date.now() + 60_000;
  while (!holds()) {
    if (broken) throw broken;
    assert.ok(Date.now() < deadline, `not so after 60 s: ${what}`);
    await new Promise((later) => setTimeout(later, 10));
  }
}

function done(what) {
  checks++;
  console.log(`  ok  ${what}`);
}
