// Drives the frontend in Chromium, in front of a taskledger, and pages of other origins that call taskledger
// themselves. The environment says where all of them are (see run); SCREENSHOT names a file for a picture of the
// rendered page, SEEN one for the texts that no log may have.

import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readFile, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { chromium } from 'playwright-core';
import { liveChanges, openProxy, theClient } from './streams.mjs';
import { openWire } from './wire.mjs';

const { CHROMIUM, FRONTEND_URL, TASKLEDGER_URL, TASKLEDGER_DIRECT_URL, TASKLEDGER_LOG, SCREENSHOT, SEEN } = process.env;
const { LISTED_ORIGIN, UNLISTED_ORIGIN, FOREIGN_ORIGIN } = process.env;
const SESSION = 'better-auth.session_token';
const EXPOSED = [
  ...['allow', 'etag', 'idempotency-replayed', 'link', 'location', 'ratelimit', 'ratelimit-policy'],
  ...['retry-after', 'www-authenticate', 'x-request-id', 'x-stale', 'x-version'],
];
const ACCEPTED = ['Authorization', 'Content-Type', 'Idempotency-Key', 'If-Match', 'If-None-Match', 'Last-Event-ID',
  'X-Request-Id', 'Cache-Control', 'X-Requested-With', 'traceparent', 'tracestate', 'baggage', 'sentry-trace'];
const run = Date.now().toString(36);
const email = `ada-${run}@example.test`;
const password = 'correct horse battery staple';
const titles = ['bread', 'milk', 'honey', 'salt', 'foreign', 'pepper'].map((what) => `Buy ${what} ${run}`);
const [bread, milk, honey, salt, foreign, pepper] = titles;
const JSON_TYPE = { 'Content-Type': 'application/json' };
let checks = 0;

const wire = await openWire(portOf(TASKLEDGER_URL), TASKLEDGER_DIRECT_URL);
const proxy = await openProxy(portOf(LISTED_ORIGIN), TASKLEDGER_DIRECT_URL);
const pages = [UNLISTED_ORIGIN, FOREIGN_ORIGIN].map(servePage);
const launch = {
  executablePath: CHROMIUM,
  args: [
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE localhost , EXCLUDE 127.0.0.1',
  ],
};
const browser = await chromium.launch(launch);
try {
  const context = await browser.newContext();
  context.setDefaultTimeout(15_000);
  const page = await context.newPage();
  await throughTheProxy(page);
  const session = decodeURIComponent((await context.cookies()).find(({ name }) => name === SESSION).value);
  await onTheServer(page, session);
  await fromAListedOrigin(context, session);
  await fromAnUnlistedOrigin(context, session);
  await fromAnotherSite(session);
  const live = { context, proxy, origin: LISTED_ORIGIN, direct: TASKLEDGER_DIRECT_URL, session, title: pepper, done };
  await liveChanges({ ...live, frontend: FRONTEND_URL });
  await theClient(live);
  await signedOut(page);
  if (SEEN) await writeFile(SEEN, `${[session.split('.')[0], session.split('.')[1], ...titles].join('\n')}\n`);
  console.log(`Chromium ${browser.version()}: ${checks} checks passed`);
} finally {
  await browser.close();
  wire.close();
  proxy.close();
  pages.forEach((server) => server.close());
}

