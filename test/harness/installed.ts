import { join } from 'node:path'
import { runCommand } from '../../packages/daemon/src/host/run-command.ts'
import { REPOSITORY } from './daemon-process.ts'

export interface Installed {
  readonly cli: string
  readonly lib: string
  /** How the unit starts the daemon. */
  readonly daemon: [string, ...string[]]
}

/** `make install` below a directory. A second time is an upgrade of the first. */
export async function installedIn(prefix: string): Promise<Installed> {
  const script = join(REPOSITORY, 'scripts/install.ts')
  await runCommand([process.execPath, script, '--prefix', prefix, '--etc', join(prefix, 'etc')], {
    step: { signal: AbortSignal.timeout(120_000) },
  })
  const lib = join(prefix, 'lib/dormouse')
  return { cli: join(prefix, 'bin/dormouse'), lib, daemon: [join(lib, 'node'), join(lib, 'daemon/main.js'), 'serve'] }
}
