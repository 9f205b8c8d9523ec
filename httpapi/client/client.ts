// A client of taskledger without dependencies that works offline. It keeps a copy of the tasks, which GET /api/sync
// brings up to date and GET /api/events keeps fresh. What the user does is kept as a command in a queue and shown at
// once; commands are sent in order, one at a time, each with an Idempotency-Key, until the server has answered: so
// nothing is lost and nothing done twice, whichever side is cut off or started again in between. Every change of a
// task carries the version that the user saw (If-Match); where somebody else was first, the user is asked.

import type { components, paths } from './schema.js';
import { memoryStorage, type Storage } from './storage.js';
import { eventNames, readEvents, type StreamEvent } from './stream.js';

export { browserStorage, memoryStorage, type Storage } from './storage.js';
export { eventNames, readEvents, type StreamEvent } from './stream.js';

type Schemas = components['schemas'];
export type Task = Schemas['Task'];
export type NewTask = Pick<Schemas['NewTask'], 'title'> & Partial<Schemas['NewTask']>;
export type TaskChange = Schemas['TaskChange'];
export type Problem = Schemas['Problem'];

type Method = 'get' | 'put' | 'post' | 'delete' | 'patch';
type Route = {
  [P in keyof paths]: { [M in Method]: paths[P][M] extends undefined ? never : readonly [M, P] }[Method];
}[keyof paths];

const commandRoutes = {
  create: ['post', '/api/tasks'],
  update: ['patch', '/api/tasks/{id}'],
  complete: ['put', '/api/tasks/{id}/complete'],
  reopen: ['delete', '/api/tasks/{id}/complete'],
  delete: ['delete', '/api/tasks/{id}'],
  restore: ['post', '/api/tasks/{id}/restore'],
} as const satisfies Record<string, Route>;

// What the user did and the server has not answered yet.
export interface Command {
  readonly key: string; // its Idempotency-Key
  readonly op: keyof typeof commandRoutes;
  readonly id: string; // of the task; until the server has made a new task's, one of ours
  readonly base: number | null; // the version of the task that the user saw; null where there is none yet
  readonly data?: TaskChange;
  readonly at: string; // when it was given
}

// What a client keeps: the copy of the tasks, the seq that it reflects, and the queue.
interface Kept {
  version: number;
  tasks: Map<string, Task>;
  queue: readonly Command[];
}

// Mine is the task as the user has it, with all that is queued; theirs as it is on the server. null: deleted.
export interface Conflict {
  readonly command: Command;
  readonly mine: Task | null;
  readonly theirs: Task | null;
}

export interface Options {
  url: string; // of the server, without /api; the page's own origin is ''
  // Gives the bearer token of each request; refused is the one that the server did not take, to get another for.
  // Without token, the browser's cookie says who is calling.
  token?: (refused?: string) => string | Promise<string>;
  storage?: Storage; // of this user alone; in memory when absent
  // Asks the user which one is to stand: theirs drops the command, mine does it on top of theirs, or to the task
  // restored.
  conflict: (conflict: Conflict) => 'mine' | 'theirs' | Promise<'mine' | 'theirs'>;
  // Tells of commands that were taken out of the queue because the server will never take them.
  refused: (commands: readonly Command[], problem: Problem) => void;
  // Tells that the user was erased, the copy emptied, and these commands not sent: they belong to the life before.
  erased: (commands: readonly Command[]) => void;
  changed?: () => void; // tasks, pending or state may have changed
  failed?: (error: unknown) => void; // what went wrong, each time before it is tried again
}

// busy: has something to send or to learn. signed out: the credentials are refused; wake tries again.
export type State = 'busy' | 'current' | 'offline' | 'signed out';

const requestTimeout = 20_000;
const shortestPause = 500;
const longestPause = 30_000;
const streamPause = 3_000; // as the server's retry

