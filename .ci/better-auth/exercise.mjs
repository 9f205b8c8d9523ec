// Logs in at a Better Auth server and shows every credential that it gives to a taskledger beside it.
// BETTER_AUTH_URL, TASKLEDGER_URL and DATABASE_URL say where they are; RECORD names a file to keep the credentials in
// for go test, SEEN one for the texts that no log may have.

import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import pg from 'pg';

const { BETTER_AUTH_URL, TASKLEDGER_URL, DATABASE_URL } = process.env;
const { BETTER_AUTH_SECRET, BETTER_AUTH, KEY_ALG, RECORD, SEEN } = process.env;
const ORIGIN = 'http://localhost:3000';
const password = 'correct horse battery staple';
const run = Date.now().toString(36);
let checks = 0;

async function better(path, { body, cookies, method = body ? 'POST' : 'GET' } = {}) {
  const headers = { origin: ORIGIN };
  if (body) headers['content-type'] = 'application/json';
  if (cookies) headers.cookie = cookies;
  const answer = await fetch(BETTER_AUTH_URL + path, { method, headers, body: body && JSON.stringify(body) });
  assert.ok(answer.ok, `${path}: ${answer.status} ${await answer.clone().text()}`);
  return answer;
}

// cookiesOf returns the cookies of an answer as they were sent: percent-encoded.
function cookiesOf(answer) {
  const jar = {};
  for (const line of answer.headers.getSetCookie()) {
    const [pair] = line.split(';');
    const at = pair.indexOf('=');
    if (pair.length > at + 1) jar[pair.slice(0, at)] = pair.slice(at + 1);
  }
  return jar;
}

async function signUp(name, email) {
  const answer = await better('/api/auth/sign-up/email', { body: { name, email, password } });
  return { user: (await answer.json()).user, jar: cookiesOf(answer) };
}

async function tasks({ bearer, cookie, method = 'GET', origin, title } = {}) {
  const headers = {};
  if (bearer) headers.authorization = `Bearer ${bearer}`;
  if (cookie) headers.cookie = cookie;
  if (origin) headers.origin = origin;
  if (title) headers['content-type'] = 'application/json';
  const body = title && JSON.stringify({ title });
  return fetch(`${TASKLEDGER_URL}/api/tasks`, { method, headers, body });
}

// expectTasks holds that a credential is its user's: it shows the one task that the user made.
async function expectTasks(what, credential, title) {
  const answer = await tasks(credential);
  assert.equal(answer.status, 200, what);
  assert.deepEqual((await answer.json()).map((task) => task.title), [title], what);
  done(what);
}

async function expectStatus(what, credential, status, code) {
  const answer = await tasks(credential);
  assert.equal(answer.status, status, what);
  if (code) assert.equal((await answer.json()).code, code, what);
  done(what);
}

function done(what) {
  checks++;
  console.log(`  ok  ${what}`);
}

const SESSION = 'better-auth.session_token';
const CACHE = 'better-auth.session_data';
const cookie = (name, value) => `${name}=${value}`;
const header = (jar) => Object.entries(jar).map(([name, value]) => cookie(name, value)).join('; ');

const email = `ada-${run}@example.test`;
const { user } = await signUp('Ada', email);
const signedIn = await better('/api/auth/sign-in/email', { body: { email, password } });
const jar = cookiesOf(signedIn);
const encoded = jar[SESSION];
const decoded = decodeURIComponent(encoded);
const cache = jar[CACHE];
const title = `Buy milk ${run}`;

// A write by cookie, as the browser makes it through the frontend; then the same user by every other credential.
const write = { cookie: header(jar), method: 'POST', title };
const elsewhere = 'https://evil.test';
await expectStatus('a write by cookie without Origin: 403', write, 403, 'forbidden');
await expectStatus('a write by cookie from elsewhere: 403', { ...write, origin: elsewhere }, 403, 'forbidden');
await expectStatus('a write by cookie from the frontend: 201', { ...write, origin: ORIGIN }, 201);
await expectTasks('all cookies of the browser', { cookie: header(jar) }, title);
await expectTasks('session cookie, encoded', { cookie: cookie(SESSION, encoded) }, title);
await expectTasks('session cookie, decoded', { cookie: cookie(SESSION, decoded) }, title);
await expectTasks('secure session cookie', { cookie: cookie(`__Secure-${SESSION}`, encoded) }, title);
await expectTasks('session as bearer, decoded', { bearer: decoded }, title);
const given = signedIn.headers.get('set-auth-token');
await expectTasks('session as bearer, as set-auth-token gives it', { bearer: given }, title);
await expectTasks('cookie cache as cookie', { cookie: cookie(CACHE, cache) }, title);
await expectTasks('secure cookie cache', { cookie: cookie(`__Secure-${CACHE}`, cache) }, title);
await expectTasks('cookie cache as bearer', { bearer: cache }, title);
const { token } = await (await better('/api/auth/token', { cookies: header(jar) })).json();
await expectTasks(`${KEY_ALG} token by the JWKS`, { bearer: token }, title);

