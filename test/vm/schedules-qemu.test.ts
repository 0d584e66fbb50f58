/** Scheduled snapshots of a real VM: verified from end to end before an older one goes, and good for what they are kept for. */
import assert from 'node:assert/strict'
import { open, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { after, before, test } from 'node:test'
import type { SnapshotSchedule } from '@dormouse/api/schedules.ts'
import type { Snapshot } from '@dormouse/api/snapshots.ts'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { makeBusyboxImage } from '../harness/busybox-image.ts'
import { type DaemonProcess, startDaemon } from '../harness/daemon-process.ts'
import { execOverApi } from '../harness/exec-over-api.ts'
import { importImage } from '../harness/import-image.ts'
import { endProcessesNaming } from '../harness/processes.ts'
import { Scratch } from '../harness/scratch.ts'

let scratch: Scratch
let dir: string
let daemon: DaemonProcess

before(async () => {
  scratch = await Scratch.make()
  dir = join(scratch.path, 'd')
  daemon = await startDaemon({ dir, driver: 'qemu' })
  const image = await makeBusyboxImage(scratch.path, { cmd: ['/bin/sleep', '1000000'] })
  await importImage(daemon, image.path, 'box')
})
after(async () => {
  await daemon?.stop()
  await endProcessesNaming(dir)
  await scratch[Symbol.asyncDispose]()
})

const sh = async (script: string): Promise<string> => {
  const { exitCode, stdout, stderr } = await execOverApi(daemon.socket, 'web', { command: ['/bin/sh', '-c', script] })
  assert.equal(exitCode, 0, stderr)
  return stdout.trim()
}
const schedule = () => daemon.client.get<SnapshotSchedule>('/instances/web/snapshot-schedule')
const snapshots = () => daemon.client.get<Snapshot[]>('/snapshots')

/** The run that came due while the daemon was away, and all that belongs to it. */
async function runOverdue(): Promise<SnapshotSchedule> {
  await daemon.stop()
  using db = new DatabaseSync(daemon.paths.database)
  const ran = () => Number(db.prepare("SELECT count(*) AS n FROM events WHERE kind = 'schedule.ran'").get()?.n)
  const ranBefore = ran()
  db.prepare('UPDATE snapshot_schedules SET next_run_at_ms = ?').run(Date.now() - 1)
  daemon = await startDaemon({ dir, driver: 'qemu' })
  await pollUntil('the run to end', () => ran() > ranBefore, { signal: AbortSignal.timeout(60_000) })
  return schedule()
}

test('an older snapshot goes once a newer one is read whole, and what is kept brings the memory back', { timeout: 300_000 }, async () => {
  await daemon.client.post('/instances?wait=running', { name: 'web', image: 'box', vcpus: 1, size: '256MB', overlay_size: '256MB' })
  await sh('mkdir -p /dev/shm/x && echo first > /dev/shm/x/at')
  const set = { interval: '1h', retention: { max_count: 1 }, name_prefix: 'hourly' }
  assert.equal((await daemon.client.call('PUT', '/instances/web/snapshot-schedule', set)).status, 200)
  const first = await runOverdue()
  assert.equal(first.last_error, null)
  await sh('echo second > /dev/shm/x/at')
  const second = await runOverdue()
  assert.equal(second.last_error, null)
  assert.notEqual(second.last_snapshot_id, first.last_snapshot_id)
  const [kept, ...others] = await snapshots()
  assert.deepEqual([kept?.id, kept?.kind, others.length], [second.last_snapshot_id, 'Standby', 0])
  assert.match(kept?.name ?? '', /^hourly-\d{8}-\d{6}$/)

  await sh('echo third > /dev/shm/x/at')
  await daemon.client.post('/instances/web/stop')
  await daemon.client.post(`/instances/web/snapshots/${kept?.id}/restore`, { target_state: 'Running' })
  assert.equal(await sh('cat /dev/shm/x/at'), 'second')
})

test('a flipped bit in the memory that all stand on is found, and nothing is called proved', { timeout: 300_000 }, async () => {
  const [golden = ''] = await readdir(daemon.paths.goldenDir)
  await using memory = await open(join(daemon.paths.goldenDir, golden, 'memory'), 'r+')
  // The kernel's first pages are in every golden boot.
  const at = 16 << 20
  const byte = Buffer.alloc(1)
  await memory.read(byte, 0, 1, at)
  await memory.write(Buffer.of((byte[0] ?? 0) ^ 1), 0, 1, at)
  await memory.sync()
  const told = await runOverdue()
  assert.match(told.last_error ?? '', /^The snapshot hourly-\S+ is damaged; .*None could be proved to be whole/)
  assert.ok((await snapshots()).some(({ id }) => id === told.last_snapshot_id))
})
