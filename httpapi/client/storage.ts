// What a client keeps between two starts. One storage is one user's, and one client's at a time.
export interface Storage {
  get(key: string): Promise<string | null>;
  // When it resolves, the value is there also after a crash. It is the whole of it or what was there before, never a part.
  set(key: string, value: string): Promise<void>;
}

// memoryStorage forgets everything with the process.
export function memoryStorage(): Storage {
  const values = new Map<string, string>();
  return {
    get: async (key) => values.get(key) ?? null,
    set: async (key, value) => void values.set(key, value),
  };
}

// browserStorage is an IndexedDB of that name: localStorage has no room for 10,000 tasks.
export function browserStorage(name: string): Storage {
  const opened = new Promise<IDBDatabase>((resolve, reject) => {
    const opening = indexedDB.open(name, 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore('values');
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = () => reject(opening.error);
  });
  async function run<T>(mode: IDBTransactionMode, work: (values: IDBObjectStore) => IDBRequest<T>): Promise<T> {
    const transaction = (await opened).transaction('values', mode, { durability: 'strict' });
    const request = work(transaction.objectStore('values'));
    return new Promise<T>((resolve, reject) => {
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = () => reject(transaction.error);
    });
  }
  return {
    get: async (key) => (await run<string | undefined>('readonly', (values) => values.get(key))) ?? null,
    set: async (key, value) => void (await run('readwrite', (values) => values.put(value, key))),
  };
}
