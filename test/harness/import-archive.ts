import assert from 'node:assert/strict'
import { mkdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { runCommand } from '../../packages/daemon/src/host/run-command.ts'
import { makeBusyboxImage } from './busybox-image.ts'

/** Makes a small image that sleeps, below `dir`, and sends it to a daemon over TCP as an archive under `name`. It is not ready yet then. */
export async function importArchive(baseURL: string, apiKey: string, { dir, name }: { dir: string; name: string }): Promise<void> {
  const made = join(dir, 'image')
  await mkdir(made)
  const layout = await makeBusyboxImage(made, { cmd: ['/bin/sleep', 'infinity'] })
  const archive = join(dir, 'image.tar')
  await runCommand(['tar', '-C', layout.path, '-cf', archive, '.'], { step: { signal: AbortSignal.timeout(30_000) } })
  const answer = await fetch(`${baseURL}/images/import?name=${encodeURIComponent(name)}`, {
    method: 'POST',
    headers: { authorization: `Bearer ${apiKey}`, 'content-type': 'application/x-tar' },
    body: await readFile(archive),
  })
  assert.equal(answer.status, 201, await answer.clone().text())
}
