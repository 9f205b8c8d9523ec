'use client';
// The page that the browser renders. It signs in at Better Auth and calls the API through the rewrite, with nothing but
// the cookies that the browser sends by itself.

import { createAuthClient } from 'better-auth/react';
import { useState } from 'react';

const auth = createAuthClient();

async function call(method, path, body) {
  const answer = await fetch(`/api/tasks${path}`, {
    method,
    headers: { 'Content-Type': 'application/json' },
    body: body && JSON.stringify(body),
    signal: AbortSignal.timeout(10_000),
  });
  if (!answer.ok) throw new Error(`${answer.status} ${(await answer.json()).message}`);
  return answer.status === 204 ? null : answer.json();
}

export default function Board() {
  const [tasks, setTasks] = useState([]);
  const [status, setStatus] = useState('');

  // act does what a button says, then shows the list as it is now.
  const act = (what) => async () => {
    setStatus('working');
    try {
      await what();
      setTasks(await call('GET', ''));
      setStatus('done');
    } catch (error) {
      setStatus(error.message);
    }
  };
  const field = (id) => document.getElementById(id).value;
  const account = () => ({ name: 'Ada', email: field('email'), password: field('password') });
  const authorize = async (answer) => {
    const { error } = await answer;
    if (error) throw new Error(error.message);
  };

  return (
    <main>
      <h1>Tasks in the browser</h1>
      <input id="email" aria-label="E-mail" />
      <input id="password" aria-label="Password" type="password" />
      <button onClick={act(() => authorize(auth.signUp.email(account())))}>Sign up</button>
      <button onClick={act(() => authorize(auth.signIn.email(account())))}>Sign in</button>
      <button onClick={act(() => authorize(auth.signOut()))}>Sign out</button>
      <p>
        <input id="title" aria-label="Title" />
        <button onClick={act(() => call('POST', '', { title: field('title') }))}>Add</button>
      </p>
      <output>{status}</output>
      <ul>
        {tasks.map((task) => (
          <li key={task.id}>
            <span>{task.title}</span> <time>{new Date(task.created_at).toISOString()}</time>
            <button onClick={act(() => call('PUT', `/${task.id}`, { is_completed: !task.is_completed }))}>
              {task.is_completed ? 'Reopen' : 'Complete'}
            </button>
            <button onClick={act(() => call('DELETE', `/${task.id}`))}>Delete</button>
          </li>
        ))}
      </ul>
    </main>
  );
}
