/** The vectors that the guest's own tests are held to as well: guest/fixtures/README.md says how they read. */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { endingOf, refusalOf } from './answers.ts'
import { FieldReader, FieldWriter } from './fields.ts'
import { decodeFrame, encodeFrame, FrameSplitter } from './frames.ts'
import { encodeConfig, encodeVolume, type GuestConfig, type GuestVolume, writeWords } from './guest-config.ts'
import { encodeWake } from './guest-wake.ts'
import { pathInfoOf } from './path-info.ts'
import { KIND, OP, PHASE, TAG } from './wire.ts'

const columnsOf = (name: string): string[][] =>
  readFileSync(join(import.meta.dirname, '../../../../guest/fixtures', name), 'utf8')
    .split('\n')
    .filter((line) => line !== '' && !line.startsWith('#'))
    .map((line) => line.split('\t'))

function bytesOf(text: string): Buffer {
  if (text === '-') return Buffer.alloc(0)
  const pieces = text.split('+').map((piece) => {
    const [hex = '', times] = piece.split('*')
    return times === undefined ? Buffer.from(hex, 'hex') : Buffer.alloc(Number(times), Number.parseInt(hex, 16))
  })
  return Buffer.concat(pieces)
}

test('each frame goes out and comes in as the guest has it', () => {
  for (const [type = '', flags = '', stream = '', payload = '', wire = ''] of columnsOf('frames.txt')) {
    const encoded = bytesOf(wire)
    assert.deepEqual(encodeFrame(Number(type), Number(flags), Number(stream), bytesOf(payload)), encoded)
    for (const piece of [1, 7, 254, 5000]) {
      const splitter = new FrameSplitter()
      const frames = []
      for (let at = 0; at < encoded.length; at += piece) frames.push(...splitter.push(encoded.subarray(at, at + piece)))
      assert.deepEqual(frames, [{ type: Number(type), flags: Number(flags), stream: Number(stream), payload: bytesOf(payload) }])
    }
  }
})

test('what is no frame to the guest is none to us', () => {
  for (const [remark, wire = ''] of columnsOf('broken-frames.txt')) assert.equal(decodeFrame(bytesOf(wire)), undefined, remark)
})

const CONFIG: GuestConfig = {
  hostname: 'box',
  machineId: '0123456789abcdef0123456789abcdef',
  hosts: ['10.0.0.9 db'],
  network: {
    mac: '02:00:00:aa:bb:cc',
    ipv4: { address: '10.0.2.15', prefix: 24, gateway: '10.0.2.2' },
    ipv6: { address: 'fd00::15', prefix: 64, gateway: 'fe80::2' },
    dns: ['10.0.2.3', 'fd00::3'],
    mtu: 1500,
  },
  workload: {
    kind: 'exec',
    argv: ['/bin/sh', '-c', 'exec sleep 5'],
    env: { COLOUR: 'blue', EMPTY: '' },
    cwd: '/srv',
    user: 'alice:wheel',
    stopSignal: 'SIGQUIT',
  },
  disks: { overlay: true, modules: true, volumes: [{ serial: 'volume-0', mountPath: '/data', readOnly: true, fs: 'ext4' }] },
}

const AUTHORITY = '-----BEGIN CERTIFICATE-----\nMIIBszCCAVqgAwIBAgIUAf+/\n-----END CERTIFICATE-----\n'

const VOLUME: GuestVolume = { serial: 'volume-1', mountPath: '/srv/data', readOnly: false, fs: 'ext4' }

const operation = (op: number) => new FieldWriter().number(TAG.OP, op)

