/** The terminal under `exec -it`: raw while the guest has it, and given back in every way of ending. */
import assert from 'node:assert/strict'
import test from 'node:test'
import type { WebSocket } from 'ws'
import { startStub } from './cli-stub.ts'
import { atTerminal } from './cli-terminal.ts'

/** Says what it was sent, as the guest's end of an exec; `onText` may answer. */
function guest(
  script: (send: { out: (text: string) => void; end: (code: number) => void }, frame: { text?: unknown; bytes?: string }) => void,
) {
  return (socket: WebSocket) => {
    const send = {
      out: (text: string) => socket.send(Buffer.concat([Buffer.of(1), Buffer.from(text)])),
      end: (code: number) => {
        socket.send(JSON.stringify({ exitCode: code }))
        socket.close()
      },
    }
    socket.on('message', (data: Buffer, isBinary: boolean) =>
      script(send, isBinary ? { bytes: data.toString() } : { text: JSON.parse(data.toString()) }),
    )
  }
}

const isCooked = (settings: string): boolean => ['icanon', 'echo', 'isig', 'opost'].every((flag) => settings.split(/\s+/).includes(flag))

test('keys go to the guest as they are typed, the window follows, and the exit code comes back', async (t) => {
  const stub = await startStub(
    t,
    {},
    guest((send, { text, bytes }) => {
      if (text !== undefined) send.out(`${JSON.stringify(text)}\r\n`)
      if (bytes !== undefined) send.out(`<${[...Buffer.from(bytes)].join(',')}>`)
      if (bytes?.includes('q')) send.end(42)
    }),
  )
  const terminal = atTerminal(['exec', '-it', 'web', 'bash', '-l'], stub)
  await terminal.until('"command":["bash","-l"]')
  await terminal.until('"tty":true')
  assert.match(terminal.shown(), /"rows":30,"cols":100/)
  assert.match(terminal.shown(), /"TERM":"xterm"/)
  terminal.type('a\u0003\u001a')
  await terminal.until('97,3,26')
  await terminal.resize(50, 132)
  await terminal.until('{"resize":{"rows":50,"cols":132}}')
  terminal.type('q')
  const { code, settings } = await terminal.end()
  assert.equal(code, 42)
  assert.ok(isCooked(settings), settings)
})

test('a connection that breaks gives the terminal back and says so', async (t) => {
  const stub = await startStub(t, {}, (socket) => {
    socket.on('message', () => {
      socket.send(Buffer.from('\u0001ready\r\n'))
      setImmediate(() => socket.terminate())
    })
  })
  const terminal = atTerminal(['exec', '-it', 'web'], stub)
  const { code, settings } = await terminal.end()
  assert.equal(code, 125)
  assert.match(terminal.shown(), /^ready\r\n\S*Error:\S* The daemon ended the connection before the command was over/)
  assert.ok(isCooked(settings), settings)
})

test('a signal goes to the command first; the second one ends the CLI and gives the terminal back', async (t) => {
  const stub = await startStub(
    t,
    {},
    guest((send, { text }) => send.out(`${JSON.stringify(text)}\r\n`)),
  )
  const terminal = atTerminal(['exec', '-it', 'web'], stub)
  await terminal.until('"tty":true')
  await terminal.signal('SIGTERM')
  await terminal.until('{"signal":"SIGTERM"}')
  await terminal.signal('SIGTERM')
  const { code, settings } = await terminal.end()
  assert.equal(code, 143)
  assert.ok(isCooked(settings), settings)
})

test('a guest that does not answer can be left by Enter, tilde, dot', async (t) => {
  const stub = await startStub(
    t,
    {},
    guest((send, { text }) => text !== undefined && send.out('here')),
  )
  const terminal = atTerminal(['exec', '-it', 'web'], stub)
  await terminal.until('here')
  terminal.type('\u0003\r~.')
  const { code, settings } = await terminal.end()
  assert.equal(code, 130)
  assert.ok(isCooked(settings), settings)
})

test('a tty without a terminal is refused before anything is asked', async (t) => {
  const { dormouse } = await import('../harness/dormouse-command.ts')
  const stub = await startStub(t, {})
  const { code, stderr } = await dormouse(['exec', '-it', 'web', 'sh'], { socket: stub.socket })
  assert.equal(code, 125)
  assert.match(stderr, /standard input is no terminal\nHint: Leave out -t/)
  assert.deepEqual(stub.requests, [])
})