export class Client {
  #options: Options;
  #storage: Storage;
  #kept: Kept = { version: 0, tasks: new Map(), queue: [] };
  #head = 0; // the last seq that the stream told of
  #behind = true; // the copy must be synced before events may be applied to it
  #unanswered = false; // the first command, if there is one, was sent and may have been carried out
  #unsaved = false; // events have changed the copy since it was stored
  #ids = new Map<string, string>(); // of created tasks, by the id that we had given them
  #saving: Promise<unknown> = Promise.resolve();
  #state: State = 'offline';
  #stop = new AbortController();
  #work = new Bell(); // there may be something to do
  #retry = new Bell(); // waiting may have an end
  #reopen = new Bell(); // the same for the stream
  #running: Promise<unknown> = Promise.resolve();
  #listening: Promise<void> | undefined;

  private constructor(options: Options) {
    this.#options = options;
    this.#storage = options.storage ?? memoryStorage();
  }

  // open shows what the storage has, and starts to send and to sync.
  static async open(options: Options): Promise<Client> {
    const client = new Client(options);
    const text = await client.#storage.load();
    if (text !== null) {
      const kept = JSON.parse(text);
      client.#kept = { ...kept, tasks: new Map(kept.tasks) };
      client.#unanswered = true; // who knows
    }
    client.#running = client.#run();
    globalThis.addEventListener?.('online', client.wake);
    return client;
  }

  // close stops; what is queued waits in the storage.
  async close(): Promise<void> {
    globalThis.removeEventListener?.('online', this.wake);
    this.#stop.abort();
    this.wake();
    await Promise.all([this.#running, this.#listening, this.#saving]);
  }

  // wake tries again now: the network is back, or the user has signed in.
  wake = (): void => {
    for (const bell of [this.#work, this.#retry, this.#reopen]) bell.ring();
  };

  get state(): State {
    return this.#state;
  }

  // pending are the commands that the server has not answered, in order.
  get pending(): readonly Command[] {
    return this.#kept.queue;
  }

  // tasks are those of the copy with what is pending on top, newest first.
  get tasks(): Task[] {
    const tasks = new Map(this.#kept.tasks);
    for (const { op, id, data, at } of this.#kept.queue) {
      const task = tasks.get(id);
      const times = { created_at: task?.created_at ?? at, updated_at: at };
      if (op === 'delete') tasks.delete(id);
      else if (op === 'create') {
        const empty = { id, user_id: '', title: '', description: null, is_completed: false, version: 0 };
        tasks.set(id, { ...empty, ...data, ...times });
      } else if (task && op === 'update') tasks.set(id, { ...task, ...data, ...times });
      else if (task && op !== 'restore') tasks.set(id, { ...task, is_completed: op === 'complete', ...times });
    }
    return [...tasks.values()].sort((a, b) => compare(b.created_at, a.created_at) || compare(b.id, a.id));
  }

  // The commands resolve when the storage has them. A created task has an id of ours until the server has made it; the
  // commands take either. A restored task, which the copy does not have, is shown when the server has answered.
  async create(task: NewTask): Promise<string> {
    const id = crypto.randomUUID();
    await this.#enqueue('create', id, task);
    return id;
  }

  update = (id: string, change: TaskChange): Promise<void> => this.#enqueue('update', id, change);
  complete = (id: string): Promise<void> => this.#enqueue('complete', id);
  reopen = (id: string): Promise<void> => this.#enqueue('reopen', id);
  delete = (id: string): Promise<void> => this.#enqueue('delete', id);
  restore = (id: string): Promise<void> => this.#enqueue('restore', id);

  async #enqueue(op: Command['op'], given: string, data?: TaskChange): Promise<void> {
    await this.#change(({ queue, tasks }) => {
      const id = this.#ids.get(given) ?? given;
      return { queue: [...queue, command(op, id, tasks.get(id)?.version ?? null, data)] };
    });
    this.#work.ring();
  }

  // #change changes what is kept, first where it is stored: what is not stored is not sent and not shown. One change
  // is made after the other. Events change the copy in between, but not while it is behind, as it is while this
  // changes it.
  #change(next: (kept: Kept) => Partial<Kept>): Promise<void> {
    const changed = this.#saving.then(async () => {
      const change = next(this.#kept);
      this.#unsaved = false;
      const kept = { ...this.#kept, ...change };
      await this.#storage.save(JSON.stringify({ ...kept, tasks: [...kept.tasks] }));
      Object.assign(this.#kept, change);
      this.#options.changed?.();
    });
    this.#saving = changed.catch(() => {});
    return changed;
  }

  #enter(state: State): void {
    if (this.#state === 'signed out') this.#reopen.ring();
    this.#state = state;
    this.#options.changed?.();
  }

  // #run syncs and sends until close. The copy is synced before the queue is sent, so that an erasure is known, and
  // after it, so that no event that was on its way can undo in the copy what was answered. While it is in doubt whether
  // the first command was carried out, nothing else is taken from the server: a task that it made would be shown twice.
  async #run(): Promise<void> {
    for (let failures = 0; !this.#stop.signal.aborted; ) {
      try {
        if (this.#behind) {
          if (this.#state === 'current') this.#enter('busy');
          await this.#sync();
          this.#listening ??= this.#listen();
        } else if (this.pending[0]) {
          this.#behind = true;
          this.#enter('busy');
          for (; this.pending[0] && !this.#stop.signal.aborted; failures = 0) {
            this.#unanswered = true;
            await this.#send(this.pending[0]);
            this.#unanswered = false;
          }
        } else if (this.#unsaved) {
          await this.#change(() => ({}));
        } else {
          failures = 0;
          this.#enter('current');
          await this.#work.wait();
        }
      } catch (error) {
        this.#behind = true;
        await this.#pause(error, failures++);
      }
    }
  }

  get #inDoubt(): boolean {
    return this.#unanswered && this.pending.length > 0;
  }

  // #pause waits until it makes sense to try again. What the server said about that holds, whoever rings.
  async #pause(error: unknown, failures: number): Promise<void> {
    const { signal } = this.#stop;
    if (signal.aborted) return;
    this.#options.failed?.(error);
    this.#enter(error instanceof SignedOut ? 'signed out' : 'offline');
    if (error instanceof SignedOut) return this.#retry.wait();
    const backoff = Math.min(shortestPause * 2 ** failures, longestPause) * (0.5 + Math.random() / 2);
    if (!(error instanceof TryLater) || error.seconds === null) return this.#retry.wait(backoff);
    const end = Date.now() + error.seconds * 1000;
    while (Date.now() < end && !signal.aborted) await this.#retry.wait(end - Date.now());
  }

