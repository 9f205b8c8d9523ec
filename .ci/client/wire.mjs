// A TCP proxy between a client and a server, which does to them what networks do.

import { connect, createServer } from 'node:net';

// openWire listens on a free port of the loopback. `port` is where it leads to, and may change; while `down`, nothing
// gets through. `cut` is the part of the writes whose connection is cut when the server answers: it has done them,
// and the client does not know. `instead` are answers that the next writes get in place of the server's; answers of
// sync wait for the promise `hold`. `seen` counts.
export async function openWire() {
  const seen = { cut: 0, limited: 0, replayed: 0, streamed: 0 };
  const wire = { port: 0, down: false, cut: 0, instead: [], hold: null, seen };
  const open = new Set();
  const proxy = createServer((client) => {
    if (wire.down) return client.destroy();
    const server = connect(wire.port, '127.0.0.1');
    const end = () => (client.destroy(), server.destroy(), open.delete(end));
    open.add(end);
    for (const socket of [client, server]) socket.on('close', end).on('error', end);
    let [method, path] = ['', ''];
    client.on('data', (data) => {
      [, method, path] = /^([A-Z]+) (\S+) HTTP\/1\.1\r\n/.exec(data.toString('latin1')) ?? [null, method, path];
      const instead = method === 'GET' ? undefined : wire.instead.shift();
      if (instead) client.end(instead);
      else server.write(data);
    });
    server.on('data', async (data) => {
      const head = data.toString('latin1', 0, 2000);
      if (head.startsWith('HTTP/1.1 429')) wire.seen.limited++;
      if (/^Idempotency-Replayed: true/im.test(head)) wire.seen.replayed++;
      if (head.startsWith('HTTP/1.1 20') && method !== 'GET' && Math.random() < wire.cut) {
        wire.seen.cut++;
        return end();
      }
      if (path === '/api/events') wire.seen.streamed += data.length;
      if (path.startsWith('/api/sync')) await wire.hold;
      client.write(data);
    });
  });
  proxy.listen(0, '127.0.0.1');
  await new Promise((listening) => proxy.once('listening', listening));
  wire.url = `http://127.0.0.1:${proxy.address().port}`;
  wire.break = () => [...open].forEach((end) => end());
  wire.close = () => (proxy.close(), wire.break());
  return wire;
}
