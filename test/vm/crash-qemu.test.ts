/**
 * The daemon is killed with SIGKILL at every named step of create, start, stop and delete, and while a golden boot is made, with a real
 * VM; what the next daemon finds and makes of it is compared with the host itself. The same matrix runs in a second on the fake driver:
 * instances/crash.test.ts. Here `qemu-microvm` goes through all of it, and q35 where the boards differ: how they start, end and power off.
 *
 * One data directory serves all cases, so that the image and the golden boots are made once.
 */
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { mkdir, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { QMP_SOCKET } from '../../packages/daemon/src/hypervisors/qemu/qemu-vm.ts'
import { Qmp } from '../../packages/daemon/src/hypervisors/qemu/qmp.ts'
import type { ApiClient } from '../harness/api-client.ts'
import { makeBusyboxImage } from '../harness/busybox-image.ts'
import { type DaemonProcess, startDaemon } from '../harness/daemon-process.ts'
import { importImage } from '../harness/import-image.ts'
import { endProcessesNaming } from '../harness/processes.ts'
import { makeStep } from '../harness/qemu-driver.ts'
import { Scratch } from '../harness/scratch.ts'
import { timeFactor } from '../harness/slow-host.ts'
import { assertHostInOrder, atRest, processesOf, type ShownInstance } from './house-in-order.ts'

let scratch: Scratch
let dir: string
/** The one that was begun after the last death, and takes the house to where the next one wants it. */
let current: DaemonProcess
before(async () => {
  scratch = await Scratch.make()
  dir = join(scratch.path, 'd')
  await mkdir(join(dir, 'run/golden'), { recursive: true })
  current = await begin()
  const image = await makeBusyboxImage(scratch.path)
  await importImage(current, image.path, 'box')
  // With it the golden boot of the shape is made.
  await make('qemu-microvm')(current.client)
})
after(async () => {
  await current?.kill()
  await endProcessesNaming(dir)
  await scratch[Symbol.asyncDispose]()
})

const begin = (crashAt?: string): Promise<DaemonProcess> =>
  startDaemon({ dir, driver: 'qemu-microvm', ...(crashAt === undefined ? {} : { env: { DORMOUSE_CRASH_AT: crashAt } }) })

type Board = 'qemu' | 'qemu-microvm'
type Deed = (client: ApiClient) => Promise<unknown>
const make =
  (hypervisor: Board, size = '256MB'): Deed =>
  async (client) => {
    await client.post('/instances', {
      name: 'a',
      image: 'box',
      hypervisor,
      vcpus: 1,
      size,
      overlay_size: '256MB',
      network: { ports: [{ host_port: 0, guest_port: 80 }] },
    })
    await client.get('/instances/a/wait?state=Running&timeout=60s')
  }
const start: Deed = async (client) => {
  await client.post('/instances/a/start', {})
  await client.get('/instances/a/wait?state=Running&timeout=60s')
}
const stop: Deed = (client) => client.post('/instances/a/stop')
const kill: Deed = (client) => client.post('/instances/a/stop', { force: true })
const remove: Deed = (client) => client.delete('/instances/a')
const removeAtOnce: Deed = (client) => client.delete('/instances/a?graceful_shutdown=false')
/** A guest that does not answer any more: its agent does not stop it, its power button has no effect. */
const hung =
  (deed: Deed): Deed =>
  async (client) => {
    const { id } = await client.get<ShownInstance>('/instances/a')
    using qmp = await Qmp.connect(join(dir, 'run/vm', id.slice(0, 12), QMP_SOCKET), makeStep(10_000))
    await qmp.execute('stop', undefined, makeStep(10_000))
    qmp[Symbol.dispose]()
    await deed(client)
  }
const endGuest: Deed = async (client) => {
  await client.post('/instances/a/stop', { force: true })
  await client.post('/instances/a/start', { cmd: ['/bin/sh', '-c', 'exit 3'] })
  await client.get('/instances/a/wait?state=Stopped&timeout=60s')
}

interface Case {
  readonly at: string
  readonly from: 'nothing' | 'Running' | 'Stopped'
  readonly deed: Deed | 'make'
  /** What the instance is after the restart; undefined: gone, with all that it had. */
  readonly ends: 'Running' | 'Stopped' | undefined
  /** `qemu-microvm` when absent. */
  readonly on?: 'qemu'
}

const CASES: readonly Case[] = [
  { at: 'create:files', from: 'nothing', deed: 'make', ends: undefined },
  { at: 'create:spawn', from: 'nothing', deed: 'make', ends: undefined },
  { at: 'create:record', from: 'nothing', deed: 'make', ends: undefined },
  { at: 'boot:connect', from: 'nothing', deed: 'make', ends: 'Running' },
  { at: 'boot:go', from: 'nothing', deed: 'make', ends: 'Running' },
  { at: 'boot:running', from: 'nothing', deed: 'make', ends: 'Running' },
  { at: 'start:intent', from: 'Stopped', deed: start, ends: 'Stopped' },
  { at: 'start:logs', from: 'Stopped', deed: start, ends: 'Stopped' },
  { at: 'start:spawn', from: 'Stopped', deed: start, ends: 'Stopped' },
  { at: 'start:record', from: 'Stopped', deed: start, ends: 'Stopped' },
  { at: 'boot:go', from: 'Stopped', deed: start, ends: 'Running' },
  { at: 'stop:intent', from: 'Running', deed: stop, ends: 'Running' },
  { at: 'stop:ask_guest', from: 'Running', deed: stop, ends: 'Stopped' },
  { at: 'stop:await_exit', from: 'Running', deed: stop, ends: 'Stopped' },
  { at: 'stop:power_button', from: 'Running', deed: hung(stop), ends: 'Stopped' },
  { at: 'stop:kill', from: 'Running', deed: kill, ends: 'Stopped' },
  { at: 'stop:settle', from: 'Running', deed: stop, ends: 'Stopped' },
  { at: 'stop:sweep', from: 'Running', deed: stop, ends: 'Stopped' },
  { at: 'delete:intent', from: 'Running', deed: remove, ends: 'Running' },
  { at: 'delete:ask_guest', from: 'Running', deed: remove, ends: undefined },
  { at: 'delete:await_exit', from: 'Running', deed: remove, ends: undefined },
  { at: 'delete:power_button', from: 'Running', deed: hung(remove), ends: undefined },
  { at: 'delete:kill', from: 'Running', deed: removeAtOnce, ends: undefined },
  { at: 'delete:sweep', from: 'Running', deed: remove, ends: undefined },
  { at: 'delete:remove_files', from: 'Stopped', deed: remove, ends: undefined },
  { at: 'delete:forget', from: 'Stopped', deed: remove, ends: undefined },
  // The last of its board, since the instance keeps the command that ends at once.
  { at: 'exit:settle', from: 'Running', deed: endGuest, ends: 'Stopped' },

  { on: 'qemu', at: 'create:spawn', from: 'nothing', deed: 'make', ends: undefined },
  { on: 'qemu', at: 'create:record', from: 'nothing', deed: 'make', ends: undefined },
  { on: 'qemu', at: 'boot:connect', from: 'nothing', deed: 'make', ends: 'Running' },
  { on: 'qemu', at: 'stop:ask_guest', from: 'Running', deed: stop, ends: 'Stopped' },
  { on: 'qemu', at: 'start:spawn', from: 'Stopped', deed: start, ends: 'Stopped' },
  { on: 'qemu', at: 'start:record', from: 'Stopped', deed: start, ends: 'Stopped' },
  { on: 'qemu', at: 'boot:go', from: 'Stopped', deed: start, ends: 'Running' },
  { on: 'qemu', at: 'stop:await_exit', from: 'Running', deed: stop, ends: 'Stopped' },
  { on: 'qemu', at: 'stop:power_button', from: 'Running', deed: hung(stop), ends: 'Stopped' },
  { on: 'qemu', at: 'stop:kill', from: 'Running', deed: kill, ends: 'Stopped' },
  { on: 'qemu', at: 'delete:await_exit', from: 'Running', deed: remove, ends: undefined },
  { on: 'qemu', at: 'boot:go', from: 'nothing', deed: 'make', ends: 'Running' },
  { on: 'qemu', at: 'delete:power_button', from: 'Running', deed: hung(remove), ends: undefined },
  { on: 'qemu', at: 'delete:kill', from: 'Running', deed: removeAtOnce, ends: undefined },
  { on: 'qemu', at: 'exit:settle', from: 'Running', deed: endGuest, ends: 'Stopped' },
]

for (const { at, from, deed, ends, on = 'qemu-microvm' } of CASES) {
  test(`killed at ${at} (${from}, ${on}): after the restart the instance is ${ends ?? 'gone'} and nothing is left over`, {
    timeout: 180_000,
  }, async () => {
    await bringTo(from, on)
    await dieAt(at, deed === 'make' ? make(on) : deed)
    current = await begin()
    const instances = await atRest(current.client)
    assert.deepEqual(
      instances.map(({ state }) => state),
      ends === undefined ? [] : [ends],
    )
    await assertHostInOrder(dir, instances)
    if (at.startsWith('exit:')) assert.equal((instances[0] as ShownInstance).exit_code, 3)
    if (ends === 'Running') await current.client.get('/instances/a/stat?path=/etc/passwd')
  })
}

const drafts = async (): Promise<string[]> =>
  (await readdir(join(dir, 'data/golden'))).filter((name) => name.endsWith('.draft')).map((name) => join(dir, 'data/golden', name))
const bootsOne = async (): Promise<boolean> => (await processesOf(join(dir, 'run/golden'))).vmms.length > 0
const writesOne = async (): Promise<boolean> => (await drafts()).some((draft) => existsSync(join(draft, 'memory')))

for (const [when, isThen, size] of [
  ['while it boots', bootsOne, '264MB'],
  ['while its memory is written', writesOne, '272MB'],
] as const) {
  test(`killed ${when}, a golden boot leaves nothing behind, and is made anew`, { timeout: 180_000 }, async () => {
    await bringTo('nothing', 'qemu-microvm')
    const before = await readdir(join(dir, 'data/golden'))
    const daemon = await begin()
    make('qemu-microvm', size)(daemon.client).catch(() => undefined)
    await pollUntil(`a golden boot to be made: ${when}`, isThen, makeStep(60_000), { everyMs: 1, upToMs: 1 })
    await daemon.kill()
    current = await begin()
    const instances = await atRest(current.client)
    assert.deepEqual(instances, [])
    await assertHostInOrder(dir, instances)
    assert.deepEqual((await readdir(join(dir, 'data/golden'))).sort(), before.sort())
    await make('qemu-microvm', size)(current.client)
    assert.equal((await readdir(join(dir, 'data/golden'))).length, before.length + 1)
    await assertHostInOrder(dir, await atRest(current.client))
  })
}

/** Not disposed of, as that would end the VMs too, which are what the next daemon is to find. */
async function dieAt(at: string, deed: Deed): Promise<void> {
  const daemon = await begin(at)
  // The answer never comes.
  deed(daemon.client).catch(() => undefined)
  const limit = setTimeout(() => void daemon.stop(), 60_000 * timeFactor)
  try {
    assert.equal(await daemon.exited, 'SIGKILL', `it never came to ${at}`)
  } finally {
    clearTimeout(limit)
    await daemon.kill()
  }
}

async function bringTo(from: Case['from'], on: Board): Promise<void> {
  // What a case before this one could not begin, this one does.
  if (!(await answers(current.client))) current = await begin()
  const { client } = current
  const [found] = await atRest(client)
  const a = found?.hypervisor === on && from !== 'nothing' ? found : undefined
  if (found && !a) await remove(client)
  if (from !== 'nothing' && !a) await make(on)(client)
  if (from === 'Running' && a?.state === 'Stopped') await start(client)
  if (from === 'Stopped' && a?.state !== 'Stopped') await kill(client)
  await current.stop()
}

const answers = (client: ApiClient): Promise<boolean> =>
  client.call('GET', '/health').then(
    () => true,
    () => false,
  )