  async #sync(): Promise<void> {
    let since = this.#kept.version;
    let erased = false;
    let stale = false;
    let anew = false; // of the copy nothing is left
    const tasks = new Map(since > 0 ? this.#kept.tasks : []);
    for (let more = true; more; ) {
      const response = await this.#call(['get', '/api/sync'], { query: `?since=${since}&limit=500` });
      if (response.status === 422 && since > 0) { // a database that was set back: it has not come that far
        since = this.#head = 0;
        tasks.clear();
        anew = true;
        continue;
      }
      const page: Schemas['SyncPage'] = await answer(response);
      if (page.reset) tasks.clear();
      erased ||= page.reset === true;
      for (const change of page.changes) {
        const id = change.op === 'delete' ? change.id : change.task.id;
        if (change.op === 'delete') tasks.delete(id);
        else if ((tasks.get(id)?.version ?? 0) <= change.task.version) tasks.set(id, change.task);
      }
      [since, more, stale] = [page.version, page.has_more, response.headers.get('X-Stale') === 'true'];
    }
    let dropped: readonly Command[] = [];
    if (!this.#inDoubt || anew || erased) {
      await this.#change(({ queue }) => {
        if (erased) dropped = queue;
        return { tasks, version: since, ...(erased && { queue: [] }) };
      });
    }
    if (erased) this.#options.erased(dropped);
    if (stale) throw new TryLater(null);
    this.#behind = since < this.#head;
  }

  // #send sends the first command and takes note of the answer.
  async #send(first: Command): Promise<void> {
    const { op, id, base, data, key } = first;
    const headers: Record<string, string> = { 'Idempotency-Key': key };
    if (base !== null) headers['If-Match'] = `"${base}"`;
    const response = await this.#call(commandRoutes[op], { id, headers, ...(data && { body: data }) });
    const { status } = response;
    if (status === 412 || (status === 404 && op !== 'delete' && op !== 'restore')) return this.#ask(first);
    const settled = (status === 404 && op === 'delete') || (status === 409 && op === 'restore'); // as it was to be
    if (!response.ok && !settled) return this.#refuse(first, (await response.json()) as Problem);
    const task: Task | null = settled || status === 204 ? null : await answer(response);
    const version = task?.version ?? Number(response.headers.get('X-Version'));
    await this.#change(({ queue: [, ...rest], tasks, version: synced }) => {
      if (task) this.#ids.set(id, task.id);
      const copy = new Map(tasks);
      const news = version > synced; // an answer that is given again is of then, and the copy may be of later
      if (task && news) copy.set(task.id, task);
      if (op === 'delete' && (settled || news)) copy.delete(id);
      // What follows for the task was done on top of this.
      const next = (one: Command) => ({ ...one, id: task?.id ?? id, base: Math.max(one.base ?? 0, version) });
      return { tasks: copy, queue: rest.map((one) => (task && one.id === id ? next(one) : one)) };
    });
  }

  async #ask(first: Command): Promise<void> {
    const response = await this.#call(['get', '/api/tasks/{id}'], { id: first.id });
    const theirs: Task | null = response.status === 404 ? null : await answer(response);
    const mine = this.tasks.find(({ id }) => id === first.id) ?? null;
    const choice = await this.#options.conflict({ command: first, mine, theirs });
    const { op, id, data } = first;
    const again = choice === 'mine' ? [command(op, id, theirs?.version ?? null, data)] : [];
    if (again.length > 0 && !theirs) again.unshift(command('restore', id, null));
    await this.#change(({ queue: [, ...rest] }) => ({ queue: [...again, ...rest] }));
  }

  // #refuse takes a command out, and what is queued for a task that will never be there.
  async #refuse(first: Command, problem: Problem): Promise<void> {
    const all = first.op === 'create' || first.op === 'restore';
    const hopeless = (one: Command) => one === first || (all && one.id === first.id);
    let dropped: readonly Command[] = [];
    await this.#change(({ queue }) => {
      dropped = queue.filter(hopeless);
      return { queue: queue.filter((one) => !hopeless(one)) };
    });
    this.#options.refused(dropped, problem);
  }

  // #listen keeps a stream open until close. What is wrong with the server, the other loop finds out too, and tells.
  async #listen(): Promise<void> {
    const { signal } = this.#stop;
    const byCookie = !this.#options.token && typeof EventSource === 'function';
    while (!signal.aborted) {
      if (this.#state === 'signed out') {
        await this.#reopen.wait();
        continue;
      }
      let pause = streamPause * (0.5 + Math.random() / 2);
      try {
        await (byCookie ? this.#listenBySource() : this.#listenByFetch());
      } catch (error) {
        if (error instanceof TryLater && error.seconds !== null) pause = error.seconds * 1000;
      }
      if (signal.aborted) return;
      this.#stir();
      await this.#reopen.wait(pause);
    }
  }

  async #listenByFetch(): Promise<void> {
    const headers = { 'Last-Event-ID': String(this.#kept.version) };
    const response = await this.#call(['get', '/api/events'], { headers, timeout: null });
    if (!response.ok || !response.body) return; // 422: the copy is of a later time than the server
    for await (const event of readEvents(response.body)) this.#hear(event);
  }

  // EventSource connects again by itself, but not after an answer that is no stream.
  async #listenBySource(): Promise<void> {
    const source = new EventSource(`${this.#options.url}/api/events`, { withCredentials: true });
    source.onopen = () => this.#stir(); // it begins now, and tells nothing of what was before
    source.onerror = () => source.readyState === EventSource.CLOSED && this.#reopen.ring();
    for (const name of eventNames) {
      source.addEventListener(name, ({ lastEventId, type, data }: MessageEvent<string>) =>
        this.#hear({ id: Number(lastEventId), event: type, data }));
    }
    await this.#reopen.wait();
    source.close();
  }

  // #hear applies an event that joins on to the copy. Any other only tells that there is something to sync.
  #hear({ id, event, data }: StreamEvent): void {
    this.#head = Math.max(this.#head, id);
    if (id <= this.#kept.version) return;
    const joins = id === this.#kept.version + 1 && event !== 'erased';
    if (this.#behind || this.#inDoubt || !joins) return this.#stir();
    const change = JSON.parse(data) as Schemas['HistoryEntry'] & { task: Task | null };
    if (change.task) this.#kept.tasks.set(change.task.id, change.task);
    else if (change.task_id) this.#kept.tasks.delete(change.task_id);
    this.#kept.version = id;
    this.#unsaved = true;
    this.#work.ring(); // to store the copy
    this.#options.changed?.();
  }

  #stir(): void {
    this.#behind = true;
    this.#work.ring();
  }

  // #call makes a request. Only an answer of the server's own that settles something is returned; a token that is
  // refused is replaced once.
  async #call(
    [method, path]: Route,
    { id = '', query = '', headers = {}, body, timeout = requestTimeout }: CallOptions,
  ): Promise<Response> {
    const { url, token } = this.#options;
    const signals = [this.#stop.signal, ...(timeout === null ? [] : [AbortSignal.timeout(timeout)])];
    for (let refused: string | undefined; ; ) {
      const bearer = await token?.(refused);
      const response = await fetch(url + path.replace('{id}', encodeURIComponent(id)) + query, {
        method: method.toUpperCase(),
        headers: {
          ...headers,
          ...(bearer !== undefined && { Authorization: `Bearer ${bearer}` }),
          ...(body && { 'Content-Type': 'application/json' }),
        },
        body: body ? JSON.stringify(body) : null,
        credentials: bearer === undefined ? 'include' : 'omit',
        cache: 'no-store',
        signal: AbortSignal.any(signals),
      });
      if (response.status === 401 && bearer !== undefined && refused === undefined) {
        refused = bearer;
        continue;
      }
      if (response.status === 401 || response.status === 403) throw new SignedOut(`${response.status}`);
      const type = response.headers.get('Content-Type') ?? '';
      const expected = response.ok ? /json|event-stream/ : /problem\+json/;
      const ours = response.status === 204 || expected.test(type);
      if (response.status === 429 || response.status >= 500 || !ours) {
        throw new TryLater(retryAfter(response.headers.get('Retry-After')));
      }
      return response;
    }
  }
}

