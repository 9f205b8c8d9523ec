// The wire between the frontend's server and taskledger: it hands every request on as it came, and keeps what it saw of
// it. Every request gets a connection of its own, as some proxies do it; the rewrite of Next.js 16 keeps them open.

import { createServer, request } from 'node:http';

// openWire listens on a port of the loopback. `seen` has the requests so far; while `instead` is a text, it is what a
// list is answered with, in place of taskledger's.
export async function openWire(port, target) {
  const wire = { seen: [], instead: null };
  const server = createServer(async (incoming, answer) => {
    const body = Buffer.concat(await incoming.toArray());
    const { method, url, headers, rawHeaders } = incoming;
    const seen = { method, url, headers, body: body.toString() };
    wire.seen.push(seen);
    if (wire.instead !== null && method === 'GET') {
      answer.writeHead(200, { 'Content-Type': 'application/json' }).end(wire.instead);
      return;
    }
    const outgoing = request(target + url, { method, headers: rawHeaders, agent: false, setHost: false }, (result) => {
      seen.connection = result.socket.localPort;
      answer.writeHead(result.statusCode, result.rawHeaders);
      result.pipe(answer);
    });
    outgoing.on('error', (error) => answer.destroy(error));
    answer.on('close', () => outgoing.destroy()); // a stream whose reader has gone
    outgoing.end(body);
  });
  server.listen(port, '127.0.0.1');
  await new Promise((listening) => server.once('listening', listening));
  wire.close = () => {
    server.close();
    server.closeAllConnections();
  };
  return wire;
}
