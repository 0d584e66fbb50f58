import { request } from 'node:http'

/** Sends bytes as the body of a POST over the unix socket, and gives what is answered. Throws what is refused. */
export function upload(socketPath: string, path: string, bytes: Buffer): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const headers = { 'content-type': 'application/gzip', 'content-length': String(bytes.length) }
    request({ socketPath, path, method: 'POST', headers, agent: false }, async (answer) => {
      let text = ''
      for await (const chunk of answer) text += chunk
      if (answer.statusCode !== 201) reject(new Error(`POST ${path}: ${answer.statusCode} ${text}`))
      else resolve(JSON.parse(text))
    })
      .on('error', reject)
      .end(bytes)
  })
}
