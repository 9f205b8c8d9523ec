// Makes the tables of the frontend's Better Auth.

import { getMigrations } from 'better-auth/db/migration';
import { auth } from './auth.mjs';

const { runMigrations } = await getMigrations(auth.options);
await runMigrations();
await auth.options.database.end();
