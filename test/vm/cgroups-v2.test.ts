/**
 * Cgroups of version 2, which not every host that runs this has: the daemon's own code in a guest of its own, whose kernel has no other.
 * Processes run wild there as those of a VMM that was taken over would here.
 */
import assert from 'node:assert/strict'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { build } from 'esbuild'
import { makeBusyboxImage } from '../harness/busybox-image.ts'
import { startDaemon } from '../harness/daemon-process.ts'
import { execOverApi } from '../harness/exec-over-api.ts'
import { importImage } from '../harness/import-image.ts'
import { programClosure } from '../harness/program-closure.ts'
import { artefacts } from '../harness/qemu-driver.ts'
import { scratchDir } from '../harness/scratch.ts'

test('with cgroup v2 each VM has one with its limits, below the daemon’s unit or at the top', { timeout: 300_000 }, async (t) => {
  const dir = await scratchDir(t)
  const bundle = join(dir, 'cgroups-inside.mjs')
  const inside = join(import.meta.dirname, '../harness/cgroups-inside.ts')
  await build({
    ...{ entryPoints: [inside], outfile: bundle, bundle: true, platform: 'node', format: 'esm', logLevel: 'error' },
    banner: { js: "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);" },
  })
  await mkdir(join(dir, 'image'))
  const { path } = await makeBusyboxImage(join(dir, 'image'), {
    programs: {
      ...(await programClosure(process.execPath, '/bin/node')),
      ...(await programClosure(artefacts.shimPath, '/bin/dormouse-shim')),
      '/app/cgroups-inside.mjs': bundle,
    },
    cmd: ['/bin/sleep', '1000000'],
  })
  await using daemon = await startDaemon({ dir: join(dir, 'd'), driver: 'qemu-microvm' })
  await importImage(daemon, path, 'inside')
  await daemon.client.post('/instances?wait=running', { name: 'v2', image: 'inside', vcpus: 2, size: '512MB', overlay_size: '256MB' })
  const { stdout, stderr } = await execOverApi(daemon.socket, 'v2', { command: ['/bin/node', '/app/cgroups-inside.mjs'] })
  assert.equal(stdout.trim(), 'all is so', stderr)
})
