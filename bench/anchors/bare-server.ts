import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

export interface BareServer extends AsyncDisposable {
  readonly socket: string
  readonly pid: number
  /** What is appended here goes to all who follow. */
  readonly log: string
}

/** A process that runs bare-http.ts over these files. */
export async function startBareServer(dir: string, files: Readonly<Record<string, Uint8Array>> = {}): Promise<BareServer> {
  await mkdir(dir, { recursive: true })
  for (const [name, bytes] of Object.entries(files)) await writeFile(join(dir, name), bytes)
  const log = join(dir, 'log')
  await writeFile(log, '')
  const socket = join(dir, 's')
  const program = join(import.meta.dirname, 'bare-http.ts')
  const child = spawn(process.execPath, [program, socket, dir], { stdio: ['ignore', 'pipe', 'inherit'] })
  const ended = once(child, 'exit')
  await Promise.race([once(child.stdout, 'data'), ended.then(() => Promise.reject(new Error('The bare server did not start')))])
  return {
    socket,
    pid: child.pid as number,
    log,
    async [Symbol.asyncDispose]() {
      child.kill('SIGKILL')
      await ended
    },
  }
}
