// The daemon's unix socket, where no token is needed: a `fetch` and a `webSocket` of one's own, here by node:http and the package ws.
//   node examples/over-the-unix-socket.ts /run/dormouse/dormouse.sock
import { request } from 'node:http'
import { connect } from 'node:net'
import { Readable } from 'node:stream'
import { Dormouse, type Fetch, type WebSocketFactory } from '@dormouse/api'
import WebSocket from 'ws'

const [socketPath = '/run/dormouse/dormouse.sock'] = process.argv.slice(2)

const fetch: Fetch = (url, { method, headers, body, signal }) =>
  new Promise((resolve, reject) => {
    const { pathname, search } = new URL(url)
    const asking = request({ socketPath, path: pathname + search, method, headers, ...(signal && { signal }) }, (answer) => {
      const get = (name: string) => answer.headers[name]?.toString() ?? null
      resolve({ status: answer.statusCode ?? 0, headers: { get }, body: answer })
    })
    asking.on('error', reject)
    if (body === undefined || typeof body === 'string') asking.end(body)
    else Readable.from(body instanceof Blob ? body.stream() : body).pipe(asking)
  })

const webSocket: WebSocketFactory = (url, headers) =>
  new WebSocket(url, { headers, perMessageDeflate: false, createConnection: () => connect(socketPath) })

const dormouse = new Dormouse({ baseUrl: 'http://localhost', fetch, webSocket })
for await (const { name, state, id } of dormouse.items('listInstances')) {
  console.log(`${name}: ${state}`)
  if (state === 'Running') console.log((await dormouse.run(id, ['hostname'])).stdout.trim())
}
