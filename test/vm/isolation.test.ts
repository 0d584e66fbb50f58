/** A VMM that its guest has taken over, as its user sees this host: its own disk, and nothing of the daemon's or of another VM's. */
import assert from 'node:assert/strict'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { runCommand } from '../../packages/daemon/src/host/run-command.ts'
import { makeBusyboxImage } from '../harness/busybox-image.ts'
import { startDaemon } from '../harness/daemon-process.ts'
import { importImage } from '../harness/import-image.ts'
import { makeStep } from '../harness/qemu-driver.ts'
import { scratchDir } from '../harness/scratch.ts'
import { disksOf, processesOf, type ShownInstance } from './house-in-order.ts'

/** As the user of a process, with nothing else of it: which of the paths can be opened, and how. */
async function openable(uid: string, paths: readonly string[]): Promise<string[]> {
  const script = `
    opens() { if [ -d "$1" ]; then ls "$1"; elif [ -S "$1" ]; then [ -w "$1" ]; else head -c 1 "$1"; fi > /dev/null 2>&1; }
    for path; do
      opens "$path" && echo "reads $path"
      [ -w "$path" ] && echo "writes $path"
    done
    true`
  const become = [
    'setpriv',
    `--reuid=${uid}`,
    `--regid=${uid}`,
    '--clear-groups',
    '--bounding-set=-all',
    '--inh-caps=-all',
    '--no-new-privs',
  ] as const
  const { stdout } = await runCommand([...become, 'bash', '-c', script, 'look', ...paths], { step: makeStep() })
  return stdout.split('\n').filter((line) => line !== '')
}

test('a VMM’s user opens its own disk and nothing else: no other disk, memory, log, socket, snapshot, nor the database', async (t) => {
  if (process.geteuid?.() !== 0) return t.skip('only root runs VMs as users of their own')
  const dir = join(await scratchDir(t), 'd')
  await using daemon = await startDaemon({ dir, driver: 'qemu-microvm' })
  const image = await makeBusyboxImage(await scratchDir(t), { cmd: ['/bin/sleep', '1000000'] })
  await importImage(daemon, image.path, 'box')
  const shape = { image: 'box', vcpus: 1, size: '256MB', overlay_size: '64MB' }
  for (const name of ['one', 'two', 'asleep']) await daemon.client.post('/instances?wait=running', { name, ...shape })
  await daemon.client.post('/instances/two/snapshots', { kind: 'Standby' })
  await daemon.client.post('/instances/asleep/standby', {})
  const { id } = await daemon.client.get<ShownInstance>('/instances/one')
  const { shims, vmms } = await processesOf(dir)
  const shim = shims.find(({ place }) => place.endsWith(id.slice(0, 12)))
  const vmm = vmms.find(({ parent }) => parent === shim?.pid)?.pid ?? 0
  const uid = /^Uid:\s+(\d+)/m.exec(await readFile(`/proc/${vmm}/status`, 'utf8'))?.[1] ?? ''
  assert.notEqual(uid, '0')
  const below = async (place: string): Promise<string[]> =>
    (await readdir(place, { recursive: true, withFileTypes: true })).map((entry) => join(entry.parentPath, entry.name))
  const rivals = [...vmms, ...shims]
    .filter(({ pid }) => pid !== vmm)
    .flatMap(({ pid }) => ['mem', 'maps', 'environ', 'fd'].map((it) => `/proc/${pid}/${it}`))
  const all = [...(await below(join(dir, 'data'))), ...(await below(join(dir, 'run')))]
  assert.ok(all.some((path) => path.endsWith('dormouse.db')) && all.some((path) => path.endsWith('qmp.sock')))
  const found = await openable(uid, [...all, ...rivals, `/proc/${daemon.pid}/mem`])
  const own = (disksOf(dir).get(id) ?? []).map((layer) => join(dir, 'data/disks', layer))
  assert.equal(own.length, 1)
  // What it may do to its own disk it does through the descriptor that it was given.
  assert.deepEqual(
    found,
    own.flatMap((path) => [`reads ${path}`, `writes ${path}`]),
  )
})
