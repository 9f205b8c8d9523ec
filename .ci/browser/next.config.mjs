// The rewrite is the proxy that the browser's requests pass: Next.js keeps its destination at build time.
export default {
  turbopack: { root: import.meta.dirname },
  rewrites: async () =>
    ['/api/tasks/:path*', '/api/events'].map((source) => ({
      source,
      destination: process.env.TASKLEDGER_URL + source,
    })),
};
