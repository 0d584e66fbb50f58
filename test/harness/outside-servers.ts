/**
 * What stands on the other side of a test's uplink, as a program of its own in a network namespace of its own. Prints `ready` once all
 * of it listens.
 *
 *   9000/tcp   says who called
 *   9001/tcp   sends without end
 *   9002/tcp   takes what comes
 *   9003/tcp   how many bytes 9002 has taken, and how many calls there were at 9000
 *   9004/tcp   takes 32 MiB, then hangs up
 *   9005/tcp   sends 32 MiB, then hangs up
 *   53/udp     answers every question with 192.0.2.77
 */
import dgram from 'node:dgram'
import { once } from 'node:events'
import net from 'node:net'

const MOVED_BYTES = 32 << 20
let taken = 0
let calls = 0
const onError = () => undefined
const block = Buffer.alloc(1 << 16)
const servers = [
  net.createServer((socket) => {
    calls++
    socket.on('error', onError).end(`called by ${socket.remoteAddress?.replace('::ffff:', '')}\n`)
  }),
  net.createServer((socket) => {
    const push = (): void => {
      while (!socket.destroyed && socket.write(block));
    }
    socket.on('error', onError).on('drain', push)
    push()
  }),
  net.createServer((socket) => {
    socket.on('error', onError).on('data', (chunk) => {
      taken += chunk.length
    })
  }),
  net.createServer((socket) => socket.on('error', onError).end(`${taken} ${calls}\n`)),
  net.createServer((socket) => {
    let left = MOVED_BYTES
    socket.on('error', onError).on('data', (chunk) => {
      left -= chunk.length
      if (left <= 0) socket.destroy()
    })
  }),
  net.createServer((socket) => {
    let left = MOVED_BYTES
    const push = (): void => {
      for (; left > 0; left -= block.length) if (!socket.write(block)) break
      left -= left > 0 ? block.length : 0
      if (left <= 0) socket.end()
    }
    socket.on('error', onError).on('drain', push)
    push()
  }),
]
for (const [index, server] of servers.entries()) {
  server.listen(9000 + index, '::')
  await once(server, 'listening')
}
const dns = dgram.createSocket('udp4')
dns.on('message', (question, { port, address }) => {
  // One answer, by a pointer to the question's name; only questions for IPv4 addresses have one.
  const end = question.indexOf(0, 12) + 5
  const isA = question.readUInt16BE(end - 4) === 1
  const head = Buffer.from([question[0] ?? 0, question[1] ?? 0, 0x81, 0x80, 0, 1, 0, isA ? 1 : 0, 0, 0, 0, 0])
  const answer = Buffer.from([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 77])
  dns.send(Buffer.concat([head, question.subarray(12, end), ...(isA ? [answer] : [])]), port, address)
})
dns.bind(53)
await once(dns, 'listening')
console.log('ready')
