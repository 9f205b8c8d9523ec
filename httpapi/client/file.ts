import { mkdir, open, readFile, rename } from 'node:fs/promises';
import { join } from 'node:path';
import type { Storage } from './storage.js';

// fileStorage keeps each value in a file of the folder, for clients in Node.
export function fileStorage(folder: string): Storage {
  return {
    async get(key) {
      try {
        return await readFile(join(folder, key), 'utf8');
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
        throw error;
      }
    },
    async set(key, value) {
      await mkdir(folder, { recursive: true });
      const path = join(folder, key);
      const file = await open(`${path}.new`, 'w');
      try {
        await file.writeFile(value);
        await file.sync();
      } finally {
        await file.close();
      }
      await rename(`${path}.new`, path);
    },
  };
}
