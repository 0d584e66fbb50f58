import { chmod, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { TestContext } from 'node:test'
import { endProcessesNaming } from './processes.ts'

/** A directory that goes away with its holder, and what still runs on it. Its path is short, since sockets come to lie below it. */
export class Scratch implements AsyncDisposable {
  readonly path: string

  private constructor(path: string) {
    this.path = path
  }

  static async make(): Promise<Scratch> {
    const path = await mkdtemp(join(tmpdir(), 'dm-'))
    // The VMMs run as other users and have to pass through.
    await chmod(path, 0o755)
    inUse.add(path)
    return new Scratch(path)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await clear(this.path)
    inUse.delete(this.path)
  }
}

async function clear(path: string): Promise<void> {
  await endProcessesNaming(path)
  await rm(path, { recursive: true, force: true, maxRetries: 3 })
}

const inUse = new Set<string>()

// The runner ends a test file that takes too long by SIGTERM. Its VMs would live on: that is what they are made for.
if (process.env.NODE_TEST_CONTEXT !== undefined) {
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    process.once(signal, async () => {
      for (const path of inUse) await clear(path)
      process.exit(1)
    })
  }
}

/** A directory for one test, removed after it. */
export async function scratchDir(t: TestContext): Promise<string> {
  const scratch = await Scratch.make()
  t.after(() => scratch[Symbol.asyncDispose]())
  return scratch.path
}
