import { open, readFile, rename } from 'node:fs/promises';
import type { Storage } from './storage.js';

// fileStorage keeps the text in a file, for clients in Node.
export function fileStorage(path: string): Storage {
  return {
    async load() {
      try {
        return await readFile(path, 'utf8');
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
        throw error;
      }
    },
    async save(text) {
      const file = await open(`${path}.new`, 'w');
      try {
        await file.writeFile(text);
        await file.sync();
      } finally {
        await file.close();
      }
      await rename(`${path}.new`, path);
    },
  };
}
