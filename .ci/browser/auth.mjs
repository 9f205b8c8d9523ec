// The frontend's Better Auth, mounted at /api/auth.

import { betterAuth } from 'better-auth';
import { bearer, jwt } from 'better-auth/plugins';
import pg from 'pg';

const { FRONTEND_URL, DATABASE_URL, BETTER_AUTH_SECRET } = process.env;

const database = new pg.Pool({ connectionString: DATABASE_URL });

export const auth = betterAuth({
  baseURL: FRONTEND_URL,
  secret: BETTER_AUTH_SECRET,
  database,
  telemetry: { enabled: false },
  rateLimit: { enabled: false },
  emailAndPassword: { enabled: true },
  session: { cookieCache: { enabled: true, maxAge: 300, strategy: 'jwt' } },
  plugins: [jwt(), bearer()],
});
