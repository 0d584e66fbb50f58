import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, mkdtemp, readdir, readFile, rm, stat, truncate, writeFile } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { Readable } from 'node:stream'
import { after, before, test } from 'node:test'
import { AppError } from '@dormouse/api/errors.ts'
import { isNoSpace, workerError } from './disk-full.ts'
import { cloneFile, publishDirectory, writeFileAtomically } from './files.ts'
import { readMemoryPressure } from './host-facts.ts'
import { pollUntil } from './poll-until.ts'
import { identityOf, isAlive, killProcess, readBootId, signalProcess, usageOf } from './process-identity.ts'
import { CommandError, runCommand } from './run-command.ts'

const within = (ms: number): { signal: AbortSignal } => ({ signal: AbortSignal.timeout(ms) })
let dir: string
before(async () => {
  dir = await mkdtemp(path.join(os.tmpdir(), 'host-'))
})
after(() => rm(dir, { recursive: true, force: true }))

test('a command gives its output', async () => {
  const { stdout, stderr, code } = await runCommand(['sh', '-c', 'cat; echo oops >&2'], { step: within(5000), input: 'hello' })
  assert.deepEqual({ stdout, stderr, code }, { stdout: 'hello', stderr: 'oops\n', code: 0 })
})

test('a command may read a stream', async () => {
  const input = Readable.from([Buffer.from('a'), Buffer.from('b')])
  assert.equal((await runCommand(['cat'], { step: within(5000), input })).stdout, 'ab')
})

test('a command that fails says its name, its code and its last words', async () => {
  const failing = runCommand(['sh', '-c', 'echo first >&2; echo last words >&2; exit 3'], { step: within(5000) })
  await assert.rejects(failing, (error) => {
    assert.ok(error instanceof CommandError)
    assert.match(error.message, /^sh ended with code 3: first\nlast words$/)
    assert.equal(error.exitCode, 3)
    return true
  })
})

test('an exit code that is named as success is one', async () => {
  assert.equal((await runCommand(['sh', '-c', 'exit 1'], { step: within(5000), okCodes: [0, 1] })).code, 1)
})

test('a command that is not installed is a missing dependency', async () => {
  await assert.rejects(runCommand(['no-such-program-here'], { step: within(5000) }), { code: 'dependency_missing' })
})

test('a command that takes too long is killed with its children', async () => {
  const started = performance.now()
  await assert.rejects(runCommand(['sh', '-c', 'sleep 60 & wait'], { step: within(50) }), /took too long and was killed/)
  assert.ok(performance.now() - started < 5000)
})

test('a command that floods its output is ended', async () => {
  await assert.rejects(runCommand(['yes'], { step: within(5000), maxOutputBytes: 100_000 }), /wrote more than 100000 bytes/)
})

test('a process is known by its pid and its start time', async () => {
  const child = spawn('sleep', ['60'])
  try {
    const identity = identityOf(child.pid ?? 0)
    assert.ok(identity)
    assert.ok(isAlive(identity))
    assert.equal(isAlive({ ...identity, startTicks: '1' }), false)
    assert.equal(signalProcess({ ...identity, startTicks: '1' }, 'SIGKILL'), false)
    assert.ok((usageOf(identity)?.vmsBytes ?? 0) > 0)
    const exited = once(child, 'exit')
    await killProcess(identity, within(5000))
    await exited
    assert.equal(isAlive(identity), false)
    assert.equal(usageOf(identity), undefined)
  } finally {
    child.kill('SIGKILL')
  }
})

test('a process whose name holds brackets and spaces is read right', async () => {
  const named = path.join(dir, 'a) S 1 (b')
  await writeFile(named, await readFile('/bin/sleep'), { mode: 0o755 })
  const child = spawn(named, ['60'])
  await once(child, 'spawn')
  try {
    assert.match(identityOf(child.pid ?? 0)?.startTicks ?? '', /^\d{3,}$/)
  } finally {
    child.kill('SIGKILL')
  }
})

test('a pid that cannot be is nobody', () => {
  for (const pid of [0, -1, 1.5, Number.NaN, 2 ** 40]) assert.equal(identityOf(pid), undefined)
  assert.match(readBootId(), /^[0-9a-f-]{36}$/)
})

