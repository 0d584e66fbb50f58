/** From `skopeo copy` to a program that runs: what is pushed to the daemon is an image like any other, in a real VM. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { runCommand } from '../../packages/daemon/src/host/run-command.ts'
import { makeBusyboxImage } from '../harness/busybox-image.ts'
import { startDaemon } from '../harness/daemon-process.ts'
import { dormouse } from '../harness/dormouse-command.ts'
import { scratchDir } from '../harness/scratch.ts'

test('an image that is pushed to the daemon is run by the name that it was pushed as', { timeout: 600_000 }, async (t) => {
  const dir = await scratchDir(t)
  await using daemon = await startDaemon({ dir: `${dir}/d`, driver: 'qemu-microvm', env: { DORMOUSE_LISTEN: '127.0.0.1:0' } })
  const { token } = await daemon.client.post<{ token: string }>('/tokens', { subject: 'test', scopes: ['image:write'] })
  const port = /"tcp":\{"host":"127\.0\.0\.1","port":(\d+)\}/.exec(await daemon.log())?.[1]
  const { path } = await makeBusyboxImage(dir)
  const to = ['--dest-tls-verify=false', '--dest-creds', `anyone:${token}`, `oci:${path}:latest`]
  await runCommand(['skopeo', 'copy', ...to, `docker://127.0.0.1:${port}/team/app:1`], { step: { signal: AbortSignal.timeout(120_000) } })
  const words = ['run', '--rm', '--pull', 'missing', '-m', '128m', 'team/app:1', 'echo', 'pushed and run']
  const { code, stdout, stderr } = await dormouse(words, { socket: daemon.socket, timeoutMs: 300_000 })
  assert.deepEqual([code, stdout], [0, 'pushed and run\n'], stderr)
})
