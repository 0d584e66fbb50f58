import { join } from 'node:path'
import { runCommand } from '../../packages/daemon/src/host/run-command.ts'
import { REPOSITORY } from './daemon-process.ts'

export interface Installed {
  readonly cli: string
  readonly lib: string
  /** How the unit starts the daemon. */
  readonly daemon: readonly [string, ...string[]]
  readonly env: Readonly<Record<string, string>>
}

/** What `make install` does once set-up is done. A second time is an upgrade of the first. */
export async function install(options: { prefix: string; destdir?: string; etc?: string }): Promise<void> {
  const args = Object.entries(options).flatMap(([name, value]) => [`--${name}`, value])
  const script = join(REPOSITORY, 'scripts/install.ts')
  await runCommand([process.execPath, script, ...args], { step: { signal: AbortSignal.timeout(120_000) } })
}

/** A whole install below one directory, its configuration too. */
export async function installedIn(prefix: string): Promise<Installed> {
  await install({ prefix, etc: join(prefix, 'etc') })
  const lib = join(prefix, 'lib/dormouse')
  return {
    cli: join(prefix, 'bin/dormouse'),
    lib,
    daemon: [join(lib, 'node'), join(lib, 'daemon/main.js'), 'serve'],
    env: { NODE_COMPILE_CACHE: join(prefix, 'var/cache/dormouse/node') },
  }
}