interface CallOptions {
  id?: string;
  query?: string;
  headers?: Record<string, string>;
  body?: TaskChange;
  timeout?: number | null;
}

// TryLater: there is no answer yet; seconds is when the server wants to be asked again, if it said.
class TryLater extends Error {
  constructor(readonly seconds: number | null) {
    super('the server does not answer now');
  }
}

class SignedOut extends Error {}

// Bell wakes the one who waits for it, or who waits next.
class Bell {
  #rung = false;
  #wake: (() => void) | undefined;

  ring(): void {
    this.#rung = true;
    this.#wake?.();
  }

  async wait(milliseconds?: number): Promise<void> {
    let timer: ReturnType<typeof setTimeout> | undefined;
    if (!this.#rung) {
      await new Promise<void>((done) => {
        this.#wake = done;
        if (milliseconds !== undefined) timer = setTimeout(done, milliseconds);
      });
    }
    clearTimeout(timer);
    [this.#rung, this.#wake] = [false, undefined];
  }
}

function command(op: Command['op'], id: string, base: number | null, data?: TaskChange): Command {
  return { key: crypto.randomUUID(), op, id, base, at: new Date().toISOString(), ...(data && { data }) };
}

async function answer<T>(response: Response): Promise<T> {
  if (!response.ok) throw new Error(`unexpected answer: ${response.status}`);
  return response.json() as Promise<T>;
}

// retryAfter reads the header, which has seconds or, from some proxies, a date.
function retryAfter(value: string | null): number | null {
  if (value === null) return null;
  const seconds = /^\d+$/.test(value) ? Number(value) : (Date.parse(value) - Date.now()) / 1000;
  return Number.isNaN(seconds) ? null : Math.max(seconds, 0);
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