test('waiting gives up with a sentence that names what was waited for', async () => {
  await assert.rejects(
    pollUntil('the moon', () => false, within(20)),
    (error) => error instanceof AppError && error.code === 'timed_out' && error.message.includes('the moon'),
  )
})

test('an atomic write replaces the file and leaves no draft', async () => {
  const file = path.join(dir, 'atomic', 'file')
  await mkdir(path.dirname(file))
  await writeFileAtomically(file, 'one')
  await writeFileAtomically(file, 'two', { mode: 0o644 })
  assert.equal(await readFile(file, 'utf8'), 'two')
  assert.deepEqual(await readdir(path.dirname(file)), ['file'])
  await assert.rejects(writeFileAtomically(path.join(dir, 'absent', 'file'), ''))
})

test('a directory is published by one rename', async () => {
  const draft = path.join(dir, 'draft')
  await mkdir(draft)
  await writeFile(path.join(draft, 'content'), 'x')
  await publishDirectory(draft, path.join(dir, 'published'))
  assert.deepEqual(await readdir(path.join(dir, 'published')), ['content'])
})

test('a clone is equal and stays sparse', async () => {
  const source = path.join(dir, 'sparse')
  await writeFile(source, Buffer.alloc(8192, 'a'))
  await truncate(source, 16 << 20)
  const target = path.join(dir, 'clone')
  await cloneFile(source, target)
  const [from, to] = [await stat(source), await stat(target)]
  assert.equal(to.size, from.size)
  assert.ok(to.blocks * 512 <= 64 * 1024)
  assert.ok((await readFile(target)).equals(await readFile(source)))
  await assert.rejects(cloneFile(source, target), { code: 'EEXIST' })
  assert.ok((await stat(target)).size > 0)
})

test('the pressure on memory is what some stood still for in the last ten seconds, and none where the kernel does not tell', async () => {
  const file = path.join(dir, 'pressure')
  const stalledWith = async (content: string): Promise<number> => {
    await writeFile(file, content)
    return readMemoryPressure(file).stalledPercent
  }
  const psi = (some: string) => `some avg10=${some} avg60=4.11 avg300=1.02 total=81\nfull avg10=77.00 avg60=2.00 avg300=0.90 total=60\n`
  assert.equal(await stalledWith(psi('12.50')), 12.5)
  assert.equal(await stalledWith(psi('0.00')), 0)
  for (const strange of ['', 'full avg10=77.00 avg60=2.00 avg300=0.90 total=60\n', 'some avg10= avg60=1.00\n', 'some avg10=much\n'])
    assert.equal(await stalledWith(strange), 0, strange)
  // A kernel without it has no such file; one that was booted with psi=0 has one that cannot be read.
  for (const unreadable of [path.join(dir, 'absent'), dir]) {
    const { stalledPercent, availableBytes, totalBytes } = readMemoryPressure(unreadable)
    assert.equal(stalledPercent, 0)
    assert.ok(availableBytes > 0 && availableBytes <= totalBytes)
  }
})

test('a full disk is told from other failures, in codes, in the words of programs, and below other errors', async () => {
  const full = Object.assign(new Error('ENOSPC: no space left on device, write'), { code: 'ENOSPC' })
  assert.ok(isNoSpace(full))
  assert.ok(isNoSpace(new AppError('internal_error', 'It failed', { cause: new Error('as well', { cause: full }) })))
  const talking = runCommand(['sh', '-c', 'echo "mkfs: No space left on device" >&2; exit 1'], { step: within(5000) })
  assert.ok(isNoSpace(await talking.catch((error: unknown) => error)))
  for (const other of [undefined, 'ENOSPC', new Error('No space left on device'), Object.assign(new Error('x'), { code: 'EIO' })])
    assert.equal(isNoSpace(other), false)
  const { code, message } = workerError('The memory could not be written', 'error cannot make /data/x: No space left on device\n')
  assert.deepEqual([code, message], ['insufficient_resources', 'The memory could not be written: the disk of the data directory is full'])
  assert.equal(workerError('It could not', 'error the base is gone').code, 'internal_error')
  assert.match(workerError('It could not', undefined).message, /ended without a word$/)
})