// What is no login.
await better('/api/auth/send-verification-email', { body: { email }, cookies: header(jar) });
const mailed = (await (await better('/test/mail')).json()).token;
assert.equal(mailed.split('.').length, 3);
await expectStatus('e-mail verification token: 401', { bearer: mailed }, 401, 'invalid_token');
await expectStatus('session without its signature: 401', { bearer: decoded.split('.')[0] }, 401, 'invalid_token');
const forged = cookie(SESSION, `${decoded.split('.')[0]}.${'A'.repeat(43)}=`);
await expectStatus('session cookie with a foreign signature: 401', { cookie: forged }, 401, 'invalid_token');
await expectStatus('a bad header beside good cookies: 401', { bearer: 'x', cookie: header(jar) }, 401, 'invalid_token');

// A user so large that Better Auth cuts the cookie cache into chunks. Nobody sees another's tasks.
const large = await signUp('G'.repeat(3000), `grace-${run}@example.test`);
const chunks = Object.fromEntries(Object.entries(large.jar).filter(([name]) => name.startsWith(`${CACHE}.`)));
assert.ok(Object.keys(chunks).length > 1, 'cookie cache was not cut into chunks');
const nobody = await tasks({ cookie: header(chunks) });
assert.deepEqual([nobody.status, await nobody.json()], [200, []]);
done(`cookie cache in ${Object.keys(chunks).length} chunks, of a user without tasks`);

if (RECORD) await record();

// Sign-out deletes the row. What verifies by itself stays valid until its own end.
await better('/api/auth/sign-out', { method: 'POST', body: {}, cookies: header(jar) });
const signedOut = Date.now();
while ((await tasks({ bearer: decoded })).status === 200) {
  assert.ok(Date.now() - signedOut < 5000, 'session alive 5 s after sign-out');
  await new Promise((resolve) => setTimeout(resolve, 100));
}
done(`sign-out: session refused after ${Date.now() - signedOut} ms`);
await expectStatus('signed-out session beside its cookie cache: 401', { cookie: header(jar) }, 401, 'invalid_token');
await expectTasks('cookie cache after sign-out', { cookie: cookie(CACHE, cache) }, title);
await expectTasks(`${KEY_ALG} token after sign-out`, { bearer: token }, title);

// Key rotation: the new key is followed at its first token, and takes the old one's place.
await better('/test/rotate', { method: 'POST' });
const again = cookiesOf(await better('/api/auth/sign-in/email', { body: { email, password } }));
const rotated = (await (await better('/api/auth/token', { cookies: header(again) })).json()).token;
await expectTasks('token of the new key', { bearer: rotated }, title);
await expectStatus('token of the key taken out: 401', { bearer: token }, 401, 'invalid_token');
await expectTasks('session after the rotation', { bearer: decodeURIComponent(again[SESSION]) }, title);

if (SEEN) {
  const secrets = [
    BETTER_AUTH_SECRET, decoded.split('.')[0], cache, ...Object.values(chunks), token, rotated, mailed, title,
  ];
  await writeFile(SEEN, `${secrets.join('\n')}\n`);
}
console.log(`${BETTER_AUTH} ${KEY_ALG}: ${checks} checks passed`);

// record keeps what was given out, for go test, which has no Node and no Better Auth.
async function record() {
  const database = new pg.Pool({ connectionString: DATABASE_URL });
  const rows = async (sql, args) => (await database.query(sql, args)).rows;
  const columns = (table) =>
    rows(
      `SELECT column_name AS name, data_type AS type FROM information_schema.columns
       WHERE table_name = $1 ORDER BY ordinal_position`,
      [table],
    );
  const sessionToken = decoded.split('.')[0];
  const fixture = {
    better_auth: BETTER_AUTH,
    now: new Date().toISOString(),
    secret: BETTER_AUTH_SECRET,
    base_url: BETTER_AUTH_URL,
    user_id: user.id,
    session_token: encoded,
    set_auth_token: signedIn.headers.get('set-auth-token'),
    session_data: cache,
    chunked_user_id: large.user.id,
    chunked_session_data: chunks,
    token,
    verification_token: mailed,
    jwks: await (await better('/api/auth/jwks')).json(),
    tables: {
      user: {
        columns: await columns('user'),
        rows: await rows('SELECT row_to_json(u) AS row FROM "user" u WHERE id = $1', [user.id]),
      },
      session: {
        columns: await columns('session'),
        rows: await rows('SELECT row_to_json(s) AS row FROM "session" s WHERE token = $1', [sessionToken]),
      },
    },
  };
  await database.end();
  await writeFile(RECORD, `${JSON.stringify(fixture, null, 2)}\n`);
}
