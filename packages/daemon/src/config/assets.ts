import { existsSync } from 'node:fs'
import { join, resolve } from 'node:path'

/** The built parts that a VM is made of, below one directory. */
export interface Assets {
  readonly dir: string
  readonly kernel: string
  readonly initrd: string
  readonly modules: string
  readonly guest: string
  /** The image that guests rehearse with while they wait. */
  readonly rehearsal: string
  readonly shim: string
  readonly networkHelper: string
  /** Puts archives into volumes. */
  readonly fill: string
}

export const assetsIn = (dir: string): Assets => ({
  dir,
  kernel: join(dir, 'kernel/vmlinux'),
  initrd: join(dir, 'guest/initrd.cpio'),
  modules: join(dir, 'kernel/modules.squashfs'),
  guest: join(dir, 'guest/dormouse-guest'),
  rehearsal: join(dir, 'guest/rehearsal.squashfs'),
  shim: join(dir, 'shim/dormouse-shim'),
  networkHelper: join(dir, 'shim/dormouse-net'),
  fill: join(dir, 'shim/dormouse-fill'),
})

/** Beside the program where it is installed as one file; `build/` of the repository where it runs from source. */
export function defaultAssetsDir(programDir: string = import.meta.dirname): string {
  const installed = join(programDir, 'kernel')
  return existsSync(installed) ? programDir : resolve(programDir, '../../../../build')
}
