/**
 * The least that a server in Node can be: it answers with bytes that are there already. `GET /NAME` sends the file of that name;
 * `GET /follow` is held open, and what is appended to the file `log` is read once and sent to all who hold one.
 *
 *   node bare-http.ts SOCKET DIRECTORY
 */
import { openSync, readFileSync, readSync, statSync, watch } from 'node:fs'
import { createServer, type ServerResponse } from 'node:http'
import { join } from 'node:path'

const [socket = '', directory = ''] = process.argv.slice(2)
const files = new Map<string, Buffer>()
const followers = new Set<ServerResponse>()

const bytesOf = (name: string): Buffer => {
  const known = files.get(name)
  if (known !== undefined) return known
  const bytes = readFileSync(join(directory, name))
  files.set(name, bytes)
  return bytes
}

createServer((request, response) => {
  if (request.url === '/follow') {
    response.writeHead(200, { 'content-type': 'text/event-stream' })
    response.write(': \n\n')
    followers.add(response)
    response.on('close', () => followers.delete(response))
    return
  }
  const bytes = bytesOf((request.url ?? '').slice(1))
  response.writeHead(200, { 'content-type': 'application/json; charset=utf-8', 'content-length': bytes.length })
  response.end(bytes)
}).listen(socket, () => console.log('listening'))

const log = openSync(join(directory, 'log'), 'a+')
let at = 0
let rest = ''
watch(join(directory, 'log'), () => {
  const { size } = statSync(join(directory, 'log'))
  if (size <= at) return
  const grown = Buffer.alloc(size - at)
  at += readSync(log, grown, 0, grown.length, at)
  const lines = (rest + grown.toString()).split('\n')
  rest = lines.pop() ?? ''
  const text = Buffer.from(lines.map((line) => `data: ${JSON.stringify(line)}\n\n`).join(''))
  for (const follower of followers) follower.write(text)
})
