// What the pages do of themselves, beyond their links and forms: the overview stays fresh, and the list follows the
// slider.
'use strict';

const EVERY = 10_000;

// fetched is another moment of a page; null when it cannot be had now.
async function fetched(url, signal) {
  try {
    const answer = await fetch(url, { signal, headers: { Accept: 'text/html' } });
    return answer.ok ? new DOMParser().parseFromString(await answer.text(), 'text/html') : null;
  } catch {
    return null;
  }
}

// take puts an element of a fresh page in the place of ours. What has the focus stays, and so does what is the same: a
// screen reader is told of changes only.
function take(id, fresh) {
  const [old, next] = [document.getElementById(id), fresh.getElementById(id)];
  if (!old || !next || old.contains(document.activeElement)) return;
  for (const details of old.querySelectorAll('details[open]')) {
    const same = next.querySelector(`#${CSS.escape(details.id)}`);
    if (same) same.open = true;
  }
  if (old.innerHTML !== next.innerHTML) old.replaceChildren(...next.childNodes);
}

const live = document.getElementById('live');
if (live) {
  document.getElementById('live-row').hidden = false;
  const ids = ['updated', ...Array.from(document.querySelectorAll('[data-live]'), ({ id }) => id)];
  let busy = false;
  const refresh = async () => {
    if (busy || !live.checked || document.hidden) return; // nobody looks: nothing is asked
    busy = true;
    const fresh = await fetched(location.href);
    busy = false;
    if (fresh) ids.forEach((id) => take(id, fresh));
    else document.getElementById('updated').textContent = 'The server did not answer; what is shown is older.';
  };
  setInterval(refresh, EVERY);
  document.addEventListener('visibilitychange', refresh);
}

const travel = document.getElementById('travel');
if (travel) {
  const [at, value] = [document.getElementById('at'), document.getElementById('at-value')];
  let [timer, asked] = [0, new AbortController()];
  at.addEventListener('input', () => {
    value.textContent = at.value;
    clearTimeout(timer);
    asked.abort();
    timer = setTimeout(async () => {
      asked = new AbortController();
      const { signal } = asked;
      const url = new URL('/user', location.href);
      url.search = new URLSearchParams({ id: travel.elements.namedItem('id').value, at: at.value });
      const fresh = await fetched(url, signal);
      if (signal.aborted) return;
      if (!fresh) {
        document.getElementById('then-told').textContent = 'The server did not answer.';
        return;
      }
      take('then', fresh);
      history.replaceState(null, '', url);
    }, 120);
  });
}
