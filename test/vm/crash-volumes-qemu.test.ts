/**
 * The daemon is killed with SIGKILL at the named steps of what is done with volumes, with a real VM that goes on all the while: afterwards
 * the volume is attached or it is not, its guest agrees, its data is whole, and nothing is left over. The whole matrix runs on the fake
 * driver: instances/volumes.test.ts.
 */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { gzipSync } from 'node:zlib'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { tarOf } from '../../packages/daemon/src/images/tar-fixtures.ts'
import { upload } from '../harness/upload.ts'
import { atRest } from './house-in-order.ts'
import { InstanceStory } from './instance-story.ts'

type Deed = () => Promise<unknown>

let story: InstanceStory
/** Of the file on the volume. */
let written: string
before(async () => {
  story = await InstanceStory.begin({ driver: 'qemu' })
  const { client } = story.daemon
  await client.post('/volumes', { name: 'data', size_gb: 1 })
  await story.run('a')
  await attach()
  written = await story.sh('a', 'dd if=/dev/urandom of=/data/file bs=64k count=64 2>/dev/null && sha256sum < /data/file')
})
after(() => story?.[Symbol.asyncDispose]())

const attach: Deed = () => story.daemon.client.post('/instances/a/volumes/data', { mount_path: '/data' })
const detach: Deed = () => story.daemon.client.delete('/instances/a/volumes/data')
const fork: Deed = () => story.fork('a', { name: 'b', from_running: true })
const fill: Deed = () =>
  upload(story.daemon.socket, '/volumes/from-archive?name=filled&size_gb=1', gzipSync(tarOf([{ name: 'file', content: 'x' }])))
const drop: Deed = () => story.daemon.client.delete('/volumes/extra')

interface Case {
  readonly at: string
  readonly deed: Deed
  /** Whether `data` is attached before, and after. */
  readonly attached: readonly [before: boolean, after: boolean]
  /** What there is besides `data` afterwards. */
  readonly volumes?: readonly string[]
  readonly isForked?: true
}

const each = (operation: string, steps: string, the: Omit<Case, 'at'>): Case[] =>
  steps.split(' ').map((step) => ({ at: `${operation}:${step}`, ...the }))

const CASES: readonly Case[] = [
  ...each('attach_volume', 'record', { deed: attach, attached: [false, false] }),
  ...each('attach_volume', 'insert mount settle', { deed: attach, attached: [false, true] }),
  ...each('detach_volume', 'intent', { deed: detach, attached: [true, true] }),
  ...each('detach_volume', 'unmount eject record sweep', { deed: detach, attached: [true, false] }),
  ...each('fork', 'capture pivot resume', { deed: fork, attached: [true, true] }),
  ...each('create', 'record', { deed: fork, attached: [true, true] }),
  ...each('create', 'wake', { deed: fork, attached: [true, true], volumes: ['data-b'], isForked: true }),
  ...each('volume_import', 'files record', { deed: fill, attached: [true, true] }),
  ...each('volume_delete', 'record', { deed: drop, attached: [true, true], volumes: ['extra'] }),
  ...each('volume_delete', 'files', { deed: drop, attached: [true, true] }),
]

for (const { at, deed, attached, volumes = [], isForked = false } of CASES) {
  const what = attached[1] ? 'the volume is attached' : 'the volume is not attached'
  test(`killed at ${at}: ${what}, its data whole, and nothing is left over`, { timeout: 120_000 }, async () => {
    const [isBefore, isAfter] = attached
    if (isBefore !== (await isAttached())) await (isBefore ? attach : detach)()
    if (deed === drop) await story.daemon.client.post('/volumes', { name: 'extra', size_gb: 1 })
    await story.restartDaemon('stop', { DORMOUSE_CRASH_AT: at })
    const { daemon } = story
    deed().catch(() => undefined)
    await daemon.exited
    await story.restartDaemon('kill')
    await atRest(story.daemon.client)
    await pollUntil(
      'the recovery to be over',
      async () => (await isAttached()) === isAfter,
      { signal: AbortSignal.timeout(30_000) },
      { everyMs: 50 },
    )
    assert.equal(await story.sh('a', 'grep -c " /data " /proc/mounts || true'), isAfter ? '1' : '0')
    const there = await story.daemon.client.get<{ name: string }[]>('/volumes')
    assert.deepEqual(there.map(({ name }) => name).sort(), ['data', ...volumes].sort())
    if (!isAfter) await attach()
    assert.equal(await story.sh('a', 'sha256sum < /data/file'), written)
    await story.sh('a', 'echo more >> /data/other && sync')
    if (isForked) {
      assert.equal(await story.sh('b', 'sha256sum < /data/file'), written)
      await story.remove('b')
    }
    for (const name of volumes) await story.daemon.client.delete(`/volumes/${name}`)
    await story.assertInOrder()
  })
}

const isAttached = async (): Promise<boolean> => {
  const { volumes } = await story.daemon.client.get<{ volumes: readonly unknown[] }>('/instances/a')
  return volumes.length > 0
}
