// Drives the page for operators in Chromium, light and dark, narrow and wide, with and without JavaScript. The
// environment says where things are (see run): ADMIN_URL, API_URL, the API_TOKEN of USER_ID, PARKED_ID, who is parked,
// and ADMIN_TOKEN, if it is asked for. PICTURES names a folder for pictures of every page.

import assert from 'node:assert/strict';
import { chromium } from 'playwright-core';

const { CHROMIUM, ADMIN_URL, API_URL, API_TOKEN, USER_ID, PARKED_ID, ADMIN_TOKEN, PICTURES } = process.env;
const TITLES = ['Buy milk', '<img src=x onerror=alert(1)>', 'evil \u202Egpj.exe'];
const troubles = [];
const user = (query = '') => `${ADMIN_URL}/user?id=${encodeURIComponent(USER_ID)}${query}`;
let checks = 0;

await write();
const browser = await chromium.launch({
  executablePath: CHROMIUM,
  args: [
    ...['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run'],
    '--disable-background-networking',
    '--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE localhost , EXCLUDE 127.0.0.1',
  ],
});
try {
  for (const colorScheme of ['light', 'dark']) {
    for (const [name, viewport] of [['wide', { width: 1280, height: 900 }], ['narrow', { width: 320, height: 640 }]]) {
      await everyPage(`${colorScheme}-${name}`, { colorScheme, viewport });
    }
  }
  await withScript();
  await withoutScript();
  assert.deepEqual(troubles, []);
  console.log(`Chromium ${browser.version()}: ${checks} checks of the page for operators passed`);
} finally {
  await browser.close();
}

// write has the user do something.
async function write() {
  const headers = { Authorization: `Bearer ${API_TOKEN}`, 'Content-Type': 'application/json' };
  for (const title of TITLES) {
    const answer = await fetch(`${API_URL}/api/tasks`, { method: 'POST', headers, body: JSON.stringify({ title }) });
    assert.equal(answer.status, 201);
    const { id } = await answer.json();
    assert.equal((await fetch(`${API_URL}/api/tasks/${id}/complete`, { method: 'PATCH', headers })).status, 200);
  }
}

// open opens a page that tells of all that it should not do, signed in.
async function open(options) {
  const page = await (await browser.newContext(options)).newPage();
  page.setDefaultTimeout(15_000);
  page.on('console', (message) => {
    const expected = /status of (401|422)/.test(message.text()); // the form for the token, a question that is wrong
    if (message.type() === 'error' && !expected) troubles.push(message.text());
  });
  page.on('pageerror', (error) => troubles.push(String(error)));
  page.on('dialog', (dialog) => troubles.push(`a dialog: ${dialog.message()}`) && dialog.dismiss());
  page.on('request', (request) => {
    const url = new URL(request.url());
    if (url.protocol !== 'data:' && url.origin !== new URL(ADMIN_URL).origin) troubles.push(`a request to ${url}`);
  });
  await page.goto(ADMIN_URL);
  if (ADMIN_TOKEN) {
    await page.getByLabel('ADMIN_TOKEN').fill(ADMIN_TOKEN);
    await page.keyboard.press('Enter');
    await page.getByRole('heading', { name: 'Overview' }).waitFor();
  }
  return page;
}

async function everyPage(name, options) {
  const page = await open(options);
  const paths = {
    overview: ADMIN_URL, users: `${ADMIN_URL}/users?q=`, user: user(), then: user('&at=2'),
    skip: `${ADMIN_URL}/parked?action=skip&id=${encodeURIComponent(PARKED_ID)}`, wrong: user('&at=x'),
  };
  for (const [what, url] of Object.entries(paths)) {
    const status = (await page.goto(url)).status();
    assert.equal(status, what === 'wrong' ? 422 : 200, what);
    if (PICTURES) await page.screenshot({ path: `${PICTURES}/${what}-${name}.png`, fullPage: true });
    assert.deepEqual(await page.evaluate(faults), [], `${what}, ${name}`);
    checks++;
  }
  await page.context().close();
}