// throughTheProxy signs up and in at Better Auth in the page, and works with the cookie alone, through the rewrite.
async function throughTheProxy(page) {
  console.log('the browser, through the proxy of its own origin');
  await page.goto(`${FRONTEND_URL}/board`);
  await page.getByLabel('E-mail').fill(email);
  await page.getByLabel('Password').fill(password);
  await press(page, 'Sign up');
  await page.context().clearCookies();
  wire.seen.length = 0;
  await press(page, 'Sign in');
  assert.deepEqual(await shown(page), []);
  done('sign up, sign in, an empty list');

  for (const title of [bread, milk]) {
    await page.getByLabel('Title').fill(title);
    await press(page, 'Add');
  }
  assert.deepEqual(await shown(page), [milk, bread]);
  done('created, newest first');
  await press(page, 'Complete', milk);
  assert.equal(await row(page, milk).getByRole('button', { name: 'Reopen' }).count(), 1);
  done('completed by PUT {"is_completed":true}');
  await press(page, 'Delete', milk);
  assert.deepEqual(await shown(page), [bread]);
  done('deleted');
  await page.getByLabel('Title').fill('   ');
  await page.getByRole('button', { name: 'Add' }).click();
  await status(page, /^422 title: /);
  done('an error shows its message');

  const list = wire.seen.filter(({ method }) => method === 'GET');
  const writes = wire.seen.filter(({ method }) => method !== 'GET');
  assert.deepEqual(writes.map(({ method }) => method), ['POST', 'POST', 'PUT', 'DELETE', 'POST']);
  assert.ok(list.length >= 5);
  for (const { headers } of wire.seen) {
    assert.ok(headers.cookie.includes(`${SESSION}=`));
    assert.equal(headers.authorization, undefined);
    assert.equal(headers['x-forwarded-for'], undefined);
    assert.equal(headers['sec-fetch-site'], 'same-origin');
    assert.equal(headers.host, new URL(TASKLEDGER_URL).host);
  }
  for (const { headers } of writes) assert.equal(headers.origin, FRONTEND_URL);
  assert.equal(new Set(wire.seen.map(({ connection }) => connection)).size, wire.seen.length);
  done(`${wire.seen.length} requests on as many connections, by cookie, of Sec-Fetch-Site same-origin, ` +
    'without X-Forwarded-For');
}

// onTheServer lets the frontend's server work with the session as bearer.
async function onTheServer(page, session) {
  console.log('server components, with the session as bearer');
  wire.seen.length = 0;
  assert.equal((await page.goto(FRONTEND_URL)).status(), 200);
  assert.deepEqual(await shown(page), [bread]);
  done('list rendered');
  await page.getByLabel('Title').fill(honey);
  await page.getByRole('button', { name: 'Add' }).click();
  await row(page, honey).waitFor();
  assert.deepEqual(await shown(page), [honey, bread]);
  done('created');
  await row(page, honey).getByRole('button', { name: 'Complete' }).click();
  await row(page, honey).getByRole('button', { name: 'Reopen' }).waitFor();
  done('completed');
  if (SCREENSHOT) await page.screenshot({ path: SCREENSHOT });
  await row(page, honey).getByRole('button', { name: 'Delete' }).click();
  await row(page, honey).waitFor({ state: 'detached' });
  assert.deepEqual(await shown(page), [bread]);
  done('deleted');

  assert.deepEqual(
    wire.seen.filter(({ method }) => method !== 'GET').map(({ method, body }) => [method, body]),
    [['POST', JSON.stringify({ title: honey, description: '' })], ['PUT', '{"is_completed":true}'], ['DELETE', '']],
  );
  for (const { headers } of wire.seen) {
    assert.equal(headers.authorization, `Bearer ${session}`);
    assert.equal(headers['content-type'], 'application/json');
    assert.equal(headers.cookie, undefined);
  }
  done(`${wire.seen.length} requests with the decoded session, DELETE with a JSON content type and no body`);

  const task = { id: '1', title: 'x', is_completed: false };
  for (const broken of ['null', JSON.stringify({ tasks: [] }), JSON.stringify([task])]) {
    wire.instead = broken;
    assert.equal((await page.goto(FRONTEND_URL)).status(), 500, broken);
  }
  wire.instead = null;
  assert.equal((await page.goto(FRONTEND_URL)).status(), 200);
  done('the page does crash when the list is null, wrapped or without created_at');
}

