/** A real OCI image without a registry: Debian's static busybox, its links, and the few files that a program expects in /etc. */
import { chmod, copyFile, mkdir, rm, symlink, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { runCommand } from '../../packages/daemon/src/host/run-command.ts'
import { type OciLayout, writeOciLayout } from './oci-layout.ts'
import { tarTree } from './tar-tree.ts'

export interface BusyboxImageOptions {
  readonly entrypoint?: readonly string[]
  readonly cmd?: readonly string[]
  readonly env?: readonly string[]
  readonly workingDir?: string
  readonly user?: string
  readonly stopSignal?: string
  /** Further files by absolute path; those below a `bin` directory are executable. */
  readonly files?: Readonly<Record<string, string>>
  /** Programs and libraries to copy: where each lies in the image, and where on this host. */
  readonly programs?: Readonly<Record<string, string>>
  /** The tag in the layout's index. */
  readonly tag?: string
}

const BUSYBOX = '/bin/busybox'

/** Says its name, then counts seconds until it is told to stop. */
export const TICKER: readonly string[] = [
  '/bin/sh',
  '-c',
  'echo "hello from $(hostname)"; trap "echo bye; exit 0" TERM; n=0; while :; do n=$((n+1)); echo "tick $n"; sleep 1 & wait $!; done',
]

/** Writes the image into `dir/oci`. The same options give the same digest. */
export async function makeBusyboxImage(dir: string, options: BusyboxImageOptions = {}): Promise<OciLayout> {
  const tree = join(dir, 'tree')
  const tar = join(dir, 'tree.tar')
  await makeTree(tree, options.files ?? {})
  for (const [name, from] of Object.entries(options.programs ?? {})) {
    await mkdir(join(tree, dirname(name)), { recursive: true })
    await copyFile(from, join(tree, name))
    await chmod(join(tree, name), 0o755)
  }
  await tarTree(tree, tar)
  const layout = await writeOciLayout(join(dir, 'oci'), {
    tar,
    tag: options.tag ?? 'latest',
    config: {
      Env: ['PATH=/bin:/sbin', ...(options.env ?? [])],
      Entrypoint: options.entrypoint,
      Cmd: options.cmd ?? TICKER,
      WorkingDir: options.workingDir ?? '/',
      User: options.user ?? '',
      StopSignal: options.stopSignal,
    },
  })
  await rm(tree, { recursive: true })
  await rm(tar)
  return layout
}

async function makeTree(tree: string, files: Readonly<Record<string, string>>): Promise<void> {
  for (const name of ['bin', 'dev', 'etc', 'proc', 'root', 'run', 'sbin', 'sys', 'tmp', 'usr', 'var']) {
    await mkdir(join(tree, name), { recursive: true })
  }
  await copyFile(BUSYBOX, join(tree, 'bin/busybox'))
  await chmod(join(tree, 'bin/busybox'), 0o755)
  await chmod(join(tree, 'tmp'), 0o1777)
  const { stdout } = await runCommand([BUSYBOX, '--list'], { step: { signal: AbortSignal.timeout(10_000) } })
  for (const applet of stdout.trim().split('\n')) {
    if (applet !== 'busybox') await symlink('busybox', join(tree, 'bin', applet))
  }
  const contents = {
    '/etc/passwd': 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n',
    '/etc/group': 'root:x:0:\nnogroup:x:65534:\n',
    ...files,
  }
  for (const [name, content] of Object.entries(contents)) {
    await mkdir(join(tree, dirname(name)), { recursive: true })
    await writeFile(join(tree, name), content)
    await chmod(join(tree, name), /\/s?bin\//.test(name) ? 0o755 : 0o644)
  }
}
