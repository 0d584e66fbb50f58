import { request } from 'node:http'
import { connect } from 'node:net'
import { Readable } from 'node:stream'
import { Dormouse } from '@dormouse/api/dormouse.ts'
import WebSocket from 'ws'

/** The SDK over a daemon's unix socket. */
export function sdkOver(socketPath: string): Dormouse {
  return new Dormouse({
    baseUrl: 'http://localhost',
    fetch: (url, { method, headers, body, signal }) =>
      new Promise((resolve, reject) => {
        const { pathname, search } = new URL(url)
        const asking = request(
          { socketPath, path: pathname + search, method, headers, agent: false, ...(signal && { signal }) },
          (answer) => {
            const get = (name: string) => answer.headers[name]?.toString() ?? null
            resolve({ status: answer.statusCode ?? 0, headers: { get }, body: answer })
          },
        )
        asking.on('error', reject)
        if (body === undefined || typeof body === 'string') asking.end(body)
        else Readable.from(body instanceof Blob ? body.stream() : body).pipe(asking)
      }),
    webSocket: (url, headers) => new WebSocket(url, { headers, perMessageDeflate: false, createConnection: () => connect(socketPath) }),
  })
}
