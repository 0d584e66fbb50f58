/** A VMM that opens its files itself is answered by its shim: with what its VM has, in the way that was said, and with nothing else. */
import assert from 'node:assert/strict'
import { execFile, execFileSync } from 'node:child_process'
import { chmod, mkdir, open, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { type AnsweredFile, answeredPath } from '../../packages/daemon/src/hypervisors/answered-file.ts'
import { Shim } from '../../packages/daemon/src/hypervisors/shim.ts'
import { artefacts, makeStep } from '../harness/qemu-driver.ts'
import { scratchDir } from '../harness/scratch.ts'

const isRoot = process.geteuid?.() === 0

/** A shell for a VMM, as a user that may reach no disk, which is told what to do. */
async function shellBehindShim(t: TestContext, answers: readonly AnsweredFile[] | undefined, disks: string) {
  const dir = await scratchDir(t)
  await chmod(dir, 0o755)
  const [runDir, log, orders] = ['run', 'vmm.log', 'orders'].map((name) => join(dir, name)) as [string, string, string]
  await mkdir(runDir, { mode: 0o700 })
  execFileSync('mkfifo', ['-m', '666', orders])
  const shim = await Shim.launch(
    {
      shimPath: artefacts.shimPath,
      runDir,
      ...(isRoot ? { user: { uid: 654321, gid: 654321 } } : {}),
      logs: [{ name: 'vmm', file: log, maxBytes: 1 << 20 }],
      isolateNetwork: true,
      ...(answers === undefined ? {} : { answers }),
      // Opened both ways, it neither waits for a writer nor ends with one.
      vmm: {
        argv: ['bash', '-c', 'exec 9<>"$0"; while read -r number order <&9; do eval "$order"; echo "done $number"; done', orders],
        descriptors: [],
      },
    },
    makeStep(20_000),
  )
  const pipe = await open(orders, 'r+')
  t.after(async () => {
    await pipe.close()
    await shim.kill()
    shim[Symbol.dispose]()
  })
  let count = 0
  let read = 0
  /** What the shell says to an order, which outlives it in what it has open. */
  const told = async (order: string): Promise<string> => {
    const number = ++count
    await pipe.write(`${number} ${order}\n`)
    const end = `done ${number}\n`
    const { said } = await pollUntil(
      'the shell',
      async () => {
        const text = (await readFile(log, 'utf8')).slice(read)
        return text.endsWith(end) ? { said: text.slice(0, -end.length) } : undefined
      },
      makeStep(20_000),
    )
    read += said.length + end.length
    return said
  }
  return { shim, told, disk: (name: string) => join(disks, name) }
}

/** No path leads others to them. */
async function disksOf(t: TestContext, files: Readonly<Record<string, string>>): Promise<string> {
  const dir = await scratchDir(t)
  await chmod(dir, 0o700)
  for (const [name, text] of Object.entries(files)) await writeFile(join(dir, name), text, { mode: 0o600 })
  return dir
}

const isLocked = (file: string): Promise<boolean> =>
  new Promise((resolve) => {
    execFile('flock', ['-xn', file, 'true'], (error) => resolve(error !== null))
  })

test('it opens what its VM has: to write, to read alone, and what is empty', async (t) => {
  const disks = await disksOf(t, { data: 'old data\n', image: 'an image\n' })
  const { told, disk } = await shellBehindShim(
    t,
    [
      { name: 'data', kind: 'rw', file: join(disks, 'data') },
      { name: 'image', kind: 'ro', file: join(disks, 'image') },
      { name: 'none', kind: 'blank' },
    ],
    disks,
  )
  assert.equal(await told(`exec 5<>${answeredPath('data')}; cat <&5; echo new data >&5`), 'old data\n')
  assert.equal(await readFile(disk('data'), 'utf8'), 'old data\nnew data\n')
  // Asked to be opened for both, as a writable disk is.
  assert.equal(await told(`exec 6<>${answeredPath('image')}; cat <&6`), 'an image\n')
  assert.match(await told('echo spoiled >&6'), /Bad file descriptor/)
  assert.equal(await readFile(disk('image'), 'utf8'), 'an image\n')
  assert.equal(await told(`exec 7<>${answeredPath('none')}; stat -L -c %s /dev/fd/7`), '0\n')
  assert.match(await told(`cat ${answeredPath('other')}`), /No such file/)
  assert.match(await told(`cat ${answeredPath('../etc/passwd')}`), /No such file/)
  if (isRoot) assert.match(await told(`cat ${disk('data')}`), /Permission denied/)
})

test('disks come and go while it runs, and one that has gone is not opened again', async (t) => {
  const disks = await disksOf(t, { first: 'first\n', second: 'second\n' })
  const { shim, told, disk } = await shellBehindShim(t, [], disks)
  const path = answeredPath('slot')
  assert.match(await told(`cat ${path}`), /No such file/)
  for (let round = 0; round < 2; round++) await shim.answer({ name: 'slot', kind: 'rw', file: disk('first') }, makeStep())
  assert.equal(await told(`exec 5<>${path}; cat <&5`), 'first\n')
  for (let round = 0; round < 2; round++) await shim.extend('slot', 4096, makeStep())
  await assert.rejects(shim.extend('slot', 4095, makeStep()), /it is larger already/)
  assert.equal(await told('stat -L -c %s /dev/fd/5'), '4096\n')
  await shim.answer({ name: 'slot', kind: 'ro', file: disk('second') }, makeStep())
  await assert.rejects(shim.extend('slot', 4096, makeStep()), /no such disk to write/)
  assert.equal(await told(`cat ${path}`), 'second\n')
  for (let round = 0; round < 2; round++) await shim.refuse('slot', makeStep())
  assert.match(await told(`cat ${path}`), /No such file/)
  // What it had open it still has.
  await told('echo more >&5')
  assert.equal((await readFile(disk('first'), 'utf8')).slice(0, 11), 'first\nmore\n')
})

test('each opening is one of its own: a lock ends when the VMM lets go of it', async (t) => {
  const disks = await disksOf(t, { data: '' })
  const { told, disk } = await shellBehindShim(t, [{ name: 'data', kind: 'rw', file: join(disks, 'data') }], disks)
  await told(`exec 5<>${answeredPath('data')}; flock -xn 5`)
  assert.equal(await isLocked(disk('data')), true)
  assert.match(await told(`exec 6<>${answeredPath('data')}; flock -xn 6 || echo taken`), /taken/)
  await told('exec 5>&-')
  assert.equal(await isLocked(disk('data')), false)
})

test('whether someone has it locked is known of what it finds by a name, as a VMM that has not closed it yet would have', async (t) => {
  const disks = await disksOf(t, { data: '' })
  const { shim, told } = await shellBehindShim(t, [{ name: 'data', kind: 'rw', file: join(disks, 'data') }], disks)
  // It ends with the shell.
  const holds = 'import fcntl, sys; file = open(sys.argv[1], "r+"); fcntl.lockf(file, fcntl.LOCK_EX); sys.stdin.read()'
  assert.equal(await shim.isLocked('data', makeStep()), false)
  await told(`exec 6> >(python3 -c '${holds}' ${answeredPath('data')})`)
  await pollUntil('the lock', () => shim.isLocked('data', makeStep()), makeStep(20_000))
  assert.equal(await shim.isLocked('other', makeStep()), false)
  await told('exec 6>&-')
  await pollUntil('its end', async () => !(await shim.isLocked('data', makeStep())), makeStep(20_000))
})

test('what is no disk is never handed over, nor anything to a VMM that opens all by itself', async (t) => {
  const disks = await disksOf(t, { data: '' })
  const { shim, disk } = await shellBehindShim(t, [], disks)
  await assert.rejects(
    shim.answer({ name: 'slot', kind: 'ro', file: disks }, makeStep()),
    /could not have the VM find slot: Invalid argument/i,
  )
  await assert.rejects(shim.answer({ name: 'slot', kind: 'ro', file: disk('none') }, makeStep()), /No such file/)
  await assert.rejects(shim.answer({ name: 'a/b', kind: 'ro', file: disk('data') }, makeStep()), /a name and a file are wanted/)
  for (let i = 0; i < 16; i++) await shim.answer({ name: `slot-${i}`, kind: 'blank' }, makeStep())
  await assert.rejects(shim.answer({ name: 'slot-16', kind: 'blank' }, makeStep()), /too many names/)
  const alone = await shellBehindShim(t, undefined, disks)
  await assert.rejects(alone.shim.answer({ name: 'slot', kind: 'blank' }, makeStep()), /it opens everything by itself/)
  assert.match(await alone.told(`cat ${answeredPath('slot')}`), /No such file/)
})
