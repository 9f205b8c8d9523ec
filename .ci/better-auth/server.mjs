// A Better Auth server on a free port of the loopback, configured like the frontend's, with two doors for the test:
// POST /test/rotate takes the signing keys away, GET /test/mail shows the last verification token that was mailed.
// Prints its URL when it listens.

import { createServer } from 'node:http';
import pg from 'pg';

const { BETTER_AUTH = 'better-auth-1.7', KEY_ALG = 'EdDSA', DATABASE_URL, BETTER_AUTH_SECRET } = process.env;
const { betterAuth } = await import(BETTER_AUTH);
const { jwt, bearer } = await import(`${BETTER_AUTH}/plugins`);
const { toNodeHandler } = await import(`${BETTER_AUTH}/node`);

const database = new pg.Pool({ connectionString: DATABASE_URL });
const mail = { token: null };
const server = createServer();
await new Promise((listening) => server.listen(0, '127.0.0.1', listening));
const baseURL = `http://127.0.0.1:${server.address().port}`;

const auth = betterAuth({
  baseURL,
  secret: BETTER_AUTH_SECRET,
  database,
  trustedOrigins: ['http://localhost:3000'],
  telemetry: { enabled: false },
  rateLimit: { enabled: false },
  emailAndPassword: { enabled: true },
  emailVerification: { sendVerificationEmail: async ({ token }) => void (mail.token = token) },
  session: { cookieCache: { enabled: true, maxAge: 300, strategy: 'jwt' } },
  plugins: [jwt({ jwks: { keyPairConfig: { alg: KEY_ALG } } }), bearer()],
});

const { runMigrations } = await (await migrations())(auth.options);
await runMigrations();
await rotate();

const betterAuthHandler = toNodeHandler(auth);
server.on('request', (request, response) => {
  testDoor(request.url)
    .then((body) => (body ? response.end(JSON.stringify(body)) : betterAuthHandler(request, response)))
    .catch((error) => response.writeHead(500).end(String(error)));
});
console.log(baseURL);

async function testDoor(url) {
  if (url === '/test/rotate') return rotate();
  if (url === '/test/mail') return mail;
  return null;
}

// rotate leaves no key: the next token, or the next look at the set, makes one.
async function rotate() {
  const { rowCount } = await database.query('DELETE FROM jwks');
  return { removed: rowCount };
}

// migrations finds the function under the path that the version has it.
async function migrations() {
  const db = await import(`${BETTER_AUTH}/db`);
  return db.getMigrations ?? (await import(`${BETTER_AUTH}/db/migration`)).getMigrations;
}
