/** The host takes memory away: guests' pages go to a swap file, files' pages out of the page cache. Only root can see to it. */
import { chmod, readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { runCommand } from '../../packages/daemon/src/host/run-command.ts'

const step = () => ({ signal: AbortSignal.timeout(60_000) })

/** Swap in `dir`, which cannot go before it is disposed of. Throws on a host that takes none. */
export async function addSwap(dir: string, mib: number): Promise<AsyncDisposable> {
  const file = join(dir, 'swap')
  await runCommand(['fallocate', '-l', `${mib}M`, file], { step: step() })
  await chmod(file, 0o600)
  await runCommand(['mkswap', file], { step: step() })
  await runCommand(['swapon', file], { step: step() })
  return {
    async [Symbol.asyncDispose]() {
      await runCommand(['swapoff', file], { step: step() })
    },
  }
}

/** A program that has the pages of a guest taken out of RAM, given its VMM. */
export async function buildPageOut(dir: string): Promise<(vmm: number) => Promise<void>> {
  const program = join(dir, 'page-out')
  await runCommand(['gcc', '-O2', '-o', program, join(import.meta.dirname, 'page-out.c')], { step: step() })
  return async (vmm) => {
    await runCommand([program, `${vmm}`], { step: step() })
  }
}

export async function swappedKib(pid: number): Promise<number> {
  return Number(/^VmSwap:\s+(\d+)/m.exec(await readFile(`/proc/${pid}/status`, 'latin1'))?.[1])
}

/** Drops every file below `dir` from the page cache; what is left of them there, in bytes. */
export async function dropFromCache(dir: string): Promise<number> {
  const files = (await readdir(dir, { recursive: true, withFileTypes: true })).filter((it) => it.isFile())
  let left = 0
  for (const { parentPath, name } of files) {
    const file = join(parentPath, name)
    // With nothing to copy it only says that the file is not needed (POSIX_FADV_DONTNEED).
    await runCommand(['dd', `if=${file}`, 'iflag=nocache', 'count=0', 'status=none'], { step: step() })
    const { stdout } = await runCommand(['fincore', '--bytes', '--noheadings', '--output', 'RES', file], { step: step() })
    left += Number(stdout.trim() || 0)
  }
  return left
}