test('requests are written as the guest reads them', () => {
  const { fields, id } = encodeConfig(CONFIG)
  const head = (id: Buffer) =>
    operation(OP.GO).bytes(TAG.CONFIG_ID, id).bytes(TAG.ENTROPY, Buffer.alloc(64, 7)).number(TAG.CLOCK_NS, 1795462594572000000n).finish()
  const exec = operation(OP.EXEC).number(TAG.WINDOW, 262144)
  writeWords(exec, ['ls', '-l', ''], { A: 'b=c' })
  exec.flag(TAG.TTY, true).text(TAG.CWD, '/tmp').text(TAG.USER, '1000').number(TAG.TIMEOUT_MS, 1500)
  exec.number(TAG.ROWS, 24).number(TAG.COLS, 80)
  const put = operation(OP.PUT).text(TAG.PATH, '/a/b').number(TAG.FILE_KIND, KIND.FILE).number(TAG.MODE, 0o4755)
  put.number(TAG.UID, 0).number(TAG.GID, 1000).number(TAG.MTIME, 1795462594)
  const wake = ({ id }: { id: Buffer }) =>
    operation(OP.WAKE).bytes(TAG.CONFIG_ID, id).bytes(TAG.ENTROPY, Buffer.alloc(64, 7)).number(TAG.CLOCK_NS, 1795462594572000000n).finish()
  const asBefore = encodeWake({ closeConnections: true, token: 'nap-3' })
  const asAnother = encodeWake({
    identity: {
      hostname: 'fork-2',
      machineId: 'f'.repeat(32),
      hosts: ['10.0.0.9 db'],
      network: { mac: '02:00:00:aa:bb:cd', ipv4: { address: '10.0.0.7', prefix: 24, gateway: '10.0.0.1' }, dns: ['10.0.0.1'] },
    },
    closeConnections: true,
    announce: true,
    token: 'fork-2',
  })
  const workload = { ...CONFIG.workload, env: { ...CONFIG.workload.env, SSL_CERT_FILE: '/mine' } }
  const mediated = encodeConfig({ ...CONFIG, workload, authority: AUTHORITY })
  const ours: Record<string, Buffer> = {
    go: Buffer.concat([head(id), fields]),
    exec: exec.finish(),
    stat: operation(OP.STAT).text(TAG.PATH, '/bin/sh').flag(TAG.FOLLOW, true).finish(),
    put: put.finish(),
    get: operation(OP.GET).text(TAG.PATH, '/').flag(TAG.FOLLOW, false).number(TAG.WINDOW, 32768).finish(),
    offline: operation(OP.OFFLINE)
      .number(TAG.ADDRESS, 2 ** 32)
      .number(TAG.SIZE, 2 ** 28)
      .number(TAG.TIMEOUT_MS, 20_000)
      .finish(),
    dial: operation(OP.DIAL)
      .number(TAG.PORT, 8080)
      .number(TAG.WINDOW, 32768)
      .bytes(TAG.ADDRESS4, Buffer.from([10, 0, 2, 15]))
      .number(TAG.TIMEOUT_MS, 2000)
      .finish(),
    freeze: operation(OP.FREEZE).number(TAG.TIMEOUT_MS, 2000).flag(TAG.BEST_EFFORT, true).finish(),
    'wake as before': Buffer.concat([wake(asBefore), asBefore.fields]),
    'wake as another': Buffer.concat([wake(asAnother), asAnother.fields]),
    shutdown: operation(OP.SHUTDOWN).number(TAG.GRACE_MS, 0).finish(),
    'a field of tomorrow is passed over': operation(OP.PING).text(999, 'later').finish(),
    mount: operation(OP.MOUNT)
      .bytes(TAG.VOLUME, encodeVolume({ ...VOLUME, roomBytes: 64 << 20 }))
      .finish(),
    unmount: operation(OP.UNMOUNT)
      .bytes(TAG.VOLUME, encodeVolume({ ...VOLUME, readOnly: true }))
      .finish(),
    grow: operation(OP.GROW)
      .bytes(TAG.VOLUME, encodeVolume(VOLUME))
      .number(TAG.SIZE, 2 ** 31)
      .finish(),
    'go with an authority': Buffer.concat([head(mediated.id), mediated.fields]),
  }
  const rows = columnsOf('requests.txt')
  assert.deepEqual(
    rows.map(([name]) => name),
    Object.keys(ours),
  )
  for (const [name = '', wire = ''] of rows) assert.equal(ours[name]?.toString('hex'), bytesOf(wire).toString('hex'), name)
})

test('an authority that the guest would refuse is not sent', () => {
  const of = (text: string) => `-----BEGIN CERTIFICATE-----\n${text}\n-----END CERTIFICATE-----\n`
  assert.ok(encodeConfig({ ...CONFIG, authority: of('A'.repeat(32768 - of('').length)) }))
  for (const authority of [
    '',
    of(''),
    of('a\0b'),
    of('a\u001b[2J'),
    of('é'),
    of('A').trimEnd(),
    ` ${of('A')}`,
    of('A'.repeat(32769 - of('').length)),
  ])
    assert.throws(() => encodeConfig({ ...CONFIG, authority }), { code: 'invalid_request' }, JSON.stringify(authority.slice(0, 80)))
})

test('answers are read as the guest writes them', () => {
  const answers = new Map(columnsOf('answers.txt').map(([name = '', wire = '']) => [name, () => new FieldReader(bytesOf(wire))]))
  const of = (name: string) => (answers.get(name) ?? assert.fail(`no answer ${name}`))()
  assert.deepEqual(pathInfoOf(of('stat')), {
    exists: true,
    is_dir: false,
    is_file: false,
    is_symlink: true,
    link_target: 'busybox',
    mode: 0o777,
    size: 7,
  })
  assert.deepEqual(endingOf(of('end')), { code: 137, message: 'killed by signal 9 (SIGKILL) - OOM' })
  assert.equal(of('freeze').flag(TAG.PARTLY), true)
  const woken = of('wake')
  assert.equal(refusalOf(woken, 'It did not work'), undefined)
  assert.deepEqual([woken.number(TAG.PHASE), woken.flag(TAG.ALREADY), woken.number(TAG.CLOSED)], [PHASE.RUNNING, false, 3])
  assert.equal(woken.flag(TAG.FROZEN), false)
  assert.equal(refusalOf(of('refusal'), 'It did not work')?.message, 'It did not work: The workload is not running')
})
