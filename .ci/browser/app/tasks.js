// The frontend's server side: it takes the session out of the browser's cookie and sends it on as a bearer token.

import { cookies } from 'next/headers';

// session is the cookie's value, percent-decoded by Next.js.
export async function session() {
  return (await cookies()).get('better-auth.session_token')?.value;
}

export async function call(method, path, body) {
  const answer = await fetch(`${process.env.TASKLEDGER_URL}/api/tasks${path}`, {
    method,
    headers: { 'Content-Type': 'application/json', Authorization: `Bearer ${await session()}` },
    body: body && JSON.stringify(body),
    cache: 'no-store',
    signal: AbortSignal.timeout(10_000),
  });
  if (!answer.ok) throw new Error((await answer.json()).message);
  return answer.status === 204 ? null : answer.json();
}
