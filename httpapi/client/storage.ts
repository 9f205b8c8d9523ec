// What a client keeps between two starts. A storage is of one user, and of one client at a time.
export interface Storage {
  load(): Promise<string | null>;
  // When it resolves, the text is there also after a crash. What is there is always one text that was saved, whole.
  save(text: string): Promise<void>;
}

// memoryStorage forgets everything with the process.
export function memoryStorage(): Storage {
  let kept: string | null = null;
  return { load: async () => kept, save: async (text) => void (kept = text) };
}

// browserStorage is an IndexedDB of that name: localStorage has no room for 10,000 tasks.
export function browserStorage(name: string): Storage {
  const opened = new Promise<IDBDatabase>((resolve, reject) => {
    const opening = indexedDB.open(name, 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore('kept');
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = () => reject(opening.error);
  });
  async function run<T>(mode: IDBTransactionMode, work: (kept: IDBObjectStore) => IDBRequest<T>): Promise<T> {
    const transaction = (await opened).transaction('kept', mode, { durability: 'strict' });
    const request = work(transaction.objectStore('kept'));
    return new Promise<T>((resolve, reject) => {
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = () => reject(transaction.error);
    });
  }
  return {
    load: async () => (await run<string | undefined>('readonly', (kept) => kept.get('text'))) ?? null,
    save: async (text) => void (await run('readwrite', (kept) => kept.put(text, 'text'))),
  };
}
