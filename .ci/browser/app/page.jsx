// The page that the server renders. It takes what the API answers as it is: a list that is null or wrapped, or a task
// without created_at, crashes it.

import { revalidatePath } from 'next/cache';
import { call, session } from './tasks';

async function add(form) {
  'use server';
  await call('POST', '', { title: form.get('title'), description: form.get('description') });
  revalidatePath('/');
}

async function complete(id, completed) {
  'use server';
  await call('PUT', `/${id}`, { is_completed: completed });
  revalidatePath('/');
}

async function remove(id) {
  'use server';
  await call('DELETE', `/${id}`);
  revalidatePath('/');
}

export default async function Page() {
  if (!(await session())) return <h1>Signed out</h1>;
  const tasks = await call('GET', '?status=all&sort=created_at');
  return (
    <main>
      <h1>Tasks from the server</h1>
      <form action={add}>
        <input name="title" aria-label="Title" />
        <input name="description" aria-label="Description" />
        <button>Add</button>
      </form>
      <ul>
        {tasks.map((task) => (
          <li key={task.id}>
            <span>{task.title}</span> <time>{new Date(task.created_at).toISOString()}</time>
            <form action={complete.bind(null, task.id, !task.is_completed)}>
              <button>{task.is_completed ? 'Reopen' : 'Complete'}</button>
            </form>
            <form action={remove.bind(null, task.id)}>
              <button>Delete</button>
            </form>
          </li>
        ))}
      </ul>
    </main>
  );
}