// faults looks at what is on the page, in the page: text that is hard to read, what sticks out, what has no name.
function faults() {
  const found = [];
  const parse = (color) => (color.match(/[\d.]+/g) ?? []).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => ((c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const color = parse(getComputedStyle(e).backgroundColor);
      if (color[3] !== 0) return color;
    }
    return [255, 255, 255];
  };
  for (const element of document.querySelectorAll('body *')) {
    if (![...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || !element.checkVisibility()) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) found.push(`contrast ${contrast.toFixed(2)}: ${element.textContent.trim().slice(0, 40)}`);
  }
  if (document.documentElement.scrollWidth > innerWidth) found.push(`${document.documentElement.scrollWidth} px wide`);
  if (document.querySelectorAll('h1').length !== 1) found.push('not one h1');
  for (const input of document.querySelectorAll('input:not([type=hidden])')) {
    if (!input.labels.length) found.push(`no label: ${input.outerHTML}`);
  }
  for (const element of document.querySelectorAll('[role=region]')) {
    const label = document.getElementById(element.getAttribute('aria-labelledby'));
    if (!element.ariaLabel && !label) found.push('a region without a name');
  }
  return found;
}

async function withScript() {
  const page = await open({ viewport: { width: 1280, height: 900 } });
  await page.keyboard.press('Tab');
  assert.equal(await page.evaluate(() => document.activeElement.textContent), 'Skip to the content');
  await page.getByLabel("A user's id").fill(USER_ID.slice(0, 3));
  await page.keyboard.press('Enter');
  await page.getByRole('link', { name: USER_ID, exact: true }).click();
  const slider = page.getByRole('slider');
  const last = Number(await slider.inputValue());
  await slider.focus();
  await page.keyboard.press('Home');
  await page.getByText('After event 1, TaskCreated').waitFor();
  assert.equal(new URL(page.url()).searchParams.get('at'), '1');
  await page.keyboard.press('ArrowRight');
  await page.getByText('After event 2, TaskCompleted').waitFor();
  await page.keyboard.press('End');
  await page.getByText(`After event ${last}, `).waitFor();
  assert.ok(await page.getByText(TITLES[1], { exact: true }).count() > 0);
  assert.ok(await page.getByText('evil [U+202E]gpj.exe').count() > 0);
  checks++;

  await page.goto(ADMIN_URL);
  const before = await page.locator('#updated').textContent();
  assert.ok(await page.getByLabel('Every 10 seconds').isChecked());
  await page.waitForFunction((text) => document.getElementById('updated').textContent !== text, before);
  checks++;
  await page.context().close();
}

async function withoutScript() {
  const page = await open({ javaScriptEnabled: false, viewport: { width: 800, height: 900 } });
  await page.goto(user());
  await page.getByLabel('or at a time').fill(new Date(Date.now() - 1000).toISOString().slice(0, 19));
  await page.getByRole('button', { name: 'Show' }).click();
  await page.getByText('After event').first().waitFor();
  await page.getByRole('button', { name: 'Verify' }).click();
  await page.getByText('The chain and the read model are the fold of the ledger.').waitFor();
  if (PICTURES) await page.screenshot({ path: `${PICTURES}/verified.png`, fullPage: true });
  checks++;
  await page.goto(ADMIN_URL);
  await page.getByRole('row', { name: PARKED_ID }).getByRole('link', { name: 'Retry…' }).click();
  if (PICTURES) await page.screenshot({ path: `${PICTURES}/retry.png`, fullPage: true });
  await page.getByRole('button', { name: 'Retry' }).click();
  await page.getByText('The read model follows this user again.').waitFor();
  await page.goto(ADMIN_URL);
  await page.getByText('Nobody is parked').waitFor();
  checks++;
  if (ADMIN_TOKEN) {
    await page.getByRole('button', { name: 'Sign out' }).click();
    await page.getByLabel('ADMIN_TOKEN').fill('wrong');
    if (PICTURES) await page.screenshot({ path: `${PICTURES}/sign-in.png` });
    await page.keyboard.press('Enter');
    await page.getByText('This is not the token.').waitFor();
    checks++;
  }
  await page.context().close();
}