// fromAListedOrigin calls taskledger from a page that CORS_ORIGINS names. The cookie is the host's, whatever the port.
async function fromAListedOrigin(context, session) {
  console.log('a page of a listed origin, without a proxy');
  const page = await context.newPage();
  const preflights = await watchPreflights(page);
  await page.goto(LISTED_ORIGIN);
  const call = caller(page);

  const body = JSON.stringify({ title: salt });
  const creation = { method: 'POST', headers: { ...JSON_TYPE, 'Idempotency-Key': run }, body };
  const created = await call('', creation);
  assert.equal(created.status, 201);
  const again = await call('', creation);
  assert.deepEqual([again.status, again.body, again.headers['idempotency-replayed']], [201, created.body, 'true']);
  const { id } = JSON.parse(created.body);
  assert.equal(created.headers.location, `/api/tasks/${id}`);
  assert.match(created.headers.etag, /^"\d+"$/);
  done('POST: 201, Location, ETag and Idempotency-Replayed readable');
  const list = await call(`?limit=1&min_version=${created.headers.etag.slice(1, -1)}`);
  assert.match(list.headers.etag, /^W\/"/);
  assert.match(list.headers['x-version'], /^\d+$/);
  assert.match(list.headers.link, /rel="next"$/);
  assert.match(list.headers['x-request-id'], /./);
  assert.match(list.headers.ratelimit, /r=\d+/);
  assert.match(list.headers['ratelimit-policy'], /q=\d+/);
  done('GET: weak ETag, X-Version, Link, X-Request-Id, RateLimit and RateLimit-Policy readable');

  const onFirst = { ...JSON_TYPE, 'If-Match': created.headers.etag };
  const put = await call(`/${id}`, { method: 'PUT', headers: onFirst, body: '{"is_completed":true}' });
  assert.equal(put.status, 200);
  const stale = await call(`/${id}`, { method: 'PUT', headers: onFirst, body: '{"is_completed":false}' });
  assert.equal(stale.status, 412);
  assert.equal(stale.headers.etag, put.headers.etag);
  assert.equal(JSON.parse(stale.body).code, 'precondition_failed');
  done('PUT with If-Match: 200, then 412 with the current ETag');
  const [other] = JSON.parse((await call('?sort=created_at&order=asc')).body);
  assert.equal((await call(`/${other.id}`, { method: 'DELETE', headers: JSON_TYPE })).status, 204);
  assert.deepEqual(await titlesOf(session), [salt]);
  const answered = new Set(preflights.map(({ asked, status }) => `${asked} ${status}`));
  assert.deepEqual(answered, new Set(['POST 204', 'PUT 204', 'DELETE 204']));
  done('DELETE: 204; preflights of POST, PUT and DELETE: 204');

  const refused = await call('', { method: 'POST', headers: JSON_TYPE, body: '{"title":""}' });
  assert.equal(refused.status, 422);
  assert.equal(JSON.parse(refused.body).errors[0].pointer, '/title');
  const absent = await call(`/${other.id}`);
  assert.deepEqual([absent.status, JSON.parse(absent.body).code], [404, 'not_found']);
  const method = await call('', { method: 'PATCH', headers: JSON_TYPE, body: '{}' });
  assert.equal(method.status, 405);
  assert.match(method.headers.allow, /GET/);
  const unknown = await call('', { headers: { Authorization: 'Bearer x' } });
  assert.equal(unknown.status, 401);
  assert.match(unknown.headers['www-authenticate'], /invalid_token/);
  done('422, 404, 405 with Allow and 401 with WWW-Authenticate readable');
  const limited = await page.evaluate(async (url) => {
    const answers = await Promise.all(Array.from({ length: 200 }, () => fetch(url, { credentials: 'include' })));
    const answer = answers.find(({ status }) => status === 429);
    return answer && { code: (await answer.json()).code, after: answer.headers.get('Retry-After') };
  }, api('?limit=1'));
  assert.equal(limited?.code, 'rate_limited');
  assert.match(limited.after, /^\d+$/);
  done('429 with Retry-After readable');
  await refilled(session);

  for (const name of ACCEPTED) {
    const values = { 'Content-Type': 'application/merge-patch+json', Authorization: `Bearer ${session}` };
    const value = values[name] ?? '"x"';
    const answer = await call(`?with=${name}`, { headers: { [name]: value } });
    assert.equal(answer.status, 200, name);
  }
  assert.ok((await call('?with=other', { headers: { 'X-Other': 'x' } })).blocked);
  done(`scripts may send ${ACCEPTED.join(', ')}, and no other header`);
  const answer = await fetch(api(''), { headers: { Authorization: `Bearer ${session}`, Origin: LISTED_ORIGIN } });
  const exposed = new Set(answer.headers.get('access-control-expose-headers').toLowerCase().split(/, ?/));
  assert.deepEqual(EXPOSED.filter((name) => !exposed.has(name)), []);
  done(`exposed: ${EXPOSED.join(', ')}`);
  await page.close();
}

// fromAnUnlistedOrigin makes the same calls from another port of the same host: the cookie goes with them.
async function fromAnUnlistedOrigin(context, session) {
  console.log('a page of an origin that is not listed');
  const page = await context.newPage();
  await page.goto(UNLISTED_ORIGIN);
  const call = caller(page);
  const before = await tasksOf(session);
  const served = await writesServed();
  assert.ok((await call('')).blocked);
  done('GET: blocked by the browser');
  const writes = [
    ['', { method: 'POST', headers: JSON_TYPE, body: JSON.stringify({ title: foreign }) }],
    [`/${before[0].id}`, { method: 'PUT', headers: JSON_TYPE, body: '{"is_completed":false}' }],
    [`/${before[0].id}`, { method: 'DELETE', headers: JSON_TYPE }],
    [`/${before[0].id}`, { method: 'DELETE' }],
  ];
  for (const [path, init] of writes) assert.ok((await call(path, init)).blocked, init.method);
  assert.deepEqual(await tasksOf(session), before);
  assert.equal(await writesServed(), served);
  done('POST, PUT and DELETE: blocked at the preflight, taskledger never saw them');
  // To a browser another port is no other site, so it asks nobody and sends the cookie.
  for (const type of ['', 'text/plain']) assert.equal((await postWithoutPreflight(page, type)).status(), 403, type);
  assert.deepEqual(await tasksOf(session), before);
  done('POST without a preflight, Sec-Fetch-Site same-site: 403');
  await page.close();
}

// fromAnotherSite has a page of another site, and a session cookie that the browser sends along even there, as
// frontends whose cookies are SameSite=None have it. Its writes need no preflight.
async function fromAnotherSite(session) {
  console.log('a page of another site, with a cookie for all sites');
  const context = await chromium.launchPersistentContext(await profileWithForeignCookies(), launch);
  await context.addCookies([
    {
      name: SESSION, value: encodeURIComponent(session), domain: 'localhost', path: '/',
      httpOnly: true, secure: true, sameSite: 'None',
    },
  ]);
  const page = await context.newPage();
  await page.goto(FOREIGN_ORIGIN);
  const before = await tasksOf(session);
  assert.ok((await caller(page)('')).blocked);
  // Without the cookie it were 401.
  for (const type of ['', 'text/plain']) assert.equal((await postWithoutPreflight(page, type)).status(), 403, type);
  done('POST without a preflight, the cookie sent: 403');
  const [form] = await Promise.all([
    page.waitForResponse((response) => response.url() === api('')),
    page.evaluate((url) => {
      document.body.innerHTML = `<form method="post" enctype="text/plain" action="${url}"><input name="x"></form>`;
      document.forms[0].submit();
    }, api('')),
  ]);
  assert.equal(form.status(), 403);
  done('a form: 403');
  assert.deepEqual(await tasksOf(session), before);
  done('nothing changed');
  await context.close();
}

async function signedOut(page) {
  console.log('signed out');
  await page.goto(`${FRONTEND_URL}/board`);
  await page.getByRole('button', { name: 'Sign out' }).click();
  await status(page, /^401 ./);
  done('the browser is told 401, and shows it');
  await page.goto(FRONTEND_URL);
  await page.getByText('Signed out').waitFor();
  done('the server renders it');
}

// press clicks a button of the board, of a task or of its own, and waits until it is done.
async function press(page, name, title) {
  const place = title ? row(page, title) : page;
  await place.getByRole('button', { name }).click();
  await status(page, 'done');
}

async function status(page, text) {
  await page.getByRole('status').filter({ hasText: text }).waitFor();
}

function row(page, title) {
  return page.getByRole('listitem').filter({ hasText: title });
}

function shown(page) {
  return page.locator('li span').allTextContents();
}

// caller calls the API from the page's own script, with credentials, and tells what the script can read.
function caller(page) {
  return (path, init = {}) =>
    page.evaluate(
      async ([url, init]) => {
        try {
          const answer = await fetch(url, { credentials: 'include', ...init });
          return { status: answer.status, headers: Object.fromEntries(answer.headers), body: await answer.text() };
        } catch (error) {
          return { blocked: error.message };
        }
      },
      [api(path), init],
    );
}

// postWithoutPreflight creates a task as a hostile page would: in a way that the browser does not ask about first. The
// page cannot read the answer; the browser's debugger can.
async function postWithoutPreflight(page, type) {
  const send = ([url, body, type]) =>
    fetch(url, { method: 'POST', mode: 'no-cors', credentials: 'include', body: new Blob([body], { type }) });
  const [answer] = await Promise.all([
    page.waitForResponse((response) => response.url() === api('')),
    page.evaluate(send, [api(''), JSON.stringify({ title: foreign }), type]),
  ]);
  return answer;
}

// profileWithForeignCookies makes a browser profile that lets pages send cookies to other sites.
async function profileWithForeignCookies() {
  const profile = await mkdtemp(`${tmpdir()}/profile-`);
  await mkdir(`${profile}/Default`);
  await writeFile(`${profile}/Default/Preferences`, JSON.stringify({ profile: { cookie_controls_mode: 0 } }));
  return profile;
}

// watchPreflights keeps the preflights that the page's requests cause. Only the browser's debugger sees them.
async function watchPreflights(page) {
  const debug = await page.context().newCDPSession(page);
  const preflights = [];
  await debug.send('Network.enable');
  debug.on('Network.requestWillBeSent', ({ requestId, request }) => {
    if (request.method !== 'OPTIONS') return;
    preflights.push({ requestId, asked: request.headers['Access-Control-Request-Method'] });
  });
  debug.on('Network.responseReceived', ({ requestId, response }) => {
    const preflight = preflights.find((one) => one.requestId === requestId);
    if (preflight) preflight.status = response.status;
  });
  return preflights;
}

// tasksOf asks taskledger without a browser.
async function tasksOf(session) {
  const answer = await fetch(api(''), { headers: { Authorization: `Bearer ${session}` } });
  assert.equal(answer.status, 200);
  return answer.json();
}

async function titlesOf(session) {
  return (await tasksOf(session)).map(({ title }) => title);
}

// refilled waits until the user may make requests again.
async function refilled(session) {
  const deadline = Date.now() + 10_000;
  for (;;) {
    const answer = await fetch(api('?limit=1'), { headers: { Authorization: `Bearer ${session}` } });
    const left = Number(/r=(\d+)/.exec(answer.headers.get('ratelimit'))?.[1]);
    if (answer.status === 200 && left > 50) return;
    assert.ok(Date.now() < deadline, 'rate limit not refilled');
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}

// writesServed counts the writes that taskledger says it has answered.
async function writesServed() {
  return (await readFile(TASKLEDGER_LOG, 'utf8')).match(/msg=request method=(POST|PUT|DELETE) /g).length;
}

function servePage(origin) {
  const server = createServer((_, answer) =>
    answer.setHeader('Content-Type', 'text/html').end('<!doctype html><title>page</title>'));
  return server.listen(portOf(origin), '127.0.0.1');
}

function api(path) {
  return `${TASKLEDGER_DIRECT_URL}/api/tasks${path}`;
}

function portOf(url) {
  return Number(new URL(url).port);
}

function done(what) {
  checks++;
  console.log(`  ok  ${what}`);
}
